"""Redis goes away, and comes back with or without what it had: nothing is lost, fetched or recorded twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, JobLease
from dlpool.service.queue.spool import Spool
from tests.conftest import free_port
from tests.fleet import Client, Supervisor, fleet
from tests.origin import Connection, File, Origin, Request
from tests.outage import (
    DATA,
    SINGLE,
    Gate,
    assert_ended_once,
    assert_nobody_was_robbed,
    heard,
    is_fetched_once,
    let_pass,
    push_numbered,
    spooled,
    wait_until,
    waiting,
)
from tests.redis_server import RedisServer

SHORT = {"lease": "1s", "grace": "1s"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own that keeps what it acknowledged."""
    with RedisServer(tmp_path / "redis", appendonly=True) as started:
        yield started


# --- away ---


def test_redis_away_for_5_minutes_or_any_multiple_of_lease_and_grace_costs_nothing(
    server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(server.client()), Gate()
    with Origin(gate) as origin, fleet(tmp_path, server.url, "a", "b", supervisor=SHORT, transfer=SINGLE) as both:
        ids, urls = push_numbered(client, origin, 10)
        wait_until(lambda: len(origin.requests) == 10)
        server.kill()
        let_pass(6.0)  # three times lease and grace
        gate.open()
        server.start()
        client.wait_for(*urls)
        assert_nobody_was_robbed(*both)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)
    files = [path.read_bytes() for one in both for path in one.out.glob("*.bin")]
    assert files == [DATA] * 10


def test_redis_away_for_60_s_with_the_leases_that_are_shipped(server: RedisServer, tmp_path: Path) -> None:
    """Some downloads end meanwhile, others go on through all of it."""
    client = Client(server.client())

    def slow_or_fast(request: Request, connection: Connection) -> None:
        pause_s = 1.0 if int(request.path[1:]) % 2 else 0.5
        File(DATA, block=len(DATA) // 64, pause_s=pause_s)(request, connection)

    with Origin(slow_or_fast) as origin, fleet(tmp_path, server.url, "a", "b", transfer=SINGLE) as both:
        ids, urls = push_numbered(client, origin, 10)
        wait_until(lambda: len(origin.requests) == 10)
        server.kill()
        let_pass(60.0)
        server.start()
        client.wait_for(*urls)
        assert_nobody_was_robbed(*both)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)


def test_a_download_that_ends_after_its_lease_waits_for_redis_before_it_is_published(
    server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(server.client()), Gate()
    settings = {"transfer": SINGLE, "supervisor": {"lease": "1s"}, "logging": {"progress_interval": "0.1s"}}
    with Origin(gate) as origin, Supervisor(tmp_path, server.url, settings) as service:
        ids, urls = push_numbered(client, origin, 1)
        wait_until(lambda: len(origin.requests) == 1)
        server.kill()
        let_pass(2.0)  # longer than the lease
        gate.open()
        wait_until(lambda: any(line["dlpool.phase"] == "publishing" for line in service.events("download_progress")))
        assert not (service.out / "0.bin").exists()
        server.start()
        client.wait_for(*urls)
        assert (service.out / "0.bin").read_bytes() == DATA
    assert_ended_once(client, *ids)
    assert len(origin.requests) == 1


def test_outcomes_that_are_final_are_on_disk_while_redis_is_away_and_recorded_on_its_return(
    server: RedisServer, tmp_path: Path
) -> None:
    """They are more than are told in one round trip."""
    client, gate = Client(server.client()), Gate()
    many = {"supervisor": {"max_concurrent_downloads": 80}}
    with Origin(gate) as origin, Supervisor(tmp_path, server.url, many) as service:
        for number in range(80):
            client.push(f"{origin.url}/missing/{number}", f"{number}.bin", id=f"job-{number}")
        wait_until(lambda: len(origin.requests) == 80)
        server.kill()
        gate.open()
        wait_until(lambda: spooled(service) == 80)
        server.start()
        wait_until(lambda: client.redis.hlen(client.keys.failed) == 80)
        wait_until(lambda: spooled(service) == 0)
    assert_ended_once(client, *(f"job-{number}" for number in range(80)))


def test_outcomes_on_disk_outlive_the_supervisor_and_are_recorded_once(server: RedisServer, tmp_path: Path) -> None:
    client, gate = Client(server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, server.url) as service:
        urls = [f"{origin.url}/missing/{number}" for number in range(3)]
        for number, url in enumerate(urls):
            client.push(url, f"{number}.bin", id=f"job-{number}")
        wait_until(lambda: len(origin.requests) == 3)
        server.kill()
        gate.open()
        wait_until(lambda: spooled(service) == 3)
        service.kill()
        server.start()
        service.start()
        for url in urls:
            client.wait_for_failure(url)
        wait_until(lambda: spooled(service) == 0)
        assert len(service.events("spooled_result_recorded")) == 3
        assert service.stop() == 0
    assert_ended_once(client, *(f"job-{number}" for number in range(3)))
    assert len(origin.requests) == 3
    assert client.leftovers() == []


def test_an_outcome_that_a_kill_cut_off_is_not_kept_for_good(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.store("node-00000000", FinishRequest(JobLease("job-a", 1), Disposition.FAIL))
    (spool.folder / "job-b.2.tmp").write_text('{"half of')
    again = Spool(tmp_path)
    assert [path.name for path in again.folder.iterdir()] == ["job-a.1.json"]
    assert [ending.lease.job_id for _, ending in again.stored()] == ["job-a"]


def test_a_file_that_is_published_while_redis_is_away_is_recorded_by_the_next_start(
    server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, server.url, {"transfer": SINGLE}) as service:
        ids, urls = push_numbered(client, origin, 1)
        wait_until(lambda: len(origin.requests) == 1)
        server.kill()
        gate.open()
        wait_until(lambda: spooled(service) == 1)
        assert (service.out / "0.bin").read_bytes() == DATA
        service.kill()
        server.start()
        service.start()
        client.wait_for(*urls)
        assert service.stop() == 0
    assert_ended_once(client, *ids)
    assert len(origin.requests) == 1


def test_an_outcome_on_disk_that_redis_refuses_keeps_no_supervisor_from_working(
    server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, server.url) as service:
        client.push(f"{origin.url}/missing", "a.bin", id="job-a")
        wait_until(lambda: len(origin.requests) == 1)
        server.kill()
        gate.open()
        wait_until(lambda: spooled(service) == 1)
        service.kill()
        server.start()
        client.redis.set(client.keys.failed, "of another type")
        service.start()
        client.push(f"{origin.url}/b", "b.bin")
        wait_until(lambda: client.success(f"{origin.url}/b") is not None)
        assert spooled(service) == 0
        assert len(service.events("record_refused")) == 1
    assert_ended_once(client, "job-a")


def test_a_supervisor_that_ends_while_redis_is_away_leaves_its_jobs_to_its_next_start(
    server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(server.client()), Gate()
    settings = {"supervisor": {"drain_timeout": "0s"}}
    with Origin(gate) as origin, Supervisor(tmp_path, server.url, settings) as service:
        ids, urls = push_numbered(client, origin, 2)
        wait_until(lambda: len(origin.requests) == 2)
        server.kill()
        assert service.stop() == 0, service.said()
        gate.open()
        server.start()
        service.start()
        client.wait_for(*urls)
    assert_ended_once(client, *ids, starts=None)


def test_a_supervisor_that_starts_while_redis_is_away_comes_up_with_it(server: RedisServer, tmp_path: Path) -> None:
    client = Client(server.client())
    server.stop()
    with Origin(File(DATA)) as origin, waiting(tmp_path, server.url) as service:
        wait_until(lambda: len(service.events("worker_started")) > 0 and service.events("redis_unavailable") != [])
        let_pass(3.0)  # several tries
        assert service.process is not None and service.process.poll() is None, service.said()
        assert service.events("service_ready") == []
        assert len(service.events("redis_unavailable")) == 1
        server.start()
        client.push(f"{origin.url}/a", "a.bin")
        client.wait_for(f"{origin.url}/a")
        wait_until(lambda: len(service.events("service_ready")) == 1)


def test_a_supervisor_that_waits_for_redis_still_ends_when_told_to(tmp_path: Path) -> None:
    with waiting(tmp_path, f"redis://127.0.0.1:{free_port()}") as service:
        wait_until(lambda: service.events("redis_unavailable") != [])
        assert service.stop() == 0, service.said()


# --- there, but not as it was ---


def test_scripts_that_redis_forgets_are_loaded_again(redis_server: RedisServer, tmp_path: Path) -> None:
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, redis_server.url) as service:
        ids, urls = push_numbered(client, origin, 3)
        wait_until(lambda: len(origin.requests) == 3)
        client.redis.script_flush()
        gate.open()
        client.wait_for(*urls)
        assert service.events("redis_unavailable") == []
    assert_ended_once(client, *ids)


def test_a_redis_without_memory_is_waited_for(server: RedisServer, tmp_path: Path) -> None:
    client, gate = Client(server.client()), Gate()
    with Origin(gate) as origin, fleet(tmp_path, server.url, "a", "b", supervisor=SHORT, transfer=SINGLE) as both:
        ids, urls = push_numbered(client, origin, 10)
        wait_until(lambda: len(origin.requests) == 5 * 2)
        client.redis.config_set("maxmemory", 1)
        gate.open()
        wait_until(lambda: all(one.events("redis_unavailable") for one in both))
        let_pass(3.0)  # longer than lease and grace
        client.redis.config_set("maxmemory", 0)
        more_ids, more_urls = push_numbered(client, origin, 3, start=10)
        client.wait_for(*urls, *more_urls)
        assert_nobody_was_robbed(*both)
    assert_ended_once(client, *ids, *more_ids)
    assert is_fetched_once(origin)


def test_a_failure_hash_of_a_wrong_type_ends_the_job_without_its_record(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.redis.set(client.keys.failed, "of another type")
        client.push(f"{origin.url}/missing", "a.bin", id="job-a")
        client.redis.rpush(client.keys.success(f"{origin.url}/0"), "of another type, too")
        ids, _ = push_numbered(client, origin, 3)
        wait_until(lambda: len(origin.requests) == 4)
        gate.open()
        wait_until(lambda: len(service.events("record_refused")) == 1)
        wait_until(lambda: len(client.redis.zrange(client.keys.done, 0, -1)) == 3)
        wait_until(lambda: client.redis.zrange(client.keys.dead, 0, -1) == [b"job-a"])
        assert client.success(f"{origin.url}/0") is not None
        assert service.events("redis_unavailable") == []
    assert_ended_once(client, "job-a", *ids)


def test_a_redis_that_was_emptied_serves_new_jobs(redis_server: RedisServer, tmp_path: Path) -> None:
    """Those that waited are gone; what ran ends without a record, as nobody knows of it."""
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, redis_server.url) as service:
        push_numbered(client, origin, 8)
        wait_until(lambda: len(origin.requests) == 5)
        client.redis.flushall()
        ids, urls = push_numbered(client, origin, 6, start=100)
        gate.open()
        client.wait_for(*urls)
        wait_until(lambda: len(service.events("job_lost") + service.events("job_fenced")) == 5)
        wait_until(lambda: not any(client.redis.scard(key) for key in client.redis.keys("*:own:*")))
        assert service.stop() == 0, service.said()
    assert_ended_once(client, *ids)
    assert {job_id for _, job_id in heard(client)} == set(ids)
    assert len(service.records()) < 200, "a loop"


def test_a_job_pushed_again_after_redis_was_emptied_runs(redis_server: RedisServer, tmp_path: Path) -> None:
    """Under its old id, and with the counter of fences at its beginning: the two are not confused."""
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, redis_server.url):
        ids, urls = push_numbered(client, origin, 2)
        wait_until(lambda: len(origin.requests) == 2)
        client.redis.flushall()
        push_numbered(client, origin, 2)
        gate.open()
        client.wait_for(*urls)
    assert_ended_once(client, *ids, starts=None)


def test_a_redis_that_blinks_again_and_again_costs_nothing(server: RedisServer, tmp_path: Path) -> None:
    client = Client(server.client())
    with Origin(File(DATA, block=20_000, pause_s=0.05)) as origin, Supervisor(tmp_path, server.url) as service:
        ids, urls = push_numbered(client, origin, 20)
        for _ in range(4):
            before = len(service.events("redis_available"))
            server.kill()
            wait_until(lambda: len(service.events("redis_unavailable")) > before)  # noqa: B023 - called here
            server.start()
            wait_until(lambda: len(service.events("redis_available")) > before)  # noqa: B023 - called here
        client.wait_for(*urls)
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
    assert_ended_once(client, *ids)
    assert len(list(service.out.iterdir())) == 20
