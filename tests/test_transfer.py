"""A download from its first round to its last: what it tells meanwhile and in the end, and how it is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dlpool import errors
from dlpool.transfer import transfer as transfers
from dlpool.transfer.job import Progress
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.transfer import Transfer
from tests.conftest import Fetcher, make_data, sha256
from tests.origin import Connection, File, Origin, Request

Serve = Callable[..., Origin]

SIZE = 300_000
DATA = make_data(SIZE)


def test_before_it_begins_it_is_connecting(fetch: Fetcher, tmp_path: Path) -> None:
    transfer = fetch.transfer("http://127.0.0.1:1/f", tmp_path / "f")
    assert transfer.progress() == Progress(tmp_path / "f", 0, None, 0, "connecting", 0)
    assert transfer.received == 0
    assert transfer.may_leave_state, "it is not known yet"


@pytest.mark.parametrize(("preallocate", "is_reserved"), [("none", False), ("truncate", False), ("falloc", True)])
def test_progress_tells_bytes_and_what_they_will_yet_take_of_the_disk(
    preallocate: str, is_reserved: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    half, seen = SIZE // 2, list[Progress]()

    def handle(_: Request, connection: Connection) -> None:
        seen.append(transfer.progress())
        connection.answer(200, {"Content-Length": str(SIZE)}, DATA[:half], length=False)
        written.wait(20.0)
        seen.append(transfer.progress())
        connection.send(DATA[half:])

    written = threading.Event()
    transfer = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f", preallocate=preallocate)
    real = ChunkScheduler.commit_write

    def commit_write(scheduler: ChunkScheduler, *arguments: Any, **options: Any) -> Any:
        result = real(scheduler, *arguments, **options)
        if scheduler.written() >= half:
            written.set()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkScheduler, "commit_write", commit_write)
        outcome = transfer.run()
    assert seen[0] == Progress(tmp_path / "f", 0, None, 1, "connecting", 0)
    assert seen[1] == Progress(
        tmp_path / "f", half, SIZE, 1, "downloading", 0 if is_reserved else half, is_resumable=False
    )
    ended = transfer.progress()
    assert (ended.done, ended.size, ended.connections, ended.unreserved_bytes) == (SIZE, SIZE, 0, 0)
    assert (transfer.received, outcome.received) == (SIZE, SIZE)
    assert not transfer.may_leave_state


def test_a_file_of_unknown_size_is_told_as_such(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_: Request, connection: Connection) -> None:
        connection.answer(200, body=DATA, length=False)
        connection.hang_up()

    transfer = fetch.transfer(f"{serve(handle).url}/f", tmp_path / "f")
    transfer.run()
    told = transfer.progress()
    assert (told.done, told.size, told.unreserved_bytes) == (SIZE, None, 0)


def test_in_a_folder_progress_tells_the_name_once_it_is_known(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    transfer = fetch.transfer(f"{serve(File(DATA)).url}/f", tmp_path)
    assert transfer.progress().path == tmp_path
    assert transfer.run().path == transfer.progress().path == tmp_path / "f"


def test_the_outcome_has_all_figures(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    outcome = fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", connections=2, checksum=f"sha256:{sha256(DATA)}")
    assert (outcome.path, outcome.size, outcome.received) == (tmp_path / "f", SIZE, SIZE)
    assert (outcome.resumed_from, outcome.retries, outcome.restarts, outcome.connections) == (0, 0, 0, 2)
    assert outcome.checksum == f"sha256:{sha256(DATA)}"
    assert 0.0 <= outcome.seconds < 100.0
    assert outcome.seconds == round(outcome.seconds, 3)
    assert fetch.named("job_succeeded") == [vars(outcome)]


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_stream_that_breaks_off_is_counted_and_waited_for(
    breaks: int, serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number <= breaks:
            connection.answer(200, {"Content-Length": str(SIZE)}, DATA[:1000], length=False)
            connection.hang_up()
        connection.answer(200, body=DATA)

    pauses: list[float] = []
    monkeypatch.setattr(ChunkScheduler, "sleep", lambda _, seconds: pauses.append(seconds))
    monkeypatch.setattr("random.random", lambda: 0.5)
    url = f"{serve(handle).url}/f"
    outcome = fetch(url, tmp_path / "f", retry_delay=2.0, retry_max_delay=100.0)
    assert (outcome.retries, outcome.restarts) == (breaks, breaks)
    assert (outcome.received, outcome.size) == (SIZE + 1000 * breaks, SIZE)
    assert [seconds for seconds in pauses if seconds] == [1.0, 2.0][:breaks]
    assert len(fetch.named("download_restarted")) == breaks


def test_a_stream_that_always_breaks_off_ends_with_its_error(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Length": str(SIZE)}, DATA[:1000], length=False)
        connection.hang_up()

    origin = serve(handle)
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f", retries=2)
    with pytest.raises(errors.ShortBody):
        transfer.run()
    assert len(origin.requests) == 3
    assert transfer.received == 3000


def test_retries_of_all_rounds_are_counted(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number in (1, 3):
            connection.answer(503)
        elif request.number == 2:
            connection.answer(200, {"Content-Length": str(SIZE)}, DATA[:1000], length=False)
            connection.hang_up()
        else:
            connection.answer(200, body=DATA)

    outcome = fetch(f"{serve(handle).url}/f", tmp_path / "f")
    assert (outcome.retries, outcome.restarts) == (3, 1)


def test_the_deadline_counts_from_the_beginning_of_the_run(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    transfer = fetch.transfer(f"{serve(File(DATA)).url}/f", tmp_path / "f", deadline=600.0)
    transfer._began -= 10_000.0
    assert transfer.run().seconds < 100.0


def test_what_is_there_is_skipped_and_said(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    origin = serve(File(DATA))
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f", if_exists="skip")
    outcome = transfer.run()
    assert (outcome.path, outcome.size, outcome.resumed_from, outcome.is_skipped) == (tmp_path / "f", 4, 4, True)
    assert fetch.events == [("target_skipped", {"path": str(tmp_path / "f"), "is_published": False})]
    assert origin.requests == []


# --- cancelled ---


@pytest.mark.parametrize("error", [None, errors.LostJob("another has it")])
def test_cancelled_before_it_begins_it_asks_for_nothing(
    error: errors.DlpoolError | None, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f")
    transfer.cancel(error)
    transfer.cancel(errors.LocalFault("later"))
    with pytest.raises(errors.Cancelled) as caught:
        transfer.run()
    assert error is None or caught.value is error
    assert origin.requests == []
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_download_can_be_run_again_by_another(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    url = f"{serve(File(DATA)).url}/f"
    transfer = fetch.transfer(url, tmp_path / "f")
    transfer.cancel()
    with pytest.raises(errors.Cancelled):
        transfer.run()
    assert fetch(url, tmp_path / "f").size == SIZE, "its lock is free"


def test_what_other_threads_see_changes_only_under_the_lock(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    unguarded: list[str] = []

    class Guarded(Transfer):
        def __setattr__(self, name: str, value: object) -> None:
            guarded = ("_cancelled", "_scheduler", "_attempt", "_is_counted")
            if "is_ready" in self.__dict__ and name in guarded and not self._lock.locked():
                unguarded.append(name)
            super().__setattr__(name, value)

    class Tally(transfers.TransferCounters):
        def __getattribute__(self, name: str) -> object:
            if name == "received" and not self.__dict__["transfer"]._lock.locked():
                unguarded.append(name)
            return super().__getattribute__(name)

    made = fetch.transfer(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    transfer = Guarded(made._job, made._settings, made._client, made._callbacks)
    transfer._counters = Tally()
    transfer._counters.__dict__["transfer"] = transfer
    transfer.is_ready = True
    transfer._next_attempt(0.0)
    transfer._add_to_counters(cast(Any, SimpleNamespace(received=5)))
    assert transfer.received == 5
    transfer.cancel()
    assert unguarded == []
