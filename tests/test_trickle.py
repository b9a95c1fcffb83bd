"""Servers that bring a little, again and again: attempts are counted against progress, so that a download ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.chunks import Chunk, ChunkMap
from dlpool.transfer.retry import RangeAttempt
from dlpool.transfer.scheduler import MAX_REPLACED, MAX_SHORT_ANSWERS, ChunkScheduler
from tests.conftest import Fetcher, make_data
from tests.handlers import DATA, Drip, Serve, check_file
from tests.origin import Connection, File, Handler, Request

LEAST = 1024  # bytes/s: low_speed_limit of these tests
MINIMUM: dict[str, Any] = {"low_speed_limit": LEAST, "low_speed_time": 1.0, "read_timeout": 1.0}
RETRIES = 2


def another_version_each_time(request: Request, connection: Connection) -> None:
    Drip(50, 0.1, etag=f'"v{request.number}"')(request, connection)


ENDLESS: dict[str, tuple[Handler, type[errors.DlpoolError] | tuple[type[errors.DlpoolError], ...]]] = {
    "slow": (Drip(50, 0.1), errors.TooSlow),
    "trickle, then a reset": (Drip(50, 0.1, blocks=6, end="reset"), (errors.ConnectionBroken, errors.TooSlow)),
    "trickle, then a short body": (Drip(50, 0.1, blocks=6, end="close"), errors.RetryRange),
    "trickle, then silence": (Drip(50, 0.1, blocks=6, end="silence"), (errors.TimedOut, errors.TooSlow)),
    "a byte, then a reset": (Drip(1, blocks=1, end="reset"), errors.ConnectionBroken),
    "some bytes, then a short body": (Drip(500, blocks=1, end="close"), errors.RetryRange),
    "ranges of a byte": (Drip(1, cap=1), (errors.BadAnswer, errors.TooSlow)),
    "ranges of some bytes": (Drip(100, cap=100), (errors.BadAnswer, errors.TooSlow)),
    "ranges of a byte, each on a new connection": (Drip(1, cap=1, end="close"), (errors.BadAnswer, errors.TooSlow)),
    "a stream that trickles": (Drip(50, 0.1, serves_ranges=False), errors.TooSlow),
    "another version each time": (another_version_each_time, (errors.RestartFile, errors.TooSlow)),
}


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_server_below_the_minimum_speed_is_given_up(
    name: str, connections: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    handler, expected = ENDLESS[name]
    origin = serve(handler)
    with pytest.raises(expected) as caught:
        fetch(f"{origin.url}/f", tmp_path / "f", connections=connections, retries=RETRIES, network=MINIMUM)
    answers = MAX_SHORT_ANSWERS if "ranges" in name else 0
    assert len(origin.requests) <= 2 * connections * (answers + 3 * (RETRIES + 1))
    if "slow" in str(caught.value):
        assert "lower low_speed_limit" in str(caught.value)
        assert "deadline" in str(caught.value)


SMALL = make_data(16_000)
PATIENT: dict[str, tuple[Handler, bytes]] = {
    "slow, above the limit": (Drip(1000, 0.1, data=SMALL), SMALL),
    "slow, above the limit, and reset again and again": (Drip(1000, 0.05, blocks=4, end="reset", data=SMALL), SMALL),
    "slow, above the limit, and cut again and again": (Drip(1000, 0.05, blocks=4, end="close", data=SMALL), SMALL),
    "fast, and reset again and again": (Drip(30_000, blocks=1, end="reset"), DATA),
    "ranges of some thousand bytes": (Drip(4096, cap=4096, data=SMALL), SMALL),
    "a tiny file by ranges of a byte": (Drip(1, cap=1, data=SMALL[:20]), SMALL[:20]),
}


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("name", PATIENT)
def test_progress_at_the_minimum_speed_is_never_given_up(
    name: str, connections: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    handler, data = PATIENT[name]
    fetch(f"{serve(handler).url}/f", tmp_path / "f", connections=connections, retries=1, network=MINIMUM)
    check_file(tmp_path / "f", data)


def test_any_byte_is_progress_where_there_is_no_minimum(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = DATA[:60]
    origin = serve(Drip(1, blocks=1, end="reset", data=data))
    fetch(f"{origin.url}/f", tmp_path / "f", retries=0, network={**MINIMUM, "low_speed_limit": 0})
    check_file(tmp_path / "f", data)
    assert len(origin.requests) == len(data)


def test_a_trickle_on_each_connection_excuses_none_of_them(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """One trickling connection is no sign that the server only admits no further one."""
    trickle, lock = Drip(50, 0.1), threading.Semaphore(1)

    def handle(request: Request, connection: Connection) -> None:
        if not lock.acquire(blocking=False):
            connection.answer(503)
            return
        try:
            trickle(request, connection)
        finally:
            lock.release()

    with pytest.raises(errors.RetryRange):
        fetch(f"{serve(handle).url}/f", tmp_path / "f", retries=RETRIES, network=MINIMUM)


def test_one_good_connection_excuses_those_that_are_refused(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file, free = File(DATA, block=8 * 1024, pause_s=0.01), threading.Semaphore(1)

    def handle(request: Request, connection: Connection) -> None:
        if not free.acquire(blocking=False):
            connection.answer(503)
            return
        try:
            file(request, connection)
        finally:
            free.release()

    options = {"retries": 2, "retry_delay": 0.2, "retry_max_delay": 0.5}
    fetch(f"{serve(handle).url}/f", tmp_path / "f", **options, network=MINIMUM)
    check_file(tmp_path / "f")


# --- the rule ---


@pytest.mark.parametrize(
    ("brought", "waited_s", "least_rate", "expected"),
    [
        (0, 0.0, 0, False),
        (1, 0.0, 0, True),
        (1, 100.0, 0, True),
        (999, 0.0, 1000, False),
        (1000, 0.0, 1000, True),
        (1000, 1.0, 1000, True),
        (1999, 2.0, 1000, False),
        (2000, 2.0, 1000, True),
        (10**9, 3600.0, 1000, True),
    ],
)
def test_an_attempt_is_progress_from_the_minimum_speed_on(
    brought: int, waited_s: float, least_rate: int, expected: bool
) -> None:
    assert RangeAttempt(brought, waited_s).is_progress(least_rate) is expected


def scheduler(*others: Chunk, least_rate: int = 1000) -> tuple[ChunkScheduler, Chunk]:
    """A scheduler at time 100 with a free chunk of "me", and the chunks of others."""
    made = ChunkScheduler(lambda: 100.0, least_rate)
    chunk = Chunk(0, 10_000, 0, 0)
    made.load_plan(ChunkMap([chunk, *others]), "me")
    return made, chunk


@pytest.mark.parametrize(
    ("attempts", "counted"),
    [
        ([(0, 0.1)] * 3, 3),
        ([(500, 1.0)] * 3, 3),
        ([(500, 1.0), (500, 1.0), (1000, 1.0)], 0),
        ([(1000, 1.0), (500, 1.0)], 1),
    ],
)
def test_attempts_without_progress_are_counted_in_a_row(attempts: list[tuple[int, float]], counted: int) -> None:
    made, chunk = scheduler()
    failures = [made.count_failure(chunk, errors.ShortBody("short"), RangeAttempt(*attempt)) for attempt in attempts]
    assert failures[-1].attempts == counted
    row = attempts[len(attempts) - counted :] if counted else []
    assert failures[-1].slow_bytes == sum(brought for brought, _ in row)


@pytest.mark.parametrize(
    ("other", "is_excused"),
    [
        pytest.param(Chunk(10_000, 20_000, 15_000, 15_000, "other", taken_position=10_000), True, id="brings bytes"),
        pytest.param(
            Chunk(10_000, 20_000, 15_000, 15_000, "other", taken_position=10_000, rate=999.0), False, id="trickles"
        ),
        pytest.param(
            Chunk(10_000, 20_000, 10_999, 10_999, "other", taken_position=10_000), False, id="brought too little yet"
        ),
        pytest.param(
            Chunk(10_000, 20_000, 15_000, 15_000, "other", taken_position=15_000), False, id="brought nothing itself"
        ),
        pytest.param(Chunk(10_000, 20_000, 15_000, 15_000, taken_position=10_000), False, id="has no owner"),
    ],
)
def test_only_a_connection_that_makes_progress_excuses_another(other: Chunk, is_excused: bool) -> None:
    made, chunk = scheduler(other)
    made.begin_write(other, 100)
    made.commit_write(other, 100)  # bytes came just now
    other.position = other.write_end = other.position - 100
    failure = made.count_failure(chunk, errors.ServerBusy("503"), RangeAttempt(0, 0.0))
    assert failure.attempts == (0 if is_excused else 1)


def test_a_comparison_excuses_an_attempt_only_for_a_time() -> None:
    made, chunk = scheduler()
    error = errors.TooSlow("slower than its siblings", is_comparison=True)
    chunk.replacements = MAX_REPLACED
    assert made.count_failure(chunk, error, RangeAttempt(0, 1.0)).attempts == 0
    chunk.replacements = MAX_REPLACED + 1
    assert made.count_failure(chunk, error, RangeAttempt(0, 1.0)).attempts == 1
