"""Uploads that grow as a caller sees them: how far they are, when they expire, and when their file is made."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dlpool.storage import states
from dlpool.storage.disk import capacity, concatenation, merger, tus_uploads
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from dlpool.storage.values import VolumeCapacity
from dlpool.web.errors import http_error
from tests.test_storage_append import append, begin, bodies_in, fails, folder_of, sizes
from tests.test_storage_tus_recovery import open_below
from tests.uploads import detail_of, files_below, list_of, open_append, refused, send, state, store_in

DATA = [b"one", b"two2"]


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def age(store: DiskBackend, file_id: str, seconds: float) -> None:
    """Let nothing have happened to an upload for ``seconds``."""
    then = time.time() - seconds
    with store.layout.lock_id(file_id) as task:
        path = task.folder / "record.json"
        path.write_text(re.sub('"updated_at":[0-9.]+', f'"updated_at":{then}', path.read_text()))
        os.utime(task.folder, (then, then))


# --- beginning ---


@pytest.mark.parametrize(
    ("new", "status", "code"),
    [
        (TusUploadRequest(None, 5, "a.bin", "../x"), 400, "bad_path"),
        (TusUploadRequest(None, 5, "a.bin", "../x", concat=PARTIAL), 400, "bad_path"),
        (TusUploadRequest(None, 5, "../a.bin"), 400, "bad_filename"),
        (TusUploadRequest(None, 5, "../a.bin", concat=PARTIAL), 400, "bad_filename"),
        (TusUploadRequest(None, 5, "a.exe"), 415, "extension_not_allowed"),
        (TusUploadRequest(None, 5, "a.exe", concat=f"{FINAL};x"), 415, "extension_not_allowed"),
        (TusUploadRequest(None, 5), 415, "extension_not_allowed"),
        (TusUploadRequest(None, 2**62 + 1, "a.bin"), 413, "file_too_large"),
        (TusUploadRequest(None, 2**62, "a.bin"), 507, "no_space"),
        (TusUploadRequest(None, 5, "taken.bin"), 409, "file_exists"),
        (TusUploadRequest(None, 5, "taken.bin", concat=PARTIAL), 0, ""),
        (TusUploadRequest(None, 5, "a.exe", concat=PARTIAL), 0, ""),
        (TusUploadRequest(None, 5, concat=PARTIAL), 0, ""),
        (TusUploadRequest(None, None, "a.bin", "x/y"), 0, ""),
    ],
)
def test_which_tus_uploads_can_be_created(tmp_path: Path, new: TusUploadRequest, status: int, code: str) -> None:
    store = store_in(tmp_path, allowed_extensions=".bin", max_file_size=2**62)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "taken.bin").touch()
    if status:
        with refused(status, code):
            store.tus.create(new)
        assert list_of(store, None)["total"] == 0
        return
    file_id = store.tus.create(new)
    assert re.fullmatch("[0-9a-f]{32}", file_id)
    [task] = list_of(store, None)["tasks"]
    assert (task["filename"], task["relative_path"]) == (new.filename or file_id, new.relative_path)


@pytest.mark.parametrize(("length", "is_made"), [(0, True), (None, False), (1, False)])
def test_an_upload_without_bytes_is_completed_at_once(
    store: DiskBackend, length: int | None, is_made: bool, tmp_path: Path
) -> None:
    file_id = begin(store, length)
    assert (tmp_path / "merged" / "file").exists() is is_made
    assert state(store, file_id) == ("completed" if is_made else "pending")


# --- looking ---


@pytest.mark.parametrize("concat", ["", PARTIAL])
def test_the_state_of_an_upload(tmp_path: Path, concat: str) -> None:
    store = store_in(tmp_path, task_expiry=1000.0)
    file_id = store.tus.create(TusUploadRequest(None, 5, "file", metadata="k dg==", concat=concat))
    append(store, file_id, 0, b"abc")
    for look in (store.tus.state, store.tus.recover):
        progress = look(file_id, None)
        assert (progress.offset, progress.length, progress.metadata, progress.concat) == (3, 5, "k dg==", concat)
        assert progress.expires_at is not None and not progress.is_ready_to_merge
        assert time.time() + 900 < progress.expires_at <= time.time() + 1000
    append(store, file_id, 3, b"de")
    assert store.tus.recover(file_id, None).is_ready_to_merge == (not concat)
    if concat:
        return
    store.tus.finish(file_id, None)
    progress = store.tus.recover(file_id, None)
    assert (progress.offset, progress.length, progress.expires_at, progress.is_ready_to_merge) == (5, 5, None, False)


def test_an_upload_of_unknown_length_is_never_complete(store: DiskBackend) -> None:
    file_id = begin(store)
    progress = store.tus.recover(file_id, None)
    assert (progress.offset, progress.length, progress.is_ready_to_merge) == (0, -1, False)


def test_what_lies_beside_a_completed_upload_is_not_added(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    store.tus.finish(file_id, None)
    folder = folder_of(store, file_id)
    (folder / "patch-3.tmp").write_bytes(b"more")
    for look in (store.tus.state, store.tus.recover):
        assert look(file_id, None).offset == 3
    assert bodies_in(folder) == ["patch-3.tmp"]


def test_recovery_creates_no_lock_file_without_received_bytes(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    store.tus.recover(file_id, None)
    assert not (folder_of(store, file_id) / "patch.lock").exists()


def test_an_upload_that_is_being_merged_is_locked(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    with store.layout.lock_id(file_id) as task:
        task.save(task.record(), status=states.MERGING)
        lock = task.try_lock_merge()
    assert lock is not None
    for ask in (
        lambda: store.tus.recover(file_id, None),
        lambda: store.tus.finish(file_id, None),
        lambda: append(store, file_id, 3, b""),
    ):
        with refused(423, "locked"):
            ask()
    assert store.tus.state(file_id, None).offset == 3
    os.close(lock)
    assert store.tus.recover(file_id, None).is_ready_to_merge
    assert store.tus.finish(file_id, None) is not None


@pytest.mark.parametrize("owner", ["ann", "bob", None])
def test_an_upload_is_its_owners(store: DiskBackend, owner: str | None) -> None:
    file_id = store.tus.create(TusUploadRequest("ann", 3, "file"))
    asks: list[Any] = [
        lambda: store.tus.recover(file_id, owner),
        lambda: store.tus.state(file_id, owner),
        lambda: store.tus.finish(file_id, owner),
    ]
    for ask in asks:
        if owner == "bob":
            with refused(404, "no_such_task"):
                ask()
        else:
            ask()
    if owner == "bob":
        with refused(404, "no_such_task"), open_append(store, file_id, owner, 0, size=1):
            pass


def test_a_task_of_chunks_is_no_upload_that_grows(store: DiskBackend) -> None:
    send(store, 0, b"x", file_id="chunks")
    for ask in (store.tus.recover, store.tus.state, store.tus.finish):
        with refused(409, "other_protocol"):
            ask("chunks", None)


# --- expiring ---


def test_an_upload_expires_unless_it_is_completed_or_received(tmp_path: Path) -> None:
    store = store_in(tmp_path, task_expiry=1000.0)
    old, fresh, done = (begin(store, 3, name) for name in ("old", "fresh", "done"))
    append(store, done, 0, b"abc")
    store.tus.finish(done, None)
    for file_id, seconds in ((old, 1001), (fresh, 990), (done, 2000)):
        age(store, file_id, seconds)
    for look in (store.tus.recover, store.tus.state):
        with refused(410, "expired"):
            look(old, None)
    with refused(410, "expired"):
        append(store, old, 0, b"a")
    assert store.tus.recover(fresh, None).offset == 0
    assert store.tus.recover(done, None).offset == 3
    with open_append(store, fresh, None, 0, size=3) as session:
        age(store, fresh, 1001)
        assert store.tus.recover(fresh, None).offset == 0
        session.write(b"abc")
        session.commit()


@pytest.mark.parametrize(("late_s", "is_expired"), [(0.0, False), (1.0, True)])
def test_an_upload_expires_after_its_time(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, late_s: float, is_expired: bool
) -> None:
    file_id = begin(store)
    expires_at = store.tus.state(file_id, None).expires_at
    assert expires_at is not None
    monkeypatch.setattr(time, "time", lambda: expires_at + late_s)
    if is_expired:
        with refused(410, "expired"):
            store.tus.state(file_id, None)
    else:
        assert store.tus.state(file_id, None).offset == 0


# --- publishing ---


@pytest.mark.parametrize(
    ("idle_s", "is_made"), [(tus_uploads.IDLE_S - 1, False), (tus_uploads.IDLE_S, True), (tus_uploads.IDLE_S + 1, True)]
)
def test_a_sweep_publishes_a_complete_idle_upload(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, idle_s: float, is_made: bool, tmp_path: Path
) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    now = time.time()
    os.utime(folder_of(store, file_id), (now, int(now)))
    monkeypatch.setattr(time, "time", lambda: int(now) + idle_s)
    store.tus.recover_idle(file_id)
    assert (tmp_path / "merged" / "file").exists() is is_made


@pytest.mark.parametrize("concat", ["", PARTIAL])
def test_a_sweep_reclaims_bytes_and_publishes_only_complete_uploads(
    store: DiskBackend, concat: str, tmp_path: Path
) -> None:
    file_id = begin(store, 3, concat=concat)
    folder = folder_of(store, file_id)
    for data in (b"ab", b"c"):
        (folder / f"patch-{sum(sizes(store, file_id))}.tmp").write_bytes(data)
        os.utime(folder, (0, 0))
        store.tus.recover_idle(file_id)
        assert bodies_in(folder) == []
    assert (tmp_path / "merged" / "file").exists() is not bool(concat)


def test_a_paused_upload_is_left_alone_by_sweeps(store: DiskBackend) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    store.pause(file_id, None)
    os.utime(folder_of(store, file_id), (0, 0))
    store.tus.recover_idle(file_id)
    assert (store.tus.finish(file_id, None), state(store, file_id)) == (None, "paused")
    assert not store.tus.recover(file_id, None).is_ready_to_merge


@pytest.mark.parametrize("sent", [0, 2])
def test_an_incomplete_upload_is_not_published(store: DiskBackend, sent: int) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"ab"[:sent])
    assert store.tus.finish(file_id, None) is None
    assert store.tus.finish(begin(store, 3, "part", PARTIAL), None) is None


@pytest.mark.parametrize(("pieces", "chunks"), [([], 1), ([b"abc"], 1), ([b"a", b"b", b"c"], 3)])
def test_the_file_of_an_upload_has_all_its_pieces(
    store: DiskBackend, pieces: list[bytes], chunks: int, tmp_path: Path
) -> None:
    file_id, offset = begin(store), 0
    for piece in pieces:
        append(store, file_id, offset, piece)
        offset += len(piece)
    append(store, file_id, offset, b"", length=offset)
    result = store.tus.finish(file_id, None)
    assert result is not None and result.size == offset
    assert (tmp_path / "merged" / "file").read_bytes() == b"".join(pieces)
    assert len(sizes(store, file_id)) == chunks
    assert store.tus.finish(file_id, None) is None


def test_a_merge_by_another_request_at_the_same_time_is_waited_for(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = begin(store, 3)
    append(store, file_id, 0, b"abc")
    monkeypatch.setattr(merger.Merger, "merge", fails(states.wrong_state(states.MERGING)))
    with refused(423, "locked"):
        store.tus.finish(file_id, None)
    monkeypatch.setattr(merger.Merger, "merge", fails(states.wrong_state(states.PAUSED)))
    with refused(409, "task_paused"):
        store.tus.finish(file_id, None)


# --- joining ---


def parts_of(store: DiskBackend, *data: bytes, owner: str | None = None) -> list[str]:
    found = []
    for one in data:
        found.append(store.tus.create(TusUploadRequest(owner, len(one), concat=PARTIAL)))
        with open_append(store, found[-1], owner, 0, size=len(one)) as session:
            for at in range(len(one)):
                session.write(one[at : at + 1])
            session.commit()
    return found


def join(store: DiskBackend, parts: list[str], owner: str | None = None, name: str = "whole") -> str:
    return store.concatenator.concatenate(TusUploadRequest(owner, None, name, concat=f"{FINAL};"), parts)


def test_parts_become_one_file_and_go(store: DiskBackend, tmp_path: Path) -> None:
    parts = parts_of(store, *DATA)
    (longer,) = parts_of(store, b"")
    append(store, longer, 0, b"", length=0)
    file_id = join(store, [parts[1], parts[0], longer])
    assert (tmp_path / "merged" / "whole").read_bytes() == b"two2one"
    task = detail_of(store, file_id, None)
    assert (task["status"], task["file_size"], task["filename"]) == ("completed", 7, "whole")
    assert [entry["task_id"] for entry in list_of(store, None)["tasks"]] == [file_id]
    assert not list((tmp_path / "upload").rglob("*.chunk"))


def test_a_part_of_several_pieces_is_joined_with_all_of_them(store: DiskBackend, tmp_path: Path) -> None:
    part = begin(store, 6, "part", PARTIAL)
    append(store, part, 0, b"abc")
    append(store, part, 3, b"def")
    (other,) = parts_of(store, b"X")
    join(store, [part, other])
    assert (tmp_path / "merged" / "whole").read_bytes() == b"abcdefX"


@pytest.mark.parametrize("kind", ["not a part", "not whole", "not its own", "none", "too large", "taken"])
def test_what_cannot_be_joined_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    store = store_in(tmp_path, max_file_size=10)
    parts = parts_of(store, b"12345", b"67890", owner="ann")
    status, code = 400, "bad_part"
    if kind == "not a part":
        parts.append(begin(store, 5))
    elif kind == "not whole":
        parts.append(begin(store, 5, "part", PARTIAL))
    elif kind == "none":
        parts.append("0" * 32)
        status, code = 404, "no_such_task"
    elif kind == "not its own":
        status, code = 404, "no_such_task"
    elif kind == "too large":
        parts += parts_of(store, b"1", owner="ann")
        status, code = 413, "file_too_large"
    elif kind == "taken":
        (tmp_path / "merged").mkdir()
        (tmp_path / "merged" / "whole").touch()
        status, code = 409, "file_exists"
    before = list_of(store, None)["total"]
    with refused(status, code):
        join(store, parts, "bob" if kind == "not its own" else None)
    assert list_of(store, None)["total"] == before
    if kind in ("too large", "taken"):
        assert join(store, parts[:2], name="ten")
        assert (tmp_path / "merged" / "ten").read_bytes() == b"1234567890"


@pytest.mark.parametrize(("kind", "status"), [("long", 413), ("full", 507), ("held", 423)])
def test_a_refused_concatenation_creates_no_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: int
) -> None:
    """No event is emitted; where another process has locked the new upload, it is removed again."""
    events: list[str] = []
    store = DiskBackend(
        store_in(tmp_path, max_file_size=6 if kind == "long" else 1000).settings,
        lambda event: events.append(event.name),
    )
    parts = parts_of(store, *DATA)
    if kind == "full":
        monkeypatch.setattr(capacity, "capacity_of", lambda folder: VolumeCapacity(folder, 1000, 6, 0.5))
    if kind == "held":
        monkeypatch.setattr(TaskFolder, "try_lock_append", lambda _task: None)
    events.clear()
    with pytest.raises(UploadError) as raised:
        join(store, parts)
    assert http_error(raised.value).status == status
    assert events == (["upload_started", "upload_deleted"] if kind == "held" else [])


def test_joining_keeps_nothing_open(store: DiskBackend, tmp_path: Path) -> None:
    join(store, parts_of(store, *DATA))
    assert open_below(tmp_path) == []


@pytest.mark.parametrize("kind", ["lost", "shorter"])
def test_a_part_removed_during_concatenation_is_reported(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    parts = parts_of(store, *DATA)
    begun = store.tus.creating

    def begin_late(_growing: object, request: TusUploadRequest, of: list[str]) -> object:
        (folder_of(store, parts[1]) / "0.chunk").unlink()
        return begun(request, of)

    monkeypatch.setattr(type(store.tus), "creating", begin_late)
    if kind == "shorter":
        monkeypatch.setattr(concatenation.DiskConcatenator, "_fill", lambda *_arguments: None)
    with refused(409, "part_gone"):
        join(store, parts)
    assert list_of(store, None)["total"] == 2


@pytest.mark.parametrize(("number", "status"), [(errno.EPERM, 0), (errno.EMLINK, 0), (errno.EIO, 507)])
def test_without_hard_links_chunks_are_copied(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, number: int, status: int, tmp_path: Path
) -> None:
    parts = parts_of(store, *DATA)
    monkeypatch.setattr(os, "link", fails(OSError(number, os.strerror(number))))
    if status:
        with refused(507, "storage"):
            join(store, parts)
        return
    join(store, parts)
    assert (tmp_path / "merged" / "whole").read_bytes() == b"".join(DATA)


@pytest.mark.parametrize(
    ("kind", "is_removed"),
    [
        ("final", True),
        ("held", False),
        ("merging", False),
        ("part", False),
        ("completed", False),
        ("chunks", False),
        ("none", False),
    ],
)
def test_only_final_uploads_that_a_killed_process_left_are_removed(
    store: DiskBackend, kind: str, is_removed: bool, tmp_path: Path
) -> None:
    holds = []
    if kind == "chunks":
        send(store, 0, b"x", file_id="task")
        file_id = "task"
    elif kind == "completed":
        file_id = join(store, parts_of(store, *DATA))
    else:
        file_id = "none" if kind == "none" else begin(store, concat=PARTIAL if kind == "part" else f"{FINAL};x")
    with store.layout.lock_id(file_id) as task:
        if kind == "held":
            holds.append(task.try_lock_append())
        elif kind == "merging":
            holds.append(task.try_lock_merge())
            record = task.folder / "record.json"
            record.write_text(record.read_text().replace('"pending"', '"merging"'))
    before = list_of(store, None)["total"]
    assert store.concatenator.recover(file_id) == is_removed
    assert list_of(store, None)["total"] == before - is_removed
    for lock in filter(None, holds):
        os.close(lock)
    assert [name for name in files_below(tmp_path / "merged") if name != "whole"] == []
