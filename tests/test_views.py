"""The views of the queue: what stands in Redis is shown, whatever is missing or broken in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import RedisSettings
from dlpool.errors import NoSuchJob, QueueError
from dlpool.jobs import queue_views as views
from dlpool.jobs.client_records import ClientRecord, rfc3339
from dlpool.jobs.connection import connect
from dlpool.jobs.job_view import JobView
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, Transitions
from tests.redis_server import RedisServer

LEASE_S = 300.0
INFO = {"host": "h1", "pid": 7, "version": "1", "slots": 4, "busy": 1}


class Queue:
    """A queue in a real Redis, and hands to work on it."""

    def __init__(self, server: RedisServer, group: str | None = None) -> None:
        self.client: Any = server.client()
        self.keys = QueueKeys(group)
        self.transitions = Transitions(self.client, self.keys)
        self.views = QueueViews(self.client, self.keys)

    def push(self, job_id: str, **own: Any) -> None:
        job = PushedJob.parse(compose_job(f"http://h/{job_id}", f"to/{job_id}", **own))
        assert self.transitions.push([(job, job_id)]) == ["OK"]

    def claim(self, slots: int = 1, sid: str = "s1") -> Sequence[ClaimedJob]:
        self.transitions.heartbeat(sid, [], lease_s=LEASE_S, info=INFO)
        claim = self.transitions.claim(sid, [], slots, lease_s=LEASE_S, order="fifo")
        assert claim is not None
        return claim.jobs

    def end(self, job_id: str, outcome: str = "success", **options: Any) -> None:
        self.push(job_id, priority="high")
        (claimed,) = self.claim()
        assert self.transitions.finish("s1", [FinishRequest(claimed.lease, Disposition(outcome), **options)]) == ["OK"]

    def ids(self, state: str | None = None, limit: int = 50) -> list[str | None]:
        return [view.id for view in self.views.jobs(state, limit)]


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server)


# --- listings ---


def test_an_empty_queue_has_no_jobs(queue: Queue) -> None:
    assert queue.ids() == []
    assert queue.ids("queued") == []


def test_each_state_lists_its_jobs(queue: Queue) -> None:
    queue.end("good")
    queue.end("bad", "failed", note={"message": "no such file"})
    queue.push("later", not_before="2099-01-01T00:00:00Z")
    queue.push("now", priority="high")
    queue.claim()
    queue.push("waits")
    listed = {state: queue.ids(state) for state in ("running", "queued", "delayed", "failed", "succeeded")}
    assert listed == {
        "running": ["now"],
        "queued": ["waits"],
        "delayed": ["later"],
        "failed": ["bad"],
        "succeeded": ["good"],
    }
    assert queue.ids() == ["now", "waits", "later", "bad", "good"]


def test_queued_jobs_stand_in_the_order_in_which_they_are_taken(queue: Queue) -> None:
    for job_id, priority in (("low", 1), ("first", 0), ("second", 0), ("high", -1)):
        queue.push(job_id, priority=priority)
    queue.client.lpush(queue.keys.intake, compose_job("http://h/raw1", "p"), compose_job("http://h/raw2", "p"))
    shown = [view.id or view.url for view in queue.views.jobs("queued")]
    assert shown == ["high", "first", "second", "http://h/raw1", "http://h/raw2", "low"]


def test_jobs_that_a_supervisor_has_reserved_are_queued(queue: Queue) -> None:
    queue.transitions.heartbeat("s1", [], lease_s=LEASE_S, info=INFO)
    queue.client.lpush(queue.keys.inbox("s1"), compose_job("http://h/reserved", "p"))
    (view,) = queue.views.jobs("queued")
    assert (view.id, view.url) == (None, "http://h/reserved")
    assert queue.views.stats().reserved == 1


def test_ended_jobs_come_newest_first_and_no_more_than_the_limit(queue: Queue) -> None:
    for number in range(4):
        queue.end(f"j{number}")
        queue.client.zadd(queue.keys.done, {f"j{number}": 10**12 + number})
    assert queue.ids("succeeded", 3) == ["j3", "j2", "j1"]
    assert queue.ids(None, 2) == ["j3", "j2"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_the_limit_holds_over_all_states(limit: int, queue: Queue) -> None:
    queue.end("good")
    queue.push("a")
    queue.push("b", priority="low")
    queue.client.lpush(queue.keys.intake, b"{}", b"{}")
    assert len(queue.views.jobs(None, limit)) == limit


@pytest.mark.parametrize("state", ["running", "queued", "delayed", "failed", "succeeded"])
def test_an_id_without_its_hash_is_not_listed(state: str, queue: Queue) -> None:
    keys = queue.keys
    queue.client.lpush(keys.ready("normal"), "gone")
    for key in (keys.leases, keys.delayed, keys.done, keys.dead):
        queue.client.zadd(key, {"gone": 10**12})
    assert queue.ids(state) == []


def test_cancelled_jobs_bury_no_failures(queue: Queue) -> None:
    queue.end("bad", "failed")
    for number in range(3):
        queue.end(f"c{number}", "cancelled")
    assert (queue.ids("failed", 2), sorted(filter(None, queue.ids("cancelled")))) == (["bad"], ["c0", "c1", "c2"])
    stats = queue.views.stats()
    assert (stats.failed, stats.cancelled) == (1, 3)


def test_groups_do_not_see_each_other(redis_server: RedisServer) -> None:
    one, other = Queue(redis_server, "one"), Queue(redis_server, "other")
    one.push("a")
    assert one.ids() == ["a"]
    assert other.ids() == []


# --- one job ---


def test_a_running_job_tells_owner_attempts_and_progress(queue: Queue) -> None:
    queue.push("a", headers={"X-Key": "hunter2"}, checksum="md5:" + "0" * 32, user_id="u", trace_id="t", max_attempts=3)
    (claimed,) = queue.claim()
    queue.transitions.heartbeat("s1", [(claimed.lease, '{"done": 5, "size": 10}')], lease_s=LEASE_S)
    view = queue.views.job("a")
    assert (view.state, view.owner, view.attempts, view.fence) == ("running", "s1", 1, claimed.lease.fence)
    assert view.progress == {"done": 5, "size": 10}
    told = view.as_json()
    assert (told["headers"], told["user_id"], told["trace_id"], told["max_attempts"]) == (["X-Key"], "u", "t", 3)
    assert "hunter2" not in json.dumps(told) + repr(view)
    assert told["created_at"] <= told["started_at"] <= rfc3339(queue.client.time()[0])


def test_an_ended_job_tells_its_note(queue: Queue) -> None:
    queue.end("a", "failed", note={"message": "gone"}, record=ClientRecord(queue.keys.failed, b"{}", "http://h/a"))
    view = queue.views.job("a")
    assert (view.state, view.note, view.owner) == ("failed", {"message": "gone"}, None)
    assert view.ended_at is not None


def test_a_job_that_follows_another_names_it(queue: Queue) -> None:
    job = PushedJob.parse(compose_job("http://h/f", "f", dedupe=True))
    assert queue.transitions.push([(job, "first"), (job, "second")]) == ["OK", "FOLLOWS"]
    assert queue.views.job("second").leader == "first"


@pytest.mark.parametrize("job_id", ["none", "", "a b", "\udcff", "x" * 70, "*", "{}"])
def test_a_job_that_is_not_there_is_said_to_be_unknown(job_id: str, queue: Queue) -> None:
    with pytest.raises(NoSuchJob, match="is known"):
        queue.views.job(job_id)


@pytest.mark.parametrize(
    ("raw", "url", "problem"),
    [
        (b"", None, "the job is not JSON"),
        (b"rubbish", None, "the job is not JSON"),
        (b"\xff\xfe", None, "the job is not UTF-8"),
        (b"[]", None, "not a JSON object"),
        (b'{"url": "http://h/"}', "http://h/", "save_path is missing"),
        (b'{"url": "http://h/", "save_path": "p", "dlpool": {"id": 5}}', "http://h/", "dlpool.id"),
        (b"x" * 2_000_000, None, "longer than"),
    ],
)
def test_a_job_that_cannot_be_run_says_why(raw: bytes, url: str | None, problem: str) -> None:
    view = JobView.from_raw(raw)
    assert (view.url, view.size, view.id) == (url, None, None)
    assert problem in (view.problem or "")
    assert view.as_json().keys() == JobView.from_raw(compose_job("http://h/", "p")).as_json().keys()


def test_broken_fields_have_their_defaults() -> None:
    fields = {
        b"state": b"running",
        b"fence": b"many",
        b"attempts": b"1e9",
        b"created": b"\xff",
        b"due": b"9" * 16,
        b"progress": b"[1]",
        b"note": b"{broken",
        b"\xff": b"\xff",
        b"priority": b"",
    }
    view = JobView.from_hash("a", fields)
    assert (view.fence, view.attempts, view.created_at, view.progress, view.note) == (0, 0, None, {}, {})
    assert (view.priority, view.as_json()["due_at"]) == ("normal", "9999-12-31T23:59:59Z")
    assert view.size is None
    fields |= {b"progress": b'{"size": 5}'}
    assert JobView.from_hash("a", fields).size == 5  # the size of the file
    assert JobView.from_hash("a", fields | {b"note": b'{"size": 6}'}).size == 6


# --- figures ---


def test_the_figures_count_every_place(queue: Queue) -> None:
    queue.end("good")
    queue.push("runs")
    queue.claim()
    queue.client.lpush(queue.keys.intake, b"1", b"2")
    queue.client.hset(queue.keys.failed, "http://h/old", "{}")
    for job_id, own in (("h", {"priority": -1}), ("n", {}), ("l", {"priority": 1}), ("d", {"not_before": 2**39})):
        queue.push(job_id, **own)
    stats = queue.views.stats()
    assert stats.counts() == {
        "waiting": 5,
        "backlog": 2,
        "reserved": 0,
        "ready_high": 1,
        "ready_normal": 1,
        "ready_low": 1,
        "ready_limited": 0,
        "delayed": 1,
        "throttled": 0,
        "paused": 0,
        "running": 1,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
        "failure_records": 1,
    }
    assert len(stats.days) == 7
    assert stats.days[0].counters["pushed"] == 6


def test_hosts_that_are_waited_for_are_counted(queue: Queue) -> None:
    for job_id, host, own in (("a", "h1", {"waits_for_slot": True}), ("b", "h1", {}), ("c", "h2", {})):
        queue.end(job_id, "throttle", host=host, delay_s=60, **own)
    queue.transitions.hold_host("h2:81", 30.0)
    stats = queue.views.stats()
    assert (stats.throttled, stats.waiting_hosts) == (3, {"h1": 2, "h2": 1})
    assert 28 < stats.held_hosts["h2:81"] <= 31
    assert sorted(filter(None, queue.ids("delayed"))) == ["a", "b", "c"]
    assert stats.as_json()["waiting_hosts"] == {"h1": 2, "h2": 1}


def test_supervisors_that_live_are_named_and_others_are_not(queue: Queue) -> None:
    queue.transitions.heartbeat("s1", [], lease_s=LEASE_S, info=INFO)
    queue.client.zadd(queue.keys.supervisors, {"dead": 1000, "evicted": 10**13})
    supervisors = queue.views.stats().supervisors
    assert {one.sid: one.info for one in supervisors} == {"s1": INFO, "evicted": {}}
    assert supervisors[1].as_json() == {**INFO, "sid": "s1"}


def test_a_remembered_job_counts_until_its_hash_expires(queue: Queue) -> None:
    queue.end("new")
    queue.client.zadd(queue.keys.done, {"old": 1000})
    assert queue.views.stats().succeeded == 1


# --- when Redis does not ---


def test_a_key_of_another_type_is_a_sentence(queue: Queue) -> None:
    queue.client.set(queue.keys.intake, "x")
    for look in (queue.views.stats, queue.views.jobs):
        with pytest.raises(QueueError, match="WRONGTYPE"):
            look()


def test_a_redis_that_is_away_is_a_sentence() -> None:
    views = QueueViews(connect(RedisSettings(url="unix:///nowhere/redis.sock"), Path()), QueueKeys())
    for look in (views.stats, views.jobs, lambda: views.job("a")):
        with pytest.raises(QueueError, match="cannot be reached"):
            look()


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Return the list of arguments of each call of that method, which grows as it is called."""
    calls: list[tuple[Any, ...]] = []
    method = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return method(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_list_that_is_full_asks_for_no_more_pages(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        queue.push(f"j{number}")
    calls = count_calls(monkeypatch, queue.views.listing, "page")
    assert len(queue.views.jobs("queued", 2)) == 2
    assert len(calls) == 1


def test_a_full_page_of_waiting_jobs_looks_no_further(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        queue.push(f"j{number}")
    calls = count_calls(monkeypatch, queue.views.listing, "_at_places")
    assert len(queue.views.listing.page("queued", 2).jobs) == 2
    assert len(calls) == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_hosts_are_counted_of_a_bounded_number_of_throttled_jobs(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(views, "MAX_COUNTED", most)
    for host in ("a", "b", "c", "d", "e", "f"):
        queue.end(host, "throttle", host=host, delay_s=60)
    stats = queue.views.stats()
    assert (stats.throttled, len(stats.waiting_hosts)) == (6, most)
