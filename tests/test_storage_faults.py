"""Full, read-only and missing folders, unsafe names, and old tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dlpool.disk import identity_of
from dlpool.storage import states
from dlpool.storage.disk import capacity
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.merge_output import open_merge_output
from dlpool.storage.disk.safe_open import open_below
from dlpool.storage.values import UNHEALTHY, health_of
from tests.disks import needs_root, remount, tmpfs
from tests.uploads import (
    ID,
    check_chunk,
    files_below,
    leftovers,
    list_of,
    md5,
    merge,
    refused,
    send,
    send_all,
    state,
    store_in,
    uploaded,
)

MIB = 1024 * 1024
DATA = [b"one" * 100, b"two" * 100]
DAY_S = 86400


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def age(store: DiskBackend, days: float, file_id: str = ID) -> None:
    """Set the times of a task back by ``days`` days."""
    then = time.time() - days * DAY_S
    with store.layout.lock_id(file_id) as task:
        path = task.folder / "record.json"
        path.write_text(path.read_text().replace('"updated_at":', f'"updated_at":{then},"was":'))
        os.utime(task.folder, (then, then))


# --- disks ---


@needs_root
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "8M") as folder:
        store = store_in(folder, disk_refuse=1.0)
        send_all(store, [b"a" * MIB] * 4)
        with refused(507, "no_space"):
            send(store, 0, b"b" * 6 * MIB)
        with refused(507, "no_space"):
            merge(store, 4)
        assert (uploaded(store), leftovers(store), state(store)) == ([0, 1, 2, 3], [], "failed")
        (folder / "ballast").write_bytes(b"")
        with refused(507, "no_space"), open(folder / "ballast", "wb") as ballast, room_filled(ballast.fileno()):
            send(store, 0, b"b" * MIB)
        assert uploaded(store) == [0, 1, 2, 3]
        os.truncate(folder / "ballast", 0)
        remount(folder, "rw,size=16M")
        assert merge(store, 4).md5 == md5(b"a" * 4 * MIB)


class room_filled:
    """Fills the disk for the block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        try:
            while True:
                os.write(self._descriptor, bytes(4096))
        except OSError:
            pass

    def __exit__(self, *error: object) -> None:
        pass


@needs_root
def test_a_read_only_disk_can_still_be_asked(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8M") as folder:
        store = store_in(folder)
        send_all(store, DATA)
        remount(folder, "ro")
        with refused(507, "read_only"):
            send(store, 0, DATA[0])
        with refused(507, "read_only"):
            merge(store, 2)
        with refused(507, "read_only"):
            store.delete(ID, None)
        assert uploaded(store) == [0, 1]
        assert state(store, "unknown") == "not_found"
        assert list_of(store, None)["total"] == 1
        remount(folder, "rw")
        assert merge(store, 2).size == 600


@needs_root
def test_no_task_is_created_on_a_disk_above_the_threshold(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8M") as folder:
        store = store_in(folder, disk_warn=0.3, disk_refuse=0.5)
        send(store, 0, b"a" * 3 * MIB, total_chunks=2)
        (folder / "ballast").write_bytes(bytes(2 * MIB))
        assert health_of(capacity.capacity_of(str(folder)), store.settings) == UNHEALTHY
        with refused(507, "disk_full"):
            check_chunk(store, file_id="new", index=0, owner=None)
        with refused(507, "disk_full"):
            send(store, 0, b"a", file_id="new")
        assert send(store, 1, b"a").size == 1  # what has begun goes on
        assert list_of(store, None)["total"] == 1


@needs_root
def test_the_levels_of_a_disk(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8M") as folder:
        settings = store_in(folder, disk_warn=0.3, disk_refuse=0.6).settings
        levels = []
        for _ in range(3):
            levels.append(health_of(capacity.capacity_of(str(folder / "not" / "yet")), settings))
            (folder / f"{len(levels)}").write_bytes(bytes(5 * MIB // 2))
        assert levels == ["healthy", "warning", "unhealthy"]


def test_a_file_that_cannot_fit_is_refused_before_its_first_chunk(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_file_size=2**62)
    with refused(507, "no_space"):
        check_chunk(store, file_id=ID, index=0, owner=None, file_size=2**61)


def test_folders_that_vanish_are_made_again(store: DiskBackend) -> None:
    send(store, 0, DATA[0])
    for path in sorted(Path(store.settings.upload_dir).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path(store.settings.upload_dir).rmdir()
    assert (state(store), list_of(store, None)["total"], store.sweep().removed) == ("not_found", 0, 0)
    send_all(store, DATA)
    assert merge(store, 2).size == 600


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "upload").write_text("")
    with refused(507, "storage"):
        send(store_in(tmp_path), 0, b"x")


# --- names ---

BAD_NAMES = ["", ".", "..", "a/b", "/a", "a\\b", "..\\a", "a\0b", "a\nb", "x" * 241, "\ud800", ".dlpool-x", "../a"]
BAD_PATHS = ["..", "../a", "a/../b", "/a", "a//b", "a\\..\\b", "a/\0", ".", "a/.", "x" * 2000, "x" * 256, "\udcff"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_file_names_that_could_lead_out(store: DiskBackend, name: str, tmp_path: Path) -> None:
    send(store, 0, b"x", total_chunks=1)
    with refused(400, "bad_filename"):
        merge(store, 1, name)
    assert {path.name for path in tmp_path.iterdir()} == {"upload"}
    assert state(store) == "uploading"


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path[:20]))
def test_relative_paths_that_could_lead_out(store: DiskBackend, path: str, tmp_path: Path) -> None:
    with refused(400, "bad_path"):
        send(store, 0, b"x", relative_path=path)
    send(store, 0, b"x")
    with refused(400, "bad_path"):
        merge(store, 1, relative_path=path)
    assert {path.name for path in tmp_path.iterdir()} == {"upload"}


@pytest.mark.parametrize("name", ["a..b.txt", "with space", "..a", "über \N{SNOWMAN}.bin", "-rf", "%2e%2e", "a:b", "~"])
def test_harmless_names_stay_as_they_are(store: DiskBackend, name: str, tmp_path: Path) -> None:
    send(store, 0, b"x", total_chunks=1, relative_path=f"{name}/{name}/")
    assert merge(store, 1, name).size == 1
    assert files_below(tmp_path / "merged") == [f"{name}/{name}/{name}"]
    file = store.open_merged(f"{name}/{name}/{name}", None)
    assert file.read_range(0, 1, lambda: None).read() == b"x"
    file.close()


def test_a_planted_link_leads_nowhere(store: DiskBackend, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    merged = tmp_path / "merged"
    (merged / "real").mkdir(parents=True)
    (merged / "out").symlink_to(outside)
    (merged / "real" / "up").symlink_to("..")
    (merged / "file.bin").symlink_to(outside / "new")
    (merged / "secret").symlink_to(outside / "secret")
    send(store, 0, b"x", total_chunks=1)
    for path in ("out", "out/deeper", "real/up/out", "real/up"):
        with refused(400, "bad_path"):
            merge(store, 1, relative_path=path)
    with refused(409, "file_exists"):
        merge(store, 1, relative_path="")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    for path, status, code in (
        ("secret", 404, "not_found"),
        ("out/secret", 400, "bad_path"),
        ("real", 404, "not_found"),
        ("none", 404, "not_found"),
        ("../outside/secret", 400, "bad_path"),
    ):
        with refused(status, code):
            store.open_merged(path, None)
    assert merge(store, 1, "other", relative_path="real").path == f"{merged}/real/other"


def test_a_link_that_takes_the_place_of_a_folder_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    descriptor = open_below(str(tmp_path), ("a",), make=False)
    (tmp_path / "a").rename(tmp_path / "moved")
    (tmp_path / "a").symlink_to("/")
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    assert files_below(tmp_path / "moved") == ["file"]


# --- merges ---


def test_another_tasks_file_is_never_replaced(store: DiskBackend, tmp_path: Path) -> None:
    for file_id in ("first", "second"):
        send(store, 0, file_id.encode(), file_id=file_id, total_chunks=1)
    merge(store, 1, file_id="first")
    with refused(409, "file_exists"):
        merge(store, 1, file_id="second")
    assert (tmp_path / "merged" / "file.bin").read_bytes() == b"first"
    assert (state(store, "second"), leftovers(store)) == ("failed", [])
    assert merge(store, 1, "other", file_id="second").md5 == md5(b"second")


def test_or_the_name_gets_a_suffix(tmp_path: Path) -> None:
    store = store_in(tmp_path, merge_conflict="suffix")
    results = []
    for file_id in ("first", "second", "third"):
        send(store, 0, file_id.encode(), file_id=file_id, total_chunks=1)
        results.append(merge(store, 1, file_id=file_id))
    assert files_below(tmp_path / "merged") == ["file-1.bin", "file-2.bin", "file.bin"]
    assert Path(results[2].path).read_bytes() == b"third"
    assert merge(store, 1, file_id="third") == results[2]


def test_a_merge_again_answers_the_same_even_if_the_file_has_gone_on(store: DiskBackend) -> None:
    send_all(store, DATA)
    result = merge(store, 2)
    Path(result.path).unlink()
    assert merge(store, 2) == result
    with refused(409, "task_completed"):
        merge(store, 2, "another name")


def test_merges_that_do_not_fit(store: DiskBackend) -> None:
    with refused(404, "no_such_task"):
        merge(store, 2)
    send(store, 0, DATA[0])
    send(store, 1, DATA[1], file_size=601)
    with refused(409, "conflict"):
        merge(store, 1)
    with refused(400, "size_mismatch"):
        merge(store, 2)
    assert (state(store), uploaded(store)) == ("uploading", [0, 1])


def test_a_file_with_another_md5_is_not_published(store: DiskBackend, tmp_path: Path) -> None:
    send_all(store, DATA)
    with refused(400, "file_md5_mismatch") as caught:
        merge(store, 2, expected_md5="0" * 32)
    assert caught.details == {"md5": md5(b"".join(DATA))}
    assert (files_below(tmp_path / "merged"), uploaded(store), state(store)) == ([], [0, 1], "failed")
    assert merge(store, 2, expected_md5=md5(b"".join(DATA)).upper()).size == 600


def test_an_empty_file(store: DiskBackend) -> None:
    send(store, 0, b"", total_chunks=1, file_size=0, md5=md5(b""))
    assert merge(store, 1).md5 == md5(b"")


@needs_root
def test_a_target_on_another_file_system(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "merged", "8M"):
        store = store_in(tmp_path)
        send_all(store, [b"a" * MIB, b"b" * MIB])
        assert merge(store, 2, expected_md5=md5(b"a" * MIB + b"b" * MIB)).size == 2 * MIB
        assert (tmp_path / "merged" / "file.bin").read_bytes() == b"a" * MIB + b"b" * MIB


def test_a_published_file_replaces_nothing(tmp_path: Path) -> None:
    output = open_merge_output(str(tmp_path), (), "task", make=False)
    descriptor = output.create()
    identity = identity_of(os.fstat(descriptor))
    os.close(descriptor)
    (tmp_path / "taken").write_text("another")
    assert output.publish("taken", identity) is False
    assert (tmp_path / "taken").read_text() == "another"
    assert output.publish("free", identity) is True
    assert files_below(tmp_path) == ["free", "taken"]
    output.close()


# --- what goes ---


def test_cleanup_takes_old_tasks_in_these_states_only(store: DiskBackend, tmp_path: Path) -> None:
    for file_id in ("old paused", "new paused", "old uploading", "old completed"):
        send(store, 0, b"x", file_id=file_id, total_chunks=1)
    merge(store, 1, file_id="old completed")
    for file_id in ("old paused", "new paused"):
        store.pause(file_id, None)
    for file_id in ("old paused", "old uploading", "old completed"):
        age(store, 8, file_id)
    assert store.cleanup(None) == 1
    assert [task["task_id"] for task in list_of(store, None)["tasks"]] == [
        "new paused",
        "old completed",
        "old uploading",
    ]
    assert store.cleanup(None, ("completed", "uploading"), 9) == 0
    assert store.cleanup(None, ("completed", "uploading"), 8) == 2
    assert files_below(tmp_path / "merged") == ["file.bin"]
    assert leftovers(store) == []
    for wrong in (("odd",), 1), (("failed",), -1), (("failed",), float("nan")):
        with refused(400, "bad_cleanup"):
            store.cleanup(None, *wrong)


def test_expired_tasks_go_with_a_sweep(tmp_path: Path) -> None:
    store = store_in(tmp_path, task_expiry=3 * DAY_S)
    for file_id in states.STATES:
        send(store, 0, b"x", file_id=file_id)
    age(store, 4, "failed")
    assert store.sweep().removed == 1
    assert state(store, "failed") == "not_found"
    assert list_of(store, None)["total"] == 5
