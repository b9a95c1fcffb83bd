"""The digest of a file that is being written: it covers each byte once, and says why it could not."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dlpool import errors, threads
from dlpool.transfer.chunks import Chunk, ChunkMap
from dlpool.transfer.hashing import READ_SIZE, FollowingHash
from dlpool.transfer.scheduler import ChunkScheduler
from tests.conftest import make_data, sha256

DATA = make_data(2 * READ_SIZE + 17)


class Memory:
    """A file to read from, that may be shorter than it was."""

    def __init__(self, data: bytes = DATA, fault: Exception | None = None) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []
        self.closed = threading.Event()
        self._fault = fault

    def read(self, position: int, size: int) -> bytes:
        if self._fault is not None:
            raise self._fault
        self.reads.append((position, size))
        return self.data[position : position + size]

    def close(self) -> None:
        self.closed.set()
        raise errors.DiskFailed("close")  # which harms no digest


def a_scheduler(*, is_written: bool = True) -> tuple[ChunkScheduler, Chunk]:
    """A scheduler of a file of which all is written, or nothing."""
    scheduler, end = ChunkScheduler(lambda: 100.0), len(DATA) if is_written else 0
    chunk = Chunk(0, len(DATA), end, end)
    scheduler.load_plan(ChunkMap([chunk]), "owner")
    return scheduler, chunk


def follower(scheduler: ChunkScheduler, *readers: Any) -> FollowingHash:
    """A follower that opens these readers, one after the other; an exception among them is raised."""
    left = list(readers)

    def open_reader() -> Any:
        reader = left.pop(0)
        if isinstance(reader, Exception):
            raise reader
        return reader

    return FollowingHash("sha256", scheduler, open_reader)


def test_a_complete_file_is_read_once_from_its_beginning_to_its_end() -> None:
    scheduler, _chunk = a_scheduler()
    reader = Memory()
    assert follower(scheduler, reader).digest() == sha256(DATA)
    assert reader.reads == [(0, READ_SIZE), (READ_SIZE, READ_SIZE), (2 * READ_SIZE, 17)]
    assert reader.closed.is_set()


def test_an_empty_file_has_a_digest() -> None:
    scheduler = ChunkScheduler(lambda: 100.0)
    scheduler.load_plan(ChunkMap([]), "owner")
    reader = Memory(b"")
    assert follower(scheduler, reader).digest() == hashlib.sha256().hexdigest()
    assert reader.closed.is_set()


def test_the_front_is_followed_while_it_moves() -> None:
    scheduler, chunk = a_scheduler(is_written=False)
    reader = Memory()
    following = follower(scheduler, reader)
    for size in (1000, READ_SIZE, len(DATA)):
        allowed = scheduler.begin_write(chunk, size)
        scheduler.commit_write(chunk, allowed)
        scheduler.set_rate(chunk, 1.0)  # which wakes those that wait
    scheduler.release_chunk(chunk)
    assert following.digest() == sha256(DATA)
    covered = sorted(reader.reads)
    assert [position for position, _ in covered[1:]] == [position + size for position, size in covered[:-1]]


@pytest.mark.parametrize("why", ["descriptors", "threads"])
def test_without_a_thread_the_file_is_hashed_when_it_is_complete(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, chunk = a_scheduler(is_written=False)
    first, second = Memory(), Memory()
    if why == "threads":

        def no_thread(_work: Callable[[], object], _name: str) -> threads.DaemonThread:
            raise errors.NoThread("cannot start a thread")

        monkeypatch.setattr(threads, "start_thread", no_thread)
        following = follower(scheduler, first, second)
        assert first.closed.is_set()
    else:
        following = follower(scheduler, errors.OutOfFiles("too many files are open"), second)
    assert first.reads == second.reads == []
    scheduler.commit_write(chunk, scheduler.begin_write(chunk, len(DATA)))
    scheduler.release_chunk(chunk)
    assert following.digest() == sha256(DATA)
    assert second.closed.is_set()


@pytest.mark.parametrize(
    ("reader", "message"),
    [(Memory(fault=errors.DiskFailed("read f.part")), "read f.part"), (Memory(DATA[:100]), "became shorter")],
)
def test_a_file_that_cannot_be_read_has_no_digest(reader: Memory, message: str) -> None:
    scheduler, _chunk = a_scheduler()
    with pytest.raises(errors.LocalFault, match=message):
        follower(scheduler, reader).digest()
    assert reader.closed.is_set()


def test_a_download_that_was_stopped_has_no_digest() -> None:
    scheduler, _chunk = a_scheduler(is_written=False)
    reader = Memory()
    following = follower(scheduler, reader)
    scheduler.scope.cancel(errors.Cancelled("cancelled"))
    with pytest.raises(errors.Cancelled):
        following.digest()
    assert reader.closed.is_set()
    assert reader.reads == []


def test_a_stop_ends_hashing_before_the_file_ends() -> None:
    scheduler, _chunk = a_scheduler()
    scheduler._is_complete = False  # as long as the last chunk has an owner
    reader = Memory()

    def read(position: int, size: int) -> bytes:
        scheduler.scope.cancel(errors.Cancelled("cancelled"))
        reader.reads.append((position, size))
        return DATA[position : position + size]

    reader.read = read  # type: ignore[method-assign]
    with pytest.raises(errors.Cancelled):
        follower(scheduler, reader).digest()
    assert len(reader.reads) == 1
