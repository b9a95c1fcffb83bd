"""The pure parts of an upload: how a file is cut, what the upload is called, which chunk is sent next."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, Garbled, UsageError
from dlpool.transfer.retry import Rest
from dlpool.upload.advice import Advice
from dlpool.upload.board import GROWTH, Board
from dlpool.upload.ending import Ending
from dlpool.upload.plan import MAX_CHUNKS, MIB, Identity, Plan, auto_chunk_size, file_id, plan, smaller_chunk_size
from dlpool.upload.presence import Presence
from tests.conftest import wait_until
from tests.fakes import Clock

FILE = Identity("/data/model.bin", 10 * MIB, 1_700_000_000_000_000_000, 42)


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
    assert auto_chunk_size(size, 100_000) == 100_000


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


def board(chunks: int, clock: Clock, lanes: int = 4) -> Board:
    made = Board(Plan(chunks, 1), Ending(clock), clock, lanes)
    made.begin([])
    return made


def test_chunks_are_dealt_from_the_front_and_a_failed_one_rests_first() -> None:
    clock = Clock()
    dealt = board(5, clock)
    assert dealt.begin([1]) == 4
    assert (dealt.take(), dealt.take()) == (0, 2)
    dealt.give_back(0, Rest(10.0, 0.0))
    assert dealt.take() == 3
    clock.now += 10
    assert (dealt.take(), dealt.take()) == (0, 4)
    for index in (0, 2, 3, 4):
        dealt.sent(index, 1)
        dealt.store(index)
    assert dealt.take() is None
    assert (dealt.done, dealt.stored, dealt.accepted, dealt.retries) == (5, 5, 4, 1)


def test_attempts_at_a_chunk_count_until_it_is_stored() -> None:
    dealt = board(3, Clock())
    assert dealt.take() == 0
    assert [dealt.count_failure(0), dealt.count_failure(0)] == [1, 2]
    dealt.store(0)
    dealt.begin([])
    assert dealt.count_failure(0) == 1


def test_a_server_that_admits_fewer_gets_fewer_and_one_more_again_after_some_chunks() -> None:
    dealt = board(100, Clock(), lanes=3)
    first, second, third = (dealt.take() for _ in range(3))
    assert first is not None and second is not None and third is not None
    for refused in (third, second):
        assert dealt.make_room()
        dealt.give_back(refused)
    assert not dealt.make_room()  # the last one goes on by itself
    index = first
    for _ in range(GROWTH):
        assert dealt.sending == 1
        dealt.store(index)
        taken = dealt.take()
        assert taken is not None
        index = taken
    assert dealt.take() is not None
    assert dealt.sending == 2


def test_who_rests_keeps_its_place_and_goes_on_when_a_chunk_is_stored() -> None:
    clock = Clock()
    dealt = board(100, clock, lanes=2)
    first, second = dealt.take(), dealt.take()
    assert (first, second) == (0, 1)
    resting = threading.Thread(target=dealt.give_back, args=(0, Rest(0.0, 3600.0)), daemon=True)
    resting.start()
    wait_until(lambda: dealt.sending == 1)
    third = threading.Thread(target=dealt.take, daemon=True)
    third.start()
    third.join(0.1)
    assert third.is_alive() and dealt.sending == 1
    dealt.store(1)
    resting.join(60)
    third.join(60)
    assert not resting.is_alive() and not third.is_alive()


def test_when_the_server_takes_no_more_nobody_gets_a_chunk() -> None:
    dealt = board(3, Clock())
    assert (dealt.take(), dealt.take()) == (0, 1)
    dealt.close()
    dealt.give_back(0)
    dealt.store(1)
    assert dealt.take() is None
    dealt.wait_for_front(2)
    assert dealt.begin([1]) == 2
    assert dealt.take() == 0


def test_the_first_error_stands_and_nobody_gets_a_chunk_after_it() -> None:
    clock = Clock()
    ending = Ending(clock)
    dealt = Board(Plan(3, 1), ending, clock, 4)
    dealt.begin([])
    assert dealt.take() == 0
    with ending.exchange() as exchange:
        ending.stop(Cancelled("first"))
        ending.stop(Garbled("second"))
        assert str(exchange.verdict) == "first"
    assert dealt.take() is None
    acts = (
        ending.check,
        lambda: dealt.sent(0, 1),
        lambda: ending.pause(60),
        lambda: dealt.wait_for_front(2),
        lambda: dealt.give_back(0, Rest(0.0, 60.0)),
    )
    for act in acts:
        with pytest.raises(Cancelled, match="first"):
            act()
    with pytest.raises(Cancelled, match="first"), ending.exchange():
        pass


# --- what the server wants ---


def test_the_users_word_goes_over_the_servers_and_that_over_the_defaults() -> None:
    said = {"concurrent_uploads": 8, "retry_max_attempts": 10, "retry_initial_delay": 0.5, "max_file_size": 7}
    advice = Advice.from_json(said)
    assert (advice.connections, advice.max_file_size, advice.max_chunk_size) == (8, 7, None)
    settings = TransferSettings(retries=2, retry_delay=3.0)
    followed = advice.followed(settings, ())
    assert (followed.retries, followed.retry_delay) == (9, 0.5)
    assert advice.followed(settings, ("retries", "retry_delay")) == settings
    assert Advice().followed(settings, ()) == settings
    assert Advice().connections == 4


@pytest.mark.parametrize("value", [0, -1, "5", None, True, [], 1e400, float("nan")])
def test_what_makes_no_sense_is_not_followed(value: object) -> None:
    names = ("max_file_size", "max_chunk_size", "concurrent_uploads", "retry_max_attempts")
    assert Advice.from_json(dict.fromkeys(names, value)) == Advice()
    if value != 0:
        assert Advice.from_json({"retry_initial_delay": value}) == Advice()


@pytest.mark.parametrize(
    ("refused", "most", "next_size"),
    [
        (8 * MIB, None, 4 * MIB),
        (8 * MIB, 3 * MIB, 3 * MIB),
        (MIB, 8 * MIB, MIB // 2),
        (100_000, None, 65536),
        (65536, None, None),
        (1000, None, None),
        (65536, 1000, 1000),
    ],
)
def test_chunks_that_are_too_large_become_what_the_server_takes_or_half(
    refused: int, most: int | None, next_size: int | None
) -> None:
    assert smaller_chunk_size(refused, most) == next_size


def test_a_server_that_was_never_there_is_not_missed() -> None:
    clock = Clock()
    presence = Presence(clock)
    assert presence.missed_s() is None
    presence.seen()
    assert presence.missed_s() == 0.0
    clock.now += 7
    assert presence.missed_s() == 7.0
    presence.seen()
    assert presence.missed_s() == 0.0
