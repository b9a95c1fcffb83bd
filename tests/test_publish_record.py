"""The record that a file was published for a job counts for that job only, not for a later one with its id."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.file import partfile
from dlpool.transfer.target.file.publish import MARK_NAME, has_mark, published_mark, read_mark
from dlpool.transfer.transfer import Transfer
from tests.conftest import FAST, Fetcher, sha256
from tests.origin import File, Origin

OLD, NEW = b"old bytes\n" * 1000, b"new bytes\n" * 1000
SUMS = {data: Checksum("sha256", sha256(data)) for data in (OLD, NEW)}
OTHERS: dict[str, dict[str, Any]] = {
    "claim": {"claim": "c2"},
    "no claim": {"claim": None},
    "empty claim": {"claim": ""},
    "URL": {"url": "/other"},
    "query": {"url": "/f?version=2"},
    "checksum": {"checksum": SUMS[NEW]},
    "no checksum": {"checksum": None},
    "id": {"id": "k"},
    "claim and id": {"id": "k", "claim": "c2"},
    "everything": {"id": "k", "claim": "c2", "url": "/other", "checksum": SUMS[NEW]},
}


def run(origin: Origin, fetch: Fetcher, job: Job) -> bool:
    """Run a job of the queue; whether it asked the server. Its state stays, as if the run had been killed then."""
    before = len(origin.requests)
    Transfer(replace(job, url=f"{origin.url}{job.url}"), FAST, fetch.client()).run()
    return len(origin.requests) > before


@pytest.fixture(params=["attribute", "state"])
def recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where it is recorded that a file was published."""
    if request.param == "state":
        monkeypatch.setattr(partfile, "set_mark", lambda *_: False)
    return str(request.param)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("/f", tmp_path / "f", checksum=SUMS[OLD], id="j", fence=1, claim="c1")


def test_another_run_of_the_same_job_is_done_without_a_request(recorded: str, job: Job, fetch: Fetcher) -> None:
    with Origin(File(OLD)) as origin:
        assert run(origin, fetch, job)
        assert (recorded == "state") == job.target.with_name("f.part.meta").exists()
        assert not run(origin, fetch, replace(job, fence=2))


@pytest.mark.parametrize("other", OTHERS)
def test_another_job_asks_the_server_whatever_it_shares_with_the_first(
    other: str, recorded: str, job: Job, fetch: Fetcher
) -> None:
    assert recorded
    with Origin(File(OLD)) as origin:
        assert run(origin, fetch, job)
        origin.handler = File(OLD if OTHERS[other].get("checksum", SUMS[OLD]) == SUMS[OLD] else NEW)
        assert run(origin, fetch, replace(job, fence=2, **OTHERS[other]))


def test_an_id_that_is_used_again_brings_the_bytes_of_its_own_url(recorded: str, job: Job, fetch: Fetcher) -> None:
    assert recorded
    first = replace(job, checksum=None)
    with Origin(File(OLD)) as origin:
        run(origin, fetch, first)
        origin.handler = File(NEW)
        run(origin, fetch, replace(first, url="/other", fence=2, claim="c2"))
    assert first.target.read_bytes() == NEW


@pytest.mark.parametrize("other", [name for name in OTHERS if "claim" in name])
def test_a_job_without_a_claim_of_its_own_has_no_mark(other: str, job: Job, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(OLD)
    mark = published_mark(job)
    assert mark is not None and len(mark) < 400
    os.setxattr(tmp_path / "f", MARK_NAME, mark.encode())
    assert has_mark(tmp_path / "f", job) and not has_mark(tmp_path / "f", replace(job, **OTHERS[other]))


@pytest.mark.parametrize("mark", [b"", b"j", b"j c1", b"\xff\xfe", b"j c1 " + b"0" * 64 + b" -"])
def test_what_another_program_wrote_is_no_mark(mark: bytes, job: Job, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(OLD)
    os.setxattr(tmp_path / "f", MARK_NAME, mark)
    assert not has_mark(tmp_path / "f", job)
    assert not has_mark(tmp_path / "f", replace(job, id=None))


def test_a_file_without_a_mark_has_none(job: Job, tmp_path: Path) -> None:
    assert read_mark(tmp_path / "absent") == ""
    assert not has_mark(tmp_path / "absent", job)
