"""The pure parts of an upload: how a file is cut, what the upload is called, which chunk is sent next."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import Cancelled, ConnectionBroken, Garbled, UsageError
from dlpool.upload.board import Board
from dlpool.upload.plan import MAX_CHUNKS, MIB, Identity, Plan, auto_chunk_size, file_id, plan

FILE = Identity("/data/model.bin", 10 * MIB, 1_700_000_000_000_000_000, 42)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(size=st.integers(0, 10**7), chunk_size=st.integers(1, 10**6))
def test_chunks_tile_the_file(size: int, chunk_size: int) -> None:
    cut = Plan(size, chunk_size)
    spans = [cut.span(index) for index in range(min(cut.count, 1000))]
    assert spans[0].start == 0
    assert all(one.end == other.start for one, other in pairwise(spans))
    assert cut.span(cut.count - 1).end == size
    assert all(0 < span.end - span.start <= chunk_size for span in spans) or size == 0


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [(0, 1), (MIB, 1), (8 * MIB, 1), (20 * MIB, 3), (64 * MIB, 8), (8 << 30, 8), (10 << 30, 10), (1 << 40, 48)],
)
def test_auto_cuts_small_files_into_small_chunks_and_large_ones_into_large(size: int, chunk_size: int) -> None:
    assert auto_chunk_size(size) == chunk_size * MIB


def test_a_file_that_would_be_too_many_chunks_is_refused() -> None:
    assert plan(MAX_CHUNKS * 65536, 65536).count == MAX_CHUNKS
    with pytest.raises(UsageError, match="use a larger --chunk-size"):
        plan(MAX_CHUNKS * 65536 + 1, 65536)


@pytest.mark.parametrize(
    "other",
    [
        file_id(replace(FILE, path="/data/other/model.bin"), MIB, "model.bin", None),
        file_id(replace(FILE, size=10 * MIB + 1), MIB, "model.bin", None),
        file_id(replace(FILE, mtime_ns=FILE.mtime_ns + 1), MIB, "model.bin", None),
        file_id(replace(FILE, inode=43), MIB, "model.bin", None),
        file_id(FILE, 2 * MIB, "model.bin", None),
        file_id(FILE, MIB, "Model.bin", None),
        file_id(FILE, MIB, "model.bin", "models"),
    ],
)
def test_whatever_tells_two_uploads_apart_changes_the_id(other: str) -> None:
    mine = file_id(FILE, MIB, "model.bin", None)
    assert mine == file_id(FILE, MIB, "model.bin", None) != other


def test_an_id_can_stand_in_a_url_and_a_list() -> None:
    made = file_id(FILE, MIB, "naïve/ name\n" + "x" * 200, None)
    assert made.isascii() and len(made) < 80 and not set(made) & set("/ \n?&#")


def test_chunks_are_dealt_from_the_front_and_a_failed_one_rests_first() -> None:
    clock = Clock()
    board = Board(Plan(5, 1), clock)
    assert board.begin([1]) == 4
    assert (board.take(), board.take()) == (0, 2)
    board.give_back(0, 10.0)
    assert board.take() == 3
    clock.now += 10
    assert (board.take(), board.take()) == (0, 4)
    for index in (0, 2, 3, 4):
        board.sent(index, 1)
        board.store(index)
    assert board.take() is None
    assert (board.done, board.stored, board.accepted) == (5, 5, 4)


def test_only_what_was_damaged_counts_while_other_chunks_move() -> None:
    clock = Clock()
    board = Board(Plan(3, 1), clock)
    board.begin([])
    first, second = board.take(), board.take()
    assert first is not None and second is not None
    board.sent(second, 1)
    assert board.count_failure(first, ConnectionBroken("reset")) == 0
    assert board.count_failure(first, Garbled("damaged")) == 1
    clock.now += 6
    assert board.count_failure(first, ConnectionBroken("reset")) == 2
    assert board.retries == 3


def test_the_first_error_stands_and_nobody_gets_a_chunk_after_it() -> None:
    board = Board(Plan(3, 1), Clock())
    board.begin([])
    index = board.take()
    assert index == 0
    board.stop(Cancelled("first"))
    board.stop(Garbled("second"))
    assert board.take() is None
    for act in (board.check, lambda: board.sent(0, 1), lambda: board.pause(60), lambda: board.wait_for_front(2)):
        with pytest.raises(Cancelled, match="first"):
            act()
