"""Tasks that are receiving chunks, damaged tasks, and disks without enough space."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UploadError
from tests.disks import needs_root, tmpfs
from tests.uploads import (
    ID,
    check_chunk,
    commit_chunk,
    detail_of,
    files_below,
    leftovers,
    list_of,
    merge,
    refused,
    send,
    send_all,
    state,
    store_in,
    uploaded,
)

MIB = 1024 * 1024
DATA = [b"one", b"two"]


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path, task_expiry=1000.0)


def folder_of(store: DiskBackend, file_id: str = ID) -> Path:
    with store.layout.read_owned(file_id, None) as task:
        return task.folder


def grow_old(store: DiskBackend, file_id: str = ID) -> None:
    """Set the times of the task far back."""
    folder = folder_of(store, file_id)
    record = folder / "record.json"
    if record.is_file():
        record.unlink()
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - 10_000, time.time() - 10_000))


# --- while somebody sends ---


def test_a_task_does_not_expire_while_a_chunk_is_received(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    with store.chunks.stage() as staged:
        staged.task_lock = check_chunk(store, file_id=ID, index=1, owner=None)
        grow_old(store)
        assert store.sweep().removed == 0
        assert store.cleanup(None, ("uploading",), 0) == 0
        staged.write(DATA[1])
        commit_chunk(store, staged, file_id=ID, index=1, owner=None)
    assert uploaded(store) == [0, 1]
    grow_old(store)
    assert store.sweep().removed == 1
    assert (state(store), leftovers(store)) == ("not_found", [])


@pytest.mark.parametrize("is_begun_anew", [False, True])
def test_a_chunk_does_not_recreate_a_task_deleted_meanwhile(store: DiskBackend, is_begun_anew: bool) -> None:
    send(store, 0, DATA[0])
    with store.chunks.stage() as staged:
        staged.task_lock = check_chunk(store, file_id=ID, index=1, owner=None)
        staged.write(DATA[1])
        store.delete(ID, None)
        if is_begun_anew:
            send(store, 5, b"another file")
        with refused(404, "no_such_task"):
            commit_chunk(store, staged, file_id=ID, index=1, owner=None)
    assert uploaded(store) == ([5] if is_begun_anew else [])
    assert leftovers(store) == []


def test_a_wrong_md5_does_not_bypass_the_state_of_a_task(store: DiskBackend) -> None:
    send(store, 0, DATA[0], total_chunks=1)
    with refused(400, "bad_index"):
        send(store, 7, DATA[1], md5="0" * 32)
    merge(store, 1)
    with refused(409, "task_completed"):
        send(store, 0, DATA[1], md5="0" * 32)
    assert detail_of(store, ID, None)["chunks"][0]["retry_count"] == 0


def test_a_declared_md5_is_removed_with_its_chunk(tmp_path: Path) -> None:
    store = store_in(tmp_path, enable_integrity_check=False)
    send(store, 0, DATA[0], md5="0" * 32)
    send(store, 0, DATA[1])
    assert detail_of(store, ID, None)["chunks"][0]["md5"] != "0" * 32


def test_a_file_name_sent_with_a_chunk_is_checked_at_once(tmp_path: Path) -> None:
    store = store_in(tmp_path, allowed_extensions=".bin")
    send(store, 0, DATA[0], total_chunks=1, filename="file.bin", relative_path="a")
    merge(store, 1, relative_path="a")
    refusals: list[tuple[dict[str, Any], int, str]] = [
        ({"filename": "../x.bin"}, 400, "bad_filename"),
        ({"filename": "x.exe"}, 415, "extension_not_allowed"),
        ({"filename": "file.bin", "relative_path": "a"}, 409, "file_exists"),
    ]
    for fields, status, code in refusals:
        with refused(status, code):
            check_chunk(store, file_id="new", index=0, owner=None, **fields)
        with refused(status, code):
            send(store, 0, DATA[0], file_id="new", **fields)
    assert state(store, "new") == "not_found"
    send(store, 0, DATA[0], file_id="new", filename="file.bin", relative_path="b")


def test_one_of_several_merges_to_a_name_succeeds_and_the_others_fail(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for turn in range(15):
        ids = [f"{turn} {number}" for number in range(4)]
        for file_id in ids:
            send(store, 0, file_id.encode(), file_id=file_id)

        def try_to_merge(file_id: str, name: str = f"{turn}.bin") -> str:
            try:
                return merge(store, 1, name, file_id=file_id).md5
            except UploadError as error:
                return error.code

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(try_to_merge, ids))
        assert said.count("file_exists") == 3
        states = [state(store, file_id) for file_id in ids]
        assert states == ["failed" if code == "file_exists" else "completed" for code in said]


# --- damage ---


def damage(store: DiskBackend, kind: str) -> None:
    record = folder_of(store) / "record.json"
    if kind == "a folder":
        record.unlink()
        record.mkdir()
    else:
        record.write_text(kind)


@pytest.mark.parametrize(
    "text",
    [
        '{"status":"uploading","updated_at":null}',
        '{"status":"uploading","retries":[]}',
        '{"status":"uploading","chunks":[[1]]}',
        '{"status":"completed","result":{"path":1}}',
    ],
)
def test_a_record_with_wrong_types_is_rebuilt(store: DiskBackend, text: str) -> None:
    send_all(store, DATA)
    damage(store, text)
    assert (uploaded(store), state(store), list_of(store, None)["total"]) == ([0, 1], "uploading", 1)
    assert merge(store, 2).size == 6


def test_an_unreadable_task_does_not_hide_the_others(store: DiskBackend) -> None:
    for file_id in ("a", ID, "z"):
        send(store, 0, DATA[0], file_id=file_id)
    damage(store, "a folder")
    grow_old(store, "z")
    assert [task["task_id"] for task in list_of(store, None)["tasks"]] == ["a", "z"]
    swept = store.sweep()
    assert swept.removed == 1
    assert [str(folder_of(store)) in failure for failure in swept.failures] == [True]
    grow_old(store, "a")
    assert store.cleanup(None, ("uploading",), 0) == 1
    assert list_of(store, None)["total"] == 0


def test_a_task_removed_during_a_sweep_is_not_a_failure(store: DiskBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    send(store, 0, DATA[0])
    grow_old(store)
    listed = store.index.current()
    monkeypatch.setattr(store.index, "current", lambda **_options: listed)
    store.delete(ID, None)
    swept = store.sweep()
    assert (swept.removed, swept.failures) == (0, ())


def test_an_old_folder_without_identity_is_removed(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    folder = folder_of(store)
    (folder / "identity.json").write_text("")
    (folder.parent / "not ours").mkdir()
    assert store.sweep().removed == 0
    grow_old(store)
    os.utime(folder.parent / "not ours", (0, 0))
    assert store.sweep().removed == 1
    assert files_below(folder.parent) == [] and (folder.parent / "not ours").exists()


def test_unknown_fields_of_a_record_are_ignored(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    for name in ("identity.json", "record.json"):
        path = folder_of(store) / name
        path.write_text(path.read_text().replace("{", '{"news": 1, ', 1))
    assert (uploaded(store), state(store)) == ([0], "uploading")


# --- room ---


@needs_root
def test_a_file_that_could_never_be_merged_is_refused_before_its_first_chunk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "10M") as folder:
        store = store_in(folder)
        with refused(507, "no_space"):
            send(store, 0, b"x", total_chunks=2, file_size=6 * MIB)
        send(store, 0, b"x", total_chunks=2, file_size=4 * MIB)


@needs_root
def test_a_merge_that_does_not_fit_does_not_fill_the_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8M") as folder:
        store = store_in(folder, disk_refuse=1)
        for index in range(3):
            send(store, index, bytes(2 * MIB))
        status = os.statvfs(folder)
        with refused(507, "no_space"):
            merge(store, 3)
        assert os.statvfs(folder).f_bfree >= status.f_bfree - 8  # its record, its locks
        assert (state(store), leftovers(store)) == ("failed", [])
