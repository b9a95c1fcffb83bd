"""The results as a table in docs/benchmarks.md and as a chart; their data is in docs/benchmarks.json.

A row that is measured again replaces its earlier results; the others stay, with their dates.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchmarks.measuring import Results
from scripts.benchmarks.peers import version
from scripts.benchmarks.rows import LIMIT, ROWS, Ask, Row

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
DATA, TABLE, CHART = DOCS / "benchmarks.json", DOCS / "benchmarks.md", DOCS / "benchmarks.svg"
PROGRAMS = (
    "aria2c",
    "axel",
    "celery",
    "curl",
    "dramatiq",
    "nginx",
    "openssl",
    "rclone",
    "redis-server",
    "rq",
    "wget",
    "wget2",
)
INTRODUCTION = """# Benchmarks

`scripts/bench all` measures dlpool against the tools that are installed, and writes this page. Each round runs every
tool once, in a rotated order; a ratio is the median of the ratios of the rounds. A first round does not count. A round
is repeated if other processes took more than 5 % of the processors meanwhile. Servers and tools share one machine, so
seconds are only good for comparison.

"Goal" is what dlpool is to reach, "limit" what is known to be possible in Python or on this machine. Below 1, dlpool
takes less than the other tool.

![Wall time of each tool, relative to dlpool](benchmarks.svg)
"""


def load() -> dict[str, Any]:
    """Return the data of earlier measurements, by row."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    return found


def record(results: Results) -> dict[str, Any]:
    """Return the data of a measured row."""
    return {
        **place_and_date(),
        "rounds": len(next(iter(results.runs.values()))),
        "repeated": results.repeated,
        "tools": {
            tool: {quantity: [round(getattr(one, quantity), 4) for one in runs] for quantity in ("wall", "cpu", "peak")}
            for tool, runs in results.runs.items()
        },
    }


def place_and_date() -> dict[str, str]:
    """Return the date and the machine of a measurement."""
    return {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "machine": machine()}


def machine() -> str:
    """Return the processors, the kernel and the Python of this machine."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Return the versions of the installed programs."""
    return {program: text for program in PROGRAMS if (text := version(program))}


def value(ask: Ask, tools: Mapping[str, Any]) -> float | None:
    """Return what was reached: a ratio, or seconds if ``ask`` has no peer; None if the peer was not measured."""
    mine: list[float] = tools["dlpool"][ask.quantity]
    if not ask.peer:
        return median(mine)
    if ask.peer not in tools:
        return None
    pairs = list(zip(mine, tools[ask.peer][ask.quantity], strict=True))
    ratios: list[float] = [peer / own if ask.is_rate else own / peer for own, peer in pairs]
    return median(ratios)


def is_reached(ask: Ask, reached: float | None) -> bool:
    return reached is not None and (reached >= ask.goal if ask.is_rate else reached <= ask.goal)


def write(data: Mapping[str, Any]) -> None:
    """Write the data and the table."""
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(table(data), encoding="utf-8")


def table(data: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md."""
    rows = [name for name in ROWS if name in data.get("rows", {})]
    return "\n".join(
        [
            INTRODUCTION,
            *_goals(data, rows),
            "",
            "## All tools",
            "",
            "Medians; in brackets the least and the greatest value. CPU is user and system time of the tool,",
            "for uploads of the servers too.",
            "",
            *(line for name in rows for line in _tools(ROWS[name], data["rows"][name])),
            *_flat(data.get("flat")),
            "## Versions",
            "",
            *(f"- {program}: {text}" for program, text in sorted(data.get("versions", {}).items())),
            "",
        ]
    )


def _goals(data: Mapping[str, Any], rows: list[str]) -> list[str]:
    lines = ["| measured | reached | goal | limit | holds |", "|---|---|---|---|---|"]
    for name in rows:
        for ask in ROWS[name].asks:
            reached = value(ask, data["rows"][name]["tools"])
            what = {"cpu": "CPU", "wall": "wall"}[ask.quantity]
            against = f", {'rate' if ask.is_rate else what} / {ask.peer}" if ask.peer else ""
            lines.append(
                f"| {ROWS[name].title}{against} | {_number(reached)} | {_number(ask.goal)} | {ask.limit} | "
                f"{'yes' if is_reached(ask, reached) else 'no'} |"
            )
    return lines


def _tools(row: Row, found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"### {row.title}",
        "",
        f"{found['date']}, {found['rounds']} rounds, {found['repeated']} repeated; {found['machine']}.",
        "",
        "| tool | wall, s | CPU, s | memory, MB | wall of dlpool / tool |",
        "|---|---|---|---|---|",
    ]
    mine = found["tools"]["dlpool"]["wall"]
    for tool, one in found["tools"].items():
        ratio = median(own / other for own, other in zip(mine, one["wall"], strict=True))
        cpu, peak = median(one["cpu"]), max(one["peak"])
        lines.append(
            f"| {tool} | {_number(median(one['wall']))} ({_number(min(one['wall']))} to {_number(max(one['wall']))}) | "
            f"{_number(cpu) if cpu else ''} | {f'{peak:.0f}' if peak else ''} | {_number(ratio)} |"
        )
    faster = [
        tool
        for tool, one in found["tools"].items()
        if tool not in ("dlpool", LIMIT, "argparse")
        and not tool.startswith("dlpool")
        and median(one["wall"]) < median(mine)
    ]
    return [*lines, "", *([f"Faster than dlpool here: {', '.join(faster)}.", ""] if faster else [])]


def _flat(flat: Mapping[str, Any] | None) -> list[str]:
    if not flat:
        return []
    lines = ["## Cost for each unit of work", "", f"{flat['date']}; {flat['machine']}.", ""]
    lines += ["| measured | units | seconds | microseconds of CPU a unit | memory, MB |", "|---|---|---|---|---|"]
    for one in flat["lines"]:
        unit_us = one["cpu"] / one["units"] * 1e6
        cells = [one["what"], f"{one['units']:,}", _number(one["wall"]), _number(unit_us), f"{one['peak']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _number(found: float | None) -> str:
    if found is None:
        return "not measured"
    return f"{found:.2f}" if found < 10 else f"{found:.1f}" if found < 100 else f"{found:.0f}"
