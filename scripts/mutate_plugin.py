"""A pytest plugin for ``scripts/mutate``: records the calls of each test, its duration, and the failed test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import mutate_recorder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Record the calls that follow under the name of the test."""
    mutate_recorder.start_test(item.nodeid)
    yield


@pytest.hookimpl
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the seconds of each passed test, and the first failed test."""
    seconds, failed = os.environ.get("DLPOOL_TEST_SECONDS"), os.environ.get("DLPOOL_FAILED_TEST")
    if seconds and report.when == "call" and report.passed:
        with Path(seconds).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid} {report.duration:.3f}\n")
    if failed and report.failed and not Path(failed).exists():
        Path(failed).write_text(report.nodeid, encoding="utf-8")
