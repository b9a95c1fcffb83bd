"""Lists, figures and switches of a queue as it stands in Redis: pages of any size, and each time and count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dlpool.errors import UsageError
from dlpool.jobs import job_listing
from dlpool.jobs.event_stream import EventReader, EventWriter
from dlpool.jobs.failure_records import FailureRecords
from dlpool.jobs.history import QueueHistory
from dlpool.jobs.host_slots import HostLimit, HostSlots
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.pushed_job import compose_job
from dlpool.jobs.queue_admin import MAIL_TTL_MS, QueueAdmin
from dlpool.jobs.queue_views import DAY_S
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, Transitions
from tests.redis_server import RedisServer
from tests.test_listing import ended, read
from tests.test_views import INFO, LEASE_S, Queue

LIMITS = [1, 2, 3, 5, 50]


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server)


def now_ms(queue: Queue) -> int:
    seconds, microseconds = queue.client.time()
    return int(seconds * 1000 + microseconds // 1000)


# --- lists ---


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_jobs_of_one_moment_are_read_page_by_page_in_however_many_looks(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, limit: int, at_once: int
) -> None:
    """Thousands may wait for the same time."""
    monkeypatch.setattr(job_listing, "BATCH", at_once)
    names = [f"j{number}" for number in range(9)]
    for key, state in ((queue.keys.dead, "failed"), (queue.keys.paused, "paused")):
        for name in names:
            ended(queue, f"{state}-{name}", key, state, 10**12)
    flat = [name for page in read(queue, "failed", limit) for name in page]
    assert flat == [f"failed-{name}" for name in reversed(names)]
    assert [name for page in read(queue, "paused", limit) for name in page] == [f"paused-{name}" for name in names]


@pytest.mark.parametrize("limit", LIMITS)
def test_throttled_jobs_are_listed_before_delayed_ones(queue: Queue, limit: int) -> None:
    for number in range(4):
        ended(queue, f"p{number}", queue.keys.throttled, "delayed", 10**13 + number)
        ended(queue, f"d{number}", queue.keys.delayed, "delayed", 10**12 + number)
    pages = read(queue, "delayed", limit)
    assert [name for page in pages for name in page] == ["p0", "p1", "p2", "p3", "d0", "d1", "d2", "d3"]
    assert all(len(page) == limit for page in pages[:-1])


@pytest.mark.parametrize("limit", LIMITS)
def test_what_waits_is_read_in_its_order_over_all_lists(queue: Queue, limit: int) -> None:
    """Also of supervisors' inboxes; places that jobs have left are passed over."""
    for sid in ("s1", "s2"):
        queue.transitions.heartbeat(sid, [], lease_s=LEASE_S + (sid == "s2"), info=INFO)
        queue.client.lpush(queue.keys.inbox(sid), *(compose_job(f"http://{sid}/{number}", "p") for number in range(2)))
    for priority in ("low", "normal", "high"):
        for number in range(3):
            queue.push(f"{priority}{number}", priority=priority)
        JobAdmin(queue.client, queue.keys).execute("cancel", f"{priority}1")
    queue.client.lpush(queue.keys.intake, compose_job("http://raw/0", "p"), compose_job("http://raw/1", "p"))
    wanted = [
        "http://s2/0",
        "http://s2/1",
        "http://s1/0",
        "http://s1/1",
        "high0",
        "high2",
        "normal0",
        "normal2",
        "http://raw/0",
        "http://raw/1",
        "low0",
        "low2",
    ]
    assert [name for page in read(queue, "queued", limit) for name in page] == wanted


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_running_jobs_of_one_moment_are_read_page_by_page(queue: Queue, limit: int) -> None:
    for number in range(4):
        queue.client.hset(queue.keys.job(f"j{number}"), mapping={"state": "running", "raw": "{}", "started": 10**12})
        queue.client.zadd(queue.keys.leases, {f"j{number}": 10**13 - number})
    pages = read(queue, "running", limit)
    assert [name for page in pages for name in page] == ["j0", "j1", "j2", "j3"]
    assert len(pages) == -(-4 // limit)


def test_a_running_job_without_a_beginning_comes_first(queue: Queue) -> None:
    for name, started in (("new", "5"), ("none", None), ("odd", "x")):
        fields = {"state": "running", "raw": "{}"} | ({"started": started} if started else {})
        queue.client.hset(queue.keys.job(name), mapping=fields)
        queue.client.zadd(queue.keys.leases, {name: 1})
    assert queue.ids("running") == ["none", "odd", "new"]


def test_times_of_jobs_are_those_of_the_clock(queue: Queue) -> None:
    queue.client.hset(queue.keys.clock, mapping={"ahead": "5000", "seen": "0"})
    ended(queue, "a", queue.keys.dead, "failed", 10**12)
    queue.client.hset(queue.keys.job("a"), "ended", 10**12)
    assert queue.views.job("a").ended_at == (10**12 - 5000) / 1000
    [view] = queue.views.jobs("failed")
    assert view.ended_at == (10**12 - 5000) / 1000


# --- figures ---


def test_only_what_is_remembered_is_counted(queue: Queue) -> None:
    now, slack = now_ms(queue), 60_000
    for key, days in ((queue.keys.done, 1), (queue.keys.dead, 7), (queue.keys.cancelled, 7)):
        edge = now - days * DAY_S * 1000
        queue.client.zadd(key, {"old": edge - slack, "kept": edge + slack, "new": now})
    stats = queue.views.stats()
    assert (stats.succeeded, stats.failed, stats.cancelled) == (2, 2, 2)
    assert abs(stats.now - now / 1000) < 60


def test_places_that_jobs_have_left_are_not_counted_and_never_less_than_nothing(queue: Queue) -> None:
    for priority, stale in (("high", 1), ("normal", 5), ("low", 0)):
        queue.client.lpush(queue.keys.ready(priority), "a", "b", "c")
        queue.client.hset(queue.keys.stale, priority, stale)
    queue.client.lpush(queue.keys.ready("limited"), "d")
    stats = queue.views.stats()
    assert dict(stats.ready) == {"high": 2, "normal": 0, "low": 3, "limited": 1}


def test_the_counters_of_the_last_days_stand_newest_first(queue: Queue) -> None:
    today = now_ms(queue) // (DAY_S * 1000)
    for back in (0, 1, 6, 7):
        queue.client.hset(queue.keys.stats(today - back), mapping={"pushed": back + 10, "odd": "x"})
    days = queue.views.stats().days
    assert [day.counters.get("pushed") for day in days] in ([10, 11, None, None, None, None, 16],)
    assert days[0].counters["odd"] == 0 and days[0].as_json()["day"] == days[0].day
    assert len({day.day for day in days}) == 7 and sorted((day.day for day in days), reverse=True) == [
        day.day for day in days
    ]


@pytest.mark.parametrize(("text", "since"), [("1", None), ("x", None), ("1700000005000", 1_700_000_000.0)])
def test_since_when_a_queue_is_paused(queue: Queue, text: str, since: float | None) -> None:
    queue.client.hset(queue.keys.clock, mapping={"ahead": "5000"})
    assert not queue.views.stats().is_halted
    queue.client.set(queue.keys.halted, text)
    stats = queue.views.stats()
    assert (stats.is_halted, stats.halted_at) == (True, since)


def test_supervisors_that_fell_silent_are_told_with_when_they_were_heard_of(queue: Queue) -> None:
    now, slack = now_ms(queue), 60_000
    infos = {"a-00000000": {"lease": 30}, "b-00000000": {}, "c-00000000": {"lease": 30}, "d-00000000": {}}
    for sid, info in infos.items():
        queue.client.set(queue.keys.supervisor(sid), json.dumps(info))
    edges = {
        "a-00000000": now - slack,
        "b-00000000": now - DAY_S * 1000 + slack,
        "c-00000000": now - DAY_S * 1000 - slack,
        "d-00000000": now + slack,
    }
    queue.client.zadd(queue.keys.supervisors, edges)
    queue.client.lpush(queue.keys.inbox("a-00000000"), "1", "2")
    queue.client.lpush(queue.keys.inbox("d-00000000"), "3")
    stats = queue.views.stats()
    assert [one.sid for one in stats.supervisors] == ["d-00000000"] and stats.supervisors[0].seen_at is None
    assert [(one.sid, one.seen_at) for one in stats.lost] == [
        ("a-00000000", (now - slack) / 1000 - 30),
        ("b-00000000", (now - DAY_S * 1000 + slack) / 1000),
    ]
    assert stats.reserved == 3


def test_failure_records_are_counted_only_on_demand(queue: Queue) -> None:
    queue.client.hset(queue.keys.failed, mapping={"a": "1", "b": "2"})
    assert (queue.views.stats().failure_records, queue.views.stats(with_failure_records=False).failure_records) == (
        2,
        0,
    )


# --- failure records ---


def record(at: str, message: str = "e") -> str:
    return json.dumps({"task_data": {"url": "u"}, "error_message": message, "failed_at": at})


def test_a_record_stands_by_its_own_time_not_by_one_in_its_message(queue: Queue) -> None:
    long = 'x "failed_at": "2030-01-01T00:00:00Z" ' + "y" * 200
    queue.client.hset(
        queue.keys.failed,
        mapping={
            "a": record("2026-01-01T00:00:01Z", long),
            "b": record("2026-01-01T00:00:02Z"),
            "c": record("odd"),
            "d": '{"failed_at": "2026-01-01T00:00:03Z", "error_message": "' + "z" * 300 + '"}',
            "e": record("1969-12-31T23:59:59Z"),
            "f": record("2026-01-01T00:00:02.5Z"),
        },
    )
    failures = FailureRecords(queue.client, queue.keys)
    found, after = failures.page(10)
    urls = [one.url.decode() for one in found]
    assert (urls[:4], sorted(urls[4:]), after) == (["d", "f", "b", "a"], ["c", "e"], None)
    for limit in (1, 2, 3, 6):
        pages, cursor = [], None
        while True:
            rows, cursor = failures.page(limit, cursor)
            pages += [one.url.decode() for one in rows]
            if cursor is None:
                break
            assert len(rows) == limit
        assert pages == urls


def test_failure_records_are_found_removed_and_tried_again(queue: Queue) -> None:
    failures = FailureRecords(queue.client, queue.keys)
    queue.client.hset(queue.keys.failed, mapping={"a": record("x"), "b": "no record"})
    one, other = failures.get("a"), failures.get("b")
    assert one is not None and other is not None and failures.get("none") is None
    assert failures.by_id(one.id) == one and failures.by_id("0" * 32) is None
    assert sorted(each.url for each in failures.all()) == [b"a", b"b"]
    assert failures.retry(other) == "EMPTY"
    assert (failures.retry(one), failures.retry(one)) == ("OK", "GONE")
    assert queue.client.lrange(queue.keys.intake, 0, -1) == [one.raw]
    assert (failures.remove(other), failures.remove(other), failures.get("b")) == ("OK", "GONE", None)
    for cursor in ("", "1-2", "-1-" + "0" * 32, "1" * 18 + "-" + "0" * 32):
        with pytest.raises(UsageError, match="cursor"):
            failures.page(1, cursor)


# --- switches ---


def test_a_queue_wakes_those_that_wait_with_one_token(queue: Queue) -> None:
    admin = QueueAdmin(queue.client, queue.keys)
    admin.pause()
    assert not queue.client.exists(queue.keys.wake)
    for _ in range(3):
        admin.resume()
    assert queue.client.llen(queue.keys.wake) == 1 and not queue.client.exists(queue.keys.halted)
    queue.client.delete(queue.keys.wake)
    admin.drain("a")
    assert (admin.undrain("a"), admin.undrain("a"), queue.client.llen(queue.keys.wake)) == (True, False, 1)


def test_forgetting_counts_what_was_forgotten(queue: Queue) -> None:
    for name in ("a", "b", "c"):
        queue.end(name, "failed")
    queue.client.zadd(queue.keys.dead, {"unknown": 1})
    assert QueueAdmin(queue.client, queue.keys).forget_ended(queue.keys.dead) == 3
    assert (queue.ids("failed"), queue.client.exists(queue.keys.dead)) == ([], 0)


def test_a_look_asks_each_supervisor_and_is_forgotten_soon(queue: Queue) -> None:
    for sid in ("s1", "s2"):
        queue.transitions.heartbeat(sid, [], lease_s=LEASE_S, info=INFO)
    admin, views = QueueAdmin(queue.client, queue.keys), queue.views.stats().supervisors
    for _ in range(102):
        admin.request_status(views)
    for sid in ("s1", "s2"):
        mail = queue.keys.mail(sid)
        assert (queue.client.llen(mail), queue.client.lindex(mail, -1)) == (100, b"status")
        assert 0 < queue.client.pttl(mail) <= MAIL_TTL_MS


# --- slots of hosts, events, history ---


def test_a_host_without_limits_has_slots_for_all(queue: Queue) -> None:
    slots = HostSlots(queue.transitions)
    for name in "abc":
        place = slots.acquire(HostLimit("h"), name, lease_s=30, is_start_reserved=False)
        assert (place.wait_s, place.problem) == (0, None)
    apart = HostLimit("i", rate=2.0)
    waits = [slots.acquire(apart, name, lease_s=30, is_start_reserved=False).wait_s for name in "abc"]
    assert waits[0] == 0 and waits[1] is not None and 0 < waits[1] <= 0.5
    assert waits[2] is not None and 0.5 < waits[2] <= 1.0


def test_each_call_that_was_answered_tells_how_long_it_took(queue: Queue) -> None:
    told: list[tuple[str, float]] = []
    transitions = Transitions(queue.client, queue.keys, lambda name, seconds: told.append((name, seconds)))
    transitions.hold_host("h", 1.0)
    transitions.oldest_waiting()
    assert [name for name, _ in told] == ["hold_host", "oldest_waiting"]
    assert all(0 <= seconds < 60 for _, seconds in told)


def test_events_are_read_from_any_place(queue: Queue) -> None:
    EventWriter(queue.client, queue.keys).add(
        [{"event": "e", "upload_id": f"{number}", "n": "x"} for number in range(3)]
    )
    events = EventReader(queue.client, queue.keys)
    found = events.last(10)
    assert [one.upload_id for one in found] == ["0", "1", "2"]
    assert [one.upload_id for one in events.last(2)] == ["1", "2"]
    assert events.after(found[0].id) == events.wait_after(found[0].id) == found[1:]
    assert events.after(found[2].id) == events.wait_after(found[2].id) == []
    told = found[0].as_json()
    assert ("job_id" in told, "note" in told, told["event"], told["at"][-1]) == (False, False, "e", "Z")
    queue.push("job")
    job = events.last(1)[0]
    assert (job.job_id, job.as_json()["job_id"], job.upload_id) == ("job", "job", "")


def test_samples_are_those_of_the_clock(queue: Queue) -> None:
    queue.client.hset(queue.keys.clock, mapping={"ahead": "5000", "seen": "0"})
    history = QueueHistory(queue.client, queue.keys)
    for number in range(4):
        queue.client.xadd(
            queue.keys.history, {"waiting": number, "running": "1.9", "rate": "-3"}, id=f"{10_000 + number}-0"
        )
    assert history.since() == [[5000 + number, number, 1, -3] for number in range(4)]
    assert history.since(5002) == [[5002, 2, 1, -3], [5003, 3, 1, -3]]
    assert [sample[0] for sample in history.since(0, 2)] == [5000, 5003]


def test_throttled_jobs_are_counted_by_host(queue: Queue) -> None:
    for number in range(3):
        queue.push(f"j{number}", priority="high")
        (claimed,) = queue.claim()
        host = "a" if number < 2 else "b"
        queue.transitions.finish("s1", [FinishRequest(claimed.lease, Disposition.THROTTLE, host=host, delay_s=60)])
    stats: Any = queue.views.stats()
    assert (stats.throttled, list(stats.waiting_hosts.items())) == (3, [("a", 2), ("b", 1)])
    queue.client.zadd(queue.keys.holds, {"past": now_ms(queue) - 60_000, "held": now_ms(queue) + 90_000})
    held = queue.views.stats().held_hosts
    assert list(held) == ["held"] and 30 < held["held"] <= 90
