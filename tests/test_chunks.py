"""Chunk maths: plan, take, steal, give back, and what is missing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.transfer.chunks import (
    MIN_STEAL_BYTES,
    MIN_STEAL_GAIN_S,
    MIN_TAIL_BYTES,
    SLOW_S,
    UNKNOWN_END,
    Chunk,
    ChunkMap,
    ThiefSpeed,
    kept_bytes,
    plan_chunks,
    single_chunk,
)
from dlpool.transfer.http.answer import ByteRange

KIB = 1024
MIB = 1024 * KIB


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[ByteRange]]:
    """A size, and what is missing of it: sorted ranges with gaps between them."""
    cuts = sorted(draw(st.sets(st.integers(0, 4 * MIB), max_size=12)))
    missing = [ByteRange(low, high) for low, high in list(pairwise(cuts))[::2]]
    end = missing[-1].end if missing else 0
    return end + draw(st.sampled_from([0, 1, MIB])), missing


def spans(chunk_map: ChunkMap) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.end) for chunk in chunk_map.chunks]


def finish(chunk_map: ChunkMap, chunk: Chunk) -> None:
    chunk.position = chunk.write_end = chunk.end
    chunk_map.release(chunk, 0.0)


# --- planning ---


@pytest.mark.parametrize(
    ("size", "connections", "expected"),
    [
        (0, 4, []),
        (1, 4, [(0, 1)]),
        (3, 4, [(0, 3)]),
        (199, 4, [(0, 199)]),
        (200, 4, [(0, 100), (100, 200)]),
        (399, 4, [(0, 133), (133, 266), (266, 399)]),
        (400, 4, [(0, 100), (100, 200), (200, 300), (300, 400)]),
        (401, 4, [(0, 100), (100, 200), (200, 300), (300, 401)]),
        (4000, 4, [(0, 1000), (1000, 2000), (2000, 3000), (3000, 4000)]),
        (4000, 1, [(0, 4000)]),
    ],
)
def test_a_file_is_divided_into_equal_ranges(size: int, connections: int, expected: list[tuple[int, int]]) -> None:
    missing = [ByteRange(0, size)] if size else []
    assert spans(plan_chunks(missing, size, connections, min_split=100)) == expected


@given(st.integers(1, 10**13), st.integers(1, 64), st.integers(1, 10**9))
def test_the_ranges_of_a_new_file_differ_by_a_byte_at_most(size: int, connections: int, min_split: int) -> None:
    lengths = [
        chunk.end - chunk.start for chunk in plan_chunks([ByteRange(0, size)], size, connections, min_split).chunks
    ]
    assert sum(lengths) == size
    assert max(lengths) - min(lengths) <= 1
    assert len(lengths) == max(1, min(connections, size // min_split))


@given(files(), st.integers(1, 64), st.integers(1, MIB), st.sampled_from([None, KIB, MIB]))
@settings(deadline=None)
def test_a_plan_tiles_the_file_and_misses_what_is_missing(
    file: tuple[int, list[ByteRange]], connections: int, min_split: int, piece: int | None
) -> None:
    size, missing = file
    chunk_map = plan_chunks(missing, size, connections, min_split, piece)
    edges = [0, *(chunk.end for chunk in chunk_map.chunks)]
    assert [chunk.start for chunk in chunk_map.chunks] == edges[:-1]
    assert edges[-1] == size
    assert chunk_map.written() == size - sum(span.end - span.start for span in missing)
    assert all(chunk.is_done or chunk.position == chunk.start for chunk in chunk_map.chunks)
    assert {edge for span in missing for edge in span} <= set(edges)


@given(files(), st.integers(1, 64), st.integers(1, MIB))
@settings(deadline=None)
def test_no_range_is_planned_below_the_least_split(
    file: tuple[int, list[ByteRange]], connections: int, min_split: int
) -> None:
    size, missing = file
    parts = {
        (chunk.start, chunk.end)
        for chunk in plan_chunks(missing, size, connections, min_split).chunks
        if not chunk.is_done
    }
    short = {(start, end) for start, end in parts if end - start < min_split}
    assert short <= set(missing)
    assert len(parts) <= max(connections, len(missing))


@given(files(), st.integers(1, 64))
@settings(deadline=None)
def test_no_range_is_divided_while_one_twice_as_long_is_left(
    file: tuple[int, list[ByteRange]], connections: int
) -> None:
    size, missing = file
    parts = [
        ByteRange(c.start, c.end) for c in plan_chunks(missing, size, connections, min_split=1).chunks if not c.is_done
    ]
    longest = max((part.end - part.start for part in parts), default=0)
    divided = set(parts) - set(missing)
    assert all(2 * (part.end - part.start + 1) > longest for part in divided)


def test_pieces_are_distributed_from_the_front() -> None:
    chunk_map = plan_chunks([ByteRange(0, 100)], 100, 4, min_split=1, piece=30)
    assert spans(chunk_map) == [(0, 100)]
    for owner in range(3):
        chunk_map.take(owner, 0.0)
    assert spans(chunk_map) == [(0, 30), (30, 60), (60, 90), (90, 100)]


def test_pieces_stand_in_order_before_the_next_missing_range() -> None:
    chunk_map = plan_chunks([ByteRange(0, 60), ByteRange(80, 100)], 100, 4, min_split=1, piece=30)
    for owner in range(3):
        chunk_map.take(owner, 0.0)
    assert spans(chunk_map) == [(0, 30), (30, 60), (60, 80), (80, 100)]


def test_a_resumed_piece_begins_at_the_first_missing_byte() -> None:
    chunk_map = plan_chunks([ByteRange(45, 100)], 100, 4, min_split=1, piece=30)
    taken = chunk_map.take("a", 0.0)
    assert taken is not None
    assert (taken.start, taken.position, taken.end) == (45, 45, 75)


# --- taking and giving back ---


def test_the_first_free_chunk_is_taken_first() -> None:
    chunk_map = plan_chunks([ByteRange(0, 400)], 400, 4, min_split=100)
    taken = [chunk_map.take(owner, 0.0) for owner in "abcde"]
    assert [chunk.start if chunk else None for chunk in taken] == [0, 100, 200, 300, None]


def test_a_chunk_is_not_taken_before_it_is_ready() -> None:
    chunk_map = plan_chunks([ByteRange(0, 100)], 100, 1, min_split=100)
    chunk = chunk_map.take("a", 0.0)
    assert chunk is not None
    chunk_map.release(chunk, ready_at=5.0)
    assert chunk_map.next_ready_at() == 5.0
    assert chunk_map.take("b", 4.9) is None
    assert chunk_map.take("b", 5.0) is chunk


def test_a_chunk_that_is_not_ready_does_not_hold_up_the_next() -> None:
    chunk_map = plan_chunks([ByteRange(0, 200)], 200, 2, min_split=100)
    first = chunk_map.take("a", 0.0)
    assert first is not None
    chunk_map.release(first, ready_at=5.0)
    second = chunk_map.take("a", 0.0)
    assert second is not None
    assert second.start == 100


def test_nothing_is_ready_when_all_is_owned_or_done() -> None:
    chunk_map = plan_chunks([ByteRange(50, 100)], 100, 1, min_split=100)
    chunk_map.take("a", 0.0)
    assert chunk_map.next_ready_at() is None


def test_what_was_claimed_and_not_written_is_fetched_again() -> None:
    chunk_map = plan_chunks([ByteRange(0, 100)], 100, 1, min_split=100)
    chunk = chunk_map.take("a", 0.0)
    assert chunk is not None
    chunk.position, chunk.write_end = 30, 60
    chunk_map.release(chunk, 0.0)
    again = chunk_map.take("b", 0.0)
    assert again is not None
    assert (again.position, again.write_end, again.end) == (30, 30, 100)


def test_a_new_owner_begins_without_the_speed_of_the_last() -> None:
    chunk_map = plan_chunks([ByteRange(0, 100)], 100, 1, min_split=100)
    chunk = chunk_map.take("a", 0.0)
    assert chunk is not None
    chunk.rate = 5.0
    chunk_map.release(chunk, 0.0)
    chunk_map.take("b", 0.0)
    assert chunk.rate == 0.0


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2)])
def test_settled_neighbours_become_one(order: tuple[int, ...]) -> None:
    chunk_map = plan_chunks([ByteRange(0, 400)], 400, 4, min_split=100)
    taken = [chunk_map.take(owner, 0.0) for owner in range(4)]
    for index in order:
        chunk = taken[index]
        assert chunk is not None
        finish(chunk_map, chunk)
    assert spans(chunk_map) == [(0, 400)]
    assert chunk_map.is_done()


def test_a_done_chunk_is_not_joined_while_it_has_an_owner() -> None:
    chunk_map = plan_chunks([ByteRange(0, 200)], 200, 2, min_split=100)
    first, second = chunk_map.take("a", 0.0), chunk_map.take("b", 0.0)
    assert first is not None
    assert second is not None
    first.position = first.write_end = first.end
    finish(chunk_map, second)
    assert spans(chunk_map) == [(0, 100), (100, 200)]
    assert any(chunk is first for chunk in chunk_map.chunks)


# --- stealing ---


def owned(size: int, *, claimed: int = 0, rate: float = 0.0, least_split: int = MIN_STEAL_BYTES) -> ChunkMap:
    """One chunk, owned by "owner"."""
    chunk = Chunk(0, size, claimed, claimed, owner="owner", rate=rate)
    return ChunkMap([chunk], least_split=least_split)


def test_a_thief_gets_the_upper_half_of_what_is_not_claimed() -> None:
    chunk_map = owned(10 * MIB, claimed=2 * MIB)
    stolen = chunk_map.steal("thief")
    assert stolen is not None
    assert (stolen.start, stolen.end, stolen.position, stolen.write_end) == (6 * MIB, 10 * MIB, 6 * MIB, 6 * MIB)
    assert stolen.owner == "thief"
    assert spans(chunk_map) == [(0, 6 * MIB), (6 * MIB, 10 * MIB)]


def test_the_chunk_that_would_finish_last_is_stolen_from() -> None:
    chunks = [
        Chunk(0, MIB, 0, 0, owner="slow", rate=1.0 * KIB),
        Chunk(MIB, 9 * MIB, MIB, MIB, owner="fast", rate=8.0 * MIB),
    ]
    stolen = ChunkMap(chunks).steal("thief")
    assert stolen is not None
    assert stolen.end == MIB


def test_of_chunks_of_unknown_speed_the_longest_is_stolen_from() -> None:
    chunks = [
        Chunk(0, MIB, 0, 0, owner="a"),
        Chunk(MIB, 4 * MIB, MIB, MIB, owner="b"),
        Chunk(4 * MIB, 5 * MIB, 4 * MIB, 4 * MIB, owner="c"),
    ]
    stolen = ChunkMap(chunks).steal("thief")
    assert stolen is not None
    assert stolen.end == 4 * MIB


def test_nobody_steals_from_a_chunk_without_owner() -> None:
    assert plan_chunks([ByteRange(0, 10 * MIB)], 10 * MIB, 1, min_split=MIB).steal("thief") is None


@pytest.mark.parametrize(
    ("chunk_map", "is_worth_it"),
    [
        (owned(2 * MIN_STEAL_BYTES), True),
        (owned(2 * MIN_STEAL_BYTES - 1), False),
        (owned(2 * MIB, claimed=2 * MIB - MIN_STEAL_BYTES), False),
        (owned(2 * MIB, claimed=2 * MIB), False),
        (owned(2 * MIB, least_split=MIB), True),
        (owned(2 * MIB - 1, least_split=MIB), False),
        (owned(MIB, rate=MIB / (2 * MIN_STEAL_GAIN_S)), True),
        (owned(MIB, rate=MIB / (2 * MIN_STEAL_GAIN_S) + 1000), False),
        (owned(2 * MIN_STEAL_BYTES, rate=2 * MIN_STEAL_BYTES / SLOW_S + 1), True),
        (owned(2 * MIN_STEAL_BYTES - 2, rate=2 * MIN_STEAL_BYTES / SLOW_S + 1), False),
        (owned(MIB, rate=1.0, least_split=MIB), True),
    ],
)
def test_only_what_is_worth_a_request_is_stolen(chunk_map: ChunkMap, is_worth_it: bool) -> None:
    assert (chunk_map.steal("thief") is not None) == is_worth_it


@pytest.mark.parametrize(
    ("chunk_map", "is_worth_it"),
    [
        (owned(MIN_STEAL_BYTES, rate=MIN_STEAL_BYTES / SLOW_S), True),
        (owned(MIN_STEAL_BYTES, rate=MIN_STEAL_BYTES / SLOW_S + 1), False),
        (owned(2 * MIN_TAIL_BYTES, rate=1.0), True),
        (owned(2 * MIN_TAIL_BYTES - 1, rate=1.0), False),
        (owned(MIN_STEAL_BYTES, claimed=MIN_STEAL_BYTES, rate=1.0), False),
        (owned(MIN_STEAL_BYTES), False),
        (owned(UNKNOWN_END, rate=1.0), False),
    ],
)
def test_a_slow_owner_is_helped_with_its_last_bytes(chunk_map: ChunkMap, is_worth_it: bool) -> None:
    assert (chunk_map.steal("thief") is not None) == is_worth_it


@pytest.mark.parametrize(
    ("rate", "thief", "kept"),
    [
        (0.0, 0.0, 512 * KIB),
        (1024.0, 0.0, 512 * KIB),
        (0.0, 1e6, 512 * KIB),
        (1024.0, 1024.0, 512 * KIB),
        (1024.0, 2048.0, 341 * KIB + 341),
        (1024.0, 1024.0 * 1023, KIB),
        (1024.0, 3 * 1024.0, 256 * KIB),
        (3 * 1024.0, 1024.0, 768 * KIB),
        (1.0, 1e9, MIN_TAIL_BYTES),
    ],
)
def test_a_thief_gets_as_much_as_its_speed_is_worth(rate: float, thief: float, kept: int) -> None:
    chunk_map = owned(MIB, rate=rate)
    stolen = chunk_map.steal("thief", ThiefSpeed(thief))
    assert stolen is not None
    assert (stolen.start, stolen.end) == (kept, MIB)


@given(
    st.integers(1, 10**12),
    st.floats(0, 1e10),
    st.floats(0, 1e10),
    st.floats(0, 1e10),
    st.floats(0, 100),
    st.integers(1, 10**9),
)
def test_both_parts_of_a_split_are_done_earlier_than_the_chunk(
    left: int, rate: float, assumed: float, thief: float, answer_s: float, min_split: int
) -> None:
    victim = Chunk(0, 100 + left, 50, 100, owner="owner", rate=rate, assumed_rate=assumed)
    kept = kept_bytes(victim, ThiefSpeed(thief, answer_s), min_split)
    if kept is None:
        return
    own = rate or assumed
    thief = thief or own
    assert 0 < kept <= left - MIN_TAIL_BYTES
    if own == 0:
        assert kept - (left - kept) in (0, 1)
        return
    assert kept / own <= left / own - MIN_STEAL_GAIN_S * 0.99 or kept == MIN_TAIL_BYTES
    assert answer_s + (left - kept - 1) / thief <= left / own - MIN_STEAL_GAIN_S * 0.99


def test_a_new_owner_is_taken_for_as_fast_as_expected_until_its_speed_is_known() -> None:
    chunk_map = plan_chunks([ByteRange(0, 10 * MIB)], 10 * MIB, 1, min_split=MIB)
    chunk = chunk_map.take("a", 0.0, 2.0 * MIB)
    assert chunk is not None
    assert (chunk.rate, chunk.eta_s) == (0.0, 5.0)
    chunk.rate = 1.0 * MIB
    assert chunk.eta_s == 10.0
    stolen = chunk_map.steal("b", ThiefSpeed(4.0 * MIB))
    assert stolen is not None
    assert (stolen.end - stolen.start, stolen.eta_s) == (8 * MIB, 2.0)


def test_the_wait_for_an_answer_makes_the_share_of_the_thief_smaller() -> None:
    chunk_map = owned(10 * MIB, rate=1.0 * MIB)
    stolen = chunk_map.steal("thief", ThiefSpeed(1.0 * MIB, answer_s=2.0))
    assert stolen is not None
    assert stolen.end - stolen.start == 4 * MIB
    assert owned(10 * MIB, rate=1.0 * MIB).steal("thief", ThiefSpeed(1.0 * MIB, answer_s=9.9)) is None


def test_what_is_stolen_stands_between_its_victim_and_the_next_chunk() -> None:
    chunk_map = ChunkMap([Chunk(0, MIB, 0, 0, owner="a"), Chunk(MIB, MIB + 1, MIB, MIB)])
    assert chunk_map.steal("thief") is chunk_map.chunks[1]
    assert spans(chunk_map) == [(0, MIB // 2), (MIB // 2, MIB), (MIB, MIB + 1)]


@pytest.mark.parametrize(
    ("left", "own"),
    [
        (0, 0),
        (1, 1),
        (2 * MIN_STEAL_BYTES - 1, 2 * MIN_STEAL_BYTES - 1),
        (2 * MIN_STEAL_BYTES, MIN_STEAL_BYTES),
        (2 * MIN_STEAL_BYTES + 1, MIN_STEAL_BYTES + 1),
        (10 * MIB, 5 * MIB),
    ],
)
def test_an_owner_reads_what_a_thief_would_leave(left: int, own: int) -> None:
    """The owner's share is what is left of the chunk after a theft of equal speeds, if there would be one."""
    chunk = Chunk(7, 107 + left, 107, 107, owner="owner")
    assert chunk.unstealable == own
    ChunkMap([chunk]).steal("thief")
    assert chunk.end - chunk.position == own


@pytest.mark.parametrize(("rate", "eta_s"), [(0.0, float("inf")), (0.5, 160.0), (1.0, 80.0), (40.0, 2.0)])
def test_what_is_being_written_takes_no_more_time(rate: float, eta_s: float) -> None:
    assert Chunk(0, 100, 10, 20, owner="owner", rate=rate).eta_s == eta_s


@pytest.mark.parametrize("size", [None, 0, 10 * MIB])
def test_nobody_steals_from_a_stream(size: int | None) -> None:
    chunk_map = single_chunk(size)
    chunk_map.take("owner", 0.0)
    assert chunk_map.steal("thief") is None


# --- what is there ---


def test_a_stream_without_size_ends_never() -> None:
    assert spans(single_chunk(None)) == [(0, UNKNOWN_END)]
    assert not single_chunk(None).is_done()


def test_an_empty_file_is_done_and_misses_nothing() -> None:
    chunk_map = plan_chunks([], 0, 4, min_split=1)
    assert chunk_map.is_done()
    assert (chunk_map.written(), chunk_map.contiguous_end(), chunk_map.first_missing()) == (0, 0, None)


def test_the_front_is_the_first_byte_that_is_not_there() -> None:
    chunk_map = plan_chunks([ByteRange(10, 20), ByteRange(30, 40)], 50, 1, min_split=1)
    assert (chunk_map.contiguous_end(), chunk_map.first_missing()) == (10, ByteRange(10, 20))
    chunk = chunk_map.take("a", 0.0)
    assert chunk is not None
    chunk.position = chunk.write_end = 15
    assert (chunk_map.contiguous_end(), chunk_map.first_missing()) == (15, ByteRange(15, 20))
    finish(chunk_map, chunk)
    assert (chunk_map.contiguous_end(), chunk_map.first_missing()) == (30, ByteRange(30, 40))


def test_a_map_says_what_it_holds() -> None:
    chunk_map = plan_chunks([ByteRange(10, 20)], 30, 1, min_split=1)
    chunk_map.take("a", 0.0)
    assert repr(chunk_map) == "<ChunkMap 3 chunks: 1 owned, 20 bytes written>"
