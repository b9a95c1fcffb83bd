"""How much disk space a download may take, before its first byte and while bytes arrive."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import Cancelled, DlpoolError, NoRoom, PolicyRefused, TooLarge
from dlpool.freespace import Space
from dlpool.service.node.disk_rules import STREAM_LIMIT, NodeSpaceRules
from dlpool.transfer.chunks import UNKNOWN_END, Chunk
from dlpool.transfer.job import Job
from dlpool.transfer.space_rules import MAX_AHEAD, MIN_AHEAD, SPACE_RESERVE, SpaceRules, WriteBudget
from dlpool.transfer.transfer import Transfer
from tests.conftest import FAST, Fetcher, make_data, wait_until
from tests.disks import needs_root, tmpfs
from tests.origin import Connection, Handler, Origin, Request

MIB = 1024 * 1024
BLOCK = 64 * 1024
LARGE = 2**60
LAST_READ = 256 * 1024  # bytes that may be received and not written yet


class FakeDisk:
    """A writer whose disk has ``free`` bytes; it notes what is asked of it."""

    def __init__(self, free: int | None, size: int = LARGE, *, can_reserve: bool = True) -> None:
        self.free = free
        self.size = size
        self.can_reserve = can_reserve
        self.looks = 0
        self.reserved: list[tuple[int, int]] = []

    def space(self) -> Space | None:
        self.looks += 1
        return None if self.free is None else Space(self.size, self.free)

    def reserve(self, position: int, size: int) -> bool:
        self.reserved.append((position, size))
        return self.can_reserve


def write(ahead: WriteBudget, disk: FakeDisk, chunk: Chunk, size: int) -> None:
    ahead.spend(disk, chunk, size)
    chunk.position += size
    if disk.free is not None:
        disk.free -= size


# --- before the first byte ---


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """16 MiB, of which 4 are used."""
    with tmpfs(tmp_path_factory.mktemp("room") / "disk", "16m") as folder:
        (folder / "ballast").write_bytes(bytes(4 * MIB))
        yield folder


@needs_root
@pytest.mark.parametrize(
    ("min_free", "taken", "size", "error"),
    [
        (0, 0, 11 * MIB, None),
        (0, 0, 11 * MIB + 1, NoRoom),
        (0, 0, 15 * MIB, NoRoom),
        (0, 0, 15 * MIB + 1, TooLarge),
        (0, 0, 10**15, TooLarge),
        (4 * MIB, 0, 7 * MIB, None),
        (4 * MIB, 0, 7 * MIB + 1, NoRoom),
        (4 * MIB, 0, 11 * MIB + 1, TooLarge),
        (4 * MIB, 2 * MIB, 5 * MIB, None),
        (4 * MIB, 2 * MIB, 5 * MIB + 1, NoRoom),
        (4 * MIB, 20 * MIB, 5 * MIB, NoRoom),
        (10**15, 0, MIB, TooLarge),
        (None, 0, 10 * MIB, None),
        (None, 0, 11 * MIB, NoRoom),
        (0, 10**15, MIB - 1, None),
    ],
)
def test_a_file_is_judged_by_what_stays_free_and_what_others_take(
    min_free: int | None, taken: int, size: int, error: type[DlpoolError] | None, disk: Path
) -> None:
    rules = NodeSpaceRules(min_free)
    rules.update(min_free, {os.stat(disk).st_dev: taken, 0: 10**15})
    with (disk / "empty").open("wb") as file:
        if error is None:
            rules.check(file.fileno(), disk, size)
            return
        with pytest.raises(error) as raised:
            rules.check(file.fileno(), disk, size)
        assert type(raised.value) is error


@needs_root
def test_bytes_that_are_there_already_need_no_room(disk: Path) -> None:
    with (disk / "ballast").open("rb") as file:
        NodeSpaceRules(0).check(file.fileno(), disk, 15 * MIB)


# --- while bytes arrive ---


@given(st.lists(st.integers(1, 4 * MIB), min_size=1, max_size=60), st.integers(0, 2**40))
def test_no_more_is_reserved_than_once_again_what_has_arrived(sizes: list[int], left: int) -> None:
    chunk = Chunk(0, sum(sizes) + left, 0, 0)
    disk = FakeDisk(LARGE)
    ahead = WriteBudget(NodeSpaceRules(0), reserves=True)
    for size in sizes:
        write(ahead, disk, chunk, size)
        assert ahead.reserved_to - chunk.position <= min(chunk.position, MAX_AHEAD)
        assert ahead.reserved_to <= chunk.end


@pytest.mark.parametrize(
    ("rules", "free", "reserves", "looks", "reserved"),
    [
        (SpaceRules(), None, True, 0, True),
        (SpaceRules(), None, False, 0, False),
        (NodeSpaceRules(0), LARGE, True, 22, True),
        (NodeSpaceRules(0), LARGE, False, 22, False),
        (NodeSpaceRules(0), None, True, 22, True),
    ],
)
def test_a_large_file_asks_the_disk_a_few_times(
    rules: SpaceRules, free: int | None, reserves: bool, looks: int, reserved: bool
) -> None:
    chunk, disk = Chunk(0, 1024 * MIB, 0, 0), FakeDisk(free)
    ahead = WriteBudget(rules, reserves=reserves)
    for _ in range(4096):
        write(ahead, disk, chunk, MIB // 4)
    assert disk.looks <= looks and (disk.looks > 0) == (looks > 0)
    assert len(disk.reserved) <= 22 and bool(disk.reserved) == reserved


def test_a_small_file_does_not_ask_the_disk() -> None:
    disk = FakeDisk(0)
    ahead = WriteBudget(NodeSpaceRules(0), reserves=True)
    for _ in range(16):
        ahead.spend(disk, Chunk(0, MIB, 0, 0), BLOCK)
    assert (disk.looks, disk.reserved) == (0, [])


def test_where_blocks_cannot_be_reserved_that_is_tried_once() -> None:
    chunk, disk = Chunk(0, 64 * MIB, 0, 0), FakeDisk(LARGE, can_reserve=False)
    ahead = WriteBudget(NodeSpaceRules(0), reserves=True)
    for _ in range(256):
        write(ahead, disk, chunk, MIB // 4)
    assert len(disk.reserved) == 1 and ahead.reserved_to == 0


@pytest.mark.parametrize(
    ("size", "free", "end", "error"),
    [
        (64 * MIB, 64 * MIB, UNKNOWN_END, TooLarge),
        (640 * MIB, 64 * MIB, UNKNOWN_END, NoRoom),
        (64 * MIB, 64 * MIB, 60 * MIB, NoRoom),
        (64 * MIB, 3 * MIB, UNKNOWN_END, NoRoom),
        (64 * MIB, 0, 60 * MIB, NoRoom),
    ],
)
@pytest.mark.parametrize("block", [BLOCK, 4 * BLOCK])
def test_a_download_stops_before_it_takes_what_stays_free(
    size: int, free: int, end: int, error: type[DlpoolError], block: int
) -> None:
    chunk, disk = Chunk(0, end, 0, 0), FakeDisk(free, size)
    ahead, kept = WriteBudget(NodeSpaceRules(2 * MIB), reserves=False), 2 * MIB
    with pytest.raises(error) as raised:
        for _ in range(LARGE):
            write(ahead, disk, chunk, block)
    assert type(raised.value) is error and disk.free is not None
    least_left = kept + SPACE_RESERVE - MIN_AHEAD - block if free > 4 * MIB else free - MIB - block
    assert least_left <= disk.free <= max(free - MIB, kept + SPACE_RESERVE + block)


def test_a_disk_that_has_room_again_lets_the_download_continue() -> None:
    chunk, disk = Chunk(0, 64 * MIB, 0, 0), FakeDisk(0, 640 * MIB)
    ahead = WriteBudget(NodeSpaceRules(0), reserves=False)
    with pytest.raises(NoRoom):
        for _ in range(100):
            write(ahead, disk, chunk, BLOCK)
    disk.free = 64 * MIB
    write(ahead, disk, chunk, BLOCK)


# --- a real download ---


class Rules(NodeSpaceRules):
    """Rules of a node with a low limit for bodies of unknown length."""

    stream_limit = MIB


def stream(size: int, *, has_length: bool) -> Handler:
    """A body of ``size`` bytes in one response, with its length or in chunks."""

    def handle(_request: Request, connection: Connection) -> None:
        if has_length:
            connection.answer(200, {"Content-Length": str(size)}, length=False)
        else:
            connection.answer(200, {"Transfer-Encoding": "chunked"}, length=False)
        block = make_data(BLOCK)
        for _ in range(size // BLOCK):
            connection.send(block if has_length else b"%x\r\n%s\r\n" % (BLOCK, block))
        if not has_length:
            connection.send(b"0\r\n\r\n")

    return handle


@pytest.mark.parametrize(
    ("rules", "most", "has_length", "is_refused"),
    [
        (Rules(0), None, False, True),
        (Rules(0), None, True, False),
        (Rules(0), 4 * MIB, False, False),
        (Rules(0), MIB, False, True),
        (Rules(0), MIB, True, True),
        (SpaceRules(), None, False, False),
        (SpaceRules(), MIB, False, True),
    ],
)
def test_a_body_of_unknown_length_stops_at_a_default(
    rules: SpaceRules, most: int | None, has_length: bool, is_refused: bool, tmp_path: Path, fetch: Fetcher
) -> None:
    with Origin(stream(2 * MIB, has_length=has_length)) as origin:
        job = Job(f"{origin.url}/f", tmp_path / "f")
        transfer = Transfer(job, replace(FAST, max_file_size=most), fetch.client(), space=rules)
        if not is_refused:
            assert transfer.run().size == 2 * MIB
            return
        with pytest.raises(PolicyRefused, match="max_file_size"):
            transfer.run()
        assert os.listdir(tmp_path) == []
    assert NodeSpaceRules(0).stream_limit == STREAM_LIMIT == 10 * 1024**3


def run(transfer: Transfer, ends: list[object]) -> None:
    """Run a transfer, and note how it ends."""
    try:
        ends.append(transfer.run())
    except DlpoolError as error:
        ends.append(error)


@needs_root
@pytest.mark.parametrize("preallocate", ["auto", "falloc", "truncate", "none"])
def test_a_server_that_promises_much_and_sends_little_takes_little(
    preallocate: str, tmp_path: Path, fetch: Fetcher
) -> None:
    gate, sent = threading.Event(), 3 * MIB

    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Length": str(50 * MIB)}, length=False)
        connection.send(make_data(sent))
        gate.wait(60)

    with tmpfs(tmp_path / "disk", "64m") as disk, Origin(handle) as origin:
        job = Job(f"{origin.url}/f", disk / "f")
        client = fetch.client(read_timeout=60.0, low_speed_limit=0)
        transfer = Transfer(job, replace(FAST, preallocate=preallocate), client, space=NodeSpaceRules(0))
        ends: list[object] = []
        thread = threading.Thread(target=run, args=[transfer, ends])
        thread.start()
        wait_until(lambda: transfer.progress().done > sent - LAST_READ)
        status = os.statvfs(disk)
        taken = (status.f_blocks - status.f_bfree) * status.f_frsize
        assert sent - LAST_READ < taken <= 2 * sent + BLOCK
        assert taken + transfer.progress().unreserved_bytes <= 2 * sent + BLOCK
        transfer.cancel()
        gate.set()
        thread.join(30)
        assert [type(end) for end in ends] == [Cancelled], ends
