"""Chunks that are received at their final positions: the merge copies none of them, and never publishes other bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlpool.storage.disk import assembly
from dlpool.storage.disk.assembled_file import MAX_CHUNKS, chunk_size_of
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.staged_chunk import StagedChunkFile
from dlpool.storage.upload_requests import ChunkRequest
from dlpool.storage.values import TaskTotals
from tests.conftest import make_data
from tests.processes import run
from tests.test_storage_merge import fails
from tests.uploads import ID, detail_of, files_below, leftovers, md5, merge, refused, state, store_in, uploaded
from tests.web import WebServer

SIZE = 5000
DATA = [make_data(SIZE, seed=number) for number in range(3)] + [b"the last one"]
WHOLE = b"".join(DATA)
OTHER = make_data(SIZE, seed=9)


@pytest.fixture
def store(tmp_path: Path) -> DiskBackend:
    return store_in(tmp_path)


def request_of(index: int, data: bytes, *, md5_of: bytes | None = None, file_size: int = len(WHOLE)) -> ChunkRequest:
    digest = md5(data if md5_of is None else md5_of)
    return ChunkRequest(ID, index, None, md5=digest, total_chunks=len(DATA), file_size=file_size)


@contextmanager
def receiving(store: DiskBackend, request: ChunkRequest, size: int) -> Iterator[StagedChunkFile]:
    """Receive a chunk: its request is checked, and no byte has come yet."""
    with store.chunks.stage() as staged:
        store.chunks.check(staged, request, size)
        staged.reserve(size)
        yield staged


def send(store: DiskBackend, index: int, data: bytes | None = None, **fields: object) -> None:
    data = DATA[index] if data is None else data
    request = request_of(index, data, **fields)  # type: ignore[arg-type]
    with receiving(store, request, len(data)) as staged:
        staged.write(data[: len(data) // 2])
        staged.write(data[len(data) // 2 :])
        store.chunks.commit(staged, request)


def send_all(store: DiskBackend) -> None:
    for index in range(len(DATA)):
        send(store, index)


def assembled(store: DiskBackend) -> Path:
    [path] = Path(store.settings.upload_dir).rglob("*.assembled")
    return path


def placed(store: DiskBackend) -> list[int]:
    """The chunks whose bytes are in the assembled file."""
    return [index for index, chunk in store.task(ID, None).chunks.items() if chunk.placed_size]


def count_copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that copy_file_range(2) copies from now on, call by call."""
    counts: list[int] = []
    copy = os.copy_file_range

    def note(source: int, target: int, count: int) -> int:
        counts.append(copy(source, target, count))
        return counts[-1]

    monkeypatch.setattr(os, "copy_file_range", note)
    return counts


def check_merged(store: DiskBackend, whole: bytes = WHOLE) -> Path:
    """Merge; return the file, of which no other name is left."""
    result = merge(store, len(DATA), expected_md5=md5(whole))
    path = Path(result.path)
    assert path.read_bytes() == whole
    assert path.stat().st_nlink == 1
    assert merge(store, len(DATA)) == result
    assert leftovers(store) == []
    assert [
        name for name in files_below(Path(store.settings.upload_dir)) if ".assembled" in name or ".chunk" in name
    ] == []
    return path


@pytest.mark.parametrize(
    ("index", "size", "count", "file_size", "expected"),
    [
        (0, 10, 3, 25, 10),
        (1, 10, 3, 30, 10),
        (2, 5, 3, 25, 10),
        (2, 10, 3, 30, 10),
        (2, 5, 3, 24, None),  # the others would have 9.5 bytes
        (2, 11, 3, 31, None),  # longer than the others
        (0, 9, 3, 30, None),  # the last one would be longer
        (0, 15, 3, 30, None),  # no byte would be left for the last one
        (0, 10, 3, -1, None),
        (0, 10, 0, 30, None),
        (0, 10, 1, 10, None),
        (3, 10, 3, 30, None),
        (0, 0, 3, 30, None),
        (0, 31, 3, 30, None),
        (0, 1, MAX_CHUNKS + 1, MAX_CHUNKS + 1, None),
    ],
)
def test_the_position_follows_from_the_totals_or_there_is_none(
    index: int, size: int, count: int, file_size: int, expected: int | None
) -> None:
    assert chunk_size_of(index, size, TaskTotals(count, file_size)) == expected


def test_the_merge_copies_only_the_chunk_that_created_the_task(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_all(store)
    assert placed(store) == [1, 2, 3]
    assert uploaded(store) == [0, 1, 2, 3]
    assert [chunk["size"] for chunk in detail_of(store, ID, None)["chunks"]] == [SIZE, SIZE, SIZE, len(DATA[3])]
    inode, counts = assembled(store).stat().st_ino, count_copied(monkeypatch)
    assert check_merged(store).stat().st_ino == inode
    assert sum(counts) == SIZE


@pytest.mark.parametrize("order", ["first wins", "second wins"])
def test_of_two_requests_for_a_chunk_one_gets_a_file_of_its_own(store: DiskBackend, order: str) -> None:
    send(store, 0)
    one, two = request_of(1, DATA[1]), request_of(1, OTHER)
    with receiving(store, one, SIZE) as first, receiving(store, two, SIZE) as second:
        first.write(DATA[1][:100])
        second.write(OTHER)
        first.write(DATA[1][100:])
        turns = [(second, two), (first, one)]
        for staged, request in turns if order == "first wins" else reversed(turns):
            store.chunks.commit(staged, request)
    assert placed(store) == ([1] if order == "first wins" else [])
    send(store, 2)
    send(store, 3)
    check_merged(store, WHOLE if order == "first wins" else DATA[0] + OTHER + DATA[2] + DATA[3])


def test_a_request_that_still_writes_cannot_change_the_published_file(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, 0)
    request = request_of(1, OTHER)
    with receiving(store, request, SIZE) as slow:
        slow.write(OTHER[:10])
        send_all(store)
        assert placed(store) == [2, 3]
        counts = count_copied(monkeypatch)
        path = Path(merge(store, len(DATA), expected_md5=md5(WHOLE)).path)
        assert sum(counts) == len(WHOLE)
        slow.write(OTHER[10:])
        with refused(409, "task_completed"):
            store.chunks.commit(slow, request)
    assert path.read_bytes() == WHOLE


def test_a_chunk_that_is_sent_again_replaces_the_placed_one(store: DiskBackend) -> None:
    send_all(store)
    send(store, 2, OTHER)
    assert placed(store) == [1, 3]
    check_merged(store, DATA[0] + DATA[1] + OTHER + DATA[3])


def test_bytes_of_a_refused_or_broken_request_are_no_chunk(store: DiskBackend) -> None:
    send(store, 0)
    with refused(400, "md5_mismatch"):
        send(store, 1, OTHER, md5_of=DATA[1])
    with receiving(store, request_of(2, OTHER), SIZE) as broken:
        broken.write(OTHER[:3000])
    assert uploaded(store) == [0]
    with refused(400, "chunks_missing"):
        merge(store, len(DATA))
    send_all(store)
    check_merged(store)


@pytest.mark.parametrize("trusted_s", [0.0, assembly.TRUSTED_S])
@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "a folder"])
def test_damage_of_the_assembled_file_is_found_and_sent_again(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, damage: str, trusted_s: float
) -> None:
    monkeypatch.setattr(assembly, "TRUSTED_S", trusted_s)
    send_all(store)
    path, stored = assembled(store), {"changed": [0, 2, 3], "cut": [0, 1]}.get(damage, [0])
    if damage == "changed":
        with path.open("r+b") as file:
            file.seek(SIZE + 7)
            file.write(b"X")
    elif damage == "cut":
        os.truncate(path, 2 * SIZE + 7)
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with refused(400, "chunks_missing") as error:
        merge(store, len(DATA))
    assert error.details["uploaded_chunks"] == uploaded(store) == stored
    for index in {0, 1, 2, 3} - set(stored):
        send(store, index)
    assert merge(store, len(DATA)).md5 == md5(WHOLE)
    assert (Path(store.settings.merged_dir) / "file.bin").read_bytes() == WHOLE


def test_a_file_that_is_longer_than_its_chunks_is_cut(store: DiskBackend) -> None:
    send_all(store)
    with assembled(store).open("ab") as file:
        file.write(b"more")
    check_merged(store)


def test_chunks_of_other_sizes_get_files_of_their_own(store: DiskBackend) -> None:
    """Both sizes divide the file into four chunks."""
    send(store, 0)
    send(store, 1)
    other = SIZE - 1
    request = request_of(2, DATA[2][:other])
    with receiving(store, request, other) as staged:
        staged.write(DATA[2][:other])
        store.chunks.commit(staged, request)
    assert placed(store) == [1]
    send(store, 2)
    send(store, 3)
    assert placed(store) == [1, 3]
    check_merged(store)


@pytest.mark.parametrize("missing", ["links", "locks", "space for links", "totals"])
def test_without_what_it_needs_chunks_are_copied(
    store: DiskBackend, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "links":
        monkeypatch.setattr(os, "link", fails(OSError(errno.EXDEV, "another device")))
    elif missing == "space for links":
        monkeypatch.setattr(os, "link", fails(OSError(errno.ENOSPC, "full")))
    elif missing == "locks":
        monkeypatch.setattr("dlpool.storage.disk.assembled_file.lock_byte", fails(OSError(errno.ENOLCK, "none")))
    for index in range(len(DATA)):
        _send_without_size(store, index) if missing == "totals" else send(store, index)
    assert placed(store) == ([1, 2, 3] if "links" in missing else [])
    counts = count_copied(monkeypatch)
    check_merged(store)
    assert sum(counts) == len(WHOLE)


def _send_without_size(store: DiskBackend, index: int) -> None:
    """Send a chunk, but not the size of the file."""
    request = ChunkRequest(ID, index, None, total_chunks=len(DATA))
    with receiving(store, request, len(DATA[index])) as staged:
        staged.write(DATA[index])
        store.chunks.commit(staged, request)


def test_a_failed_merge_keeps_all_chunks(store: DiskBackend, tmp_path: Path) -> None:
    send_all(store)
    with refused(400, "file_md5_mismatch"):
        merge(store, len(DATA), expected_md5="0" * 32)
    assert (state(store), uploaded(store)) == ("failed", [0, 1, 2, 3])
    (tmp_path / "merged").mkdir(exist_ok=True)
    (tmp_path / "merged" / "file.bin").write_bytes(b"another")
    with refused(409, "file_exists"):
        merge(store, len(DATA))
    (tmp_path / "merged" / "file.bin").unlink()
    check_merged(store)


@pytest.mark.parametrize("integrity", ["yes", "no"])
def test_dlpool_upload_and_the_server_copy_one_chunk_a_connection_at_most(tmp_path: Path, integrity: str) -> None:
    data = make_data(20 * 65536 + 3)
    path = tmp_path / "file.bin"
    path.write_bytes(data)
    with WebServer(tmp_path / "web", {"upload": {"enable_integrity_check": integrity}}) as web:
        ended = run("upload", path, web.url, "--chunk-size", "64K", "-c", "2", "--json")
        assert ended.code == 0, ended.err
        merged = web.merged_dir / "file.bin"
        assert merged.read_bytes() == data
        assert merged.stat().st_nlink == 1
        assert not list(web.upload_dir.rglob("*.assembled"))
