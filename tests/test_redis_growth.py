"""What Redis holds is bounded by bytes: pushed jobs that wait, ended jobs that are remembered, records of failures."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from dlpool.errors import QueueAway
from dlpool.jobs import scripts
from dlpool.jobs.client_records import failure_record
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import JobLease, Transitions
from tests.redis_server import RedisServer
from tests.test_transitions import Queue

KIB = 1024
FAILURE_BOUNDS = ("FAILURES_KEPT", "FAILURES_BYTES", "FAILURES_MS")
Small = Callable[..., Queue]


@pytest.fixture
def small(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Makes a queue with other bounds, by the names of shared.lua."""

    def make(**bounds: int) -> Queue:
        source = scripts._source

        def bounded(name: str) -> str:
            text = source(name)
            failures = [str(bounds[one]) for one in FAILURE_BOUNDS if one in bounds]
            if failures:
                text = re.sub(f"({', '.join(FAILURE_BOUNDS)}) = [^-]*", rf"\1 = {', '.join(failures)} ", text)
            for bound in bounds.keys() - set(FAILURE_BOUNDS):
                text, count = re.subn(rf"local {bound} = [^-\n]*", f"local {bound} = {bounds[bound]} ", text)
                assert count == 1
            return text

        monkeypatch.setattr(scripts, "_source", bounded)
        queue = Queue(redis_server.client())
        queue.does = Transitions(queue.client, queue.keys)
        queue.admin = JobAdmin(queue.client, queue.keys)
        return queue

    return make


def large(name: str, size: int) -> PushedJob:
    text = compose_job(f"http://host/{name}", "/data/f").decode()[:-1] + ', "more": "'
    return PushedJob.parse((text + "x" * (size - len(text) - 2) + '"}').encode())


def push(queue: Queue, *names: str, size: int) -> list[str]:
    return queue.does.push([(large(name, size), name) for name in names])


def end(queue: Queue, outcome: str, *known: JobLease, url: str = "") -> str:
    """Claim the next job, and end it."""
    [claimed] = queue.claim(1, known=known)
    record = None
    if url:
        record = failure_record(queue.keys, url, claimed.raw, "why", 0.0)
    assert queue.finish(claimed.lease, outcome, record=record) == "OK"
    return claimed.lease.job_id


def waiting(queue: Queue) -> int:
    return int(queue.client.hget(f"{queue.keys.prefix}bytes", "waiting") or 0)


def test_pushed_jobs_are_refused_when_too_many_bytes_wait(small: Small) -> None:
    queue = small(WAITING_BYTES=10 * KIB)
    assert push(queue, "a", "b", size=4 * KIB) == ["OK", "OK"]
    for _ in range(2):
        with pytest.raises(QueueAway, match="as many bytes of waiting jobs"):
            push(queue, "c", size=4 * KIB)
    assert queue.state("c") is None and waiting(queue) == 8 * KIB
    assert push(queue, "a", size=4 * KIB) == ["DUP"]
    assert queue.push("small") == ["OK"]
    queue.drop_in(large("of a client", 4 * KIB).raw)  # the intake is the clients'
    end(queue, "success")
    assert push(queue, "c", size=4 * KIB) == ["OK"]


@pytest.mark.parametrize("way", ["success", "failed", "cancelled"])
def test_what_has_ended_waits_no_more(way: str, small: Small) -> None:
    queue = small(WAITING_BYTES=10 * KIB)
    for number in range(5):
        assert push(queue, f"j{number}", size=6 * KIB) == ["OK"]
        end(queue, way)
    assert waiting(queue) == 0


def test_retries_and_followers_are_counted_once(small: Small) -> None:
    queue = small(WAITING_BYTES=100 * KIB)
    assert queue.push("a", dedupe=True) == ["OK"]
    assert queue.does.push([(PushedJob.parse(queue.client.hget(queue.keys.job("a"), "raw")), "b")]) == ["FOLLOWS"]
    [claimed] = queue.claim(1)
    queue.finish(claimed.lease, "retry", delay_s=0.001)
    queue.pass_delays()
    end(queue, "failed")
    assert waiting(queue) == 0
    assert queue.admin.execute("retry", "a") == "OK"
    end(queue, "failed")
    assert waiting(queue) == 0


@pytest.mark.parametrize("way, kept", [("success", "done"), ("failed", "dead"), ("cancelled", "cancelled")])
def test_ended_jobs_with_long_texts_are_forgotten_by_bytes(way: str, kept: str, small: Small) -> None:
    queue = small(LARGE_BYTES=20 * KIB)
    queue.push("tiny")
    end(queue, way)
    names = [f"j{number:02}" for number in range(10)]
    for name in names:
        push(queue, name, size=6 * KIB)
        end(queue, way)
    remembered = queue.zset(f"{queue.keys.prefix}{kept}")
    assert remembered == {"tiny", *names[-3:]}
    assert [name for name in names if queue.job(name)] == names[-3:]
    assert int(queue.client.hget(f"{queue.keys.prefix}bytes", kept)) == 18 * KIB


def test_a_job_that_runs_again_is_not_forgotten_for_its_earlier_end(small: Small) -> None:
    queue = small(LARGE_BYTES=10 * KIB)
    push(queue, "again", size=8 * KIB)
    end(queue, "failed")
    assert queue.admin.execute("retry", "again") == "OK"
    [claimed] = queue.claim(1)
    push(queue, "other", size=8 * KIB)
    end(queue, "failed", claimed.lease)
    assert queue.state("again") == "running"
    assert queue.finish(claimed.lease, "success") == "OK"
    assert queue.state("again") == "succeeded"


def failures(queue: Queue) -> list[str]:
    return sorted(field.decode() for field in queue.client.hkeys(queue.keys.failed))


BOUNDS: dict[str, dict[str, int]] = {
    "number": {"FAILURES_KEPT": 3, "FAILURES_BYTES": 10**9, "FAILURES_MS": 10**12},
    "bytes": {"FAILURES_KEPT": 10**6, "FAILURES_BYTES": 5 * KIB, "FAILURES_MS": 10**12},
}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_the_oldest_failure_records_go(bounds: dict[str, int], small: Small) -> None:
    queue = small(**bounds)
    queue.client.hset(queue.keys.failed, "of another service", "{}")
    for number in range(8):
        push(queue, f"j{number}", size=3 * KIB // 2)
        end(queue, "failed", url=f"http://host/{number}")
    assert failures(queue) == ["http://host/5", "http://host/6", "http://host/7", "of another service"]
    sizes = queue.client.hgetall(f"{queue.keys.prefix}failures:bytes")
    assert sum(map(int, sizes.values())) == int(queue.client.hget(f"{queue.keys.prefix}bytes", "failures"))
    assert len(sizes) == 3


def test_failure_records_go_by_age(small: Small) -> None:
    queue = small(FAILURES_KEPT=100, FAILURES_BYTES=10**9, FAILURES_MS=1000)
    for number in range(3):
        queue.push(f"j{number}")
        end(queue, "failed", url=f"http://host/{number}")
    queue.client.zadd(f"{queue.keys.prefix}failures", {"http://host/0": 1, "http://host/1": 1})
    queue.push("new")
    end(queue, "failed", url="http://host/new")
    assert failures(queue) == ["http://host/2", "http://host/new"]


def test_a_url_that_fails_again_counts_once_and_is_the_newest(small: Small) -> None:
    queue = small(FAILURES_KEPT=2, FAILURES_BYTES=10**9, FAILURES_MS=10**12)
    for number, url in enumerate(["a", "b", "a", "c"]):
        queue.push(f"j{number}")
        end(queue, "failed", url=url)
        queue.client.zadd(f"{queue.keys.prefix}failures", {url: queue.now_ms() - 100 + number})
    assert failures(queue) == ["a", "c"]


def test_a_record_larger_than_all_may_be_stays_alone(small: Small) -> None:
    queue = small(FAILURES_KEPT=100, FAILURES_BYTES=100, FAILURES_MS=10**12)
    for number in range(3):
        push(queue, f"j{number}", size=KIB)
        end(queue, "failed", url=f"http://host/{number}")
    assert failures(queue) == ["http://host/2"]


def test_a_cancelled_job_has_its_record_within_the_bounds(small: Small) -> None:
    queue = small(FAILURES_KEPT=1, FAILURES_BYTES=10**9, FAILURES_MS=10**12)
    queue.push("a", "b")
    for name in ("a", "b"):
        assert queue.admin.execute("cancel", name, message="why", at=1.0) == "OK"
    assert failures(queue) == ["http://host/b"]


def test_records_that_clients_removed_are_only_forgotten(small: Small) -> None:
    queue: Any = small(FAILURES_KEPT=2, FAILURES_BYTES=10**9, FAILURES_MS=10**12)
    for number in range(4):
        queue.push(f"j{number}")
        end(queue, "failed", url=f"http://host/{number}")
        queue.client.hdel(queue.keys.failed, f"http://host/{number}")
    assert failures(queue) == [] and queue.client.zcard(f"{queue.keys.prefix}failures") == 2
