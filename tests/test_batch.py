"""Many downloads as one: ``download_many``, and what ``fetch -i`` adds to it."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dlpool import BatchSummary, download_many
from dlpool.engine.batch import BatchResult
from dlpool.engine.batch_session import BatchSession
from dlpool.errors import LocalFault, UsageError
from dlpool.transfer.job import Job
from tests.conftest import Nginx, make_data, wait_until
from tests.origin import Connection, File, Origin, Request
from tests.processes import finish, run, start

DATA = make_data(20_000)
LATE_S = 30.0


def answer(request: Request, connection: Connection) -> None:
    if "bad" in request.path:
        connection.answer(404, {}, b"")
    else:
        File(DATA)(request, connection)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(answer) as started:
        yield started


def test_one_failure_does_not_stop_the_others_and_the_summary_has_all(origin: Origin, tmp_path: Path) -> None:
    names = ["a", "bad1", "b", "c", "bad2"]
    results: list[BatchResult] = []
    summary = download_many([f"{origin.url}/{name}" for name in names], tmp_path / "out", on_result=results.append)
    assert (summary.done, summary.size, summary.earlier) == (3, 3 * len(DATA), 0)
    assert {failed.url.rpartition("/")[2] for failed in summary.failed} == {"bad1", "bad2"}
    assert all("404" in failed.error for failed in summary.failed)
    assert summary.speed == summary.size / summary.seconds
    assert len(results) == 5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


def test_an_invalid_url_is_one_failure(origin: Origin, tmp_path: Path) -> None:
    summary = download_many(["ftp://h/x", "rubbish", f"{origin.url}/a"], tmp_path)
    assert summary.done == 1
    assert len(summary.failed) == 2


def test_no_urls_are_no_work(tmp_path: Path) -> None:
    summary = download_many([], tmp_path)
    assert (summary.done, summary.failed, summary.speed >= 0) == (0, (), True)


def test_urls_are_read_as_they_are_needed(origin: Origin, tmp_path: Path) -> None:
    read: list[int] = []

    class Enough(Exception):
        pass

    def urls() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield f"{origin.url}/{number}"

    def stop(_result: BatchResult) -> None:
        raise Enough

    with pytest.raises(Enough):
        download_many(urls(), tmp_path, max_workers=2, on_result=stop)
    assert len(read) < 2000


def test_two_urls_for_one_file_are_one_file_and_one_failure(origin: Origin, tmp_path: Path) -> None:
    summary = download_many([f"{origin.url}/1/same", f"{origin.url}/2/same"], tmp_path, max_workers=1)
    assert summary.done == 1
    assert "line 2 would overwrite" in summary.failed[0].error
    assert "line 1" in summary.failed[0].error


def test_options_are_those_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="retry_times"):
        download_many([], tmp_path, retry_times=-1)
    with pytest.raises(TypeError, match="no_such"):
        download_many([], tmp_path, no_such=1)


# --- sessions ---


def test_a_batch_resumes_with_the_unfinished_items(origin: Origin, tmp_path: Path) -> None:
    session, urls = tmp_path / "state" / "session", [f"{origin.url}/{name}" for name in ("a", "bad", "b")]

    def batch() -> BatchSummary:
        return download_many(urls, tmp_path / "out", session=session)

    first, second = batch(), batch()
    assert (first.done, first.earlier, len(first.failed)) == (2, 0, 1)
    assert (second.done, second.earlier, len(second.failed)) == (0, 2, 1)
    assert [request.path for request in origin.requests].count("/a") == 1


def test_a_session_is_one_batchs_and_a_cut_line_is_done_again(tmp_path: Path) -> None:
    job, other = Job("http://h/a", Path("a")), Job("http://h/a", Path("b"))
    done = BatchSession(tmp_path / "session")
    with pytest.raises(LocalFault, match="used by another batch"):
        BatchSession(tmp_path / "session")
    done.mark_done(job)
    done.mark_done(other)
    done.close()
    whole = (tmp_path / "session").read_bytes()
    (tmp_path / "session").write_bytes(whole[:-5])
    again = BatchSession(tmp_path / "session")
    assert again.is_done(job)
    assert not again.is_done(other)
    again.mark_done(other)
    again.close()
    last = BatchSession(tmp_path / "session")
    assert last.is_done(other)
    last.close()


def test_a_file_that_is_not_a_batch_session_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("important\n")
    with pytest.raises(LocalFault, match="not the session"):
        BatchSession(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "important\n"


# --- the command ---


def test_an_interrupted_list_resumes_with_its_session(tmp_path: Path) -> None:
    door, count = threading.Event(), 30

    def slow(request: Request, connection: Connection) -> None:
        if int(request.path[1:]) >= count // 2:
            door.wait(LATE_S)
        answer(request, connection)

    with Origin(slow) as origin:
        (tmp_path / "list").write_text("".join(f"{origin.url}/{number}\n" for number in range(count)))
        command = ["fetch", "-i", tmp_path / "list", tmp_path / "out", "-j", "3", "--session", tmp_path / "session"]
        process = start(*command)
        wait_until(lambda: len(list(tmp_path.glob("out/*[0-9]"))) >= count // 2)
        process.send_signal(signal.SIGINT)
        assert finish(process).code == 130
        asked = len(origin.requests)
        door.set()
        ended = run(*command, "--json")
        assert ended.code == 0, ended.err
        assert len(ended.json["files"]) == count - count // 2
        assert ended.json["earlier"] == count // 2
        assert len(origin.requests) - asked == count - count // 2
    assert sorted(int(path.name) for path in (tmp_path / "out").iterdir()) == list(range(count))


def test_memory_stays_flat_however_long_the_list(nginx: Nginx, tmp_path: Path) -> None:
    """What a list of 100,000 would take, from what a longer one takes more than a shorter one."""
    (nginx.root / "one").write_bytes(b"x")
    out, first, more = tmp_path / "out", 1000, 6000
    options = ["-j", "4", "-q", "--no-sync", "--session", tmp_path / "session"]
    process = start("fetch", "-i", "-", out, *options, stdin=subprocess.PIPE)
    assert process.stdin is not None
    sizes = []
    for numbers in range(first), range(first, first + more):
        lines = [f"{nginx.url}/one?of=a-longer-name&number={number:06d} file-{number:06d}\n" for number in numbers]
        process.stdin.write("".join(lines))
        process.stdin.flush()
        wait_until((out / f"file-{numbers[-1]:06d}").exists, 2 * LATE_S)
        sizes.append(psutil.Process(process.pid).memory_info().rss)
    assert finish(process).code == 0
    assert len(list(out.iterdir())) == first + more
    assert sizes[0] + (sizes[1] - sizes[0]) / more * 100_000 < 120 * 1024 * 1024, sizes


def test_the_summary_has_bytes_time_and_speed(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{origin.url}/a\n{origin.url}/bad\n")
    ended = run("fetch", "-i", tmp_path / "list", tmp_path)
    assert ended.code == 14
    assert "1 of 2 files done, 1 failed" in ended.err
    assert "19.5K in " in ended.err.splitlines()[-1]
    told = run("fetch", "-i", tmp_path / "list", tmp_path, "--json", "-q").json
    assert (told["done"], told["failed"], told["size"]) == (1, 1, len(DATA))
    assert told["seconds"] > 0
    json.dumps(told)


def test_a_session_is_for_lists(tmp_path: Path) -> None:
    ended = run("fetch", "http://127.0.0.1:1/x", "--session", tmp_path / "s")
    assert ended.code == 2
    assert "--session is for a list" in ended.err
