"""The limits of the store, exactly at them: names, sizes, disks, times, and the first bytes of a file."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.storage import states
from dlpool.storage.content_types import check_content, check_extension, detect_types
from dlpool.storage.disk import capacity
from dlpool.storage.disk.capacity import capacity_of, check_capacity_for_merge, check_capacity_for_task
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, index_of
from dlpool.storage.executables import HEAD_SIZE
from dlpool.storage.names import check_file_name, folder_name, split_folders
from dlpool.storage.upload_requests import ChunkRequest
from dlpool.storage.values import TaskTotals, VolumeCapacity, health_of
from tests.disks import mounted_image, needs_root
from tests.test_storage_tus_recovery import open_below
from tests.uploads import ID, check_chunk, detail_of, list_of, merge, refused, send, state, store_in, uploaded

# --- names ---


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("id", "x" * 1024, ""),
        ("id", "x" * 1025, "bad_file_id"),
        ("id", "ü" * 513, "bad_file_id"),
        ("name", "x" * 240, ""),
        ("name", "x" * 241, "bad_filename"),
        ("name", "ü" * 121, "bad_filename"),
        ("path", "x" * 255, ""),
        ("path", "x" * 256, "bad_path"),
        ("path", "/".join(["x" * 127] * 8), ""),  # 1,023 bytes
        ("path", "/".join(["x" * 127] * 8) + "x", ""),
        ("path", "/".join(["x" * 127] * 8) + "xx", "bad_path"),
        ("path", "/", "bad_path"),
        ("path", "a/", ""),
        ("path", "a//", "bad_path"),
        ("path", "", ""),
        ("path", "a\\b", "bad_path"),
        ("path", "a/.dlpool-x", "bad_path"),
    ],
)
def test_names_have_a_longest_length_in_bytes(kind: str, text: str, code: str) -> None:
    check: Any = {"id": folder_name, "name": check_file_name, "path": split_folders}[kind]
    if code:
        with refused(400, code):
            check(text)
    else:
        check(text)


def test_a_file_with_a_longer_name_than_uploads_get_can_be_read(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "merged" / "a").mkdir(parents=True)
    (tmp_path / "merged" / "a" / ("x" * 255)).write_bytes(b"data")
    os.mkfifo(tmp_path / "merged" / "fifo")
    (tmp_path / "merged" / "link").symlink_to("a")
    file = store.open_merged(f"a/{'x' * 255}", None)
    assert file.read_range(0, 4, lambda: None).read() == b"data"
    file.close()
    for path, code in (("fifo", 404), ("link", 404), ("a", 404), ("a/none", 404), ("none/x", 404), ("x" * 256, 400)):
        with refused(code, "not_found" if code == 404 else "bad_filename"):
            store.open_merged(path, None)
    assert open_below(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("0.chunk", 0),
        ("17.chunk", 17),
        ("01.chunk", None),
        ("-1.chunk", None),
        ("1.chunk.tmp", None),
        ("1", None),
        (".chunk", None),
        ("\N{SUPERSCRIPT TWO}.chunk", None),
        ("1.chunk.chunk", None),
        ("\u0661.chunk", None),
    ],
)
def test_which_files_are_chunks(name: str, index: int | None) -> None:
    assert index_of(name) == index


# --- requests ---


@pytest.mark.parametrize(
    ("known", "fields", "text"),
    [
        (None, {"index": 3, "total_chunks": 3}, "chunk_index is 3: it must be 0 to 2"),
        (None, {"index": 100_000}, "chunk_index is 100000: it must be 0 to 99999"),
        (3, {"index": 3}, "chunk_index is 3: it must be 0 to 2"),
    ],
)
def test_an_index_beyond_the_last_is_refused_with_the_last_one(
    tmp_path: Path, known: int | None, fields: dict[str, Any], text: str
) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"x", total_chunks=known)
    with refused(400, "bad_index") as error:
        check_chunk(store, file_id=ID, owner=None, **fields)
    assert error.text == text
    lock = check_chunk(store, file_id=ID, owner=None, **{**fields, "index": fields["index"] - 1})
    assert lock is not None
    lock.release()
    assert open_below(tmp_path) == []


def test_a_task_whose_chunks_were_lost_may_hear_how_many_there_are_to_be(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"abc")
    for path in (tmp_path / "upload").rglob("*.chunk"):
        path.unlink()
    send(store, 0, b"abcd", total_chunks=1, file_size=4)
    assert merge(store, 1).size == 4


@pytest.mark.parametrize(("size", "code"), [(3, ""), (2, "conflict")])
def test_a_size_that_comes_late_may_be_that_of_what_is_there(tmp_path: Path, size: int, code: str) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"abc")
    if code:
        with refused(409, code):
            send(store, 1, b"", file_size=size)
    else:
        send(store, 1, b"", file_size=size)
        with refused(400, "size_mismatch") as error:
            send(store, 2, b"x")
        assert error.details == {"size": 4, "file_size": 3}


def test_a_wrong_md5_is_counted_only_for_a_task_that_is_there(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    send(store, 0, b"abc")
    send(store, 1, b"abc")
    for _ in range(2):
        with refused(400, "md5_mismatch"):
            send(store, 1, b"x", md5="0" * 32)
    with refused(400, "md5_mismatch"):
        send(store, 0, b"x", md5="0" * 32, file_id="none")
    assert [chunk["retry_count"] for chunk in detail_of(store, ID, None)["chunks"]] == [0, 2]
    assert (uploaded(store), state(store, "none")) == ([0, 1], "not_found")


# --- the first bytes ---


@pytest.mark.parametrize("pieces", [[4095, 1, 10], [4096, 1], [5000], [1, 4094, 5000], [10]])
def test_the_first_bytes_are_kept_however_they_come(tmp_path: Path, pieces: list[int]) -> None:
    store, data = store_in(tmp_path), os.urandom(sum(pieces))
    with store.chunks.stage() as staged:
        at = 0
        for piece in pieces:
            staged.write(data[at : at + piece])
            at += piece
        assert staged.head == data[:HEAD_SIZE]
        assert staged.size == len(data)


@pytest.mark.parametrize(("size", "kept"), [(None, 10), (10, 10), (11, 10), (4, 4), (0, 0)])
def test_of_a_body_that_is_taken_over_only_what_counts_is_kept(tmp_path: Path, size: int | None, kept: int) -> None:
    store = store_in(tmp_path)
    with store.chunks.stage() as staged:
        staged.path.write_bytes(b"0123456789")
        staged.load(size)
        assert (staged.size, staged.head) == (kept, b"0123456789"[:kept])
        staged.seal()
        assert staged.path.stat().st_size == kept + TRAILER_SIZE


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_text_that_is_cut_in_a_character_is_a_text(cut: int) -> None:
    """A character has four bytes at most, so that three of them may be left of the last one."""
    head = b"plain text " + "\N{GRINNING FACE}".encode()[:3] + b"\xf0" * (cut - 3 if cut > 3 else 0)
    head = head[: len(b"plain text ") + cut]
    assert ("text/plain" in detect_types(head)) is (cut <= 3)


@pytest.mark.parametrize(
    ("allowed", "name", "is_taken"),
    [("", "x.exe", True), (".BIN", "x.bin", True), ("bin", "x.BIN", True), ("bin", "xbin", False), ("bin", "", False)],
)
def test_endings_are_compared_without_case(tmp_path: Path, allowed: str, name: str, is_taken: bool) -> None:
    settings = store_in(tmp_path, allowed_extensions=allowed).settings
    if is_taken:
        check_extension(settings, name)
    else:
        with refused(415, "extension_not_allowed"):
            check_extension(settings, name)


def test_without_a_list_any_content_is_taken(tmp_path: Path) -> None:
    check_content(store_in(tmp_path).settings, b"\0")
    gzip = store_in(tmp_path, allowed_content_types="application/x-gzip").settings
    check_content(gzip, b"\x1f\x8b\x08" + bytes(20))
    with refused(415, "content_not_allowed"):
        check_content(gzip, b"\0")


# --- disks ---


@pytest.mark.parametrize(
    ("used", "found"),
    [(0.0, "healthy"), (0.29, "healthy"), (0.3, "warning"), (0.59, "warning"), (0.6, "unhealthy"), (1.0, "unhealthy")],
)
def test_a_disk_is_at_a_level_from_its_threshold_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: float, found: str
) -> None:
    settings = store_in(tmp_path, disk_warn=0.3, disk_refuse=0.6).settings
    full = VolumeCapacity("x", 100, 50, used)
    assert (health_of(full, settings), health_of(None, settings)) == (found, "healthy")
    monkeypatch.setattr(capacity, "capacity_of", lambda _folder: full)
    if found == "unhealthy":
        with refused(507, "disk_full"):
            check_capacity_for_task(settings, -1)
    else:
        check_capacity_for_task(settings, -1)


def test_the_room_of_a_disk_is_counted_as_df_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: dict[str, int] = {
        "f_blocks": 100,
        "f_bfree": 40,
        "f_bavail": 20,
        "f_frsize": 512,
        "f_files": 9,
        "f_favail": 3,
    }
    asked: list[Path] = []

    def statvfs(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(**figures)

    monkeypatch.setattr(os, "statvfs", statvfs)
    folder = str(tmp_path / "not" / "yet")
    assert capacity_of(folder) == VolumeCapacity(folder, 51_200, 10_240, 0.75, 3)
    assert asked == [tmp_path]
    figures |= {"f_bfree": 100, "f_bavail": 0, "f_files": 0, "f_favail": 0}
    assert capacity_of(folder) == VolumeCapacity(folder, 51_200, 0, 0.0)
    figures["f_blocks"] = 0
    assert capacity_of(folder) is None


@pytest.mark.parametrize(
    ("size", "free", "is_one_disk", "fits"),
    [
        (50, 100, True, True),
        (51, 100, True, False),
        (100, 100, False, True),
        (101, 100, False, False),
        (-1, 0, True, True),
    ],
)
def test_a_file_needs_room_for_its_chunks_and_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, free: int, is_one_disk: bool, fits: bool
) -> None:
    settings = store_in(tmp_path).settings
    monkeypatch.setattr(capacity, "capacity_of", lambda folder: VolumeCapacity(folder, 1000, free, 0.1))
    monkeypatch.setattr(capacity, "device_of", lambda folder: 1 if is_one_disk else hash(folder))
    if fits:
        check_capacity_for_task(settings, size)
    else:
        with refused(507, "no_space"):
            check_capacity_for_task(settings, size)


@pytest.mark.parametrize(
    ("chunks", "upload", "merged", "is_one_disk", "fits"),
    [
        (100_000, 100_008, 100_008, True, True),
        (100_000, 100_007, 100_007, True, False),
        (100_000, 100_008, 1, False, True),
        (100_000, 100_008, 0, False, False),
        (100_000, 100_007, 100_000, False, False),
        (1, 9, 9, True, True),
        (1, 8, 8, True, False),
        (100_000, None, None, True, True),
    ],
)
def test_a_file_needs_an_inode_for_each_chunk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunks: int,
    upload: int | None,
    merged: int | None,
    is_one_disk: bool,
    fits: bool,
) -> None:
    store = store_in(tmp_path)
    files = {store.settings.upload_dir: upload, store.settings.merged_dir: merged}
    monkeypatch.setattr(capacity, "capacity_of", lambda folder: VolumeCapacity(folder, 1000, 1000, 0.1, files[folder]))
    monkeypatch.setattr(capacity, "device_of", lambda folder: 1 if is_one_disk else hash(folder))
    if fits:
        send(store, 0, b"x", total_chunks=chunks)
    else:
        with refused(507, "no_space") as error:
            send(store, 0, b"x", total_chunks=chunks)
        assert "inodes" in error.text
        assert list_of(store, None)["total"] == 0


@needs_root
@pytest.mark.parametrize(("kind", "status"), [("ext4", 507), ("btrfs", 200)])
def test_a_disk_with_few_inodes_takes_no_task_that_needs_many(tmp_path: Path, kind: str, status: int) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"no mkfs.{kind}")
    few = ("-N", "64") if kind == "ext4" else ()
    with mounted_image(kind, tmp_path / "disk", 128 * 1024 * 1024, few) as disk:
        store = store_in(disk)
        with refused(507, "no_space") if status == 507 else nullcontext():
            send(store, 0, b"x", total_chunks=100_000)
        for file_id in ("first", "second"):
            send(store, 0, b"x", file_id=file_id, total_chunks=1)
            assert merge(store, 1, file_id, file_id=file_id).size == 1


@pytest.mark.parametrize(("free", "fits"), [(99, False), (100, True), (None, True)])
def test_a_merge_needs_room_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, fits: bool
) -> None:
    settings = store_in(tmp_path).settings
    monkeypatch.setattr(
        capacity, "capacity_of", lambda folder: None if free is None else VolumeCapacity(folder, 1000, free, 0.1)
    )
    if fits:
        check_capacity_for_merge(settings, 100)
    else:
        with refused(507, "no_space"):
            check_capacity_for_merge(settings, 100)


def test_a_disk_without_figures_limits_nothing_and_the_other_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = store_in(tmp_path).settings
    full = {settings.upload_dir: None, settings.merged_dir: VolumeCapacity("m", 100, 0, 1.0)}
    monkeypatch.setattr(capacity, "capacity_of", lambda folder: full[folder])
    with refused(507, "disk_full"):
        check_capacity_for_task(settings, -1)


# --- times ---


@pytest.mark.parametrize(("age_s", "is_removed"), [(999.0, False), (1000.0, True), (1001.0, True)])
@pytest.mark.parametrize("kind", ["task", "no identity", "cleanup"])
def test_a_task_goes_when_it_is_as_old_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, age_s: float, is_removed: bool
) -> None:
    store = store_in(tmp_path, task_expiry=1000.0)
    send(store, 0, b"x")
    with store.layout.lock_id(ID) as task:
        folder = task.folder
    (folder / "record.json").unlink()
    if kind == "no identity":
        (folder / "identity.json").write_text("")
    now = float(int(time.time()))
    for path in (*folder.iterdir(), folder):
        os.utime(path, (now, now))
    monkeypatch.setattr(time, "time", lambda: now + age_s)
    if kind == "cleanup":
        removed = store.cleanup(None, (states.UPLOADING,), 1000 / 86_400)
    else:
        swept = store.sweep()
        removed = swept.removed
        assert swept.failures == ()
    assert (removed, folder.exists()) == (int(is_removed), not is_removed)
    assert open_below(tmp_path) == []


@pytest.mark.parametrize(
    ("known", "said", "size"), [(-1, 7, 7), (0, 0, 0), (5, 5, 5), (5, None, 5), (-1, None, -1), (-1, 0, 0)]
)
def test_a_known_file_size_is_kept(known: int, said: int | None, size: int) -> None:
    request = ChunkRequest(ID, 0, None, file_size=said)
    assert request.merged_into(TaskTotals(file_size=known), {}).file_size == size
