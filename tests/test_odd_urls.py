"""A job whose URL cannot be read fails, with its record: it ends neither the service nor any other job."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlpool.config import LimitSettings, Settings
from dlpool.errors import UsageError
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import BadJob, PushedJob, parse_valid_job
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.service.dispatcher import DispatcherServices, JobDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.host_limits import HostLimits, authority_of
from dlpool.service.inflight import InFlightTable
from dlpool.transfer.http.urls import split_credentials
from tests.desk import desk_of, running

UNREADABLE = ("http://user:p@ss[word@example.org/x", "http://u:p@[bad/x", "http://user\u2100:pw@host/x")
POLICY = DispositionPolicy(QueueKeys(), Settings().supervisor, time.time, random.random)
HOSTS = HostLimits(Settings(limits=LimitSettings(max_per_host=1), hosts={"h:1": LimitSettings()}), time.monotonic)


def raw_job(url: str) -> bytes:
    return json.dumps({"url": url, "save_path": "x"}).encode()


def claimed(raw: bytes) -> ClaimedJob:
    return ClaimedJob(JobLease("j", 1), raw, len(raw), 1, 0, 0, 0, "normal")


@pytest.mark.parametrize("url", UNREADABLE)
def test_a_url_that_cannot_be_read_is_refused_wherever_it_is_given(url: str) -> None:
    with pytest.raises(UsageError):
        split_credentials(url)
    with pytest.raises(UsageError, match="cannot be read as a URL"):
        parse_valid_job(raw_job(url))
    with pytest.raises(BadJob) as caught:
        PushedJob.parse(raw_job(url))
    assert caught.value.url == url


@pytest.mark.parametrize("url", UNREADABLE)
def test_pushed_nevertheless_its_job_fails_with_its_record(url: str) -> None:
    job, request = POLICY.admit(claimed(raw_job(url)))
    assert job is None and request is not None and request.record is not None
    assert (request.disposition, request.note["label"], request.record.field) == ("failed", "bad_job", url)


TEXTS = st.text() | st.builds("{}://{}/{}".format, st.sampled_from(["http", "HTTPS", "ftp"]), st.text(), st.text())


@given(TEXTS)
@example(UNREADABLE[0])
@example(UNREADABLE[2])
@example("http:///x")
def test_no_text_is_too_odd_to_be_taken_in(text: str) -> None:
    assert authority_of(text) == authority_of(text).lower()
    limit = HOSTS.limit(text)
    assert limit is None or limit.host
    job, request = POLICY.admit(claimed(raw_job(text)))
    assert job is not None or request is not None


@given(st.binary())
def test_no_bytes_are_too_odd_to_be_taken_in(raw: bytes) -> None:
    job, request = POLICY.admit(claimed(raw))
    assert job is not None or request is not None


def test_a_service_that_gets_them_lives_and_does_the_next_job(tmp_path: Path) -> None:
    with running(tmp_path) as both, desk_of(*both) as desk:
        for url in UNREADABLE:
            desk.push_raw({"url": url, "save_path": desk.path("bad")})
        good = desk.push()
        desk.client.wait_for(good)
        for url in UNREADABLE:
            assert "cannot be read as a URL" in desk.client.wait_for_failure(url)["error_message"]
        assert desk.service.process is not None and desk.service.process.poll() is None
        assert not desk.service.events("job_internal_error")
        assert desk.service.stop() == 0


class BrokenAdmission:
    """One that breaks, where it is told to."""

    def __init__(self, at: str) -> None:
        self._at = at

    def admit(self, *_: object) -> None:
        assert self._at != "door", "a defect"

    def released_host(self, *_: object) -> str:
        assert self._at != "leaving", "a defect"
        return ""


@pytest.fixture
def ended() -> list[FinishRequest]:
    return []


def dispatcher(at: str, ended: list[FinishRequest], make_policy: Any = POLICY) -> tuple[JobDispatcher, InFlightTable]:
    """A dispatcher of which something breaks; what it wants recorded goes into ``ended``."""
    quiet: Any = SimpleNamespace(error=lambda *_, **__: None, info=lambda *_, **__: None)
    recorder: Any = SimpleNamespace(record=ended.append)
    admission: Any = BrokenAdmission(at)
    none: Any = None
    table = InFlightTable()
    services = DispatcherServices(table, none, recorder, none, none, admission, none, quiet, none)
    return JobDispatcher(services, make_policy), table


def test_a_defect_at_one_job_fails_that_job_and_no_more(ended: list[FinishRequest]) -> None:
    one, table = dispatcher("door", ended)
    one.accept(claimed(raw_job("http://h/x")), 0.0)
    (request,) = ended
    assert (request.disposition, request.note["label"]) == ("failed", "internal")
    assert request.record is not None and request.record.field == "http://h/x"
    assert all(held.is_recording for held in table.all())


def test_a_defect_while_a_job_is_judged_fails_it_too(ended: list[FinishRequest]) -> None:
    def broken(_claimed: ClaimedJob) -> Iterator[None]:
        raise ZeroDivisionError

    make_policy: Any = SimpleNamespace(admit=broken, for_internal_error=POLICY.for_internal_error)
    dispatcher("", ended, make_policy)[0].accept(claimed(raw_job("http://h/x")), 0.0)
    assert [one.disposition for one in ended] == ["failed"]


def test_a_defect_while_a_job_leaves_does_not_change_how_it_ends(ended: list[FinishRequest]) -> None:
    one, _ = dispatcher("leaving", ended)
    one.accept(claimed(b"not a job"), 0.0)
    (request,) = ended
    assert (request.disposition, request.note["label"], request.record) == ("failed", "malformed", None)
