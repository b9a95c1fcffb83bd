"""A Redis Cluster: what clients read is in other slots than the queue, and each record gets there all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import RedisSettings
from dlpool.errors import QueueAway
from dlpool.jobs.client_records import ClientRecord, failure_record, success_record
from dlpool.jobs.connection import connect
from dlpool.jobs.failure_records import FailureRecords
from dlpool.jobs.host_slots import HostLimit, HostSlots
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import QueueKeys, host_slot_keys
from dlpool.jobs.outbox import BATCH, Outbox
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.server_check import check_server
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, Transitions
from tests import processes
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.outage import DATA, Gate, assert_ended_once, is_fetched_once, push_numbered, spooled, wait_until
from tests.redis_kinds import Cluster

KEYS = QueueKeys()
NOW = 1_800_000_000.0
URL = "http://h/1"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes: the first has the queue, the second the failure records."""
    with Cluster(tmp_path / "cluster", masters=3) as started:
        yield started


@pytest.fixture(scope="module")
def _one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def one(_one: Cluster) -> Cluster:
    """One node, which is empty."""
    _one.client().flushall()
    return _one


def queue_of(cluster: Cluster, folder: Path) -> Transitions:
    return Transitions(connect(replace(RedisSettings(), url=cluster.url), folder), KEYS)


def outbox_of(queue: Transitions) -> Outbox:
    assert queue.outbox is not None
    return queue.outbox


def success(at: float = NOW) -> ClientRecord:
    return success_record(KEYS, PushedJob.parse(compose_job(URL, "1")), 1, 1.0, at)


def failure(at: float = NOW) -> ClientRecord:
    return failure_record(KEYS, URL, compose_job(URL, "1"), "gone", at)


def end_one(queue: Transitions, record: ClientRecord, job_id: str = "job-1") -> FinishRequest:
    """Push, claim and end a job; its record is in the outbox then, as after a kill."""
    queue.push([(PushedJob.parse(compose_job(URL, "1")), job_id)])
    queue.heartbeat("s", [], lease_s=30, info={})
    claim = queue.claim("s", [], 1, lease_s=30, order="fifo")
    assert claim is not None
    ending = FinishRequest(claim.jobs[0].lease, Disposition.FAIL if record.field else Disposition.SUCCEED, record)
    assert queue.finish("s", [ending]) == ["OK"]
    return ending


def grow_old(queue: Transitions, seconds: int) -> None:
    """All that is in the outbox was put there so much earlier."""
    client: Any = queue.client
    for lease, entry in client.hgetall(KEYS.outbox).items():
        put_ms, _, rest = entry.partition(b" ")
        client.hset(KEYS.outbox, lease, b"%d %b" % (int(put_ms) - seconds * 1000, rest))


# --- the slots of hosts -------------------------------------------------------------------------------------------


def test_the_slots_of_a_host_are_on_another_node_and_the_queue_works_without_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    slots = HostSlots(queue_of(cluster, tmp_path))
    hosts = [f"h{number}" for number in range(60)]  # some of them on each node
    for host in hosts:
        assert [
            slots.acquire(HostLimit(host, 1), name, lease_s=30, is_start_reserved=False).wait_s for name in "ab"
        ] == [0, None]
        slots.release(host, "a")
        assert slots.acquire(HostLimit(host, 1), "b", lease_s=30, is_start_reserved=False).wait_s == 0
    cluster.masters[1].kill()
    places = [slots.acquire(HostLimit(host, 1), "b", lease_s=30, is_start_reserved=True) for host in hosts]
    assert {place.wait_s for place in places} == {0, None}
    assert all(place.is_start_reserved and place.problem for place in places if place.wait_s is None)
    slots.renew([(host, "b") for host in hosts], lease_s=3000)
    for host in (host for host, place in zip(hosts, places, strict=True) if place.wait_s == 0):
        (key, _), master = host_slot_keys(host), cluster.masters[0]
        assert master.client().pttl(key) > 3_000_000, "a node that is away keeps no other slot from being renewed"
    for host in hosts:
        slots.release(host, "b")


# --- the service --------------------------------------------------------------------------------------------------


def test_jobs_end_with_records_that_are_on_another_node(cluster: Cluster, tmp_path: Path) -> None:
    client = Client(cluster.client())
    with Origin(File(DATA)) as origin, Supervisor(tmp_path / "service", cluster.url) as service:
        ids, urls = push_numbered(client, origin, 20)
        client.push("http://127.0.0.1:1/", "none.bin", id="job-bad", max_attempts=1)
        client.wait_for(*urls)
        client.wait_for_failure("http://127.0.0.1:1/")
        pushed = processes.run("push", f"{origin.url}/cli", "cli.bin", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        client.wait_for(f"{origin.url}/cli")
        wait_until(lambda: client.ends(pushed.out.strip()) == 1)
        stats = processes.run("stats", "--json", "-c", service.ini).json
        assert (stats["succeeded"], stats["failed"], stats["failure_records"]) == (21, 1, 1)
        assert processes.run("jobs", "-c", service.ini).out.count("succeeded") == 21
        assert service.events("redis_unavailable") == []
        assert service.stop() == 0, service.said()
    assert_ended_once(client, *ids, "job-bad")
    assert 0 < client.redis.ttl(KEYS.success(urls[0])) <= 86_400
    assert client.leftovers() == []


def test_a_record_whose_node_is_away_keeps_no_job_from_its_end_and_comes_later(
    cluster: Cluster, tmp_path: Path
) -> None:
    queue_node, records_node, _ = cluster.masters
    gate, client = Gate(), Client(cluster.client())
    queue, records = Client(queue_node.client()), Client(records_node.client())
    with Origin(gate) as origin, Supervisor(tmp_path / "service", cluster.url) as service:
        for number in range(3):
            client.push(f"{origin.url}/missing/{number}", f"{number}.bin", id=f"job-{number}")
        wait_until(lambda: len(origin.requests) == 3)
        records_node.kill()
        gate.open()
        wait_until(lambda: queue.redis.hlen(KEYS.outbox) == 3)
        assert_ended_once(queue, *(f"job-{number}" for number in range(3)))
        wait_until(lambda: service.events("records_pending") != [])
        assert spooled(service) == 0
        records_node.start()
        cluster.wait_until_ok()
        for number in range(3):
            records.wait_for_failure(f"{origin.url}/missing/{number}")
        wait_until(lambda: not queue.redis.exists(KEYS.outbox))
        wait_until(lambda: sum(line["dlpool.records"] for line in service.events("records_replayed")) == 3)


def test_a_replica_that_takes_over_continues_the_queue(tmp_path: Path) -> None:
    gate = Gate()
    with Cluster(tmp_path / "cluster", masters=1, replicas=1) as cluster, Origin(gate) as origin:
        before, after = cluster.nodes
        client = Client(cluster.client())
        with Supervisor(tmp_path / "service", cluster.url) as service:
            ids, urls = push_numbered(client, origin, 8)
            wait_until(lambda: len(origin.requests) >= 5)
            wait_until(lambda: int(before.client().wait(1, 1000)) == 1)
            before.kill()
            wait_until(lambda: service.events("redis_unavailable") != [])
            after.client().execute_command("CLUSTER FAILOVER", "TAKEOVER")  # type: ignore[no-untyped-call]
            gate.open()
            client = Client(after.client())
            client.wait_for(*urls)
            assert service.stop() == 0, service.said()
        assert_ended_once(client, *ids, starts=None)
        assert is_fetched_once(origin)


# --- the outbox ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [success(), failure()], ids=["success", "failure"])
def test_what_a_killed_supervisor_left_is_written_by_another(
    one: Cluster, tmp_path: Path, record: ClientRecord
) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    end_one(queue, record)
    assert outbox_of(queue).replay().written == 0, "its own supervisor may be about to write it"
    grow_old(queue, 100)
    assert outbox_of(queue).replay().written == 1
    found = client.get(record.key) if record.field is None else client.hget(record.key, record.field)
    assert found == record.value
    assert record.field is not None or 86_000 < client.ttl(record.key) <= 86_300
    assert not client.exists(KEYS.outbox)
    assert outbox_of(queue).replay().written == 0


def test_an_end_that_is_told_again_writes_its_record_once(one: Cluster, tmp_path: Path) -> None:
    """What a client has deleted meanwhile does not come back."""
    queue, client = queue_of(one, tmp_path), one.client()
    ending = end_one(queue, success())
    assert outbox_of(queue).deliver([str(ending.lease)]).written == 1
    client.delete(success().key)
    assert queue.finish("s", [ending]) == ["DUP"]
    assert outbox_of(queue).deliver([str(ending.lease)]).written == 0
    assert not client.exists(success().key)


def test_a_late_record_does_not_replace_a_newer_one(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    for record, newer in ((success(), success(NOW + 5)), (failure(), failure(NOW + 5))):
        end_one(queue, record, job_id=f"job-{record.field is None}")
        end = FinishRequest(
            end_one(queue, newer, job_id=f"newer-{record.field is None}").lease, Disposition.SUCCEED, newer
        )
        outbox_of(queue).deliver([str(end.lease)])
        grow_old(queue, 100)
        outbox_of(queue).replay()
        found = client.get(record.key) if record.field is None else client.hget(record.key, record.field)
        assert found == newer.value
        assert not client.exists(KEYS.outbox)


def test_a_late_record_replaces_an_older_one(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    client.hset(KEYS.failed, URL, failure(NOW - 5).value)
    end_one(queue, failure())
    grow_old(queue, 100)
    outbox_of(queue).replay()
    assert client.hget(KEYS.failed, URL) == failure().value


def test_a_success_that_would_have_expired_is_not_written(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    end_one(queue, success())
    grow_old(queue, 86_400)
    outbox_of(queue).replay()
    assert not client.exists(success().key, KEYS.outbox)


def test_a_record_that_redis_never_takes_leaves_the_outbox(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    client.set(KEYS.failed, "of another type")
    ending = end_one(queue, failure())
    delivery = outbox_of(queue).deliver([str(ending.lease)])
    assert [lease for lease, _ in delivery.refused] == [str(ending.lease)]
    assert "WRONGTYPE" in delivery.refused[0][1]
    assert not client.exists(KEYS.outbox)


def test_no_job_ends_while_the_outbox_is_full(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    client.hset(KEYS.outbox, mapping={f"old-{number}.1": "1 " for number in range(10_000)})
    with pytest.raises(QueueAway, match="the outbox is full"):
        end_one(queue, success())
    assert client.zcard(KEYS.leases) == 1
    client.delete(KEYS.outbox)


def test_many_records_are_replayed_some_at_a_time(one: Cluster, tmp_path: Path) -> None:
    queue, client = queue_of(one, tmp_path), one.client()
    head = json.dumps([KEYS.failed, None])
    for number in range(BATCH + 10):
        head = json.dumps([KEYS.failed, f"http://h/{number}"])
        client.hset(KEYS.outbox, f"job-{number}.1", f"1000 {head}\n{{}}")
    assert outbox_of(queue).replay().written == BATCH
    assert outbox_of(queue).replay().written == 10
    assert client.hlen(KEYS.failed) == BATCH + 10


# --- the client ---------------------------------------------------------------------------------------------------


def test_many_pushes_and_the_views_work_in_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    queue = queue_of(cluster, tmp_path)
    jobs = [(PushedJob.parse(compose_job(f"http://h/{number}", "1")), f"job-{number}") for number in range(100)]
    assert queue.push(jobs) == ["OK"] * 100
    views = QueueViews(queue.client, KEYS)
    assert len(views.jobs(limit=1000)) == 100
    assert views.job("job-7").id == "job-7"
    assert views.stats().ready["normal"] == 100
    assert check_server(queue.client) == ()


def test_operators_work_on_records_that_are_on_another_node(cluster: Cluster, tmp_path: Path) -> None:
    queue, raw = queue_of(cluster, tmp_path), compose_job(URL, "1")
    admin, failures = JobAdmin(queue.client, KEYS), FailureRecords(queue.client, KEYS)
    queue.push([(PushedJob.parse(raw), "job-1")])
    assert admin.execute("cancel", "job-1", message="the job was cancelled", at=NOW) == "OK"
    found = failures.get(URL)
    assert found is not None
    assert (found.message, found.raw, queue.client.hlen(KEYS.outbox)) == ("the job was cancelled", raw, 0)
    assert admin.execute("retry", "job-1") == "OK"
    assert list(failures.all()) == []
    assert admin.execute("cancel", "job-1", message="the job was cancelled", at=NOW) == "OK"
    [again] = failures.all()
    assert (failures.retry(again), list(failures.all())) == ("OK", [])
    assert queue.client.lrange(KEYS.intake, 0, -1) == [raw]
    assert failures.retry(again) == "GONE"


def test_one_node_that_answers_is_enough(cluster: Cluster, tmp_path: Path) -> None:
    """And which one is asked does not matter."""
    for node in cluster.nodes:
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{node.port}"
        client = connect(replace(RedisSettings(), url=url), tmp_path)
        assert Transitions(client, KEYS).push([(PushedJob.parse(compose_job(URL, "1")), f"to-{node.port}")]) == ["OK"]


def test_a_queue_whose_slot_was_moved_is_away_for_one_call(cluster: Cluster, tmp_path: Path) -> None:
    queue = queue_of(cluster, tmp_path)
    job = PushedJob.parse(compose_job(URL, "1"))
    queue.client.ping()  # connected, and nothing is there that would have to move
    cluster.move_slot(KEYS.intake, cluster.masters[1])
    with pytest.raises(QueueAway, match=r"^Redis at the Cluster of \S+ cannot serve now: \d+ 127.0.0.1"):
        queue.push([(job, "job-1")])
    assert queue.push([(job, "job-1")]) == ["OK"]
    assert cluster.masters[1].client().llen(KEYS.ready("normal")) == 1


def test_a_node_of_a_cluster_is_not_taken_for_a_single_server(one: Cluster) -> None:
    ended = processes.run("stats", "--redis-url", one.nodes[0].tcp_url)
    assert ended.code == 20
    assert ended.err.strip() == (
        "dlpool: this Redis is a node of a Cluster: its URL in [redis] must be redis+cluster:// (or rediss+cluster://)"
    )
