"""What becomes of a job: the rules by which it runs again, waits, or fails for good, as tables."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from typing import Any

import pytest

from dlpool.config import SupervisorSettings
from dlpool.disk_errors import local_fault
from dlpool.errors import (
    Cancelled,
    DlpoolError,
    FailJob,
    InternalError,
    Locked,
    LostJob,
    NodeFault,
    NoRoom,
    RestartFile,
    RetryRange,
    TooLarge,
)
from dlpool.jobs.client_records import CANCELLED
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, PushedJob, compose_job
from dlpool.jobs.transitions import ClaimedJob, JobLease
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.wire.frames import EndedFrame
from dlpool.service.wire.results import AttemptResult, attempt_result_of
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.redis_server import RedisServer

NOW = 1_800_000_000.0
URL = "http://host/file"


def make_policy(*, jitter: float = 1.0, **settings: Any) -> DispositionPolicy:
    return DispositionPolicy(QueueKeys(), replace(SupervisorSettings(), **settings), lambda: NOW, lambda: jitter)


def claimed(raw: bytes | None = None, **fields: Any) -> ClaimedJob:
    raw = compose_job(URL, "/data/file") if raw is None else raw
    usual: dict[str, Any] = {"attempts": 1, "crashes": 0, "takeovers": 0, "created_ms": 0, "priority": "normal"}
    return ClaimedJob(JobLease("a", 7), raw, len(raw), **(usual | fields))


def said(attempt_result: str, **fields: Any) -> EndedFrame:
    return EndedFrame("a.7", AttemptResult(attempt_result), label="why", message="because", **fields)


# --- poison: a job that is in flight when workers or supervisors die ---


@pytest.mark.parametrize(
    ("most", "takeovers", "is_poison"),
    [
        (3, 0, False),
        (3, 1, False),
        (3, 3, False),
        (3, 4, True),
        (3, 5, True),
        (1, 1, False),
        (1, 2, True),
        (0, 0, False),
        (0, 1, True),
    ],
)
def test_a_job_of_too_many_dead_supervisors_is_poison(most: int, takeovers: int, is_poison: bool) -> None:
    job, instead = make_policy(max_takeovers=most).admit(claimed(takeovers=takeovers))
    assert job is not None
    if not is_poison:
        assert instead is None
        return
    assert instead is not None and instead.disposition == "failed" and instead.note["label"] == "poison"
    assert instead.record is not None and instead.record.field == URL
    message = json.loads(instead.record.value)["error_message"]
    assert message == f"the job was running in {takeovers} supervisors and 0 workers that died"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_lack_of_resources_fails_no_job(number: int) -> None:
    """Another job would meet the same here, and this one may succeed later."""
    assert attempt_result_of(local_fault("open f.part", OSError(number, os.strerror(number)))) == "node_fault"


@pytest.mark.parametrize(("crashes", "is_poison"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_job_that_killed_too_many_workers_is_not_admitted_again(crashes: int, is_poison: bool) -> None:
    _, instead = make_policy(max_crashes=3).admit(claimed(crashes=crashes))
    assert (instead is not None) == is_poison


@pytest.mark.parametrize(("crashes", "outcome"), [(0, "crash"), (1, "crash"), (2, "failed"), (3, "failed")])
def test_the_third_death_of_a_worker_fails_its_job(crashes: int, outcome: str) -> None:
    request = make_policy(max_crashes=3).for_worker_death(claimed(crashes=crashes), URL, "killed by SIGSEGV")
    assert request.disposition == outcome
    assert request.note["label"] == ("poison" if outcome == "failed" else "worker_died")


@pytest.mark.parametrize(
    ("most", "crashes", "is_alone"),
    [(3, 0, False), (3, 1, False), (3, 2, True), (3, 3, True), (1, 0, False), (2, 1, True)],
)
def test_a_job_that_one_more_death_would_fail_is_quarantined(most: int, crashes: int, is_alone: bool) -> None:
    assert make_policy(max_crashes=most).is_quarantined(claimed(crashes=crashes)) == is_alone


def test_a_poison_job_is_taken_over_max_takeovers_times(tmp_path: Any, redis_server: RedisServer) -> None:
    client = Client(redis_server.client())
    with Origin(File(b"x")) as origin, Supervisor(tmp_path, redis_server.url, {"supervisor": {"max_takeovers": 2}}):
        for job_id, takeovers in (("fit", 2), ("poison", 3)):
            raw = compose_job(f"{origin.url}/{job_id}", job_id)
            fields = {
                "raw": raw,
                "size": len(raw),
                "state": "queued",
                "priority": "normal",
                "created": 1,
                "takeovers": takeovers,
                "list": "normal",
            }
            client.redis.hset(client.keys.job(job_id), mapping=fields)
            client.redis.lpush(client.keys.ready("normal"), job_id)
        client.wait_for(f"{origin.url}/fit")
        record = client.wait_for_failure(f"{origin.url}/poison")
        assert record["error_message"] == "the job was running in 3 supervisors and 0 workers that died"
        assert [request.path for request in origin.requests] == ["/fit"]
        wait_until(lambda: client.ends("poison") == 1)


# --- the other rules ---


@pytest.mark.parametrize(
    ("attempts", "own", "outcome"),
    [
        (1, None, "retry"),
        (4, None, "retry"),
        (5, None, "failed"),
        (6, None, "failed"),
        (1, 1, "failed"),
        (1, 2, "retry"),
        (6, 7, "retry"),
    ],
)
def test_a_job_is_retried_as_often_as_it_or_the_settings_say(attempts: int, own: int | None, outcome: str) -> None:
    job = PushedJob.parse(compose_job(URL, "/f", **({} if own is None else {"max_attempts": own})))
    request = make_policy(max_attempts=5).for_attempt(claimed(attempts=attempts), job, said("retry"))
    assert request is not None and request.disposition == outcome


@pytest.mark.parametrize(
    ("attempts", "jitter", "asked_s", "delay_s"),
    [
        (1, 1.0, None, 5),
        (2, 1.0, None, 10),
        (3, 0.5, None, 10),
        (20, 1.0, None, 900),
        (1, 0.0, None, 0.001),
        (1, 0.0, 30.0, 30),
        (5, 1.0, 30.0, 80),
        (1, 1.0, 2000.0, 2000),
    ],
)
def test_the_delay_doubles_with_jitter_up_to_a_limit_and_never_below_what_the_server_asks(
    attempts: int, jitter: float, asked_s: float | None, delay_s: float
) -> None:
    policy = make_policy(jitter=jitter, job_retry_delay=5.0, job_retry_max_delay=900.0, max_attempts=100)
    job = PushedJob.parse(compose_job(URL, "/f"))
    request = policy.for_attempt(claimed(attempts=attempts), job, said("retry", retry_after_s=asked_s))
    assert request is not None and request.delay_s == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("attempts", "own", "delay_s"),
    [(1, None, 30), (2, None, 60), (3, None, 120), (4, None, 240), (5, None, 0), (1, 1, 0), (2, 3, 60), (5, 1000, 0)],
)
def test_attempts_on_a_full_disk_are_limited_by_the_settings_alone(
    attempts: int, own: int | None, delay_s: float
) -> None:
    job = PushedJob.parse(compose_job(URL, "/f", **({} if own is None else {"max_attempts": own})))
    request = make_policy(max_attempts=5, fault_delay=30.0, jitter=0.0).for_attempt(
        claimed(attempts=attempts), job, said("no_room")
    )
    assert request is not None and (request.disposition, request.delay_s) == ("retry" if delay_s else "failed", delay_s)
    assert delay_s or (request.record is not None and request.record.field == URL)


@pytest.mark.parametrize(
    ("attempt_result", "action", "outcome", "delay_s"),
    [
        ("node_fault", None, "release", 30.0),
        ("no_room", None, "retry", 30.0),
        ("locked", None, "release", 7.0),
        ("released", None, "release", 0.0),
        ("failed", None, "failed", 0.0),
        ("failed", "cancel", "cancelled", 0.0),
        ("failed", "pause", "failed", 0.0),
        ("released", "pause", "pause", 0.0),
        ("released", "cancel", "cancelled", 0.0),
        ("node_fault", "cancel", "cancelled", 0.0),
        ("node_fault", "pause", "release", 30.0),
    ],
)
def test_what_an_attempt_result_leads_to(attempt_result: str, action: str | None, outcome: str, delay_s: float) -> None:
    job = PushedJob.parse(compose_job(URL, "/f"))
    request = make_policy(fault_delay=30.0, locked_delay=7.0).for_attempt(claimed(), job, said(attempt_result), action)
    assert request is not None and (request.disposition, request.delay_s) == (outcome, delay_s)


def test_a_lost_job_gets_no_request_and_a_finished_one_is_never_cancelled() -> None:
    job = PushedJob.parse(compose_job(URL, "/f"))
    assert make_policy().for_attempt(claimed(), job, said("lost"), "cancel") is None
    done = EndedFrame("a.7", AttemptResult.SUCCEEDED, "/f", {"size": 1, "seconds": 0.1})
    request = make_policy().for_attempt(claimed(), job, done, "cancel")
    assert request is not None and request.disposition == "success"


# --- what is admitted ---


@pytest.mark.parametrize(("more", "outcome"), [(0, None), (1, "failed")])
def test_a_job_may_be_as_long_as_the_limit_and_no_longer(more: int, outcome: str | None) -> None:
    job, instead = make_policy().admit(replace(claimed(), size=MAX_JOB_BYTES + more))
    assert (job is None) == (outcome is not None) and (instead and instead.disposition) == outcome
    if instead is not None:
        assert instead.note["label"] == "malformed" and f"{MAX_JOB_BYTES + 1} bytes long" in instead.note["message"]


@pytest.mark.parametrize(
    ("own", "claim", "expected"),
    [
        ({}, {}, None),
        ({"not_before": NOW + 0.5}, {}, ("release", 0.5, "normal", "")),
        ({"not_before": NOW + 9, "priority": "low"}, {}, ("release", 9.0, "low", "")),
        ({"not_before": NOW}, {}, None),
        ({"not_before": NOW - 1}, {}, None),
        ({"priority": "low"}, {}, ("release", 0.0, "low", "")),
        ({"priority": "low"}, {"priority": "low"}, None),
        ({"priority": "high"}, {}, None),
        ({"dedupe": True}, {}, ("follow", 0.0, "", "digest")),
        ({}, {"flag": "cancel"}, ("cancelled", 0.0, "", "")),
        ({}, {"flag": "pause"}, ("pause", 0.0, "", "")),
        ({"dedupe": True}, {"flag": "pause"}, ("pause", 0.0, "", "")),
    ],
)
def test_a_job_runs_at_once_unless_it_is_postponed(
    own: dict[str, Any], claim: dict[str, Any], expected: tuple[str, float, str, str] | None
) -> None:
    job, instead = make_policy().admit(claimed(compose_job(URL, "/data/file", **own), **claim))
    assert job is not None and job.url == URL
    if expected is None:
        assert instead is None
        return
    assert instead is not None
    digest = job.digest if expected[3] else ""
    assert (instead.disposition, instead.delay_s, instead.priority, instead.digest) == (*expected[:3], digest)


# --- what is said of it ---


@pytest.mark.parametrize(
    ("error", "attempt_result"),
    [
        (LostJob("x"), "lost"),
        (Cancelled("x"), "released"),
        (TooLarge("x"), "failed"),
        (NoRoom("x"), "no_room"),
        (NodeFault("x"), "node_fault"),
        (Locked("x"), "locked"),
        (RetryRange("x"), "retry"),
        (RestartFile("x"), "retry"),
        (InternalError("x"), "retry"),
        (FailJob("x"), "failed"),
    ],
)
def test_the_attempt_result_of_an_error(error: DlpoolError, attempt_result: str) -> None:
    assert attempt_result_of(error) == attempt_result


def test_the_figures_of_a_success_are_noted() -> None:
    job = PushedJob.parse(compose_job(URL, "/f"))
    figures = {"size": 7, "seconds": 0.5, "received": 5, "resumed_from": 2, "retries": 1}
    request = make_policy().for_attempt(
        claimed(), job, EndedFrame("a.7", AttemptResult.SUCCEEDED, "/f", {**figures, "other": 1})
    )
    assert request is not None and request.note == {"path": "/f", **figures} and request.record is not None


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        (compose_job(URL, "/f"), URL),
        (json.dumps({"url": URL, "save_path": "x", "dlpool": {"max_attempts": 0}}).encode(), URL),
        (b"nonsense", None),
    ],
)
def test_a_job_that_met_a_defect_fails_with_its_record_if_it_has_a_url(raw: bytes, url: str | None) -> None:
    request = make_policy().for_internal_error(claimed(raw), InternalError("odd"))
    assert request.disposition == "failed" and request.note == {"label": InternalError.label, "message": "odd"}
    assert (request.record and request.record.field) == url


@pytest.mark.parametrize(
    ("attempt_result", "outcome"), [("retry", "retry"), ("locked", "release"), ("failed", "failed")]
)
def test_the_error_of_an_attempt_is_noted(attempt_result: str, outcome: str) -> None:
    job = PushedJob.parse(compose_job(URL, "/f"))
    request = make_policy().for_attempt(claimed(), job, said(attempt_result))
    assert request is not None and (request.disposition, request.note) == (
        outcome,
        {"label": "why", "message": "because"},
    )


def test_a_stopped_job_has_a_note_and_only_a_cancelled_one_a_record() -> None:
    paused, cancelled = (
        make_policy().for_stop_request(claimed(), URL, "pause"),
        make_policy().for_stop_request(claimed(), URL, "cancel"),
    )
    assert (paused.record, paused.note) == (None, {"label": "paused", "message": "the job was paused"})
    assert cancelled.record is not None and cancelled.record.field == URL
    assert cancelled.note == {"label": "cancelled", "message": CANCELLED}


def test_the_number_of_worker_deaths_is_reported() -> None:
    condemned = make_policy(max_crashes=3).for_worker_death(claimed(crashes=2), URL, "killed by SIGSEGV")
    assert condemned.note["message"] == "the job was running in 3 workers that died: killed by SIGSEGV"
    again = make_policy(max_crashes=3).for_worker_death(claimed(crashes=1), URL, "killed by SIGSEGV")
    assert again.note["message"] == "killed by SIGSEGV"


def test_the_doubling_of_delays_ends() -> None:
    policy = make_policy(job_retry_delay=1.0, job_retry_max_delay=1e12, max_attempts=10_000)
    job = PushedJob.parse(compose_job(URL, "/f"))
    delays = [policy.for_attempt(claimed(attempts=attempts), job, said("retry")) for attempts in (30, 31, 32, 5000)]
    assert [request.delay_s for request in delays if request is not None] == [2.0**29, 2.0**30, 2.0**30, 2.0**30]
