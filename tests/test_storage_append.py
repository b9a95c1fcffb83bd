"""Append sessions: what a killed writer left, what a session refuses, and what happens to its upload meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from dlpool import disk
from dlpool.storage.disk import append_lock, append_session
from dlpool.storage.disk.append_session import AppendPosition, DiskAppendSession, is_transient
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.staged_chunk import StagedChunkFile
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.errors import AlreadyComplete, UnlockRequested, UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from dlpool.web.errors import http_error
from tests.uploads import detail_of, open_append, refused, state, store_in

PNG = b"\x89PNG\r\n\x1a\n" + bytes(6000)


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def begin(store: DiskBackend, length: int | None = None, name: str = "file", concat: str = "") -> str:
    return store.tus.create(TusUploadRequest(None, length, name, concat=concat))


def append(store: DiskBackend, file_id: str, offset: int, data: bytes, length: int | None = None) -> DiskAppendSession:
    with open_append(store, file_id, None, offset, size=len(data), length=length) as session:
        session.write(data)
        session.commit()
    return session


def folder_of(store: DiskBackend, file_id: str) -> Path:
    with store.layout.read_owned(file_id, None) as task:
        return task.folder


def bodies_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("patch*.tmp"))


def sizes(store: DiskBackend, file_id: str) -> list[int]:
    return [chunk["size"] for chunk in detail_of(store, file_id, None)["chunks"]]


# --- bodies that a killed writer left ---


@pytest.mark.parametrize(
    ("left", "seen", "chunks"),
    [
        ({}, 0, []),
        ({"patch-0.tmp": b"abc"}, 3, [3]),
        ({"patch-0.tmp": b""}, 0, []),
        ({"patch-0-3.tmp": b"abcTR"}, 3, [3]),  # with a part of its trailer
        ({"patch-0-3.tmp": b"abc"}, 3, [3]),
        ({"patch-0-3.tmp": b"ab"}, 2, [2]),
        ({"patch-0-3.tmp": b"abcTRAILER", "patch-3-1.tmp": b"dT", "patch-4.tmp": b"ef"}, 3, [3, 1, 2]),
        ({"patch-0-0.tmp": b"", "patch-0-2.tmp": b"ab"}, 0, [2]),
        ({"patch-7.tmp": b"abc"}, 0, []),
        ({"patch-7.tmp": b"abc", "patch-0.tmp": b"ab"}, 2, [2]),
        ({"patch-1.tmp": b"bcd", "patch-0.tmp": b"a"}, 1, [1, 3]),
        ({"patch.tmp": b"abc"}, 0, []),  # its checksum was not compared
        ({"patch-x.tmp": b"abc", "patch-0-.tmp": b"abc"}, 0, []),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_bodies_of_a_killed_writer_become_chunks(
    store: DiskBackend, left: Mapping[str, bytes], seen: int, chunks: list[int], tmp_path: Path
) -> None:
    file_id = begin(store)
    folder = folder_of(store, file_id)
    for name, data in left.items():
        (folder / name).write_bytes(data)
    assert store.tus.state(file_id, None).offset == seen
    have = sum(chunks)
    assert store.tus.recover(file_id, None).offset == have
    assert (sizes(store, file_id), bodies_in(folder)) == (chunks, [])
    session = append(store, file_id, have, b"END", length=have + 3)
    assert session.position == AppendPosition(len(chunks) + 1, have + 3)
    assert store.tus.finish(file_id, None) is not None
    assert (tmp_path / "merged" / "file").read_bytes() == b"abcdef"[:have] + b"END"


def test_a_body_that_was_left_counts_for_the_next_append(store: DiskBackend) -> None:
    file_id = begin(store)
    (folder_of(store, file_id) / "patch-0.tmp").write_bytes(b"abc")
    append(store, file_id, 3, b"de")
    assert sizes(store, file_id) == [3, 2]


@pytest.mark.parametrize(
    ("length", "most", "size", "have"), [(5, 600, 5, 5), (5, 600, 6, 0), (None, 600, 600, 600), (None, 600, 601, 0)]
)
def test_a_body_that_was_left_is_dropped_where_it_is_longer_than_the_upload(
    tmp_path: Path, length: int | None, most: int, size: int, have: int
) -> None:
    store = store_in(tmp_path, max_file_size=most)
    file_id = begin(store, length)
    folder = folder_of(store, file_id)
    (folder / "patch-0.tmp").write_bytes(bytes(size))
    assert store.tus.recover(file_id, None).offset == have
    assert bodies_in(folder) == []


def test_a_body_that_was_left_is_dropped_where_the_upload_is_to_be_empty(store: DiskBackend) -> None:
    file_id = begin(store)
    append(store, file_id, 0, b"", length=0)
    assert store.tus.state(file_id, None).length == 0
    (folder_of(store, file_id) / "patch-0.tmp").write_bytes(b"a")
    assert store.tus.recover(file_id, None).offset == 0


def test_after_a_body_of_a_kind_that_is_not_taken_the_next_one_counts(tmp_path: Path) -> None:
    store = store_in(tmp_path, allowed_content_types="image/png")
    file_id = begin(store)
    folder = folder_of(store, file_id)
    (folder / "patch-0-5000.tmp").write_bytes(bytes(5000))
    (folder / "patch-0.tmp").write_bytes(PNG)
    assert store.tus.recover(file_id, None).offset == len(PNG)
    assert bodies_in(folder) == []


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_not_a_file_is_removed_and_never_read(store: DiskBackend, tmp_path: Path, kind: str) -> None:
    file_id = begin(store)
    path = folder_of(store, file_id) / "patch-0.tmp"
    (tmp_path / "outside").write_bytes(b"secret")
    path.symlink_to(tmp_path / "outside") if kind == "link" else os.mkfifo(path)
    assert store.tus.recover(file_id, None).offset == 0
    assert not os.path.lexists(path)
    assert (tmp_path / "outside").read_bytes() == b"secret"


def test_a_body_that_is_removed_while_it_is_taken_over_is_an_upload_that_is_gone(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = begin(store)
    (folder_of(store, file_id) / "patch-0.tmp").write_bytes(b"abc")

    def look(path: Path) -> bool:
        path.unlink()
        return True

    monkeypatch.setattr(append_session, "_is_file", look)
    with refused(404, "no_such_task"):
        store.tus.recover(file_id, None)


def test_files_that_vanish_during_recovery_are_ignored(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = begin(store)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: [*listdir(folder), "9.chunk", "patch-0.tmp"])
    append(store, file_id, 0, b"abc")
    assert sizes(store, file_id) == [3]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_body_that_cannot_become_a_chunk_now_stays_for_later(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """A full disk is transient; a request that contradicts the upload is not."""
    file_id = begin(store)
    folder = folder_of(store, file_id)
    error = OSError(errno.ENOSPC, "full") if is_kept else UploadError("bad_length", "odd")
    move = StagedChunkFile.publish

    def fail_once(*_arguments: object) -> None:
        monkeypatch.setattr(StagedChunkFile, "publish", move)
        raise error

    with pytest.raises(UploadError), open_append(store, file_id, None, 0, size=3) as session:
        session.write(b"abc")
        monkeypatch.setattr(StagedChunkFile, "publish", fail_once)
        session.commit()
    assert bodies_in(folder) == (["patch-0-3.tmp"] if is_kept else [])
    assert store.tus.recover(file_id, None).offset == (3 if is_kept else 0)


def fails(error: Exception) -> Any:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (UploadError("content_not_allowed", "x"), False),
        (UploadError("storage", "x"), True),
        (UploadError("no_space", "x"), True),
        (OSError(), True),
    ],
)
def test_which_errors_are_transient(error: UploadError | OSError, passes: bool) -> None:
    assert is_transient(error) is passes


def test_bytes_of_a_failed_write_are_not_part_of_the_chunk(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    file_id = begin(store)
    write_all = disk.write_all

    def half(descriptor: int, data: bytes) -> None:
        write_all(descriptor, data[: len(data) // 2])
        monkeypatch.setattr(disk, "write_all", write_all)
        raise OSError(errno.ENOSPC, "full")

    with refused(507, "no_space"), open_append(store, file_id, None, 0, size=None) as session:
        session.write(b"abc")
        monkeypatch.setattr(disk, "write_all", half)
        session.write(b"defghi")
    assert sizes(store, file_id) == [3]


@pytest.mark.parametrize(
    ("error", "have"),
    [(UploadError("busy", "cut"), 3), (UploadError("too_large", "long"), 0), (ConnectionError(), 3)],
)
def test_received_bytes_are_kept_after_an_error_unless_they_are_too_many(
    store: DiskBackend, error: Exception, have: int
) -> None:
    file_id = begin(store)
    with pytest.raises(type(error)), open_append(store, file_id, None, 0, size=None) as session:
        session.write(b"abc")
        raise error
    assert store.tus.state(file_id, None).offset == have


# --- what happens to the upload meanwhile ---


def test_a_session_of_a_removed_upload_hears_so(store: DiskBackend) -> None:
    for is_empty in (True, False):
        file_id = begin(store)
        with refused(404, "no_such_task"), open_append(store, file_id, None, 0, size=None) as session:
            if not is_empty:
                session.write(b"abc")
            store.delete(file_id, None)
            session.commit()
        file_id = begin(store)
        with refused(404, "no_such_task"), open_append(store, file_id, None, 0, size=None) as session:
            store.delete(file_id, None)
            session.lock.check()


def test_a_lock_holder_notices_the_request_to_unlock(store: DiskBackend) -> None:
    file_id = begin(store)
    with pytest.raises(UnlockRequested), open_append(store, file_id, None, 0, size=None) as session:
        session.lock.check()
        with store.layout.lock_id(file_id) as task:
            task.request_unlock()
        session.lock.check()


def test_a_paused_upload_keeps_the_body_being_received(store: DiskBackend) -> None:
    file_id = begin(store, 5)
    append(store, file_id, 0, b"a")
    with open_append(store, file_id, None, 1, size=2) as session:
        session.write(b"bc")
        store.pause(file_id, None)
        session.commit()
    assert (state(store, file_id), sizes(store, file_id)) == ("paused", [1, 2])
    with refused(409, "task_paused"):
        append(store, file_id, 3, b"d")


def test_nothing_is_added_to_an_upload_that_was_completed_meanwhile(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    with refused(409, "task_completed"), open_append(store, file_id, None, 3, size=0) as session:
        assert store.tus.finish(file_id, None) is not None
        session.commit()
    with pytest.raises(AlreadyComplete) as raised:
        append(store, file_id, 3, b"")
    assert (raised.value.offset, http_error(raised.value).status, raised.value.code) == (3, 409, "wrong_offset")
    assert (http_error(raised.value).headers, raised.value.details) == ({"Upload-Offset": "3"}, {"offset": 3})
    assert "continues at 3" in raised.value.text


@pytest.mark.parametrize(("index", "offset"), [(0, 0), (1, 1), (2, 4)])
def test_a_chunk_that_is_lost_or_comes_meanwhile_is_a_conflict(store: DiskBackend, index: int, offset: int) -> None:
    """The last chunk is lost, an earlier one is lost, or another chunk has the index."""
    file_id = begin(store)
    append(store, file_id, 0, b"a")
    append(store, file_id, 1, b"bc")
    folder = folder_of(store, file_id)
    with pytest.raises(UploadError) as raised, open_append(store, file_id, None, 3, size=1) as session:
        session.write(b"d")
        if index == 2:
            (folder / "2.chunk").hardlink_to(folder / "0.chunk")
        else:
            (folder / "1.chunk").unlink()
            if index == 0:
                (folder / "0.chunk").unlink()
        session.commit()
    assert (http_error(raised.value).status, raised.value.code, raised.value.details) == (
        409,
        "wrong_offset",
        {"offset": offset},
    )
    assert http_error(raised.value).headers == {"Upload-Offset": str(offset)}
    assert store.tus.recover(file_id, None).offset == offset


def test_the_first_chunk_needs_none_before_it(store: DiskBackend) -> None:
    file_id = begin(store)
    folder = folder_of(store, file_id)
    with refused(409, "wrong_offset") as caught, open_append(store, file_id, None, 0, size=1) as session:
        session.write(b"d")
        other = begin(store, name="other")
        append(store, other, 0, b"xyz")
        (folder / "0.chunk").hardlink_to(folder_of(store, other) / "0.chunk")
        session.commit()
    assert caught.details == {"offset": 3}


# --- what is refused ---


def test_too_many_pieces_are_refused(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_session, "MAX_CHUNKS", 2)
    file_id = begin(store, 3)
    append(store, file_id, 0, b"a")
    append(store, file_id, 1, b"b")
    with refused(413, "too_large"):
        append(store, file_id, 2, b"c")
    assert sizes(store, file_id) == [1, 1]


@pytest.mark.parametrize(("size", "data"), [(3, b""), (None, b"xyz"), (0, b"xyz")])
def test_a_body_larger_than_the_rest_is_refused_with_the_remaining_size(
    store: DiskBackend, size: int | None, data: bytes
) -> None:
    file_id = begin(store, 5)
    append(store, file_id, 0, b"abc")
    with refused(413, "too_large") as caught, open_append(store, file_id, None, 3, size=size) as session:
        session.write(data)
    assert caught.text == "the upload may have 5 bytes: no more than 2 can follow the first 3"
    assert append(store, file_id, 3, b"de").is_complete


def test_a_length_of_nothing_leaves_no_room(store: DiskBackend) -> None:
    file_id = begin(store)
    with refused(413, "too_large") as caught:
        append(store, file_id, 0, b"a", length=0)
    assert "may have 0 bytes" in caught.text
    assert store.tus.state(file_id, None).length == -1
    append(store, file_id, 0, b"", length=0)
    with refused(400, "bad_length"):
        append(store, file_id, 0, b"", length=5)


@pytest.mark.parametrize(
    ("sent", "length", "status", "code"),
    [(3, 2, 400, "bad_length"), (3, 3, 0, ""), (3, 4, 0, ""), (3, 600, 0, ""), (3, 601, 413, "file_too_large")],
)
def test_a_deferred_length_is_not_smaller_than_the_offset(
    tmp_path: Path, sent: int, length: int, status: int, code: str
) -> None:
    store = store_in(tmp_path, max_file_size=600)
    file_id = begin(store)
    append(store, file_id, 0, bytes(sent))
    if status:
        with refused(status, code):
            append(store, file_id, sent, b"", length=length)
        return
    append(store, file_id, sent, b"", length=length)
    assert store.tus.state(file_id, None).length == length
    append(store, file_id, sent, b"", length=length)
    for other in (length - 1, length + 1):
        with refused(400, "bad_length"):
            append(store, file_id, sent, b"", length=other)


@pytest.mark.parametrize(
    ("pieces", "concat", "status"),
    [
        ([bytes(4096)], "", 415),
        ([bytes(4095)], "", 0),  # too few bytes to tell; the merge tells
        ([b"x", bytes(5000)], "", 0),
        ([bytes(5000)], PARTIAL, 0),
        ([PNG], "", 0),
    ],
)
def test_the_kind_of_content_is_checked_with_the_first_body(
    tmp_path: Path, pieces: list[bytes], concat: str, status: int
) -> None:
    store = store_in(tmp_path, allowed_content_types="image/png")
    file_id, offset = begin(store, concat=concat), 0
    if status:
        with refused(415, "content_not_allowed"):
            append(store, file_id, 0, pieces[0])
        return
    for piece in pieces:
        append(store, file_id, offset, piece)
        offset += len(piece)
    assert sizes(store, file_id) == [len(piece) for piece in pieces]


def test_an_upload_is_complete_with_all_bytes_unless_it_is_a_part(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    assert not append(store, file_id, 0, b"ab").is_complete
    assert append(store, file_id, 2, b"c").is_complete
    assert not append(store, begin(store, 3, "part", PARTIAL), 0, b"abc").is_complete


def test_a_final_upload_takes_no_bytes(store: DiskBackend) -> None:
    file_id = begin(store, concat=f"{FINAL};x")
    with refused(403, "final"):
        append(store, file_id, 0, b"a")


# --- one at a time ---


def calls_of(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[str]:
    """Note the calls of a method from now on."""
    calls: list[str] = []
    method = getattr(kind, name)

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return method(*arguments)

    monkeypatch.setattr(kind, name, call)
    return calls


def test_a_lock_holder_that_ignores_the_request_keeps_the_lock(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other request waits, requests the lock once, and does not spin."""
    monkeypatch.setattr(append_lock, "LOCK_TIMEOUT_S", 0.3)
    tries = calls_of(monkeypatch, TaskFolder, "try_lock_append")
    asked = calls_of(monkeypatch, TaskFolder, "request_unlock")
    file_id = begin(store)
    with pytest.raises(UnlockRequested), open_append(store, file_id, None, 0, size=None) as session:
        session.write(b"abc")
        tries.clear()
        with pytest.raises(UploadError) as raised:
            append(store, file_id, 3, b"d")
        assert (http_error(raised.value).status, raised.value.code) == (423, "locked")
        assert http_error(raised.value).headers == {"Retry-After": "1"}
        assert 2 <= len(tries) <= 40 and len(asked) == 1
        assert store.tus.recover(file_id, None).offset == 3, "what is being received is no killed writer's"
        session.write(b"d")
    append(store, file_id, 3, b"d")


def test_a_lock_holder_that_releases_the_lock_lets_the_other_append(store: DiskBackend) -> None:
    file_id = begin(store)
    ended: list[UnlockRequested] = []
    ready = Event()

    def hold() -> None:
        try:
            with open_append(store, file_id, None, 0, size=None) as session:
                session.write(b"abc")
                ready.set()
                while True:
                    session.lock.check()
        except UnlockRequested as error:
            ended.append(error)

    thread = Thread(target=hold)
    thread.start()
    assert ready.wait(20)
    append(store, file_id, 3, b"de")
    thread.join(20)
    assert (len(ended), sizes(store, file_id)) == (1, [3, 2])
