"""Test the limit on log lines that clients can cause at will: the others are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import falcon
import falcon.testing
import pytest

from dlpool.config import Settings
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.observe.log_limiter import PERIOD_S, LogLimiter
from dlpool.service.dispatcher import MALFORMED_PER_MINUTE, DispatcherServices, JobDispatcher
from dlpool.service.inflight import InFlightTable
from dlpool.service.queue.messages import ResultRecorded
from dlpool.web.app import make_app
from dlpool.web.wiring import MAX_LOGGED, WebServices
from tests.fakes import Lines
from tests.test_disposition import make_policy


def test_the_first_events_of_each_key_are_written_and_the_others_counted() -> None:
    now = [0.0]
    summary = LogLimiter(2, lambda: now[0])
    assert [summary.allow("a") for _ in range(5)] == [True, True, False, False, False]
    assert summary.allow("b")
    assert summary.pop_counts() == []
    now[0] += PERIOD_S
    assert summary.pop_counts() == [("a", 3)]
    assert summary.pop_counts() == []
    assert [summary.allow("a") for _ in range(3)] == [True, True, False]
    assert summary.pop_counts(now=True) == [("a", 1)]
    assert summary.pop_counts(now=True) == []


@pytest.fixture
def parts(tmp_path: Path) -> WebServices:
    settings = Settings()
    web = replace(settings.web, secret_key="k" * 32, request_rate=None)
    paths = replace(settings.paths, state_dir=str(tmp_path / "state"), log_dir=str(tmp_path / "log"))
    upload = replace(settings.upload, upload_dir=str(tmp_path / "up"), merged_dir=str(tmp_path / "merged"))
    made = WebServices(replace(settings, web=web, paths=paths, upload=upload))
    made.log = Lines()
    return made


def test_requests_that_cannot_be_read_have_one_line_a_minute_and_are_counted(parts: WebServices) -> None:
    for number in range(500):
        parts.count_rejected(400, "bad_request", f"192.0.2.{number % 250}", "InvalidHeader")
        parts.count_rejected(408, "too_slow", "192.0.2.1", "TooSlow")
    lines: Any = parts.log
    assert Counter(lines.events) == {"request_unreadable": 2}
    parts.log_summaries(now=True)
    assert [line.fields for line in lines.named("requests_refused")] == [
        {"status": 400, "label": "bad_request", "count": 499},
        {"status": 408, "label": "too_slow", "count": 499},
    ]
    assert parts.counters.totals()["error bad_request"] == 500


def test_requests_of_strangers_have_a_bounded_number_of_lines_and_those_of_clients_all(parts: WebServices) -> None:
    client = falcon.testing.TestClient(make_app(parts))
    for _ in range(MAX_LOGGED + 30):
        assert client.simulate_get("/tasks").status_code == 401
        assert client.simulate_get("/nothing/here").status_code == 401
    lines: Any = parts.log
    assert Counter(lines.events)["request_served"] == MAX_LOGGED
    for _ in range(MAX_LOGGED + 5):
        assert client.simulate_get("/nowhere", headers={"X-Secret-Key": "k" * 32}).status_code == 404
    assert Counter(lines.events)["request_served"] == 2 * MAX_LOGGED + 5
    parts.log_summaries(now=True)
    [told] = [line.fields for line in lines.named("requests_refused")]
    assert told == {"status": 401, "label": "unauthorized", "count": MAX_LOGGED + 60}
    assert parts.counters.totals()["error unauthorized"] == 2 * (MAX_LOGGED + 30)


@pytest.mark.parametrize(
    "method, path, headers, status",
    [
        ("OPTIONS", "/files", {}, 200),
        ("OPTIONS", "/go-uploader/tasks", {}, 200),
        ("POST", "/files", {"X-HTTP-Method-Override": "OPTIONS"}, 200),
        ("POST", "/files", {"X-HTTP-Method-Override": "odd"}, 405),
        ("POST", "/files", {"Origin": "http://evil.example.org"}, 403),
        ("GET", "/", {}, 200),
        ("PUT", "/", {}, 405),
    ],
)
def test_what_needs_no_key_does_not_fill_the_log(
    method: str, path: str, headers: dict[str, str], status: int, parts: WebServices
) -> None:
    client = falcon.testing.TestClient(make_app(parts))
    for _ in range(MAX_LOGGED + 30):
        assert client.simulate_request(method, path, headers=headers).status_code == status
    lines: Any = parts.log
    assert Counter(lines.events)["request_served"] == MAX_LOGGED
    parts.log_summaries(now=True)
    [told] = [line.fields for line in lines.named("requests_refused")]
    assert (told["status"], told["count"]) == (status, 30)


def test_what_is_no_job_does_not_fill_the_log_of_the_service() -> None:
    lines, ended, table = Lines(), list[FinishRequest](), InFlightTable()
    anything: Any = SimpleNamespace(schedule=lambda *_: None, count_result=lambda *_: None)
    recorder: Any = SimpleNamespace(record=ended.append)
    log: Any = lines
    none: Any = None
    services = DispatcherServices(table, none, recorder, none, anything, _admission(), anything, log, none)
    dispatcher = JobDispatcher(services, make_policy())
    for number in range(MALFORMED_PER_MINUTE + 80):
        dispatcher.accept(ClaimedJob(JobLease(f"j{number}", 1), b"no job", 6, 1, 0, 0, 0, "normal"), 0.0)
    for request in ended:
        dispatcher.handle_recorded(ResultRecorded(request, "OK"))
    assert Counter(lines.events) == {"job_malformed": MALFORMED_PER_MINUTE}
    assert dispatcher._malformed.pop_counts(now=True) == [("malformed", 80)]


def _admission() -> Any:
    return SimpleNamespace(admit=lambda *_: None, released_host=lambda *_: "")
