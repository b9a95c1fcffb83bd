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
from dlpool.transfer.retry import RetryDelay
from dlpool.upload.cancel_scope import UploadCancelScope
from dlpool.upload.capabilities import ServerCapabilities
from dlpool.upload.plan import (
    MAX_CHUNKS,
    MIB,
    LocalFileIdentity,
    UploadPlan,
    auto_chunk_size,
    file_id,
    make_plan,
    smaller_chunk_size,
)
from dlpool.upload.presence import ServerAvailability
from dlpool.upload.scheduler import GROWTH, UploadScheduler
from tests.conftest import wait_until
from tests.fakes import Clock

FILE = LocalFileIdentity("/data/model.bin", 10 * MIB, 1_700_000_000_000_000_000, 42)


@given(size=st.integers(0, 10**7), chunk_size=st.integers(1, 10**6))
def test_chunks_tile_the_file(size: int, chunk_size: int) -> None:
    cut = UploadPlan(size, chunk_size)
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
    assert make_plan(MAX_CHUNKS * 65536, 65536).count == MAX_CHUNKS
    with pytest.raises(UsageError, match="use a larger --chunk-size"):
        make_plan(MAX_CHUNKS * 65536 + 1, 65536)


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


def board(chunks: int, clock: Clock, lanes: int = 4) -> UploadScheduler:
    made = UploadScheduler(UploadPlan(chunks, 1), UploadCancelScope(clock), clock, lanes)
    made.reset([])
    return made


def test_chunks_are_dealt_from_the_front_and_a_failed_one_rests_first() -> None:
    clock = Clock()
    dealt = board(5, clock)
    assert dealt.reset([1]) == 4
    assert (dealt.next_chunk(), dealt.next_chunk()) == (0, 2)
    dealt.retry_later(0, RetryDelay(10.0, 0.0))
    assert dealt.next_chunk() == 3
    clock.now += 10
    assert (dealt.next_chunk(), dealt.next_chunk()) == (0, 4)
    for index in (0, 2, 3, 4):
        dealt.add_sent(index, 1)
        dealt.mark_stored(index)
    assert dealt.next_chunk() is None
    assert (dealt.done_bytes, dealt.stored_bytes, dealt.accepted_bytes, dealt.retries) == (5, 5, 4, 1)


def test_attempts_at_a_chunk_count_until_it_is_stored() -> None:
    dealt = board(3, Clock())
    assert dealt.next_chunk() == 0
    assert [dealt.count_failure(0), dealt.count_failure(0)] == [1, 2]
    dealt.mark_stored(0)
    dealt.reset([])
    assert dealt.count_failure(0) == 1


def test_a_server_that_admits_fewer_gets_fewer_and_one_more_again_after_some_chunks() -> None:
    dealt = board(100, Clock(), lanes=3)
    first, second, third = (dealt.next_chunk() for _ in range(3))
    assert first is not None and second is not None and third is not None
    for refused in (third, second):
        assert dealt.reduce_connections()
        dealt.retry_later(refused)
    assert not dealt.reduce_connections()  # the last one goes on by itself
    index = first
    for _ in range(GROWTH):
        assert dealt.sending_count == 1
        dealt.mark_stored(index)
        taken = dealt.next_chunk()
        assert taken is not None
        index = taken
    assert dealt.next_chunk() is not None
    assert dealt.sending_count == 2


def test_who_rests_keeps_its_place_and_goes_on_when_a_chunk_is_stored() -> None:
    clock = Clock()
    dealt = board(100, clock, lanes=2)
    first, second = dealt.next_chunk(), dealt.next_chunk()
    assert (first, second) == (0, 1)
    resting = threading.Thread(target=dealt.retry_later, args=(0, RetryDelay(0.0, 3600.0)), daemon=True)
    resting.start()
    wait_until(lambda: dealt.sending_count == 1)
    third = threading.Thread(target=dealt.next_chunk, daemon=True)
    third.start()
    third.join(0.1)
    assert third.is_alive() and dealt.sending_count == 1
    dealt.mark_stored(1)
    resting.join(60)
    third.join(60)
    assert not resting.is_alive() and not third.is_alive()


def test_when_the_server_takes_no_more_nobody_gets_a_chunk() -> None:
    dealt = board(3, Clock())
    assert (dealt.next_chunk(), dealt.next_chunk()) == (0, 1)
    dealt.close()
    dealt.retry_later(0)
    dealt.mark_stored(1)
    assert dealt.next_chunk() is None
    dealt.wait_until_begun(2)
    assert dealt.reset([1]) == 2
    assert dealt.next_chunk() == 0


def test_the_first_error_stands_and_nobody_gets_a_chunk_after_it() -> None:
    clock = Clock()
    ending = UploadCancelScope(clock)
    dealt = UploadScheduler(UploadPlan(3, 1), ending, clock, 4)
    dealt.reset([])
    assert dealt.next_chunk() == 0
    with ending.open_exchange() as exchange:
        ending.cancel(Cancelled("first"))
        ending.cancel(Garbled("second"))
        assert str(exchange.cancel_error) == "first"
    assert dealt.next_chunk() is None
    acts = (
        ending.raise_if_cancelled,
        lambda: dealt.add_sent(0, 1),
        lambda: ending.sleep(60),
        lambda: dealt.wait_until_begun(2),
        lambda: dealt.retry_later(0, RetryDelay(0.0, 60.0)),
    )
    for act in acts:
        with pytest.raises(Cancelled, match="first"):
            act()
    with pytest.raises(Cancelled, match="first"), ending.open_exchange():
        pass


# --- what the server wants ---


def test_the_users_word_goes_over_the_servers_and_that_over_the_defaults() -> None:
    said = {"concurrent_uploads": 8, "retry_max_attempts": 10, "retry_initial_delay": 0.5, "max_file_size": 7}
    advice = ServerCapabilities.from_json(said)
    assert (advice.connections, advice.max_file_size, advice.max_chunk_size) == (8, 7, None)
    settings = TransferSettings(retries=2, retry_delay=3.0)
    followed = advice.apply_to(settings, ())
    assert (followed.retries, followed.retry_delay) == (9, 0.5)
    assert advice.apply_to(settings, ("retries", "retry_delay")) == settings
    assert ServerCapabilities().apply_to(settings, ()) == settings
    assert ServerCapabilities().connections == 4


@pytest.mark.parametrize("value", [0, -1, "5", None, True, [], 1e400, float("nan")])
def test_what_makes_no_sense_is_not_followed(value: object) -> None:
    names = ("max_file_size", "max_chunk_size", "concurrent_uploads", "retry_max_attempts")
    assert ServerCapabilities.from_json(dict.fromkeys(names, value)) == ServerCapabilities()
    if value != 0:
        assert ServerCapabilities.from_json({"retry_initial_delay": value}) == ServerCapabilities()


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
    presence = ServerAvailability(clock)
    assert presence.unavailable_s() is None
    presence.record_success()
    assert presence.unavailable_s() == 0.0
    clock.now += 7
    assert presence.unavailable_s() == 7.0
    presence.record_success()
    assert presence.unavailable_s() == 0.0
