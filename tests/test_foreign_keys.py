"""A key of the queue that another program has overwritten: Redis cannot be used until it is gone; no job is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlpool.cli.main import main
from dlpool.errors import QueueError, QueueUnusable
from dlpool.jobs.audit_stream import AuditFilter, AuditReader
from dlpool.jobs.event_stream import EventReader
from dlpool.jobs.failure_records import FailureRecords
from dlpool.jobs.history import QueueHistory
from dlpool.jobs.job_listing import STATES
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.nodes import NodeAdmin
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.transitions import JobLease
from tests.conftest import wait_until
from tests.desk import DATA, Gate
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.redis_server import RedisServer
from tests.test_transitions import GRACE_S, LEASE_S, A, B, Queue, job

DAY = int(time.time() // 86400)
KINDS = QueueKeys().key_types(DAY)
NAMES = [key.removeprefix(QueueKeys().prefix) for key in KINDS if "stats" not in key]


def foreign(client: Any, key: str, kind: str) -> None:
    """Write another type under the name."""
    if kind == "string":
        client.rpush(key, "of another program")
    else:
        client.set(key, "of another program")


def key_of(name: str) -> str:
    return name if name == QueueKeys().intake else QueueKeys().prefix + name


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return filled(redis_server.client())


def filled(client: Any) -> Queue:
    """Jobs in all places: running at A, pushed, delayed and due, and in the intake."""
    queue = Queue(client)
    queue.register(B)
    queue.push("running")
    assert queue.names(1) == ["running"]
    queue.push("ready")
    queue.push("later", not_before=time.time() + 3600)
    queue.pass_delays()
    queue.drop_in(job("intake").raw)
    return queue


def claim(queue: Queue) -> None:
    queue.does.claim(A, None, 4, lease_s=LEASE_S, order="fifo")


def beat(queue: Queue) -> None:
    queue.beat(JobLease("running", 1))


def retry(queue: Queue) -> None:
    queue.finish(JobLease("running", 1), "retry", delay_s=0.001)


def release(queue: Queue) -> None:
    queue.finish(JobLease("running", 1), "release")


def end(queue: Queue) -> None:
    queue.finish(JobLease("running", 1), "success")


def recover(queue: Queue) -> None:
    queue.does.recover(grace_s=GRACE_S, order="fifo")


def requeue_jobs(queue: Queue) -> None:
    queue.does.requeue_jobs_of([A], order="fifo")


def push(queue: Queue) -> None:
    queue.push("pushed")


def pause(queue: Queue) -> None:
    queue.admin.execute("pause", "ready", message="", at=0)


def promote(queue: Queue) -> None:
    queue.admin.execute("promote", "later", message="", at=0)


ACTS: list[Callable[[Queue], None]] = [claim, beat, retry, release, end, recover, requeue_jobs, push, pause, promote]


def drained(queue: Queue) -> list[str]:
    """The names of all jobs that the queue yet has, each ended by a success."""
    queue.register(A)
    found = []
    for _ in range(3):
        queue.pass_delays()
        for claimed in queue.claim(10):
            found.append(claimed.raw.decode().partition("http://host/")[2].partition('"')[0])
            assert queue.finish(claimed.lease, "success") == "OK"
    return sorted(found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", ACTS)
def test_no_step_loses_a_job_to_a_key_of_another_type(name: str, act: Callable[[Queue], None], queue: Queue) -> None:
    key, client = key_of(name), queue.client
    is_there = client.exists(key) == 1
    if is_there:
        client.rename(key, "aside")
    foreign(client, key, KINDS[key])
    was_done = True
    try:
        act(queue)
    except QueueError as error:
        was_done = False
        assert isinstance(error, QueueUnusable) and key in str(error), error
    client.delete(key)
    if is_there:
        client.rename("aside", key)
    if act is pause:
        queue.admin.execute("resume", "ready", message="", at=0)
    if act is push and not was_done:
        assert queue.push("pushed") == ["OK"]
    expected = {"running", "ready", "later", "intake"} | ({"pushed"} if act is push else set())
    left = drained(queue)
    assert set(left) | ({"running"} if act is end else set()) == expected
    assert len(left) == len(set(left))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("victim", ["running", "ready", "later"])
def test_a_job_that_was_overwritten_keeps_no_other_from_its_turn(
    victim: str, act: Callable[[Queue], None], queue: Queue
) -> None:
    queue.client.delete(queue.keys.job(victim))
    foreign(queue.client, queue.keys.job(victim), "hash")
    act(queue)
    assert {"ready", "later", "intake"} - {victim} <= set(drained(queue)) | ({"ready"} if act is pause else set())


GARBAGE = ["", "x", "1e400", "-5", "9" * 40, "\x00\xff"]


@pytest.mark.parametrize("field", ["fence", "size", "attempts", "crashes", "takeovers", "created", "priority", "flag"])
@pytest.mark.parametrize("value", GARBAGE)
def test_garbage_in_a_job_is_not_the_end_of_who_claims_it(field: str, value: str, queue: Queue) -> None:
    queue.client.hset(queue.keys.job("running"), field, value)
    assert "running" in queue.names(0, known=()) or field == "fence"
    found = queue.names(10)
    assert {"ready", "later", "intake"} <= set(found)


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("name", ["fence", "last_recovery", "recovery_turn", "status_turn", "sample_turn"])
def test_garbage_in_a_number_loses_no_job(name: str, value: str, queue: Queue) -> None:
    before = queue.client.get(key_of(name))
    queue.client.set(key_of(name), value)
    for act in (claim, beat, recover):
        try:
            act(queue)
        except QueueError as error:
            assert str(error)
    queue.client.delete(key_of(name))
    if before is not None:
        queue.client.set(key_of(name), 100)
    assert set(drained(queue)) == {"running", "ready", "later", "intake"}


COUNTERS = ["attempts", "crashes", "takeovers", "yields"]


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("act", ACTS)
def test_garbage_in_a_counter_keeps_no_job_from_its_end(act: Callable[[Queue], None], value: str, queue: Queue) -> None:
    for victim in ("running", "ready", "later"):
        queue.client.hset(queue.keys.job(victim), mapping=dict.fromkeys(COUNTERS, value))
    for name in ("bytes", "stale"):
        for field in ("waiting", "dead", "failures", "normal"):
            queue.client.hset(key_of(name), field, value)
    act(queue)
    if act is pause:
        queue.admin.execute("resume", "ready", message="", at=0)
    expected = {"running", "ready", "later", "intake"} | ({"pushed"} if act is push else set())
    assert set(drained(queue)) | ({"running"} if act is end else set()) == expected


BYTES: list[bytes | str] = [b"\xff\xfe", "", "a\x1b[31m", "9" * 5000, "x" * 65]
SCORES = [float("inf"), float("-inf"), 1e300, -5.0, 1.5]
NUMBERS: list[bytes | str] = ["9" * 5000, "-" + "9" * 5000, "--5", "-", "1e400", "nan", b"\xff", "1.5"]


def strange(client: Any, key: str, kind: str) -> None:
    """Write what no dlpool would, in the right type."""
    if kind == "zset":
        names = [name.encode() if isinstance(name, str) else name for name in BYTES]
        client.zadd(key, {name + str(score).encode(): score for name in names for score in SCORES})
    elif kind == "hash":
        client.hset(
            key, mapping=dict(zip([*client.hkeys(key), b"\xff", "ahead", "seen", "failed"], NUMBERS * 3, strict=False))
        )
    elif kind == "stream":
        for value in BYTES + NUMBERS:
            client.xadd(key, {"waiting": value, "event": value, "count": value, b"\xff": value})
        client.xadd(key, {"a": "b"}, id=f"{2**64 - 2}-1")
    elif kind == "set":
        client.sadd(key, *filter(None, BYTES))
    else:
        client.rpush(key, *BYTES)


STRANGE = [name for name in NAMES if KINDS[key_of(name)] != "string" and name != QueueKeys().intake]


def look(queue: Queue) -> None:
    """All that people and programs look at."""
    views, history = QueueViews(queue.client, queue.keys), QueueHistory(queue.client, queue.keys)
    for state in (None, *STATES):
        after, listed = None, 0
        for _ in range(200):
            page = views.listing.page(state, 3, after)
            after, listed = page.after, listed + len(page.jobs)
            if after is None:
                break
        assert after is None, f"the list of {state} has no end"
    for view in views.jobs():
        json.dumps(view.as_json())
    json.dumps([views.stats().as_json(), NodeAdmin(queue.client, queue.keys).list_nodes(), history.since()])
    FailureRecords(queue.client, queue.keys).page(10)
    for event in AuditReader(queue.client, queue.keys).last(100, AuditFilter()):
        json.dumps(event.as_json())
    for one in EventReader(queue.client, queue.keys).after("0-0"):
        json.dumps(one.as_json())


def sample(queue: Queue) -> None:
    QueueHistory(queue.client, queue.keys).record_sample()


@pytest.mark.parametrize("name", STRANGE)
def test_no_step_loses_a_job_to_strange_content(name: str, redis_server: RedisServer) -> None:
    key, client = key_of(name), redis_server.client()
    for act in (look, sample, *ACTS):
        client.flushall()
        queue = filled(client)
        strange(client, key, KINDS[key])
        is_pushed = act is push
        try:
            act(queue)
        except QueueError as error:
            assert str(error)
            is_pushed = False
        if act is pause:
            queue.admin.execute("resume", "ready", message="", at=0)
        if name == "bytes":  # no job ends while its size cannot be counted
            client.delete(key)
        expected = {"running", "ready", "later", "intake"} | ({"pushed"} if is_pushed else set())
        assert set(drained(queue)) | ({"running"} if act is end else set()) >= expected, (name, act)


def test_a_supervisor_waits_until_all_keys_are_its_own_again(redis_server: RedisServer, tmp_path: Path) -> None:
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, Supervisor(tmp_path, redis_server.url) as service:
        client.push(f"{origin.url}/running", "running.bin", id="job-r")
        wait_until(lambda: len(origin.requests) == 1)
        gate.open()
        origin.handler = File(DATA)
        for number, name in enumerate([QueueKeys().intake, "leases", "ready:normal", "events", "fence", "done"]):
            key, seen = key_of(name), len(service.events("redis_unavailable"))
            if client.redis.exists(key):
                client.redis.rename(key, "aside")
            foreign(client.redis, key, KINDS[key])
            if key != QueueKeys().intake:
                client.push(f"{origin.url}/{number}", f"{number}.bin")
            wait_until(lambda seen=seen: len(service.events("redis_unavailable")) > seen)  # type: ignore[misc]
            away = service.events("redis_unavailable")[-1]["error.message"]
            assert key in away and "rename or delete it" in away
            client.redis.delete(key)
            if client.redis.exists("aside"):
                client.redis.rename("aside", key)
            if key == QueueKeys().intake:
                client.push(f"{origin.url}/{number}", f"{number}.bin")
            client.wait_for(f"{origin.url}/{number}", f"{origin.url}/running")
        assert service.process is not None and service.process.poll() is None, service.said()
        assert client.ends("job-r") == 1
        assert service.stop() == 0, service.said()


def test_commands_say_that_redis_cannot_be_used(redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    client = redis_server.client()
    foreign(client, key_of("ready:normal"), "list")
    assert main(["push", "http://h/f", "f", "--redis-url", redis_server.url]) == 20
    said = capsys.readouterr().err
    assert "Redis cannot be used" in said and key_of("ready:normal") in said
