"""On which CPUs the threads run that fetch small files: those of a worker, and those of a list."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dlpool.affinity import Affinity, CpuReservation, choose_cpu
from tests.conftest import wait_until
from tests.fleet import Client, fleet
from tests.held import HeldFile, wait_for_run
from tests.origin import Connection, File, Origin, Request
from tests.processes import finish, start
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


@many_cpus
def test_cpus_that_the_user_has_selected_stay() -> None:
    seen: list[set[int]] = []

    def work() -> None:
        affinity = Affinity(CPUS[0])
        affinity.pin()
        os.sched_setaffinity(0, {CPUS[1]})
        for step in (affinity.pin, affinity.unpin):
            step()
            seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{CPUS[1]}, {CPUS[1]}]


@many_cpus
def test_a_cpu_is_reserved_once_until_it_is_released(tmp_path: Path) -> None:
    reserved = [CpuReservation(f"{tmp_path.name}-{os.getpid()}-") for _ in range(len(CPUS) + 1)]
    assert sorted(one.cpu for one in reserved if one.cpu is not None) == CPUS
    assert reserved[-1].cpu is None
    reserved[0].close()
    again = CpuReservation(f"{tmp_path.name}-{os.getpid()}-")
    assert again.cpu == reserved[0].cpu
    for one in (*reserved, again):
        one.close()


def test_one_cpu_is_not_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {CPUS[0]})
    reservation = CpuReservation()
    assert reservation.cpu is None
    reservation.close()


def test_a_system_without_affinity_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    reservation = CpuReservation()
    Affinity(reservation.cpu).pin()
    assert (reservation.cpu, choose_cpu(9, [])) == (None, None)
    reservation.close()


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


@many_cpus
@pytest.mark.parametrize("allowed", [CPUS, CPUS[:1]])
def test_a_large_file_of_a_list_uses_the_cpus_of_the_process(tmp_path: Path, allowed: list[int]) -> None:
    def answer(request: Request, connection: Connection) -> None:
        (file if request.path == "/large" else File(b"x"))(request, connection)

    with HeldFile(b"x" * (8 << 20)) as file, Origin(answer) as origin:
        (tmp_path / "list").write_text(f"{origin.url}/small\n{origin.url}/large\n")
        process = start(
            *("fetch", "-i", tmp_path / "list", tmp_path / "out", "-j", 2, "-c", 2),
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        wait_until(lambda: (tmp_path / "out" / "large.part").exists())
        wait_until(lambda: len(origin.requests) >= 3)
        found = [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        file.gate.set()
        finish(process)
    assert all(cpus <= set(allowed) for cpus in found)
    assert sum(cpus == set(allowed) for cpus in found) >= 3  # the main thread and those of two connections
    assert (tmp_path / "out" / "large").read_bytes() == file.data
