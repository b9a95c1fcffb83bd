"""The command line of the benchmarks: ``scripts/bench all``, or the names of rows."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.benchmarks import chart, flat, report
from scripts.benchmarks.measuring import run_rounds
from scripts.benchmarks.rows import ROWS, Row

ROUNDS = 7


def measure(row: Row, rounds: int, only: list[str]) -> dict[str, object]:
    """Measure one row and print it; ``only``: tools to leave out all others, empty for all."""
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    try:
        with row.setup(folder) as measures:
            chosen = {name: one for name, one in measures.items() if not only or name in (*only, "dlpool")}
            results = run_rounds(chosen, rounds)
    finally:
        shutil.rmtree(folder)
    found = report.record(results)
    for ask in row.asks:
        reached = report.value(ask, found["tools"])
        text = "not measured" if reached is None else f"{reached:.2f}"
        print(f"{row.title}, {ask.quantity} / {ask.peer or '1 s'}: {text} (goal {ask.goal})", flush=True)
    for tool in results.runs:
        print(f"    {tool:20} {results.median(tool):8.3f} s, CPU {results.median(tool, 'cpu'):7.3f} s", flush=True)
    return found


def measure_flat(most: int) -> dict[str, object]:
    """Measure the cost for each unit of work."""
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    (folder / "www").mkdir()
    try:
        return {**report.place_and_date(), "lines": flat.measure(folder, most)}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=ROUNDS, metavar="N", help="rounds, after one to warm up")
    parser.add_argument("--tool", action="append", default=[], help="measure only this tool beside dlpool (repeatable)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.* also for single rows")
    parser.add_argument("--most", type=int, default=1_000_000, metavar="N", help="longest list and queue of flat")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, flat, or of: {', '.join(ROWS)}")
    options = parser.parse_args()
    if unknown := set(options.rows) - {*ROWS, "all", "flat"}:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    is_all = "all" in options.rows or not options.rows
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    data = report.load()
    for name in [*ROWS, "flat"] if is_all else options.rows:
        if name == "flat":
            data["flat"] = measure_flat(options.most)
        else:
            data.setdefault("rows", {})[name] = measure(ROWS[name], options.runs, options.tool)
        if is_all or options.write:
            data["versions"] = report.versions()
            report.write(data)
            chart.draw(data, report.CHART)


if __name__ == "__main__":
    sys.exit(main())
