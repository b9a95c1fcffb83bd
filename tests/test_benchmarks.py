"""The benchmarks: rounds, goals and the page that they write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import report
from scripts.benchmarks.measuring import Results, Run, measure_command, run_rounds
from scripts.benchmarks.peers import installed, list_of_files, one_file
from scripts.benchmarks.rows import ROWS, Ask


def tools(**walls: list[float]) -> dict[str, Any]:
    return {tool: {"wall": wall, "cpu": [1.0] * len(wall), "peak": [10.0] * len(wall)} for tool, wall in walls.items()}


@pytest.mark.parametrize(
    ("ask", "reached", "holds"),
    [
        (Ask(0.6, "aria2"), 0.5, True),
        (Ask(0.4, "aria2"), 0.5, False),
        (Ask(1.5, "aria2", is_rate=True), 2.0, True),
        (Ask(2.5, "aria2", is_rate=True), 2.0, False),
        (Ask(2.5), 2.0, True),
        (Ask(1.5), 2.0, False),
        (Ask(0.5, "curl"), None, False),
        (Ask(1.0, "aria2", quantity="cpu"), 1.0, True),
    ],
)
def test_a_goal_is_judged_by_the_median_of_the_rounds(ask: Ask, reached: float | None, holds: bool) -> None:
    found = tools(dlpool=[2.0, 2.0, 9.0], aria2=[4.0, 4.0, 9.0])
    assert report.value(ask, found) == reached
    assert report.is_reached(ask, reached) is holds


def test_each_round_runs_every_tool_once_in_a_rotated_order() -> None:
    order: list[str] = []

    def tool(name: str) -> Run:
        order.append(name)
        return Run(1.0)

    results = run_rounds({name: lambda name=name: tool(name) for name in "abc"}, 3, warm_up=False, tolerated=1e9)  # type: ignore[misc]
    assert "".join(order) == "abcbcacab"
    assert [len(runs) for runs in results.runs.values()] == [3, 3, 3]
    assert results.repeated == 0


def test_a_round_is_repeated_while_other_processes_take_the_processors() -> None:
    counted = []
    results = run_rounds({"a": lambda: counted.append(1) or Run(1.0)}, 1, warm_up=False, tolerated=-1.0)  # type: ignore[func-returns-value]
    assert (len(counted), results.repeated) == (3, 3)


def test_a_run_has_the_time_and_the_memory_of_the_command() -> None:
    run = measure_command(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
    assert run.wall >= run.cpu * 0.5 > 0
    assert run.peak > 0.1


def test_a_failed_command_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        measure_command(["sh", "-c", "exit 3"])


def test_the_page_names_goals_that_are_missed_and_tools_that_are_faster() -> None:
    data = {
        "rows": {
            "plain": {
                **report.record(
                    Results({"dlpool": [Run(1.0, 1.0)], "aria2": [Run(2.0, 1.0)], "curl": [Run(0.5, 4.0)]})
                ),
            }
        },
        "flat": {
            **report.place_and_date(),
            "lines": [{"what": "jobs", "units": 10, "wall": 1.0, "cpu": 0.5, "peak": 9.0}],
        },
    }
    page = report.table(data)
    assert "| 1 GiB, HTTP, without sync, wall / aria2 | 0.50 | 0.34 | 0.26 (splice alone) | no |" in page
    assert "| 1 GiB, HTTP, without sync, CPU / curl | 0.25 | 0.55 | 0.45 | yes |" in page
    assert "Faster than dlpool here: curl." in page
    assert "| jobs | 10 | 1.00 | 50000 | 9 |" in page


def test_all_rows_have_a_goal_and_every_command_starts_with_a_program(tmp_path: Path) -> None:
    assert all(row.asks for row in ROWS.values())
    commands = one_file("http://h/f") | list_of_files("http://h", ["a"], tmp_path)
    assert all(shutil.which(command(tmp_path)[0]) for command in installed(commands).values())
