"""Lists of jobs and of failure records, page after page: all of them once, in their order, and each page bounded."""

from __future__ import annotations

import json

import pytest

from dlpool.errors import UsageError
from dlpool.jobs.failure_records import FailureRecords
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.job_listing import STATES
from dlpool.jobs.pushed_job import compose_job
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from tests.redis_server import RedisServer
from tests.test_views import Queue


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server)


def ended(queue: Queue, name: str, key: str, state: str, score: int) -> None:
    """A job that ended at that time, as it stands in Redis."""
    queue.client.hset(queue.keys.job(name), mapping={"raw": compose_job(f"http://h/{name}", "p"), "state": state})
    queue.client.zadd(key, {name: score})


def read(queue: Queue, state: str | None, limit: int) -> list[list[str | None]]:
    """All pages."""
    pages, after = [], None
    while True:
        page = queue.views.listing.page(state, limit, after)
        pages.append([view.id or view.url for view in page.jobs])
        after = page.after
        if after is None:
            return pages
        assert len(pages) < 100


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_ended_jobs_are_read_page_by_page_newest_first_also_those_of_the_same_moment(limit: int, queue: Queue) -> None:
    for number in range(7):
        ended(queue, f"j{number}", queue.keys.dead, "failed", 10**12 + number // 3)
    pages = read(queue, "failed", limit)
    assert [name for page in pages for name in page] == [f"j{number}" for number in reversed(range(7))]
    assert all(len(page) == limit for page in pages[:-1]) and pages[-1]


def test_a_job_that_left_meanwhile_does_not_break_the_cursor(queue: Queue) -> None:
    for number in range(4):
        ended(queue, f"j{number}", queue.keys.done, "succeeded", 10**12 + number)
    page = queue.views.listing.page("succeeded", 2)
    assert JobAdmin(queue.client, queue.keys).execute("remove", "j2") == "OK"
    rest = queue.views.listing.page("succeeded", 2, page.after)
    assert ([view.id for view in rest.jobs], rest.after) == (["j1", "j0"], None)


def test_jobs_that_are_forgotten_make_a_page_no_shorter(queue: Queue) -> None:
    queue.client.zadd(queue.keys.dead, {f"gone{number}": 10**12 + 10 + number for number in range(50)})
    ended(queue, "here", queue.keys.dead, "failed", 10**12)
    assert queue.ids("failed", 1) == ["here"]


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_all_states_are_read_one_after_the_other(limit: int, queue: Queue) -> None:
    queue.end("good")
    queue.end("bad", "failed")
    queue.end("off", "cancelled")
    queue.push("parks", priority="high")
    (claimed,) = queue.claim()
    queue.transitions.finish("s1", [FinishRequest(claimed.lease, Disposition.THROTTLE, host="h", delay_s=60)])
    queue.push("later", not_before="2099-01-01T00:00:00Z")
    queue.push("runs", priority="high")
    queue.claim()
    for job_id in ("halts", "high", "low"):
        queue.push(job_id, priority="high" if job_id == "high" else "low")
    JobAdmin(queue.client, queue.keys).execute("pause", "halts")
    queue.client.lpush(queue.keys.intake, compose_job("http://h/raw", "p"))
    read_names = [name for page in read(queue, None, limit) for name in page]
    wanted = ["runs", "high", "http://h/raw", "low", "parks", "later", "halts", "bad", "off", "good"]
    assert read_names == wanted
    assert read_names == [name for state in STATES for page in read(queue, state, limit) for name in page]


def test_running_jobs_stand_as_they_began_however_soon_their_leases_end(queue: Queue) -> None:
    for number in range(4):
        queue.push(f"j{number}")
    queue.claim(4)
    for number in range(4):
        queue.client.hset(queue.keys.job(f"j{number}"), "started", 10**12 + number)
        queue.client.zadd(queue.keys.leases, {f"j{number}": 10**13 - number})
    assert queue.ids("running", 2) == ["j0", "j1"]
    assert read(queue, "running", 3) == [["j0", "j1", "j2"], ["j3"]]


def test_of_a_job_that_was_moved_only_its_place_counts(queue: Queue) -> None:
    admin = JobAdmin(queue.client, queue.keys)
    for job_id in ("a", "b", "c", "d"):
        queue.push(job_id)
    admin.execute("promote", "c")
    admin.execute("cancel", "a")
    admin.execute("pause", "b")
    assert read(queue, "queued", 1)[:2] == [["c"], ["d"]]
    stats = queue.views.stats()
    assert (stats.waiting, stats.ready["high"], stats.ready["normal"], stats.paused) == (2, 1, 1, 1)
    admin.execute("resume", "b")
    assert queue.views.stats().waiting == 3
    assert [job.lease.job_id for job in queue.claim(9)] == ["c", "b", "d"]
    assert queue.views.stats().waiting == 0
    assert not queue.client.exists(queue.keys.stale), "all old places were passed by"


def test_a_list_of_old_places_hides_no_job(queue: Queue) -> None:
    admin = JobAdmin(queue.client, queue.keys)
    for number in range(300):
        queue.push(f"c{number}")
        admin.execute("cancel", f"c{number}")
    queue.push("waits")
    assert queue.ids("queued", 5) == ["waits"]
    assert queue.views.stats().waiting == 1


@pytest.mark.parametrize(
    ("state", "cursor"),
    [
        ("failed", "queued.1"),
        ("failed", "failed.x"),
        ("failed", "failed.p1-a"),
        ("queued", "queued.1-a"),
        (None, "a"),
        ("delayed", "delayed.1-a"),
    ],
)
def test_a_cursor_of_another_list_is_refused(state: str | None, cursor: str, queue: Queue) -> None:
    with pytest.raises(UsageError, match="cursor"):
        queue.views.listing.page(state, 5, cursor)


# --- failure records ---


def test_the_job_of_a_record_is_found_however_its_json_is_written(queue: Queue) -> None:
    job = {"url": "http://h/x", "save_path": "p"}
    record = json.dumps({"task_data": job, "error_message": "e", "failed_at": ""})
    for text in (record, record.replace(": ", ":", 1), record.replace(" ", "")):
        queue.client.hset(queue.keys.failed, "http://h/x", text)
        found = FailureRecords(queue.client, queue.keys).get("http://h/x")
        assert found is not None and found.raw is not None and json.loads(found.raw) == job


def test_failure_records_stand_newest_first_and_are_read_page_by_page(queue: Queue) -> None:
    """Also those of another service, with another zone, and what is no record at all."""
    moments = ["2026-01-01T00:00:00Z", "2026-01-02T02:00:00+03:00", "2026-01-01T22:30:00.5Z", "2026-01-01T22:30:00.5Z"]
    for number, moment in enumerate(moments):
        value = json.dumps({"task_data": {"url": "x"}, "error_message": "e", "failed_at": moment})
        queue.client.hset(queue.keys.failed, f"http://h/{number}", value)
    queue.client.hset(queue.keys.failed, "odd", "no record")
    failures = FailureRecords(queue.client, queue.keys)
    for limit in (1, 2, 10):
        urls, after = [], None
        while True:
            found, after = failures.page(limit, after)
            urls += [one.url.decode() for one in found]
            if after is None:
                break
        assert (urls[0], sorted(urls[1:3]), urls[3:]) == (
            "http://h/1",
            ["http://h/2", "http://h/3"],
            ["http://h/0", "odd"],
        )
    with pytest.raises(UsageError, match="cursor"):
        failures.page(5, "failed.1-a")
