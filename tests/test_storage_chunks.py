"""Chunks: what is kept, what is refused, and that an earlier one stays."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from dlpool.storage import states
from dlpool.storage.content_types import detect_types
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.chunk_file import TRAILER_SIZE
from dlpool.web.errors import HttpError
from dlpool.web.upload_json import chunk_result_json, merge_result_json
from dlpool.web.uploads import apply_batch
from tests.disks import needs_root, tmpfs
from tests.uploads import (
    ID,
    check_chunk,
    commit_chunk,
    detail_of,
    leftovers,
    list_of,
    md5,
    merge,
    refused,
    send,
    send_all,
    state,
    status_of,
    store_in,
    uploaded,
)

MIB = 1024 * 1024
DATA = [b"the first chunk", b"the second", b"the third one"]


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def chunk_file(store: DiskBackend, index: int) -> Path:
    [found] = Path(store.settings.upload_dir).rglob(f"{index}.chunk")
    return found


def test_chunks_in_any_order_become_the_file(store: DiskBackend) -> None:
    for index in (2, 0, 1):
        stored = send(store, index, DATA[index], md5=md5(DATA[index]).upper(), total_chunks=3, relative_path="a/b")
        assert chunk_result_json(stored) == {
            "status": "ok",
            "chunk_index": index,
            "md5_checked": True,
            "relative_path": "a/b",
            "size": len(DATA[index]),
        }
    result = merge(store, 3, expected_md5=md5(b"".join(DATA)))
    assert Path(result.path).read_bytes() == b"".join(DATA)
    assert merge_result_json(result) == {
        "status": "ok",
        "filePath": f"{store.settings.merged_dir}/a/b/file.bin",
        "md5": md5(b"".join(DATA)),
        "relative_path": "a/b",
        "size": 38,
        "merge_time": result.merge_time,
    }
    assert leftovers(store) == []
    assert not list(Path(store.settings.upload_dir).rglob("*.chunk"))


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_who_announces_much_and_sends_little_takes_little_of_the_disk(store: DiskBackend) -> None:
    with store.chunks.stage() as staged:
        staged.reserve(90 * MIB)
        for size in [1, *8 * [MIB]]:
            staged.write(bytes(size))
            assert on_disk(staged.path) <= MIB + 2 * staged.size
        assert on_disk(staged.path) >= 16 * MIB
        assert staged.path.stat().st_size == 8 * MIB + 1
        commit_chunk(store, staged, file_id=ID, index=0, owner=None)
    assert on_disk(chunk_file(store, 0)) < 9 * MIB
    assert status_of(store, ID, None)["uploaded_chunks"] == [0]
    assert leftovers(store) == []


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 3 * MIB + 5, 8 * MIB - 32, 8 * MIB, 17 * MIB + 1])
@pytest.mark.parametrize("more", [-1, 0, 700])
def test_what_is_expected_changes_nothing_of_what_is_stored(store: DiskBackend, size: int, more: int) -> None:
    data = os.urandom(size)
    with store.chunks.stage() as staged:
        staged.reserve(size + more)
        for begin in range(0, size, 100_000):
            staged.write(data[begin : begin + 100_000])
        commit_chunk(store, staged, file_id=ID, index=0, owner=None, md5=md5(data))
    assert chunk_file(store, 0).stat().st_size == size + TRAILER_SIZE
    assert on_disk(chunk_file(store, 0)) <= size + TRAILER_SIZE + 8192
    assert Path(merge(store, 1).path).read_bytes() == data


@needs_root
def test_a_disk_on_which_nothing_can_be_reserved_is_full(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "7M") as folder:
        store = store_in(folder, disk_refuse=1.0)
        with store.chunks.stage() as staged:
            staged.reserve(30 * MIB)
            with refused(507, "no_space"):
                for _ in range(6):  # which would fit
                    staged.write(bytes(MIB))
        assert leftovers(store) == []


def test_the_first_chunk_makes_the_task(store: DiskBackend) -> None:
    assert status_of(store, "new", None) == {
        "uploaded_chunks": [],
        "total_chunks": 0,
        "file_size": 0,
        "status": "not_found",
        "created_at": "",
        "updated_at": "",
        "completion_rate": 0.0,
    }
    assert send(store, 1, DATA[1], total_chunks=4, file_size=100).md5_checked is False
    status = status_of(store, ID, None)
    assert status["created_at"] <= status["updated_at"]
    del status["created_at"], status["updated_at"]
    assert status == {
        "uploaded_chunks": [1],
        "total_chunks": 4,
        "file_size": 100,
        "status": "uploading",
        "completion_rate": 25.0,
    }


def test_what_the_lists_say(store: DiskBackend) -> None:
    send_all(store, DATA, file_id="b")
    send(store, 0, DATA[0], file_id="a")
    listed = list_of(store, None)
    assert listed["total"] == 2
    assert [task["task_id"] for task in listed["tasks"]] == ["a", "b"]
    assert [task["uploaded_chunks"] for task in listed["tasks"]] == [1, 3]
    merge(store, 3, file_id="b")
    task = detail_of(store, "b", None)
    assert task["file_md5"] == md5(b"".join(DATA))
    assert [(chunk["index"], chunk["size"], chunk["md5"]) for chunk in task["chunks"]] == [
        (index, len(data), md5(data)) for index, data in enumerate(DATA)
    ]
    assert (task["status"], task["completion_rate"], task["filename"]) == ("completed", 100.0, "file.bin")
    assert not [value for value in (*task.values(), *task["chunks"][0].values()) if value is None]
    with refused(404, "no_such_task"):
        detail_of(store, "c", None)


def test_a_chunk_with_a_wrong_md5_is_discarded_and_an_earlier_one_stays(store: DiskBackend) -> None:
    send(store, 0, DATA[0], total_chunks=1)
    for _ in range(2):
        with refused(400, "md5_mismatch") as error:
            send(store, 0, b"rubbish", md5=md5(DATA[0]))
        assert error.details == {"chunk_index": 0, "md5": md5(b"rubbish")}
    [chunk] = detail_of(store, ID, None)["chunks"]
    assert (chunk["md5"], chunk["retry_count"]) == (md5(DATA[0]), 2)
    assert leftovers(store) == []
    with refused(400, "md5_mismatch"):
        send(store, 0, b"rubbish", md5=md5(b""), file_id="another")
    assert state(store, "another") == "not_found"


def test_the_same_chunk_again_changes_nothing_but_its_count(store: DiskBackend) -> None:
    for _ in range(3):
        send(store, 0, DATA[0], total_chunks=1)
    [chunk] = detail_of(store, ID, None)["chunks"]
    assert (chunk["size"], chunk["retry_count"]) == (len(DATA[0]), 2)


def test_without_the_integrity_check_an_md5_is_only_recorded(tmp_path: Path) -> None:
    store = store_in(tmp_path, enable_integrity_check=False)
    assert send(store, 0, DATA[0], md5="0" * 32, total_chunks=1).md5_checked is False
    assert detail_of(store, ID, None)["chunks"][0]["md5"] == "0" * 32
    assert merge(store, 1, expected_md5="1" * 32).md5 == md5(DATA[0])


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"index": 3}, 400, "bad_index"),
        ({"index": -1}, 400, "bad_index"),
        ({"index": 0, "total_chunks": 4}, 409, "conflict"),
        ({"index": 0, "file_size": 39}, 409, "conflict"),
        ({"index": 0, "file_size": -1}, 400, "bad_file_size"),
        ({"index": 0, "file_size": 10**18}, 413, "file_too_large"),
        ({"index": 0, "total_chunks": 0}, 400, "bad_total_chunks"),
        ({"index": 0, "total_chunks": 10**9}, 400, "bad_total_chunks"),
        ({"index": 0, "md5": "zz"}, 400, "bad_md5"),
        ({"index": 0, "relative_path": "../x"}, 400, "bad_path"),
        ({"index": 0, "file_id": ""}, 400, "bad_file_id"),
        ({"index": 0, "file_id": "x\0y"}, 400, "bad_file_id"),
        ({"index": 0, "file_id": "x" * 2000}, 400, "bad_file_id"),
    ],
)
def test_chunks_that_do_not_fit_are_refused_before_and_after_their_body(
    store: DiskBackend, fields: dict[str, Any], status: int, code: str
) -> None:
    send(store, 0, DATA[0], total_chunks=3, file_size=38)
    with refused(status, code):
        check_chunk(store, **{"file_id": ID, "owner": None, **fields})
    with refused(status, code):
        send(store, fields.pop("index"), DATA[1], **fields)
    assert detail_of(store, ID, None)["chunks"][0]["md5"] == md5(DATA[0])
    assert list_of(store, None)["total"] == 1
    assert leftovers(store) == []


def test_what_comes_late_may_not_contradict_what_is_there(store: DiskBackend) -> None:
    send(store, 5, b"12345")
    late: list[dict[str, Any]] = [{"total_chunks": 5}, {"file_size": 4}]
    for fields in late:
        with refused(409, "conflict"):
            check_chunk(store, file_id=ID, index=0, owner=None, **fields)
        with refused(409, "conflict"):
            send(store, 0, b"", **fields)
    send(store, 5, b"123")
    send(store, 0, b"4", total_chunks=6, file_size=4)
    status = status_of(store, ID, None)
    assert (status["uploaded_chunks"], status["total_chunks"], status["file_size"]) == ([0, 5], 6, 4)


def test_more_bytes_than_were_announced_are_not_stored(store: DiskBackend) -> None:
    send(store, 0, b"123", total_chunks=3, file_size=5)
    send(store, 1, b"12")
    for index, data in ((2, b"1"), (1, b"123")):
        with refused(400, "size_mismatch"):
            send(store, index, data)
    assert uploaded(store) == [0, 1]
    send(store, 0, b"1")  # in the place of another one
    send(store, 2, b"12")
    assert merge(store, 3).size == 5


def test_bytes_that_are_there_count_also_when_the_record_is_lost(store: DiskBackend) -> None:
    send(store, 0, b"123", total_chunks=2, file_size=5)
    [record] = Path(store.settings.upload_dir).rglob("record.json")
    record.unlink()
    with refused(400, "size_mismatch"):
        send(store, 1, b"123", total_chunks=2, file_size=5)
    send(store, 1, b"12", total_chunks=2, file_size=5)
    assert merge(store, 2).size == 5


def test_all_chunks_go_to_one_folder_and_the_merge_decides(store: DiskBackend) -> None:
    send(store, 0, DATA[0], total_chunks=2)
    send(store, 0, DATA[0], relative_path="a/b")
    send(store, 1, DATA[1], relative_path="a/b/")
    for path in ("a", "a/b/c"):
        with refused(409, "conflict") as error:
            send(store, 1, DATA[1], relative_path=path)
        assert error.details == {"relative_path": "a/b"}
    Path(store.settings.merged_dir, "other").mkdir(parents=True)
    Path(store.settings.merged_dir, "other/file.bin").touch()
    with refused(409, "file_exists"):
        merge(store, 2, relative_path="other")
    send(store, 1, DATA[1], relative_path="a/b")  # a merge that failed has changed nothing of that
    assert merge(store, 2, relative_path="third/").path.endswith("/merged/third/file.bin")
    assert merge(store, 2, relative_path="third").relative_path == "third"
    assert merge(store, 2).relative_path == "third"
    with refused(409, "task_completed"):
        merge(store, 2, relative_path="a/b")


def test_an_id_is_never_a_path(store: DiskBackend, tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "/etc/passwd", "a\\b", "..", ".", "a/b", "%2e%2e%2f", "über \N{SNOWMAN}", "A" * 1024]
    for file_id in ids:
        send(store, 0, file_id.encode(), file_id=file_id, total_chunks=1)
    assert [task["task_id"] for task in list_of(store, None)["tasks"]] == sorted(ids)
    assert {path.name for path in tmp_path.iterdir()} == {"upload"}
    assert all(len(path.name) == 64 for path in (tmp_path / "upload" / "tasks").iterdir())


def test_too_large_chunks_are_refused_before_they_are_stored(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_chunk_size=10)
    with refused(413, "chunk_too_large") as error, store.chunks.stage() as staged:
        staged.write(b"x" * 10)
        staged.write(b"x")
    assert error.details == {"max_chunk_size": 10}
    assert leftovers(store) == []


def test_a_file_that_grows_too_large_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_file_size=25)
    send(store, 0, b"x" * 10)
    send(store, 1, b"x" * 10)
    send(store, 1, b"y" * 10)  # replaced, not added
    with refused(413, "file_too_large"):
        send(store, 2, b"x" * 6)
    assert uploaded(store) == [0, 1]


def test_paused_completed_and_merging_tasks_accept_no_chunks(store: DiskBackend) -> None:
    send_all(store, DATA)
    assert store.pause(ID, None).summary.status == "paused"
    with refused(409, "task_paused"):
        send(store, 0, DATA[0])
    with refused(409, "task_paused"):
        merge(store, 3)
    with refused(409, "task_paused"):
        store.pause(ID, None)
    assert store.resume(ID, None).summary.status == "uploading"
    with refused(409, "task_uploading"):
        store.resume(ID, None)
    merge(store, 3)
    with refused(409, "task_completed"):
        send(store, 0, DATA[0])
    with refused(409, "task_completed"):
        store.pause(ID, None)


def test_a_chunk_whose_task_is_paused_while_it_comes_is_refused(store: DiskBackend) -> None:
    send(store, 0, DATA[0], total_chunks=2)
    with store.chunks.stage() as staged:
        staged.write(DATA[1])
        store.pause(ID, None)
        with refused(409, "task_paused"):
            commit_chunk(store, staged, file_id=ID, index=1, owner=None)
    assert (uploaded(store), leftovers(store)) == ([0], [])


def test_a_task_without_an_owner_is_no_tokens(store: DiskBackend) -> None:
    send(store, 0, DATA[0], owner=None, total_chunks=1)
    with refused(404, "no_such_task"):
        store.delete(ID, "ann")
    assert list_of(store, "ann")["total"] == 0
    assert store.cleanup("ann", status=("uploading",), older_than_days=0) == 0
    assert list_of(store, None)["total"] == 1


def test_a_second_merge_is_the_same_merge_or_refused(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    first = merge(store, 1)
    assert merge(store, 1, expected_md5=first.md5.upper()) == first
    assert detail_of(store, ID, None)["file_size"] == len(DATA[0])
    with refused(409, "task_completed"):
        merge(store, 2)
    with refused(400, "file_md5_mismatch"):
        merge(store, 1, expected_md5="0" * 32)


def test_tasks_have_an_owner(store: DiskBackend) -> None:
    send(store, 0, DATA[0], owner="ann", total_chunks=1)
    for forbidden in (
        lambda: detail_of(store, ID, "bob"),
        lambda: store.pause(ID, "bob"),
        lambda: store.delete(ID, "bob"),
        lambda: merge(store, 1, owner="bob"),
    ):
        with refused(404, "no_such_task"):
            forbidden()
    assert status_of(store, ID, "bob") == status_of(store, "unknown", "bob")
    assert list_of(store, "bob") == {"tasks": [], "total": 0}
    assert store.cleanup("bob", states.STATES, 0) == 0
    assert list_of(store, "ann")["total"] == list_of(store, None)["total"] == 1
    assert merge(store, 1, owner="ann").size == len(DATA[0])


@pytest.mark.parametrize("damage", ["removed", "cut", "emptied", "cut to its bytes", "longer", "a folder", "a link"])
def test_chunk_files_that_were_touched_behind_our_back_are_noticed(store: DiskBackend, damage: str) -> None:
    send_all(store, DATA)
    path = chunk_file(store, 1)
    if damage in ("removed", "a folder", "a link"):
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a link":
        path.symlink_to(chunk_file(store, 0))
    elif damage != "removed":
        lengths = {"cut": 20, "emptied": 0, "cut to its bytes": len(DATA[1]), "longer": 1000}
        os.truncate(path, lengths[damage])
    assert uploaded(store) == [0, 2]
    with refused(400, "chunks_missing") as error:
        merge(store, 3)
    assert error.details == {"uploaded": 2, "total_required": 3, "uploaded_chunks": [0, 2]}
    assert state(store) == "uploading"
    if damage == "a folder":
        path.rmdir()
    send(store, 1, DATA[1])
    assert Path(merge(store, 3).path).read_bytes() == b"".join(DATA)


@pytest.mark.parametrize("expected", [None, md5(b"".join(DATA))])
def test_chunks_whose_bytes_were_changed_are_found_by_the_merge(store: DiskBackend, expected: str | None) -> None:
    send_all(store, DATA)
    path = chunk_file(store, 2)
    path.write_bytes(b"THE" + path.read_bytes()[3:])
    with refused(400, "chunks_missing") as error:
        merge(store, 3, expected_md5=expected)
    assert error.details["uploaded_chunks"] == [0, 1]
    assert (state(store), leftovers(store), detail_of(store, ID, None)["retry_count"]) == ("failed", [], 1)
    send(store, 2, DATA[2])
    assert state(store) == "uploading"
    assert merge(store, 3, expected_md5=expected).md5 == md5(b"".join(DATA))


def test_a_lost_record_loses_no_chunk(store: DiskBackend) -> None:
    send_all(store, DATA)
    [record] = Path(store.settings.upload_dir).rglob("record.json")
    for text in ("", "{", "null", '{"status": "odd"}', '{"status": []}', '{"status": "uploading", "chunks": 5}'):
        record.write_text(text)
        assert uploaded(store) == [0, 1, 2], text
    record.unlink()
    assert (uploaded(store), state(store)) == ([0, 1, 2], "uploading")
    assert merge(store, 3).md5 == md5(b"".join(DATA))


def test_what_is_no_task_is_replaced_and_not_listed(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    [identity] = Path(store.settings.upload_dir).rglob("identity.json")
    for text in ("", "[]", '{"file_id": 5}', '{"file_id": "x"}'):
        identity.write_text(text)
        assert list_of(store, None)["total"] == 0
    send(store, 1, DATA[1])
    assert uploaded(store) == [1]


def test_content_and_ending_can_be_limited(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(50)
    store = store_in(tmp_path, allowed_extensions=".PNG, gz", allowed_content_types="image/png,application/gzip")
    with refused(415, "content_not_allowed"):
        send(store, 0, b"#!/bin/sh\n")
    send(store, 0, png, total_chunks=1)
    with refused(415, "extension_not_allowed"):
        merge(store, 1, "picture.exe")
    assert merge(store, 1, "picture.png").size == len(png)
    send(store, 0, b"\x1f\x8b\x08" + bytes(20), file_id="gzip")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "text/plain"),
        (b"plain\ttext\n", "text/plain"),
        ("über".encode()[:-1] + b"\xc3", "text/plain"),
        (b"\0\1\2\3", "application/octet-stream"),
        (b"PK\x03\x04" + bytes(26), "application/zip"),
        (b"\x7fELF\2\1\1", "application/octet-stream"),
        (b"%PDF-1.4\n", "application/pdf"),
    ],
)
def test_the_content_type_is_detected_from_the_first_bytes(head: bytes, kind: str) -> None:
    assert kind in detect_types(head)


@pytest.mark.parametrize("total", [0, 1, 5])
@pytest.mark.parametrize("file_size", [-1, 0, 7])
@pytest.mark.parametrize("have", [0, 3, 9])
def test_the_completion_rate_is_always_finite(total: int, file_size: int, have: int) -> None:
    for status in states.STATES:
        rate = states.completion_rate(status, have, total, have, file_size)
        assert math.isfinite(rate) and 0 <= rate <= 100
        assert rate == 100 or status != "completed"


def test_states_follow_the_table() -> None:
    allowed = {(state, after) for state, afters in states.NEXT.items() for after in afters}
    assert allowed == {
        ("pending", "uploading"),
        ("uploading", "paused"),
        ("paused", "uploading"),
        ("uploading", "merging"),
        ("merging", "completed"),
        ("merging", "failed"),
        ("failed", "uploading"),
    }


def test_a_batch_has_a_result_for_each_id(store: DiskBackend) -> None:
    for file_id in ("b", "a"):
        send(store, 0, DATA[0], file_id=file_id)
    results = apply_batch(store, "pause", ["b", "a", "none", "a"], None)
    assert [(one["id"], one["status"]) for one in results] == [("a", "ok"), ("b", "ok"), ("none", "error")]
    assert results[2]["code"] == "no_such_task"
    assert {one["status"] for one in apply_batch(store, "delete", ["a", "b"], None)} == {"ok"}
    assert list_of(store, None) == {"tasks": [], "total": 0}
    assert leftovers(store) == []
    with pytest.raises(HttpError) as raised:
        apply_batch(store, "explode", [], None)
    assert (raised.value.status, raised.value.code) == (400, "bad_action")
