"""What the store makes durable, and when; and the modes of its files."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlpool import disk
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.durability import NO_SYNC, Durability
from dlpool.storage.upload_requests import FINAL, PARTIAL, TusUploadRequest
from tests.test_storage_append import append, begin, folder_of
from tests.uploads import ID, list_of, merge, open_append, refused, send, store_in

RANDOM = re.compile("[0-9a-f]{32,64}")


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    store = store_in(tmp_path, enable_atomic_operations=True)
    store.sweep()
    return store


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced from now on: names below the folder, random parts left out."""
    names: list[str] = []

    def noting(name: str) -> None:
        call = getattr(os, name)

        def note(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            names.append(RANDOM.sub("*", os.path.relpath(path, tmp_path)))
            call(descriptor)

        monkeypatch.setattr(os, name, note)

    noting("fsync")
    noting("fdatasync")
    return names


TASK, RECORD = "upload/tasks/*", ["upload/tasks/*/record.json.tmp", "upload/tasks/*"]
BEGUN = [
    *("upload/tmp/*.new/identity.json.tmp", "upload/tmp/*.new"),
    *("upload/tmp/*.new/record.json.tmp", "upload/tmp/*.new", "upload/tasks"),
]


def taken(synced: list[str]) -> list[str]:
    """What was synced since the last call."""
    found = list(synced)
    synced.clear()
    return found


def test_a_chunk_is_durable_and_only_the_first_ones_record(store: DiskBackend, synced: list[str]) -> None:
    send(store, 0, b"one")
    assert taken(synced) == ["upload/tmp/*.tmp", *BEGUN, *RECORD, TASK]
    for index in (1, 0):
        send(store, index, b"two")
        assert taken(synced) == ["upload/tmp/*.tmp", TASK]
    with refused(400, "md5_mismatch"):
        send(store, 0, b"two", md5="0" * 32)
    assert taken(synced) == []
    merge(store, 2)
    task = [*RECORD, "merged/.dlpool-*.merging", *RECORD, "merged", *RECORD]
    assert [name for name in taken(synced) if name != "."] == task


def test_the_pieces_of_an_upload_are_durable(store: DiskBackend, synced: list[str]) -> None:
    file_id = begin(store)
    assert taken(synced) == BEGUN
    append(store, file_id, 0, b"one")
    assert taken(synced) == ["upload/tasks/*/patch-0-3.tmp", *RECORD, TASK]
    append(store, file_id, 3, b"two")
    assert taken(synced) == ["upload/tasks/*/patch-3-3.tmp", TASK]
    append(store, file_id, 6, b"")
    assert taken(synced) == []
    append(store, file_id, 6, b"", length=6)
    assert taken(synced) == RECORD


def test_a_body_with_a_checksum_is_durable(store: DiskBackend, synced: list[str]) -> None:
    file_id = begin(store)
    taken(synced)
    with open_append(store, file_id, None, 0, size=3, has_checksum=True) as session:
        session.write(b"one")
        assert (folder_of(store, file_id) / "patch.tmp").exists()
        session.commit()
    assert taken(synced) == ["upload/tasks/*/patch-0-3.tmp", *RECORD, TASK]


def test_new_folders_below_merged_dir_are_durable(store: DiskBackend, synced: list[str]) -> None:
    send(store, 0, b"one", total_chunks=1)
    taken(synced)
    merge(store, 1, relative_path="a/b")
    names = [name for name in taken(synced) if name.startswith("merged")]
    assert names == ["merged", "merged/a", "merged/a/b/.dlpool-*.merging", "merged/a/b"]
    send(store, 0, b"two", file_id="other", total_chunks=1)
    taken(synced)
    merge(store, 1, "other", file_id="other", relative_path="a/b")
    names = [name for name in taken(synced) if name.startswith("merged")]
    assert names == ["merged/a/b/.dlpool-*.merging", "merged/a/b"]


def test_a_published_file_that_a_killed_process_left_is_durable_before_its_chunks_go(
    store: DiskBackend, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, 0, b"one", total_chunks=1)
    folder = folder_of(store, ID)
    with monkeypatch.context() as patch:
        patch.setattr("dlpool.storage.disk.merger._MergeRun._complete", lambda *_arguments: killed())
        with pytest.raises(KeyboardInterrupt):
            merge(store, 1)
    taken(synced)
    store.sweep()
    assert taken(synced) == ["merged", *RECORD]
    assert not (folder / "0.chunk").exists()


def killed() -> None:
    raise KeyboardInterrupt


def test_what_removes_or_only_counts_is_not_synced(store: DiskBackend, synced: list[str]) -> None:
    send(store, 0, b"one", total_chunks=1)
    taken(synced)
    store.delete(ID, None)
    store.sweep()
    list_of(store, None)
    assert taken(synced) == []


def test_a_pause_is_durable(store: DiskBackend, synced: list[str]) -> None:
    send(store, 0, b"one")
    taken(synced)
    store.pause(ID, None)
    assert taken(synced) == RECORD


def test_without_atomic_operations_nothing_is_synced(tmp_path: Path, synced: list[str]) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"one", total_chunks=1)
    merge(store, 1, relative_path="a")
    parts = [begin(store, 3, concat=PARTIAL) for _ in range(2)]
    for part in parts:
        append(store, part, 0, b"abc")
    store.concatenator.concatenate(TusUploadRequest(None, None, "whole", concat=f"{FINAL};"), parts)
    store.sweep()
    assert taken(synced) == []
    assert not store.layout.durability and not NO_SYNC and Durability(True)


@pytest.mark.parametrize("is_wanted", [True, False])
def test_an_error_that_a_close_reports_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    """A network file system may tell of a failed write only then: so a duplicate is closed before the rename."""
    with (tmp_path / "file").open("wb") as file, monkeypatch.context() as patch:
        kept = file.fileno()
        close = os.close

        def fail(descriptor: int) -> None:
            close(descriptor)
            assert descriptor != kept
            raise OSError(errno.EIO, "delayed")

        patch.setattr(os, "close", fail)
        with pytest.raises(OSError, match="delayed"):
            Durability(is_wanted).sync_data(kept)


def test_a_folder_that_cannot_be_synced_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    store = DiskBackend(
        store_in(tmp_path, enable_atomic_operations=True).settings,
        on_unsynced=lambda folder, _error: events.append(str(folder)),
    )

    def sync_folder(folder: object, *, on_unsynced: disk.OnUnsynced | None = None) -> bool:
        assert on_unsynced is not None
        on_unsynced(str(folder), OSError())
        return False

    monkeypatch.setattr(disk, "sync_folder", sync_folder)
    send(store, 0, b"one", total_chunks=1)
    assert str(tmp_path / "upload" / "tasks") in events
    events.clear()
    merge(store, 1)
    assert events


# --- modes ---


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_umask_alone_decides_who_may_read(tmp_path: Path, no_umask: None) -> None:
    store = store_in(tmp_path)
    file_id = begin(store)
    with store.chunks.stage() as staged:
        staged.write(b"abc")
        with open_append(store, file_id, None, 0, size=None) as session:
            session.write(b"abc")
            send(store, 0, b"one", total_chunks=1)
            assert_modes(tmp_path, 10)
        with pytest.raises(ZeroDivisionError), open_append(store, file_id, None, 0, size=1, has_checksum=True):
            assert_modes(tmp_path, 10)
            raise ZeroDivisionError
    merge(store, 1, relative_path="a/b")
    assert_modes(tmp_path, 8)


def assert_modes(folder: Path, least: int) -> None:
    found = [(path, path.stat().st_mode & 0o7777) for path in folder.rglob("*")]
    assert len(found) >= least
    assert [(path, oct(mode)) for path, mode in found if mode != (0o777 if path.is_dir() else 0o666)] == []
