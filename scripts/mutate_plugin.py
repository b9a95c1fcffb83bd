"""A plugin of pytest for ``scripts/mutate``: which test runs, for coverage.py, how long each took, and what failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let coverage.py note what runs from now on under the name of the test."""
    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(item.nodeid)
    yield


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the seconds of each passed test, and the first that failed."""
    seconds, failed = os.environ.get("DLPOOL_TEST_SECONDS"), os.environ.get("DLPOOL_FAILED_TEST")
    if seconds and report.when == "call" and report.passed:
        with Path(seconds).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid} {report.duration:.3f}\n")
    if failed and report.failed and not Path(failed).exists():
        Path(failed).write_text(report.nodeid, encoding="utf-8")
