"""The pure parts of an upload: chunks, ids, the scheduler, and the server's capabilities."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.cancel import CancelScope
from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, Garbled, UsageError
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.retry import RetryDelay
from dlpool.upload.api_client import ServerAvailability
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
from dlpool.upload.scheduler import GROWTH, UploadScheduler
from tests.conftest import wait_until
from tests.fakes import Clock

FILE = LocalFileIdentity("/data/model.bin", 10 * MIB, 1_700_000_000_000_000_000, 42)


@given(size=st.integers(0, 10**7), chunk_size=st.integers(1, 10**6))
def test_chunks_tile_the_file(size: int, chunk_size: int) -> None:
    plan = UploadPlan(size, chunk_size)
    spans = [plan.span(index) for index in range(min(plan.count, 1000))]
    assert spans[0].start == 0
    assert all(one.end == other.start for one, other in pairwise(spans))
    assert plan.span(plan.count - 1).end == size
    assert all(0 < span.end - span.start <= chunk_size for span in spans) or size == 0


@pytest.mark.parametrize(
    ("size", "chunk_size"),
    [(0, 1), (MIB, 1), (8 * MIB, 1), (20 * MIB, 3), (64 * MIB, 8), (8 << 30, 8), (10 << 30, 10), (1 << 40, 48)],
)
def test_the_automatic_chunk_size_grows_with_the_file(size: int, chunk_size: int) -> None:
    assert auto_chunk_size(size) == chunk_size * MIB
    assert auto_chunk_size(size, 100_000) == 100_000


def test_a_file_of_too_many_chunks_is_refused() -> None:
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
def test_any_difference_of_two_uploads_changes_the_id(other: str) -> None:
    mine = file_id(FILE, MIB, "model.bin", None)
    assert mine == file_id(FILE, MIB, "model.bin", None) != other


def test_an_id_can_stand_in_a_url_and_a_list() -> None:
    made = file_id(FILE, MIB, "naïve/ name\n" + "x" * 200, None)
    assert made.isascii() and len(made) < 80 and not set(made) & set("/ \n?&#")


def new_scheduler(chunks: int, clock: Clock, connections: int = 4) -> UploadScheduler:
    made = UploadScheduler(UploadPlan(chunks, 1), CancelScope(), clock, connections)
    made.reset([])
    return made


def test_chunks_are_sent_in_order_and_a_failed_one_waits_before_its_retry() -> None:
    clock = Clock()
    scheduler = new_scheduler(5, clock)
    assert scheduler.reset([1]) == 4
    assert (scheduler.next_chunk(), scheduler.next_chunk()) == (0, 2)
    scheduler.retry_later(0, RetryDelay(10.0, 0.0))
    assert scheduler.next_chunk() == 3
    clock.now += 10
    assert (scheduler.next_chunk(), scheduler.next_chunk()) == (0, 4)
    for index in (0, 2, 3, 4):
        scheduler.add_sent(index, 1)
        scheduler.mark_stored(index)
    assert scheduler.next_chunk() is None
    assert (scheduler.done_bytes, scheduler.stored_bytes, scheduler.accepted_bytes, scheduler.retries) == (5, 5, 4, 1)


def test_attempts_at_a_chunk_count_until_it_is_stored() -> None:
    scheduler = new_scheduler(3, Clock())
    assert scheduler.next_chunk() == 0
    assert [scheduler.count_failure(0), scheduler.count_failure(0)] == [1, 2]
    scheduler.mark_stored(0)
    scheduler.reset([])
    assert scheduler.count_failure(0) == 1


def test_a_server_that_admits_fewer_gets_fewer_and_one_more_again_after_some_chunks() -> None:
    scheduler = new_scheduler(100, Clock(), connections=3)
    first, second, third = (scheduler.next_chunk() for _ in range(3))
    assert first is not None and second is not None and third is not None
    for refused in (third, second):
        assert scheduler.reduce_connections()
        scheduler.retry_later(refused)
    assert not scheduler.reduce_connections()  # the last connection stays
    index = first
    for _ in range(GROWTH):
        assert scheduler.sending_count == 1
        scheduler.mark_stored(index)
        taken = scheduler.next_chunk()
        assert taken is not None
        index = taken
    assert scheduler.next_chunk() is not None
    assert scheduler.sending_count == 2


def test_a_sleeping_thread_counts_as_sending_and_wakes_when_a_chunk_is_stored() -> None:
    clock = Clock()
    scheduler = new_scheduler(100, clock, connections=2)
    first, second = scheduler.next_chunk(), scheduler.next_chunk()
    assert (first, second) == (0, 1)
    resting = threading.Thread(target=scheduler.retry_later, args=(0, RetryDelay(0.0, 3600.0)), daemon=True)
    resting.start()
    wait_until(lambda: scheduler.sending_count == 1)
    third = threading.Thread(target=scheduler.next_chunk, daemon=True)
    third.start()
    third.join(0.1)
    assert third.is_alive() and scheduler.sending_count == 1
    scheduler.mark_stored(1)
    resting.join(60)
    third.join(60)
    assert not resting.is_alive() and not third.is_alive()


def test_a_closed_scheduler_returns_no_chunk() -> None:
    scheduler = new_scheduler(3, Clock())
    assert (scheduler.next_chunk(), scheduler.next_chunk()) == (0, 1)
    scheduler.close()
    scheduler.retry_later(0)
    scheduler.mark_stored(1)
    assert scheduler.next_chunk() is None
    scheduler.wait_until_begun(2)
    assert scheduler.reset([1]) == 2
    assert scheduler.next_chunk() == 0


def test_the_first_error_cancels_the_upload_and_no_chunk_follows() -> None:
    clock = Clock()
    scope = CancelScope()
    scheduler = UploadScheduler(UploadPlan(3, 1), scope, clock, 4)
    scheduler.reset([])
    assert scheduler.next_chunk() == 0
    exchange = Exchange(clock, scope.sleep, ExchangeStats(0, 0.0))
    scope.add(exchange)
    scope.cancel(Cancelled("first"))
    scope.cancel(Garbled("second"))
    assert str(exchange.cancel_error) == "first"
    assert scheduler.next_chunk() is None
    acts = (
        scope.raise_if_cancelled,
        lambda: scheduler.add_sent(0, 1),
        lambda: scope.sleep(60),
        lambda: scheduler.wait_until_begun(2),
        lambda: scheduler.retry_later(0, RetryDelay(0.0, 60.0)),
    )
    for act in acts:
        with pytest.raises(Cancelled, match="first"):
            act()
    with pytest.raises(Cancelled, match="first"):
        scope.add(exchange)


# --- the capabilities of the server ---


def test_user_settings_override_the_servers_and_those_the_defaults() -> None:
    answer = {"concurrent_uploads": 8, "retry_max_attempts": 10, "retry_initial_delay": 0.5, "max_file_size": 7}
    capabilities = ServerCapabilities.from_json(answer)
    assert (capabilities.connections, capabilities.max_file_size, capabilities.max_chunk_size) == (8, 7, None)
    settings = TransferSettings(retries=2, retry_delay=3.0)
    settings_used = capabilities.apply_to(settings, ())
    assert (settings_used.retries, settings_used.retry_delay) == (9, 0.5)
    assert capabilities.apply_to(settings, ("retries", "retry_delay")) == settings
    assert ServerCapabilities().apply_to(settings, ()) == settings
    assert ServerCapabilities().connections == 4


@pytest.mark.parametrize("value", [0, -1, "5", None, True, [], 1e400, float("nan")])
def test_invalid_capabilities_are_ignored(value: object) -> None:
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
def test_a_refused_chunk_size_becomes_the_servers_limit_or_half(
    refused: int, most: int | None, next_size: int | None
) -> None:
    assert smaller_chunk_size(refused, most) == next_size


def test_a_server_that_never_answered_is_not_unavailable() -> None:
    clock = Clock()
    availability = ServerAvailability(clock)
    assert availability.unavailable_s() is None
    availability.record_success()
    assert availability.unavailable_s() == 0.0
    clock.now += 7
    assert availability.unavailable_s() == 7.0
    availability.record_success()
    assert availability.unavailable_s() == 0.0
