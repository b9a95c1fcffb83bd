"""Test that the job that blocks the interpreter of a hung worker is found, and that only it counts a crash."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.jobs.pushed_job import compose_job
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.service.dispatcher import DispatcherServices, JobDispatcher
from dlpool.service.inflight import InFlightTable
from dlpool.service.node.hung_jobs import MIN_TICKS, _name, find_hung_job, thread_ticks
from tests.conftest import wait_until
from tests.test_disposition import make_policy

A, B = _name("a.1"), _name("b.1")
# Three jobs on three threads: one takes quadratic time within the lock, itself or on a thread that it has started.
HUNG = """
import re, sys, threading, time
from dlpool import threads
from dlpool.service.node import hung_jobs
slow = re.compile(r"[ \\t]*([^\\r\\n]*?)[ \\t]*\\n")
def job(lease_id):
    hung_jobs.name_thread(lease_id)
    if lease_id == sys.argv[1]:
        work = lambda: slow.match("a" + " " * 400_000 + "b")
        threads.start_thread(work, "lane") if sys.argv[2] == "lane" else work()
    time.sleep(600)
for lease_id in ("c.1", "b.1"):
    threads.start_thread(lambda lease_id=lease_id: job(lease_id), "slot")
print("up", flush=True)
threads.start_thread(lambda: job("a.1"), "slot")
time.sleep(600)
"""


@pytest.mark.parametrize("thread", ["slot", "lane"])
def test_the_job_that_holds_the_lock_is_told_from_outside(thread: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", HUNG, "a.1", thread], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        wait_until(lambda: thread_ticks(process.pid).get(A, 0) > 0, 120)
        before = thread_ticks(process.pid)
        wait_until(lambda: thread_ticks(process.pid)[A] >= before[A] + MIN_TICKS, 120)
        assert find_hung_job(before, thread_ticks(process.pid), ["c.1", "b.1", "a.1"]) == "a.1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {}, None),
        ({A: 5}, {A: 5}, None),
        ({A: 5}, {A: 5 + MIN_TICKS - 1}, None),
        ({A: 5}, {A: 5 + MIN_TICKS}, "a.1"),
        ({A: 500}, {A: 500, B: 20}, "b.1"),
        ({}, {A: 20, B: 20}, None),
        ({}, {A: 21, B: 20}, "a.1"),
        ({}, {A: 50, "python": 60}, None),
        ({}, {A: 50, "python": 6}, "a.1"),
        ({}, {_name("gone.1"): 50}, None),
        ({"python": 10}, {"python": 90}, None),
    ],
)
def test_a_job_is_told_by_most_of_the_processor_time(
    before: dict[str, int], after: dict[str, int], told: str | None
) -> None:
    assert find_hung_job(before, after, ["a.1", "b.1"]) == told


def test_of_a_process_that_has_gone_nothing_is_told() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert thread_ticks(process.pid) == {}


@pytest.mark.parametrize(
    ("told", "outcomes"),
    [
        (None, {"a": "crash", "b": "crash", "poor": "failed"}),
        ("a.1", {"a": "crash", "b": "release", "poor": "release"}),
        ("poor.1", {"a": "release", "b": "release", "poor": "failed"}),
    ],
)
def test_a_death_counts_against_the_job_that_caused_it(told: str | None, outcomes: dict[str, str]) -> None:
    ended: list[FinishRequest] = []
    quiet: Any = SimpleNamespace(error=lambda *_, **__: None)
    table = InFlightTable()
    cleaner: Any = SimpleNamespace(reassign=lambda _: None)
    recorder: Any = SimpleNamespace(record=ended.append)
    none: Any = None
    services = DispatcherServices(table, none, recorder, cleaner, none, _admission(), none, quiet, none)
    dispatcher = JobDispatcher(services, make_policy(max_crashes=3))
    for name in outcomes:
        raw = compose_job("http://host/file", "/data/file")
        dispatcher.accept(
            ClaimedJob(JobLease(name, 1), raw, len(raw), 1, 2 if name == "poor" else 0, 0, 0, "normal"), 0.0
        )
    leases = {f"{name}.1" for name in outcomes}
    assert {str(held.lease) for held in table.all()} == leases
    handle: Any = SimpleNamespace(frames=lambda: (), jobs=leases, ahead={}, hung_job=told)
    dispatcher.reap(handle, "it was silent")
    assert {one.lease.job_id: one.disposition for one in ended} == outcomes


def _admission() -> Any:
    return SimpleNamespace(admit=lambda *_: None, released_host=lambda *_: "")
