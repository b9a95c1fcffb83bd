"""Supervisors that are killed, frozen, cut off or doubled: their jobs go on elsewhere, and nobody harms anybody."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_data, wait_until
from tests.fleet import Client, Supervisor, fleet
from tests.held import (
    LATE_S,
    HeldFile,
    check_folder,
    committed,
    events_of,
    fetched_again,
    is_recorded,
    wait_for_commit,
    wait_for_run,
)
from tests.holding import is_running
from tests.origin import File, Origin
from tests.proxy import Proxy
from tests.redis_server import RedisServer

DATA = make_data(1024 * 1024)
DEFAULT_GRACE_MS = 15_000
LEASE_MS, GRACE_MS = 3000, 2000
SHORT: dict[str, Any] = {"lease": "3s", "grace": "2s", "workers": 1, "max_concurrent_downloads": 2}
SLOW_TEST_S = 90.0


@pytest.fixture
def client(redis_server: RedisServer) -> Client:
    return Client(redis_server.client())


def lease_of(client: Client, job_id: str) -> float:
    """When the lease of the job passes, in ms by the clock of Redis."""
    score = client.redis.zscore(client.keys.leases, job_id)
    assert score is not None, "the job is not leased"
    return float(score)


def now_ms(client: Client) -> float:
    """The clock of Redis."""
    seconds, micros = client.redis.time()
    return float(seconds * 1000 + micros / 1000)


def freeze(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def wake(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def named(events: list[tuple[int, str]]) -> list[str]:
    return [name for _, name in events]


def has_let_go(service: Supervisor, job_id: str) -> bool:
    """Whether its log says that the job is another's."""
    said = [*service.events("job_lost"), *service.events("job_fenced")]
    return any(record["dlpool.job.id"] == job_id for record in said)


# --- the network ---


def test_row_a_connection_a_response_or_the_network_that_breaks_costs_only_the_retry(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        Proxy(("127.0.0.1", origin.port)) as network,
        fleet(tmp_path, redis_server.url, "a", transfer={"retries": 1000}) as (service,),
    ):
        url = f"http://127.0.0.1:{network.port}/f"
        client.push(url, "f", id="f")
        wait_for_commit(service.out / "f")
        kept, asked = committed(service.out / "f"), len(origin.requests)
        network.drop()  # responses break off
        wait_until(lambda: len(origin.requests) > asked, LATE_S)
        network.refuse()  # and then there is no network at all
        wait_until(lambda: len(service.events("range_retry")) > 8, LATE_S)
        network.pass_on()
        file.gate.set()
        client.wait_for(url)
        assert fetched_again(origin.requests[asked:], kept) == []
        assert named(events_of(client, "f")) == ["job_started", "job_succeeded"]
        check_folder(service.out, DATA, "f")


# --- killed ---


def test_row_the_supervisor_killed_and_restarted_goes_on_at_once_with_what_was_committed(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, fleet(tmp_path, redis_server.url, "a") as (service,):
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_commit(service.out / "f")
        kept, asked, family = committed(service.out / "f"), len(origin.requests), service.family()
        service.kill()
        wait_until(lambda: not any(map(is_running, family)), 6.0)
        leased_until = lease_of(client, "f")
        service.start()
        wait_for_run(service, "f", 2)
        file.gate.set()
        client.wait_for(f"{origin.url}/f")
        events = events_of(client, "f")
        assert named(events) == ["job_started", "job_recovered", "job_started", "job_succeeded"]
        assert events[1][0] < leased_until + DEFAULT_GRACE_MS  # nobody has waited for that lease
        assert origin.requests[asked:]
        assert fetched_again(origin.requests[asked:], kept) == []
        check_folder(service.out, DATA, "f")
        assert service.stop() == 0, service.said()
        assert client.leftovers() == []
        assert list(service.state_dir.glob("stacks-*")) == []


@pytest.mark.parametrize("has_state", [True, False], ids=["recorded in the state", "marked in the file"])
def test_a_kill_between_publish_and_record_costs_no_request_and_leaves_nothing(
    has_state: bool, redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with HeldFile(DATA) as file, Origin(file) as origin, fleet(tmp_path, redis_server.url, "a") as (service,):
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_run(service, "f")
        if has_state:
            wait_for_commit(service.out / "f")
        freeze(service.pid)
        file.gate.set()
        wait_until((service.out / "f").exists, LATE_S)
        service.kill()
        assert is_recorded(service.out / "f", "f")
        assert (service.out / "f.part.meta").exists() == has_state
        assert client.success(f"{origin.url}/f") is None
        asked = len(origin.requests)
        service.start()
        client.wait_for(f"{origin.url}/f")
        assert len(origin.requests) == asked
        assert client.ends("f") == 1
        wait_until(lambda: not (service.out / "f.part.meta").exists(), LATE_S)
        check_folder(service.out, DATA, "f")


def test_a_kill_between_record_and_tidying_leaves_nothing_after_the_restart(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    """The worker that would tidy is stopped; then both are killed."""
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        fleet(tmp_path, redis_server.url, "a", supervisor=SHORT) as (service,),
    ):
        client.push(f"{origin.url}/f", "f", id="f")
        worker = wait_for_run(service, "f")
        wait_for_commit(service.out / "f")
        freeze(service.pid)
        file.gate.set()
        wait_until((service.out / "f").exists, LATE_S)
        os.kill(worker, signal.SIGSTOP)
        wake(service.pid)
        wait_until(lambda: client.success(f"{origin.url}/f") is not None or not is_running(worker), LATE_S)
        os.kill(worker, signal.SIGKILL)
        service.kill()
        assert (service.out / "f.part.meta").exists()
        service.start()
        client.wait_for(f"{origin.url}/f")
        wait_until(lambda: not (service.out / "f.part.meta").exists(), LATE_S)
        check_folder(service.out, DATA, "f")
        assert client.ends("f") == 1


def test_row_a_host_that_is_gone_is_replaced_after_lease_and_grace_and_not_before(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    settings: dict[str, Any] = {"supervisor": SHORT, "paths": {"download_dir": shared}}
    with HeldFile(DATA) as file, Origin(file) as origin, fleet(tmp_path, redis_server.url, "a", **settings) as (gone,):
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_commit(shared / "f")
        with fleet(tmp_path, redis_server.url, "b", **settings) as (other,):
            kept, asked = committed(shared / "f"), len(origin.requests)
            gone.kill()
            leased_until = lease_of(client, "f")
            wait_for_run(other, "f")
            file.gate.set()
            client.wait_for(f"{origin.url}/f")
            events = events_of(client, "f")
            assert named(events) == ["job_started", "job_recovered", "job_started", "job_succeeded"]
            assert events[1][0] >= leased_until + GRACE_MS
            assert events[1][0] - events[0][0] >= LEASE_MS + GRACE_MS
            assert fetched_again(origin.requests[asked:], kept) == []
            check_folder(shared, DATA, "f")
            assert other.stop() == 0, other.said()


# --- frozen ---


@pytest.mark.parametrize("whole", [True, False], ids=["with its workers", "alone"])
def test_a_supervisor_frozen_past_its_lease_and_woken_harms_nothing(
    whole: bool, redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        fleet(tmp_path, redis_server.url, "a", supervisor={**SHORT, "worker_timeout": "4s"}) as (frozen,),
    ):
        client.push(f"{origin.url}/f", "f", id="f")
        wait_for_commit(frozen.out / "f")
        pids = [frozen.pid, *(worker.pid for worker in frozen.workers() if whole)]
        freeze(*pids)
        with fleet(tmp_path, redis_server.url, "b", supervisor=SHORT) as (other,):
            wait_for_run(other, "f")
            file.gate.set()
            client.wait_for(f"{origin.url}/f")
            wake(*pids)
            wait_until(lambda: has_let_go(frozen, "f"), LATE_S)
            assert frozen.events("worker_hung") == []  # it was the supervisor that did not listen
            client.push(f"{origin.url}/g", "g", id="g")  # both are of use again
            client.wait_for(f"{origin.url}/g")
            wait_until(lambda: list(frozen.out.glob("f*")) == [], LATE_S)
            assert (other.out / "f").read_bytes() == DATA
            assert [client.ends(job_id) for job_id in "fg"] == [1, 1]
            assert [frozen.stop(), other.stop()] == [0, 0]
        assert client.leftovers() == []
        assert [path.name for service in (frozen, other) for path in service.out.glob("*.part*")] == []


def test_a_zombie_that_waits_for_permission_to_publish_gets_none(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"supervisor": SHORT, "logging": {"progress_interval": "100ms"}}
    with (
        HeldFile(DATA) as file,
        Origin(file) as origin,
        fleet(tmp_path, redis_server.url, "a", **settings) as (zombie,),
    ):
        client.push(f"{origin.url}/f", "f", id="f")
        worker = wait_for_run(zombie, "f")
        began = events_of(client, "f")[0][0]
        wait_until(lambda: now_ms(client) > began + LEASE_MS, LATE_S)  # the lease of the claim would be permission
        freeze(zombie.pid)
        file.gate.set()
        wait_until(
            lambda: any(record.get("dlpool.phase") == "publishing" for record in zombie.events("download_progress")),
            LATE_S,
        )
        freeze(worker)
        with fleet(tmp_path, redis_server.url, "b", **settings) as (other,):
            client.wait_for(f"{origin.url}/f", timeout_s=SLOW_TEST_S)
            wake(zombie.pid, worker)
            wait_until(lambda: has_let_go(zombie, "f"), LATE_S)
            wait_until(lambda: list(zombie.out.iterdir()) == [], LATE_S)
            assert client.ends("f") == 1
            check_folder(other.out, DATA, "f")


# --- two at once ---


def test_a_second_supervisor_of_one_state_folder_ends_with_a_sentence(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    with Origin(File(DATA)) as origin, fleet(tmp_path, redis_server.url, "a", supervisor=SHORT) as (service,):
        second = Supervisor(tmp_path / "b", redis_server.url, {"paths": {"state_dir": service.state_dir}})
        try:
            assert second.start(is_ready=False).wait() == 75
        finally:
            second.__exit__(None, None, None)
        (said,) = second.errors.read_text().splitlines()
        assert f"another supervisor (pid {service.pid}) uses {service.state_dir}" in said
        client.push(f"{origin.url}/f", "f", id="f")
        client.wait_for(f"{origin.url}/f")


def test_two_supervisors_one_killed_twice_end_each_of_200_jobs_once(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    data, shared = DATA[:40_000], tmp_path / "shared"
    shared.mkdir()
    settings: dict[str, Any] = {
        "supervisor": {**SHORT, "workers": 2, "max_concurrent_downloads": 8},
        "paths": {"download_dir": shared},
    }
    names = [f"f{number}" for number in range(200)]
    with (
        Origin(File(data, block=10_000, pause_s=0.06)) as origin,
        fleet(tmp_path, redis_server.url, "a", "b", **settings) as (service, other),
    ):
        for name in names:
            client.push(f"{origin.url}/{name}", name, id=name)
        for done in (20, 90):
            wait_until(lambda done=done: client.redis.zcard(client.keys.done) >= done, LATE_S)  # type: ignore[misc]
            service.kill()
            service.start()
        client.wait_for(*(f"{origin.url}/{name}" for name in names), timeout_s=SLOW_TEST_S)
        assert {client.ends(name) for name in names} == {1}
        assert client.redis.hlen(client.keys.failed) == 0
        assert any("job_recovered" in named(events_of(client, name)) for name in names)
        check_folder(shared, data, *names)
        assert [service.stop(), other.stop()] == [0, 0]
    assert client.leftovers() == []
