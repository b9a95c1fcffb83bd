"""Tus uploads after a killed writer, a full disk and a sweep."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from dlpool.storage.disk.append_session import DiskAppendSession, append_files
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UnlockRequested, UploadError
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from tests.disks import needs_root, tmpfs
from tests.uploads import detail_of, files_below, list_of, open_append, refused, state, store_in

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def begin(store: DiskBackend, length: int | None, name: str = "", concat: str = "") -> str:
    return store.tus.create(TusUploadRequest(None, length, name, concat=concat))


def append(store: DiskBackend, file_id: str, offset: int, data: bytes) -> None:
    with open_append(store, file_id, None, offset, size=len(data)) as session:
        session.write(data)
        session.commit()


def folder_of(store: DiskBackend, file_id: str) -> Path:
    with store.layout.read_owned(file_id, None) as task:
        return task.folder


def offset_of(store: DiskBackend, file_id: str) -> int:
    return store.tus.recover(file_id, None).offset


def test_a_failed_merge_is_not_repeated_by_sweeps(store: DiskBackend, tmp_path: Path) -> None:
    """Otherwise the upload would never expire, because each attempt changes it."""
    file_id = begin(store, 3, "taken")
    append(store, file_id, 0, b"abc")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "taken").touch()
    with refused(409, "file_exists"):
        store.tus.finish(file_id, None)
    for _ in range(2):
        os.utime(folder_of(store, file_id), (0, 0))
        store.sweep()
    task = detail_of(store, file_id, None)
    assert (task["status"], task["retry_count"]) == ("failed", 1)


@needs_root
@pytest.mark.parametrize("is_ended", [False, True])
def test_received_bytes_are_kept_while_the_disk_is_full(is_ended: bool, tmp_path: Path) -> None:
    """From a killed writer, or from a broken connection."""
    with tmpfs(tmp_path / "disk", "8M") as disk:
        store = store_in(disk, disk_refuse=1)
        file_id = begin(store, None)
        if is_ended:
            with pytest.raises(ConnectionError), open_append(store, file_id, None, 0, size=None) as session:
                session.write(b"x" * MIB)
                fill(disk)
                raise ConnectionError
        else:
            (folder_of(store, file_id) / "patch-0.tmp").write_bytes(b"x" * MIB)
            fill(disk)
        with refused(507, "no_space"):
            store.tus.recover(file_id, None)
        (disk / "filler").unlink()
        assert offset_of(store, file_id) == MIB


def fill(disk: Path) -> None:
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize))


def test_a_truncated_body_counts_only_its_bytes(store: DiskBackend) -> None:
    """After a power failure a file may be shorter than the size in its name."""
    file_id = begin(store, 5000)
    (folder_of(store, file_id) / "patch-0-5000.tmp").write_bytes(b"x" * 100)
    assert store.tus.state(file_id, None).offset == 100
    assert offset_of(store, file_id) == 100
    assert state(store, file_id) == "uploading"


@needs_root
def test_parts_are_joined_with_free_space_for_the_file_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "13M") as disk:
        store = store_in(disk, disk_refuse=1)
        parts = []
        for _ in range(2):
            parts.append(begin(store, 2 * MIB, concat=PARTIAL))
            append(store, parts[-1], 0, bytes(2 * MIB))
        filler = disk / "filler"
        filler.write_bytes(bytes(6 * MIB))
        with refused(507, "no_space"):
            store.concatenator.concatenate(TusUploadRequest(None, None, "whole", concat=f"{FINAL};"), parts)
        assert list_of(store, None)["total"] == 2
        filler.write_bytes(bytes(3 * MIB))
        store.concatenator.concatenate(TusUploadRequest(None, None, "whole", concat=f"{FINAL};"), parts)
        assert (disk / "merged" / "whole").stat().st_size == 4 * MIB
        assert files_below(disk / "merged") == ["whole"]
        assert list_of(store, None)["total"] == 1


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("length", [0, 3])
def test_a_truncated_chunk_is_sent_again(store: DiskBackend, index: int, length: int, tmp_path: Path) -> None:
    file_id = begin(store, 15, "cut")
    append(store, file_id, 0, b"first")
    append(store, file_id, 5, b"secnd")
    os.truncate(folder_of(store, file_id) / f"{index}.chunk", length)
    offset = offset_of(store, file_id)
    assert offset == 5 * index
    append(store, file_id, offset, b"firstsecndthird"[offset:])
    store.tus.finish(file_id, None)
    assert (tmp_path / "merged" / "cut").read_bytes() == b"firstsecndthird"


def test_a_corrupt_chunk_may_be_sent_again_in_several_pieces(store: DiskBackend, tmp_path: Path) -> None:
    file_id = begin(store, 15, "spoilt")
    for offset, data in ((0, b"first"), (5, b"secnd"), (10, b"third")):
        append(store, file_id, offset, data)
    with (folder_of(store, file_id) / "1.chunk").open("r+b") as file:
        file.write(b"XX")
    with refused(400, "chunks_missing"):
        store.tus.finish(file_id, None)
    assert offset_of(store, file_id) == 5
    append(store, file_id, 5, b"secndthird")
    store.tus.finish(file_id, None)
    assert (tmp_path / "merged" / "spoilt").read_bytes() == b"firstsecndthird"


def test_an_upload_removed_during_recovery_is_not_found(store: DiskBackend) -> None:
    file_id = begin(store, 5)
    folder = folder_of(store, file_id)
    store.delete(file_id, None)
    assert append_files(folder) == []
    with refused(404, "no_such_task"):
        append(store, file_id, 0, b"x")


# --- bodies that are refused ---


def open_below(folder: Path) -> list[str]:
    """Return the files that this process has open below a folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in found if path.startswith(f"{folder}/")]


@pytest.mark.parametrize("is_checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("sent", [0, 10], ids=["first", "second"])
@pytest.mark.parametrize("how", ["too-long", "longer-than-said", "broken", "superseded", "removed", "wrong-offset"])
def test_a_refused_body_leaves_neither_a_file_nor_a_descriptor(
    tmp_path: Path, how: str, sent: int, is_checked: bool
) -> None:
    """Its lock is released as well: the next body is accepted at once, from the end of the kept bytes."""
    store = store_in(tmp_path)
    file_id = store.tus.create(TusUploadRequest(None, 100, "file.bin"))
    if sent:
        with open_append(store, file_id, None, 0, size=sent) as session:
            session.write(b"x" * sent)
            session.commit()
    size = 101 if how == "too-long" else 20
    with (
        pytest.raises((UploadError, UnlockRequested, ZeroDivisionError)),
        open_append(
            store, file_id, None, sent + (how == "wrong-offset"), size=size, has_checksum=is_checked
        ) as session,
    ):
        refuse(store, session, how, file_id)
    assert open_below(tmp_path) == []
    if how == "removed":
        assert files_below(tmp_path / "upload" / "tasks") == []
        return
    names = files_below(tmp_path / "upload" / "tasks")
    assert [name for name in names if "patch" in name and not name.endswith("patch.lock")] == []
    offset = store.tus.recover(file_id, None).offset
    assert offset == sent + (7 if how in ("broken", "superseded") and not is_checked else 0)
    with open_append(store, file_id, None, offset, size=100 - offset) as session:
        session.write(b"y" * (100 - offset))
        session.commit()
    assert open_below(tmp_path) == []


def refuse(store: DiskBackend, session: DiskAppendSession, how: str, file_id: str) -> None:
    """Send seven bytes, then cause an error."""
    session.write(b"1234567")
    if how == "longer-than-said":
        session.write(b"x" * 100)
    elif how == "broken":
        raise ZeroDivisionError
    elif how == "superseded":
        with store.layout.lock_id(file_id) as task:
            task.request_unlock()
        session.write(b"8")
    elif how == "removed":
        store.delete(file_id, None)
        session.write(b"8")


@pytest.mark.parametrize("is_said", [False, True], ids=["later", "said"])
@pytest.mark.parametrize("more", [0, 1])
def test_an_upload_of_the_maximum_size_is_accepted_and_one_byte_more_is_not(
    tmp_path: Path, more: int, is_said: bool
) -> None:
    store = store_in(tmp_path, max_file_size=600)
    if more and is_said:
        with refused(413, "file_too_large"):
            store.tus.create(TusUploadRequest(None, 601, "file.bin"))
        return
    file_id = store.tus.create(TusUploadRequest(None, 600 if is_said else None, "file.bin"))
    if more:
        with refused(413, "too_large"), open_append(store, file_id, None, 0, size=None) as session:
            session.write(b"a" * 601)
        with refused(413, "too_large"), open_append(store, file_id, None, 0, size=601):
            pass
    with open_append(store, file_id, None, 0, size=600, length=600) as session:
        session.write(b"a" * 600)
        session.commit()
    result = store.tus.finish(file_id, None)
    assert result is not None
    assert result.size == 600
