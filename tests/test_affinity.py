"""On which CPUs the threads of a worker run."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dlpool.service.worker.affinity import Affinity, choose_cpu
from tests.conftest import wait_until
from tests.fleet import Client, fleet
from tests.held import HeldFile, wait_for_run
from tests.origin import Origin
from tests.redis_server import RedisServer

CPUS = sorted(os.sched_getaffinity(0))
many_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU only")


@many_cpus
def test_each_worker_gets_the_cpu_that_the_fewest_have() -> None:
    taken: list[int | None] = []
    for _ in range(2 * len(CPUS)):
        taken.append(choose_cpu(2 * len(CPUS), taken))
    assert sorted(cpu for cpu in taken if cpu is not None) == sorted(2 * CPUS)


def test_fewer_workers_than_cpus_stay_free() -> None:
    assert choose_cpu(len(CPUS) - 1, []) is None


@many_cpus
def test_a_thread_settles_and_spreads_alone() -> None:
    seen: list[set[int]] = []

    def work() -> None:
        affinity = Affinity(CPUS[1])
        for step in (affinity.pin, affinity.unpin):
            step()
            seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{CPUS[1]}, set(CPUS)]
    assert os.sched_getaffinity(0) == set(CPUS)


def test_without_a_cpu_nothing_changes() -> None:
    Affinity(None).pin()
    assert os.sched_getaffinity(0) == set(CPUS)


def test_a_cpu_that_is_gone_is_no_failure() -> None:
    Affinity(1 << 20).pin()
    assert os.sched_getaffinity(0) == set(CPUS)


def spread_threads(pid: int) -> int:
    """How many threads of the process may use all CPUs."""
    return sum(os.sched_getaffinity(int(task.name)) == set(CPUS) for task in Path(f"/proc/{pid}/task").iterdir())


@many_cpus
def test_a_large_job_uses_all_cpus_and_an_idle_worker_one(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())
    workers = {"workers": len(CPUS), "max_concurrent_downloads": len(CPUS)}
    with (
        HeldFile(b"x" * (1 << 20)) as file,
        Origin(file) as origin,
        fleet(tmp_path, redis_server.url, "a", supervisor=workers) as (service,),
    ):
        wait_until(lambda: [spread_threads(worker.pid) for worker in service.workers()] == [0] * len(CPUS))
        client.push(f"{origin.url}/f", "f", id="f")
        worker = wait_for_run(service, "f")
        wait_until(lambda: spread_threads(worker) > 0)
        file.gate.set()
        client.wait_for(f"{origin.url}/f")
