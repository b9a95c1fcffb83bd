"""Merges: what they refuse, what they publish, what they tell, and what is left of those that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.disk import Identity
from dlpool.storage import states
from dlpool.storage.digests import FileDigests
from dlpool.storage.disk import capacity, merger
from dlpool.storage.disk.assembly import ChunkAssembly
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.merge_output import MergeOutput, check_name_free, name_candidates, open_merge_output
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import PendingPublish
from dlpool.storage.errors import UploadError
from dlpool.storage.values import UploadEvent, VolumeCapacity
from dlpool.web.errors import http_error
from tests.test_storage_tus_recovery import open_below
from tests.uploads import (
    ID,
    detail_of,
    files_below,
    leftovers,
    md5,
    merge,
    refused,
    send,
    send_all,
    state,
    store_in,
    uploaded,
)

DATA = [b"one", b"two2", b"three"]
WHOLE = b"".join(DATA)


class Heard:
    """A store and its events."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.events: list[UploadEvent] = []
        self.store = DiskBackend(store_in(folder, **settings).settings, self.events.append)

    def names(self) -> list[str]:
        found = [event.name for event in self.events]
        self.events.clear()
        return found


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def task_of(store: DiskBackend, file_id: str = ID) -> TaskFolder:
    with store.layout.lock_id(file_id) as task:
        return task


def fails(error: BaseException) -> Any:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    return fail


# --- what is refused ---


@pytest.mark.parametrize(
    ("total", "said", "status", "code", "extra"),
    [
        (3, 3, 0, "", {}),
        (3, None, 0, "", {}),
        (2, 3, 409, "conflict", {"total_chunks": 3}),
        (4, 3, 409, "conflict", {"total_chunks": 3}),
        (2, None, 409, "conflict", {}),  # there is a chunk 2
        (1, None, 409, "conflict", {}),
        (4, None, 400, "chunks_missing", {"uploaded": 3, "total_required": 4, "uploaded_chunks": [0, 1, 2]}),
    ],
)
def test_a_merge_is_of_as_many_chunks_as_there_are(
    store: DiskBackend, total: int, said: int | None, status: int, code: str, extra: Mapping[str, Any]
) -> None:
    for index, data in enumerate(DATA):
        send(store, index, data, total_chunks=said)
    if not status:
        assert merge(store, total).size == len(WHOLE)
        return
    with refused(status, code) as caught:
        merge(store, total)
    assert caught.details == extra
    assert state(store) == "uploading"


def test_what_is_missing_is_counted(store: DiskBackend) -> None:
    send(store, 0, b"")
    send(store, 2, b"x")
    with refused(400, "chunks_missing") as caught:
        merge(store, 5)
    assert caught.text == "3 of 5 chunks are missing: send them"
    assert caught.details == {"uploaded": 2, "total_required": 5, "uploaded_chunks": [0, 2]}
    for path in task_of(store).folder.glob("*.chunk"):
        path.unlink()
    with refused(400, "chunks_missing"):
        merge(store, 1)


@pytest.mark.parametrize("file_size", [len(WHOLE) - 1, len(WHOLE), len(WHOLE) + 1])
def test_a_file_has_the_size_that_was_announced(store: DiskBackend, file_size: int) -> None:
    for index, data in enumerate(DATA):
        send(store, index, data)
    task = task_of(store)
    task.save(task.record(), file_size=file_size)
    if file_size == len(WHOLE):
        assert merge(store, 3).size == file_size
        return
    with refused(400, "size_mismatch") as caught:
        merge(store, 3)
    assert caught.details == {"size": len(WHOLE), "file_size": file_size}


@pytest.mark.parametrize("more", [0, 1])
def test_a_file_has_at_most_the_largest_size(tmp_path: Path, more: int) -> None:
    send_all(store_in(tmp_path), DATA)
    store = store_in(tmp_path, max_file_size=len(WHOLE) - more)
    if more:
        with refused(413, "file_too_large") as caught:
            merge(store, 3)
        assert caught.details == {"max_file_size": len(WHOLE) - 1}
    else:
        assert merge(store, 3).size == len(WHOLE)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"file_id": ""}, 400, "bad_file_id"),
        ({"name": "../x"}, 400, "bad_filename"),
        ({"relative_path": "../x"}, 400, "bad_path"),
        ({"expected_md5": "zz"}, 400, "bad_md5"),
        ({"total": 0}, 400, "bad_total_chunks"),
        ({"total": 100_001}, 400, "bad_total_chunks"),
        ({"total": 100_000}, 400, "chunks_missing"),
        ({"name": "x.exe"}, 415, "extension_not_allowed"),
        ({"owner": "bob"}, 404, "no_such_task"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused(tmp_path: Path, fields: dict[str, Any], status: int, code: str) -> None:
    store = store_in(tmp_path, allowed_extensions=".bin")
    send(store, 0, b"x", owner="ann")
    with refused(status, code):
        merge(store, fields.pop("total", 1), **fields)
    assert (state(store), files_below(tmp_path / "merged")) == ("uploading", [])
    send(store, 0, b"x", file_id="completed")
    merge(store, 1, file_id="completed")
    if "file_id" not in fields and "owner" not in fields:
        with pytest.raises(UploadError) as raised:
            merge(store, fields.pop("total", 0), file_id="completed", **fields)
        assert http_error(raised.value).status in (status, 400)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_merge_that_another_process_does_is_not_done_twice(store: DiskBackend, is_recorded: bool) -> None:
    send_all(store, DATA)
    task = task_of(store)
    lock = task.try_lock_merge()
    assert lock is not None
    if is_recorded:
        task.save(task.record(), status=states.MERGING)
    with refused(409, "task_merging") as caught:
        merge(store, 3)
    assert caught.details == {"task_status": "merging"}
    os.close(lock)
    assert merge(store, 3).size == len(WHOLE)


def test_the_result_of_an_earlier_merge_is_for_the_same_file(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send_all(store, DATA)
    first = merge(store, 3, relative_path="a/b")
    assert 0 < first.merge_time < 3600 * 10**9
    same: list[dict[str, Any]] = [{}, {"relative_path": "a/b/"}, {"expected_md5": md5(WHOLE).upper()}]
    for fields in same:
        assert merge(store, 3, **fields) == first
    other: list[dict[str, Any]] = [{"relative_path": "a"}, {"relative_path": ""}, {"name": "x"}, {"total": 2}]
    for fields in other:
        with refused(409, "task_completed"):
            merge(store, fields.pop("total", 3), **fields)
    with refused(400, "file_md5_mismatch") as caught:
        merge(store, 3, expected_md5="0" * 32)
    assert caught.details == {"md5": md5(WHOLE)}
    unchecked = store_in(tmp_path, enable_integrity_check=False)
    assert merge(unchecked, 3, expected_md5="0" * 32) == first


def test_the_path_of_the_chunks_counts_unless_the_merge_names_one(store: DiskBackend) -> None:
    for file_id, said, wanted in (("a", None, "x"), ("b", "", ""), ("c", "y", "y")):
        send(store, 0, b"1", file_id=file_id, relative_path="x")
        result = merge(store, 1, file_id, file_id=file_id, relative_path=said)
        assert result.relative_path == wanted


# --- what is published ---


def test_a_completion_event_has_path_size_md5_and_duration(tmp_path: Path) -> None:
    events = Heard(tmp_path)
    send_all(events.store, DATA, owner="ann")
    result = merge(events.store, 3, relative_path="a/b", owner="ann")
    assert [event.name for event in events.events] == ["upload_started", "upload_completed"]
    event = events.events[1]
    assert (event.upload_id, event.protocol, event.owner, event.filename, event.size) == (
        ID,
        "chunked",
        "ann",
        "file.bin",
        len(WHOLE),
    )
    seconds = round(result.merge_time / 1e9, 6)
    assert event.details == {"path": "a/b/file.bin", "size": len(WHOLE), "md5": md5(WHOLE), "seconds": seconds}
    events.events.clear()
    assert merge(events.store, 3, owner="ann") == result
    events.store.sweep()
    assert events.names() == []
    task = detail_of(events.store, ID, "ann")
    assert (task["file_size"], task["relative_path"], task["failure"]) == (len(WHOLE), "a/b", "")


@pytest.mark.parametrize("taken", [0, 1, 2, 1000])
def test_a_name_that_is_taken_gets_a_suffix(tmp_path: Path, taken: int) -> None:
    store = store_in(tmp_path, merge_conflict="suffix")
    (tmp_path / "merged").mkdir()
    names = ["file.bin", *(f"file-{number}.bin" for number in range(1, 1000))]
    for name in names[:taken]:
        (tmp_path / "merged" / name).touch()
    send_all(store, DATA)
    if taken == 1000:
        with refused(409, "file_exists") as caught:
            merge(store, 3)
        assert "'file.bin'" in caught.text
        assert (state(store), leftovers(store)) == ("failed", [])
        return
    assert Path(merge(store, 3).path).name == names[taken]


def test_names_with_a_suffix_are_numbered_before_their_ending() -> None:
    assert name_candidates("a.tar.gz", has_suffix=False) == ["a.tar.gz"]
    found = name_candidates("a.tar.gz", has_suffix=True)
    assert (found[:3], found[-1], len(found)) == (["a.tar.gz", "a.tar-1.gz", "a.tar-2.gz"], "a.tar-999.gz", 1000)
    assert name_candidates("a", has_suffix=True)[1] == "a-1"


def test_a_name_that_is_taken_while_it_is_merged_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path, merge_conflict="suffix")
    send_all(store, DATA)
    has, publish = MergeOutput.has, MergeOutput.publish
    monkeypatch.setattr(MergeOutput, "has", lambda output, name: False if name == "file.bin" else has(output, name))

    def taken(output: MergeOutput, name: str, identity: Identity) -> bool:
        if name == "file.bin":
            (tmp_path / "merged" / name).write_bytes(b"another")
        return publish(output, name, identity)

    monkeypatch.setattr(MergeOutput, "publish", taken)
    assert Path(merge(store, 3).path).name == "file-1.bin"
    assert (tmp_path / "merged" / "file.bin").read_bytes() == b"another"


def test_after_a_race_for_the_name_the_record_has_no_file_that_is_about_to_be_published(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send_all(store, DATA)
    monkeypatch.setattr(MergeOutput, "publish", lambda *_arguments: False)
    with refused(409, "file_exists"):
        merge(store, 3)
    assert task_of(store).record().publishing is None
    assert (state(store), detail_of(store, ID, None)["retry_count"], files_below(tmp_path / "merged")) == (
        "failed",
        1,
        [],
    )


@pytest.mark.parametrize("is_free", [True, False])
def test_a_name_is_checked_before_bytes_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_free: bool
) -> None:
    store = store_in(tmp_path)
    send_all(store, DATA)
    (tmp_path / "merged").mkdir()
    if not is_free:
        (tmp_path / "merged" / "file.bin").touch()
    copied: list[object] = []
    write = ChunkAssembly.write

    def note(assembly: ChunkAssembly, target: int, **options: Any) -> FileDigests:
        copied.append(assembly)
        return write(assembly, target, **options)

    monkeypatch.setattr(ChunkAssembly, "write", note)
    if is_free:
        merge(store, 3)
    else:
        with refused(409, "file_exists"):
            merge(store, 3)
    assert len(copied) == is_free
    assert open_below(tmp_path) == []


def test_a_name_that_is_free_is_free(tmp_path: Path) -> None:
    refusing, suffixing = store_in(tmp_path).settings, store_in(tmp_path, merge_conflict="suffix").settings
    check_name_free(refusing, (), "x")  # merged_dir does not exist yet
    (tmp_path / "merged" / "a").mkdir(parents=True)
    (tmp_path / "merged" / "a" / "x").touch()
    check_name_free(refusing, (), "x")
    check_name_free(refusing, ("b",), "x")
    check_name_free(suffixing, ("a",), "x")
    with refused(409, "file_exists"):
        check_name_free(refusing, ("a",), "x")
    assert open_below(tmp_path) == []


# --- what is left of a merge that fails ---


@pytest.mark.parametrize("where", ["create", "write", "head", "sync", "publish", "folder", "save"])
def test_a_failed_merge_keeps_its_chunks_and_records_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    events = Heard(tmp_path)
    store = events.store
    send_all(store, DATA)
    events.names()
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    with monkeypatch.context() as patch:
        output: dict[str, tuple[Any, str, Any]] = {
            "create": (MergeOutput, "create", fails(error)),
            "write": (ChunkAssembly, "write", fails(error)),
            "head": (merger, "check_content", fails(UploadError("content_not_allowed", "no"))),
            "sync": (Durability, "sync_data", fails(error)),
            "publish": (MergeOutput, "publish", fails(error)),
            "folder": (Durability, "sync_folder", fails(error)),
            "save": (TaskFolder, "save", fails(error)),
        }
        patch.setattr(*output[where])
        with refused(415, "content_not_allowed") if where == "head" else refused(507, "storage") as caught:
            merge(store, 3)
    assert open_below(tmp_path) == []
    assert (uploaded(store), leftovers(store)) == ([0, 1, 2], [])
    assert files_below(tmp_path / "merged") == []
    if where not in ("save", "publish"):
        assert state(store) == "failed"
        task = detail_of(store, ID, None)
        assert (task["retry_count"], task["failure"]) == (1, caught.text)
        [event] = events.events
        code = "content_not_allowed" if where == "head" else "storage"
        assert (event.name, event.details) == ("upload_failed", {"label": code, "message": caught.text})
    assert merge(store, 3).md5 == md5(WHOLE)
    assert detail_of(store, ID, None)["failure"] == ""


@pytest.mark.parametrize("wrong", ["", "0" * 32, "X"])
@pytest.mark.parametrize("is_checked", [True, False])
def test_a_file_that_is_not_what_was_expected_fails(tmp_path: Path, is_checked: bool, wrong: str) -> None:
    store = store_in(tmp_path, enable_integrity_check=is_checked)
    send_all(store, DATA)
    expected = {"": None, "X": md5(WHOLE).upper()}.get(wrong, wrong)
    if is_checked and wrong.startswith("0"):
        with refused(400, "file_md5_mismatch") as caught:
            merge(store, 3, expected_md5=expected)
        assert caught.details == {"md5": md5(WHOLE)}
    else:
        assert merge(store, 3, expected_md5=expected).md5 == md5(WHOLE)


def test_a_file_that_got_another_length_is_not_published(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send_all(store, DATA)

    def write(_joint: ChunkAssembly, target: int, **_options: object) -> str:
        os.write(target, WHOLE[:-1])
        return md5(WHOLE)

    monkeypatch.setattr(ChunkAssembly, "write", write)
    with refused(507, "storage") as caught:
        merge(store, 3)
    assert caught.text == f"the merged file has {len(WHOLE) - 1} bytes instead of {len(WHOLE)}: merge again"
    assert (files_below(tmp_path / "merged"), uploaded(store)) == ([], [0, 1, 2])


def test_a_disk_with_too_little_room_is_not_written_to(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send_all(store, DATA)
    for free in (len(WHOLE) - 1, len(WHOLE)):
        monkeypatch.setattr(capacity, "capacity_of", lambda folder, free=free: VolumeCapacity(folder, 1000, free, 0.5))
        if free < len(WHOLE):
            with refused(507, "no_space"):
                merge(store, 3)
            assert not (tmp_path / "merged").exists()
            assert state(store) == "failed"
        else:
            merge(store, 3)


def test_a_task_that_is_removed_while_it_is_merged_is_not_published(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    send_all(store, DATA)
    write = ChunkAssembly.write

    def write_late(assembly: ChunkAssembly, target: int, **options: Any) -> FileDigests:
        found = write(assembly, target, **options)
        with store.layout.lock_id(ID) as task:
            store.layout.trash(task)
        return found

    monkeypatch.setattr(ChunkAssembly, "write", write_late)
    with refused(404, "no_such_task"):
        merge(store, 3)
    assert (files_below(tmp_path / "merged"), state(store)) == ([], "not_found")


def test_chunks_that_were_changed_are_removed_and_named_as_missing(tmp_path: Path) -> None:
    events = Heard(tmp_path)
    send_all(events.store, DATA)
    folder = task_of(events.store).folder
    for index in (0, 2):
        path = folder / f"{index}.chunk"
        path.write_bytes(b"X" + path.read_bytes()[1:])
    events.names()
    with refused(400, "chunks_missing") as caught:
        merge(events.store, 3)
    assert caught.text == "2 of 3 chunks are missing: send them"
    assert caught.details == {"uploaded": 1, "total_required": 3, "uploaded_chunks": [1]}
    assert files_below(folder) == ["1.chunk", "identity.json", "merge.lock", "record.json"]
    assert events.names() == ["upload_failed"]
    assert open_below(tmp_path) == []


def test_a_place_removes_only_the_file_that_it_published(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"data", total_chunks=1)
    merge(store, 1)
    output = open_merge_output(str(tmp_path / "merged"), (), "task", make=False)
    status = output.status_of("file.bin")
    assert status is not None and output.status_of("none") is None
    mine = PendingPublish((), "file.bin", status.st_ino, status.st_size, status.st_mtime_ns, md5(b"data"), 0)
    for other in (replace(mine, inode=mine.inode + 1), replace(mine, size=5), replace(mine, name="none")):
        output.withdraw(other)
        assert output.has("file.bin")
    output.withdraw(mine)
    assert not output.has("file.bin")
    output.close()
    assert open_below(tmp_path) == []
