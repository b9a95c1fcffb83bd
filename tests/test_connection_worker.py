"""One connection thread of a download: what it copies, reports and retries. Without a network, on its own clock."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dlpool import disk_errors, errors
from dlpool.errors import RetryRange
from dlpool.transfer.chunks import UNKNOWN_END, Chunk, ChunkMap
from dlpool.transfer.context import DownloadPlan, NetworkOutage, TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.planning import ProbeResult
from dlpool.transfer.retry import RetryDelay
from dlpool.transfer.scheduler import MAX_SHORT_ANSWERS, ChunkScheduler
from dlpool.transfer.worker import (
    LEAST_SPAN_S,
    MAX_SKIP,
    MAX_STALE,
    NETWORK_POLL_S,
    YIELD_S,
    ConnectionWorker,
    _open_writer,
    is_outside_chunk,
)
from tests.conftest import FAST
from tests.contexts import context_of
from tests.fakes import Clock, Events

DELAY_S = 0.0123456
SETTINGS = replace(FAST, connections=4, retries=3, retry_delay=DELAY_S, retry_max_delay=10.0)


class Quick(ChunkScheduler):
    """A scheduler whose pauses take no time, and are noted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock, 1000)
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.pauses.append(seconds)
            self.on_pause()
        self.scope.raise_if_cancelled()


class Memory:
    """A file to write to. ``fails``: what each write raises; ``closing``: what close raises."""

    def __init__(self, fails: Exception | None = None, closing: Exception | None = None) -> None:
        self.data = bytearray()
        self.closed = 0
        self._fails, self._closing = fails, closing

    def write(self, position: int, data: memoryview) -> None:
        if self._fails is not None:
            raise self._fails
        self.data[position : position + len(data)] = data

    def close(self) -> None:
        self.closed += 1
        if self._closing is not None:
            raise self._closing


class Pieces:
    """A reply that brings its body in pieces, and then ends; ``error`` is raised instead of the end."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self.status = 206
        self.closed = 0
        self.wanted: list[int] = []
        self.on_read: Callable[[], None] = lambda: None
        self._pieces = list(pieces)
        self._error = error

    def read(self, view: memoryview) -> int:
        assert len(self.wanted) < 1000, "read without end"
        self.wanted.append(len(view))
        self.on_read()
        if not self._pieces:
            if self._error is not None:
                raise self._error
            return 0
        piece = self._pieces.pop(0)
        if len(piece) > len(view):
            self._pieces.insert(0, piece[len(view) :])
            piece = piece[: len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A worker, and all that it works with."""

    def __init__(self, size: int = 100, *, has_ranges: bool = True, **settings: Any) -> None:
        self.clock, self.events = Clock(), Events()
        self.scheduler = Quick(self.clock)
        self.context = context_of(self.scheduler, self.clock, self.events, replace(SETTINGS, **settings))
        self.network = self.context.client.network_monitor
        self.file = Memory()
        place: Any = None
        self.plan = DownloadPlan(RemoteResource(size, '"v1"'), place, has_ranges, 0)
        self.worker = ConnectionWorker(self.context, self.plan)
        self.worker._writer = self.file  # type: ignore[assignment]
        self.chunk = Chunk(0, size, 0, 0)
        self.scheduler.load_plan(ChunkMap([self.chunk]), self.worker)

    def begin_at(self, position: int) -> None:
        """The chunk has been received up to ``position``, and a new attempt begins."""
        self.chunk.position = self.chunk.write_end = position
        self.worker._mark_request_start(self.chunk)

    def copy(self, reply: Pieces, start: int, length: int | None, **options: Any) -> None:
        answer = Answer(self.plan.resource, start, length, is_partial=True)
        self.worker._copy(reply, answer, self.chunk, **options)  # type: ignore[arg-type]

    def rest(self, error: RetryRange) -> RetryDelay:
        return self.worker._delay_after(self.chunk, error)

    def asked(self, ago_s: float, answered: bool = True) -> Exchange:
        """The latest request was sent ``ago_s`` seconds ago."""
        exchange = self.context.new_exchange(ExchangeStats(0, 0.0))
        exchange.sent_at = self.clock.now - ago_s
        exchange.answered_at = self.clock.now if answered else None
        self.worker._latest = exchange
        return exchange


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- what is copied ---


@pytest.mark.parametrize(
    ("at", "start", "length", "body"),
    [
        (0, 0, 100, [bytes(range(100))]),
        (0, 0, 100, [bytes(range(60)), bytes(range(60, 99)), bytes([99])]),
        (40, 40, 60, [bytes(range(40, 100))]),
        (40, 39, 61, [bytes(range(39, 100))]),  # a byte more than was asked for before it
        (40, 0, 100, [bytes([number]) for number in range(100)]),
        (99, 0, 100, [bytes(range(100))]),
        (40, 40, 1000, [bytes(range(40, 140))]),  # and some behind it
    ],
)
def test_the_bytes_of_an_answer_are_put_where_they_belong(
    bench: Bench, at: int, start: int, length: int, body: list[bytes]
) -> None:
    bench.file.data[:at] = bytes(range(at))
    bench.begin_at(at)
    reply = Pieces(*body)
    bench.copy(reply, start, length)
    assert bytes(bench.file.data) == bytes(range(100))
    assert (bench.chunk.is_done, bench.chunk.short_answers) == (True, 0)
    assert sum(min(wanted, 100) for wanted in reply.wanted) >= 100 - start
    assert 0 not in reply.wanted


@pytest.mark.parametrize(
    ("size", "at", "start", "length"),
    [
        (100, 40, 0, 40),  # it ends where the chunk begins
        (100, 40, 0, 10),
        (3 * MAX_SKIP, MAX_SKIP + 1, 0, 3 * MAX_SKIP),
    ],
)
def test_an_answer_of_other_bytes_is_refused_before_it_is_read(size: int, at: int, start: int, length: int) -> None:
    bench = Bench(size)
    bench.begin_at(at)
    reply = Pieces(b"x" * 100)
    with pytest.raises(errors.BadAnswer, match=f"bytes from {start} on, requested were those from {at}"):
        bench.copy(reply, start, length)
    assert reply.wanted == []


@pytest.mark.parametrize(("at", "start", "length"), [(40, 0, 41), (MAX_SKIP, 0, MAX_SKIP + 1)])
def test_an_answer_with_one_wanted_byte_far_in_it_is_used(at: int, start: int, length: int) -> None:
    bench = Bench(at + 1)
    bench.begin_at(at)
    bench.copy(Pieces(b"x" * at + b"y"), start, length)
    assert bench.file.data[-1:] == b"y"
    assert bench.chunk.is_done


@pytest.mark.parametrize(("at", "body"), [(0, [b"x" * 10]), (40, [b"x" * 39]), (40, []), (0, [])])
def test_a_body_that_ends_before_its_length_is_an_error(bench: Bench, at: int, body: list[bytes]) -> None:
    bench.begin_at(at)
    with pytest.raises(errors.ShortBody):
        bench.copy(Pieces(*body), 0, 100)
    assert bench.chunk.position == (10 if at == 0 and body else at)


def test_a_body_of_unknown_length_ends_the_file(bench: Bench) -> None:
    bench.chunk.end = UNKNOWN_END
    bench.copy(Pieces(b"x" * 70), 0, None)
    assert (bench.chunk.end, bench.chunk.position) == (70, 70)
    assert bytes(bench.file.data) == b"x" * 70


def test_an_answer_with_less_than_was_asked_for_is_counted_and_refused_in_the_end(bench: Bench) -> None:
    bench.begin_at(10)
    bench.copy(Pieces(b"x" * 5), 10, 5)
    assert (bench.chunk.position, bench.chunk.short_answers) == (15, 1)
    bench.chunk.short_answers = MAX_SHORT_ANSWERS
    bench.begin_at(15)
    with pytest.raises(errors.BadAnswer, match="keeps sending 5 of 85 requested bytes"):
        bench.copy(Pieces(b"x" * 5), 15, 5)
    bench.begin_at(20)
    bench.chunk.short_answers = MAX_SHORT_ANSWERS
    bench.copy(Pieces(b"x" * 80), 20, 80)  # the rest is no such answer


@pytest.mark.parametrize("length", [10, 11])
def test_a_dismissed_worker_stops_where_it_is(bench: Bench, length: int) -> None:
    reply = Pieces(b"x" * 10, b"y" * 90)
    reply.on_read = lambda: bench.scheduler.retire(bench.worker)
    bench.copy(reply, 0, 100 if length > 10 else 11)
    assert (bench.chunk.position, bench.chunk.short_answers, len(reply.wanted)) == (10, 0, 1)
    bench.copy(Pieces(b"z"), 10, 1)
    assert bench.chunk.position == 10


def test_others_see_that_a_body_is_received_while_it_is(bench: Bench) -> None:
    seen: list[int] = []
    reply = Pieces(b"x" * 100)
    reply.on_read = lambda: seen.append(bench.scheduler.others_receiving("other"))
    bench.copy(reply, 0, 100)
    assert seen == [1]


def test_reads_and_pauses_follow_the_rate_limit() -> None:
    bench = Bench(30_000)
    bench.context.client.rate_limit.rate = 20_000
    reply = Pieces(b"x" * 30_000)
    bench.copy(reply, 0, 30_000)
    assert set(reply.wanted) == {2000}
    assert bench.scheduler.pauses == pytest.approx([0.1 * (1 + number) for number in range(15)])


def test_no_more_is_read_than_a_thief_would_leave() -> None:
    bench = Bench(200 * 1024)
    reply = Pieces(b"x" * 200 * 1024)
    bench.copy(reply, 0, 200 * 1024)
    assert reply.wanted == [100 * 1024, 100 * 1024]
    bench = Bench(100 * 1024)
    reply = Pieces(b"x" * 1024)
    bench.copy(reply, 0, 1024)
    assert reply.wanted == [1024]


# --- what is written ---


@pytest.mark.parametrize(("limit", "is_refused"), [(None, False), (101, False), (100, False), (99, True), (50, True)])
def test_a_file_may_be_as_large_as_its_limit(limit: int | None, is_refused: bool) -> None:
    bench = Bench(max_file_size=limit)
    bench.begin_at(50)
    if is_refused:
        with pytest.raises(errors.PolicyRefused, match=f"larger than max_file_size, {limit} bytes"):
            bench.copy(Pieces(b"x" * 50), 50, 50)
        assert bench.scheduler.written() == 50
    else:
        bench.copy(Pieces(b"x" * 50), 50, 50)
        assert bench.chunk.is_done


def test_a_write_that_fails_moves_nothing(bench: Bench) -> None:
    bench.worker._writer = Memory(fails=errors.NoSpace("full"))  # type: ignore[assignment]
    with pytest.raises(errors.NoSpace):
        bench.copy(Pieces(b"x" * 100), 0, 100)
    assert (bench.chunk.position, bench.chunk.write_end) == (0, 0)
    bench.scheduler.scope.cancel(errors.Cancelled("the end"))
    bench.scheduler.wait_for_writes(0.0)
    assert bench.scheduler._writing == 0


def test_each_write_is_told_where_nobody_else_can_look(bench: Bench) -> None:
    told: list[int] = []
    bench.worker.after_write = lambda: told.append(bench.scheduler.written())
    bench.copy(Pieces(b"x" * 60, b"y" * 40), 0, 100)
    assert told == [60, 100]


class Part:
    """A part file whose descriptor cannot be opened, or is ``writer``."""

    def __init__(self, fault: OSError | None, writer: Memory | None = None) -> None:
        self.part = self
        self._fault, self._writer = fault, writer

    def writer(self) -> Memory | None:
        if self._fault is not None:
            raise disk_errors.fault_of(self._fault).raised("open f.part") from self._fault
        return self._writer


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (OSError(errno.EMFILE, "too many"), errors.OutOfDescriptors),
        (OSError(errno.ENFILE, "too many"), errors.OutOfDescriptors),
        (OSError(errno.EIO, "broken"), errors.DiskFailed),
    ],
)
def test_only_a_lack_of_descriptors_is_tried_again(bench: Bench, fault: OSError, kind: type[Exception]) -> None:
    place: Any = Part(fault)
    with pytest.raises(kind) as raised:
        _open_writer(replace(bench.plan, target=place))
    assert type(raised.value) is kind
    assert str(raised.value) == "open f.part"


def test_a_worker_opens_its_own_descriptor(bench: Bench) -> None:
    place: Any = Part(None, bench.file)
    bench.worker._plan = replace(bench.plan, target=place)
    bench.worker._writer = None
    bench.copy(Pieces(b"x" * 100), 0, 100)
    assert bytes(bench.file.data) == b"x" * 100


# --- what is reported ---


def test_a_worker_that_has_asked_nothing_has_no_figures(bench: Bench) -> None:
    assert (bench.worker.stats(), bench.worker.latest_answer_s(), bench.worker._since_sent_s()) == (
        ExchangeStats(0, 0.0),
        None,
        0.0,
    )
    exchange = bench.asked(2.0)
    exchange.received, exchange.waited_s = 5, 1.0
    assert (bench.worker.stats(), bench.worker.latest_answer_s(), bench.worker._since_sent_s()) == (
        ExchangeStats(5, 1.0),
        2.0,
        2.0,
    )


def test_a_range_is_reported_with_the_time_since_its_request(bench: Bench) -> None:
    bench.begin_at(40)
    bench.asked(1.23456789)
    bench.copy(Pieces(b"x" * 60), 40, 60)
    assert bench.events.named("range_fetched") == [{"seconds": 1.234568, "start": 40, "end": 100, "status": 206}]


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_body_whose_request_was_never_sent_is_not_reported(bench: Bench, is_asked: bool) -> None:
    if is_asked:
        bench.asked(1.0).sent_at = None
    bench.copy(Pieces(b"x" * 100), 0, 100)
    assert bench.events == []


@pytest.mark.parametrize(
    ("brought", "waited_s", "rate"),
    [(60, 3.0, 20.0), (1, 1.0, 1.0), (60, 0.0, 60 / LEAST_SPAN_S), (0, 3.0, None)],
)
def test_the_speed_is_that_of_the_attempt(bench: Bench, brought: int, waited_s: float, rate: float | None) -> None:
    exchange = bench.asked(10.0)
    exchange.waited_s = 7.0  # of earlier attempts
    bench.begin_at(40)
    bench.chunk.end = 40 + brought
    reply = Pieces(b"x" * brought)
    if not brought:
        bench.scheduler.retire(bench.worker)
    reply.on_read = lambda: setattr(exchange, "waited_s", 7.0 + waited_s)
    bench.copy(reply, 40, 60)
    assert bench.scheduler._rates.get(bench.worker) == rate


# --- what follows a failure ---


def test_a_retry_is_reported(bench: Bench) -> None:
    bench.begin_at(40)
    bench.asked(1.5)
    assert bench.rest(errors.ShortBody("short")) == RetryDelay(DELAY_S, 0.0)
    expected = {
        "label": "short_body",
        "error": "short",
        "start": 40,
        "end": 100,
        "attempt": 1,
        "delay_s": 0.012,
        "seconds": 1.5,
    }
    assert bench.events.named("range_retry") == [expected]
    assert bench.scheduler.retries == 1


def test_what_an_attempt_brought_is_counted_from_its_beginning(bench: Bench) -> None:
    exchange = bench.asked(10.0)
    exchange.waited_s = 7.0
    bench.begin_at(40)
    bench.chunk.position = 50
    bench.rest(errors.ShortBody("short"))
    assert (bench.chunk.failures, bench.chunk.slow_bytes) == (1, 10)  # the least rate is 1000 bytes/s
    bench = Bench(10_000)
    exchange = bench.asked(10.0)
    exchange.waited_s = 7.0
    bench.begin_at(40)
    bench.chunk.position, exchange.waited_s = 3040, 10.0
    bench.rest(errors.ShortBody("short"))
    assert bench.chunk.failures == 0  # 3000 bytes in 3 seconds


def test_a_stream_that_breaks_cannot_be_resumed() -> None:
    bench, error = Bench(has_ranges=False), errors.ShortBody("short")
    with pytest.raises(errors.StreamBroken) as raised:
        bench.rest(error)
    assert raised.value.__cause__ is error
    first = ConnectionWorker(bench.context)  # before there is a plan
    assert first._delay_after(bench.chunk, error) == RetryDelay(DELAY_S, 0.0)


def test_a_dismissed_worker_leaves_its_chunk_to_others(bench: Bench) -> None:
    bench.scheduler.retire(bench.worker)
    assert bench.rest(errors.ShortBody("short")) == RetryDelay(0.0, 0.0)
    assert (bench.scheduler.retries, bench.events) == (0, [])


@pytest.mark.parametrize("had_success", [False, True])
def test_dead_idle_connections_are_replaced_without_being_counted(bench: Bench, had_success: bool) -> None:
    stale = errors.ConnectionBroken("closed", is_stale=True)
    if had_success:
        for _ in range(MAX_STALE):
            bench.rest(stale)
        bench.copy(Pieces(b"x" * 10), 0, 10)
    for _ in range(MAX_STALE):
        assert bench.rest(stale) == RetryDelay(0.0, 0.0)
    assert bench.scheduler.retries == 0
    bench.begin_at(bench.chunk.position)
    assert bench.rest(stale) == RetryDelay(0.0, DELAY_S)
    assert bench.scheduler.retries == 1


def test_our_own_network_is_waited_for(bench: Bench) -> None:
    error = errors.NameNotResolved("no name", is_own_network=True)
    assert bench.rest(error) == RetryDelay(DELAY_S, 0.0)
    assert bench.events.named("network_away") == []
    bench.network.failed("h.test")
    bench.network.failed("other.test")
    assert bench.rest(error) == RetryDelay(NETWORK_POLL_S, 0.0)
    assert bench.events.named("network_away") == [{"error": "no name"}]
    assert bench.scheduler.retries == 1


@pytest.mark.parametrize("ends", ["an answer", "another error", "nothing"])
def test_the_time_without_a_network_is_limited_and_begins_again_when_it_works(ends: str) -> None:
    bench = Bench(network_wait=100.0)
    error = errors.NameNotResolved("no name", is_own_network=True)
    waits = []
    for step in range(3):
        bench.network.failed("h.test")
        bench.network.failed("other.test")
        waits.append(bench.rest(error).chunk_s)
        bench.clock.now += 99.0 if step == 0 else 1.0
        if step == 0 and ends == "an answer":
            bench.copy(Pieces(b"x" * 10), 0, 10)
            bench.begin_at(10)
        if step == 0 and ends == "another error":
            bench.rest(errors.ShortBody("short"))
    again = [NETWORK_POLL_S] * 3
    assert waits == ([*again[:2], DELAY_S] if ends == "nothing" else again)


def test_absence_is_measured_per_thread_and_for_less_than_its_limit() -> None:
    bench = Bench(network_wait=10.0)
    absence, error = NetworkOutage(bench.context), errors.Unreachable("away", is_own_network=True)
    for host in ("h.test", "other.test"):
        bench.network.failed(host)
    tolerated = []
    for seconds in (0.0, 9.5, 0.5):
        bench.clock.now += seconds
        tolerated.append(absence.is_tolerated(error))
    assert tolerated == [True, True, False]
    assert not absence.is_tolerated(errors.Unreachable("away"))
    assert absence.is_tolerated(error)


CAPACITY = errors.ServerBusy("busy")
COMPARED = errors.TooSlow("slower", is_comparison=True)


@pytest.mark.parametrize(
    ("connections", "error", "is_answered", "level"),
    [
        ("auto", CAPACITY, True, 2),
        ("auto", errors.ShortBody("short"), True, 4),
        ("auto", COMPARED, True, 4),
        ("auto", COMPARED, False, 2),  # the server did not even answer
        ("auto", errors.TooSlow("slow"), True, 2),
        (4, CAPACITY, True, 4),
        (4, errors.ShortBody("short"), True, 4),
    ],
)
def test_which_failures_say_that_the_host_wants_fewer_connections(
    connections: int | str, error: RetryRange, is_answered: bool, level: int
) -> None:
    bench = Bench(connections=connections)
    hosts = bench.context.client.host_connections
    hosts.join("h.test", 16, limit=16)
    bench.asked(1.0, answered=is_answered)
    bench.rest(error)
    assert hosts.level("h.test", 16) == level


@pytest.mark.parametrize(("error", "limits"), [(errors.OutOfDescriptors("too many"), [1]), (CAPACITY, [])])
def test_a_lack_of_descriptors_is_told_once(bench: Bench, error: RetryRange, limits: list[int]) -> None:
    bench.rest(error)
    bench.rest(error)
    assert [fields["connections"] for fields in bench.events.named("connections_limited")] == limits


def test_the_thread_rests_longer_each_time_that_no_further_connection_is_admitted(bench: Bench) -> None:
    refused = errors.NotAdmitted("refused")  # it does not count as an attempt
    assert [bench.rest(refused) for _ in range(3)] == [RetryDelay(0.0, DELAY_S * factor) for factor in (1, 2, 4)]
    assert bench.rest(errors.ShortBody("short")) == RetryDelay(DELAY_S, 0.0)
    assert bench.rest(refused) == RetryDelay(0.0, DELAY_S)
    bench.copy(Pieces(b"x" * 10), 0, 10)
    assert bench.rest(refused) == RetryDelay(0.0, DELAY_S)


@pytest.mark.parametrize(
    ("error", "has_idle", "rest"),
    [
        (COMPARED, True, RetryDelay(0.0, YIELD_S)),
        (COMPARED, False, RetryDelay(0.0, 0.0)),
        (errors.ShortBody("short"), True, RetryDelay(DELAY_S, 0.0)),
    ],
)
def test_a_chunk_whose_connection_was_too_slow_is_left_to_an_idle_thread(
    bench: Bench, error: RetryRange, has_idle: bool, rest: RetryDelay
) -> None:
    bench.scheduler._waiting = int(has_idle)
    assert bench.rest(error) == rest


def test_the_last_attempt_ends_the_job_with_its_cause(bench: Bench) -> None:
    cause = OSError("the cause")
    error = errors.ShortBody("short")
    error.__cause__ = cause
    for _ in range(3):
        bench.rest(error)
    with pytest.raises(errors.ShortBody) as raised:
        bench.rest(error)
    assert raised.value is error
    assert raised.value.__cause__ is cause
    assert len(bench.events.named("range_retry")) == 3


def test_an_error_that_takes_the_place_of_another_tells_it(bench: Bench) -> None:
    error = errors.ServerBusy("busy", retry_after_s=3600.0)
    with pytest.raises(errors.WaitTooLong) as raised:
        bench.rest(error)
    assert raised.value.__cause__ is error


# --- from beginning to end ---


def in_work(worker: ConnectionWorker) -> list[object]:
    """Return what other threads see of the worker's work."""
    return [worker.chunk, worker.exchange]


def opened(bench: Bench, reply: Pieces, start: int = 0, length: int | None = 100) -> ProbeResult:
    answer = Answer(bench.plan.resource, start, length, is_partial=True)
    given: Any = reply
    return ProbeResult(bench.plan, ChunkMap([bench.chunk]), given, answer)


class Openings:
    """What the first requests lead to, one after the other."""

    def __init__(self, *results: ProbeResult | RetryRange) -> None:
        self._results = list(results)

    def run(self, _exchange: Exchange) -> ProbeResult:
        result = self._results.pop(0)
        if isinstance(result, RetryRange):
            raise result
        return result


def first_worker(bench: Bench) -> tuple[ConnectionWorker, Quick]:
    """A worker without a plan, and its scheduler."""
    scheduler = Quick(bench.clock)
    return ConnectionWorker(replace(bench.context, scheduler=scheduler)), scheduler


def test_the_first_request_is_repeated_after_a_pause(bench: Bench) -> None:
    worker, scheduler = first_worker(bench)
    seen: list[object] = []

    def pass_time() -> None:
        seen.append(worker.exchange)
        bench.clock.now += 1.0

    scheduler.on_pause = pass_time
    bench.chunk.owner = None
    result = opened(bench, Pieces())
    failures = [errors.NotAdmitted("refused"), errors.NotAdmitted("refused again")]
    assert worker.run_probe(Openings(*failures, result)) is result  # type: ignore[arg-type]
    assert scheduler.pauses == [DELAY_S, 2 * DELAY_S]
    assert seen == [None, None]  # the watch ends no request that has failed already
    assert worker.chunk is bench.chunk
    assert bench.chunk.owner is worker
    assert scheduler.others_receiving("other") == 1
    assert worker._plan is bench.plan


def test_a_download_that_is_stopped_before_it_began_says_why(bench: Bench) -> None:
    worker, scheduler = first_worker(bench)
    scheduler.on_pause = lambda: scheduler.scope.cancel(errors.Cancelled("cancelled"))
    with pytest.raises(errors.Cancelled, match="cancelled"):
        worker.run_probe(Openings(errors.NotAdmitted("refused")))  # type: ignore[arg-type]
    with pytest.raises(errors.Cancelled, match="cancelled"):
        worker.run_probe(Openings())  # type: ignore[arg-type]


def test_no_request_is_made_after_the_end(bench: Bench) -> None:
    bench.scheduler.scope.cancel(errors.Cancelled("cancelled"))
    with pytest.raises(errors.Cancelled):
        bench.worker._new_exchange()


def test_a_worker_copies_what_the_first_request_brings_and_closes_its_file(bench: Bench) -> None:
    reply, file = Pieces(b"x" * 100), Memory()
    bench.worker.chunk = bench.chunk
    bench.worker.run(opened(bench, reply), file)  # type: ignore[arg-type]
    assert bytes(file.data) == b"x" * 100
    assert (reply.closed, file.closed) == (1, 1)
    assert (bench.scheduler.is_over, bench.scheduler.scope.error) == (True, None)
    assert in_work(bench.worker) == [None, None]
    assert bench.scheduler.others_receiving("other") == 0
    assert bench.context.evidence.spans() == [ByteRange(0, 100)]


@pytest.mark.parametrize(
    ("error", "kind"), [(errors.NoSpace("full"), errors.NoSpace), (ZeroDivisionError("why"), errors.InternalError)]
)
def test_every_error_of_a_worker_ends_the_download(bench: Bench, error: Exception, kind: type[Exception]) -> None:
    reply, file = Pieces(error=error), Memory()
    bench.worker.chunk = bench.chunk
    bench.worker.run(opened(bench, reply), file)  # type: ignore[arg-type]
    assert type(bench.scheduler.scope.error) is kind
    assert (reply.closed, file.closed) == (1, 1)
    assert bench.chunk.owner is None


def test_a_file_that_cannot_be_closed_ends_the_download() -> None:
    bench = Bench(has_ranges=True)
    bench.scheduler.scope.cancel = lambda error: bench.events.append(("stop", {"error": error}))  # type: ignore[method-assign]
    fault = errors.DiskFailed("close")
    bench.worker.chunk = bench.chunk
    bench.worker.run(opened(bench, Pieces(b"x" * 100)), Memory(closing=fault))  # type: ignore[arg-type]
    assert bench.events.named("stop") == [{"error": fault}]


def test_what_failed_is_given_back_for_later(bench: Bench) -> None:
    reply = Pieces(b"x" * 10, error=errors.ShortBody("short"))
    bench.worker.chunk, bench.worker.exchange = bench.chunk, bench.asked(1.0)
    assert bench.worker._fetch_chunk(bench.chunk, opened(bench, reply)) == 0.0
    assert (bench.chunk.owner, bench.chunk.position, bench.chunk.ready_at) == (None, 10, bench.clock.now + DELAY_S)
    assert (bench.chunk.failures, bench.chunk.slow_bytes) == (1, 10)
    assert in_work(bench.worker) == [None, None]
    assert (reply.closed, bench.scheduler.others_receiving("other")) == (1, 0)
    assert bench.context.evidence.spans() == [ByteRange(0, 10)]
    reply = Pieces(error=errors.NotAdmitted("refused"))
    bench.clock.now += 1.0
    assert bench.scheduler.take_chunk(bench.worker) is bench.chunk
    assert bench.worker._fetch_chunk(bench.chunk, opened(bench, reply, 10, 90)) == DELAY_S


@pytest.mark.parametrize(
    ("start", "length", "position", "expected"),
    [
        (0, 100, 0, False),
        (0, 100, 99, False),
        (0, 100, 100, True),
        (10, 5, 9, True),
        (10, 5, 14, False),
        (10, 5, 15, True),
        (0, None, 99, False),
        (50, None, 49, True),
    ],
)
def test_a_first_answer_of_bytes_that_are_there_is_not_copied(
    bench: Bench, start: int, length: int | None, position: int, expected: bool
) -> None:
    bench.chunk.end = 200
    bench.chunk.position = bench.chunk.write_end = position
    answer = Answer(bench.plan.resource, start, length, is_partial=True)
    assert is_outside_chunk(answer, bench.chunk) is expected
    reply = Pieces(b"x" * 200)
    bench.worker._receive(bench.chunk, ProbeResult(bench.plan, ChunkMap([bench.chunk]), reply, answer))  # type: ignore[arg-type]
    assert (reply.wanted == []) is expected
    assert reply.closed == 1


# --- what is asked for ---


class Server:
    """Answers requests for ranges: "whole" or "part", one after the other. ``asked``: what was asked, and If-Range."""

    def __init__(self, bench: Bench, *answers: str, answer_s: float | None = 2.0) -> None:
        self.asked: list[tuple[ByteRange | None, str | None]] = []
        self.replies: list[Pieces] = []
        self._bench, self._answers, self._answer_s = bench, list(answers), answer_s

    def __call__(
        self,
        _context: TransferContext,
        exchange: Exchange,
        asked: ByteRange | None,
        known: RemoteResource,
        if_range: str | None,
        **_: Any,
    ) -> tuple[Pieces, Answer]:
        self.asked.append((asked, if_range))
        if self._answer_s is not None:
            exchange.sent_at, exchange.answered_at = self._bench.clock.now - self._answer_s, self._bench.clock.now
        self.replies.append(Pieces(b"x" * 100))
        is_part = self._answers.pop(0) == "part"
        start, end = asked if asked is not None and is_part else (0, 100)
        return self.replies[-1], Answer(known, start, end - start, is_partial=is_part)


def served(bench: Bench, patch: pytest.MonkeyPatch, *answers: str, answer_s: float | None = 2.0) -> Server:
    server = Server(bench, *answers, answer_s=answer_s)
    patch.setattr("dlpool.transfer.worker.request_range", server)
    return server


def test_what_is_missing_of_a_chunk_is_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served(bench, monkeypatch, "part")
    bench.begin_at(40)
    bench.scheduler.sleep(bench.worker._fetch_chunk(bench.chunk))
    assert server.asked == [(ByteRange(40, 100), '"v1"')]
    assert (bench.scheduler.is_over, server.replies[0].closed) == (True, 1)


def test_a_server_without_ranges_is_asked_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(has_ranges=False)
    server = served(bench, monkeypatch, "whole")
    bench.worker._fetch_chunk(bench.chunk)
    assert [asked for asked, _ in server.asked] == [None]
    assert bench.scheduler.is_over


def test_a_server_that_does_not_know_if_range_is_asked_without_it_from_then_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = served(bench, monkeypatch, "whole", "part", "part")
    bench.scheduler._map.chunks.append(Chunk(100, 150, 100, 100))
    bench.worker._fetch_chunk(bench.chunk)
    bench.worker._fetch_chunk(bench.scheduler.take_chunk(bench.worker))
    assert server.asked == [(ByteRange(0, 100), '"v1"'), (ByteRange(0, 100), None), (ByteRange(100, 150), None)]
    assert [reply.closed for reply in server.replies] == [1, 1, 1]


def test_a_server_that_sends_all_whatever_is_asked_for_is_at_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = served(bench, monkeypatch, "whole", "whole")
    bench.worker._fetch_chunk(bench.chunk)
    assert len(server.asked) == 2
    assert [reply.closed for reply in server.replies] == [1, 1]
    (retry,) = bench.events.named("range_retry")
    assert (retry["label"], "although a range was requested" in retry["error"]) == ("protocol", True)


@pytest.mark.parametrize(
    ("connections", "answer_s", "usual_s"), [("auto", 2.0, 2.0), ("auto", None, None), (4, 2.0, None)]
)
def test_the_time_of_an_answer_counts_where_the_number_of_connections_is_tried(
    connections: int | str, answer_s: float | None, usual_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(connections=connections)
    hosts = bench.context.client.host_connections
    hosts.join("h.test", 16, limit=16)
    served(bench, monkeypatch, "part", answer_s=answer_s)
    bench.worker._fetch_chunk(bench.chunk)
    assert hosts._hosts["h.test"].control._usual_latency_s == usual_s


def test_a_first_request_that_fails_brought_nothing() -> None:
    bench = Bench(retries=0)
    error = errors.ShortBody("short")
    with pytest.raises(errors.ShortBody) as raised:
        first_worker(bench)[0].run_probe(Openings(error))  # type: ignore[arg-type]
    assert raised.value is error  # and not one with advice for servers that bring a little


def test_a_worker_works_until_nothing_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served(bench, monkeypatch, "part", "part")
    other = Chunk(100, 150, 100, 100)
    bench.scheduler._map.chunks.append(other)
    bench.scheduler.release_chunk(bench.chunk)
    bench.worker.run(None, bench.file)  # type: ignore[arg-type]
    assert [asked for asked, _ in server.asked] == [ByteRange(0, 100), ByteRange(100, 150)]
    assert (bench.scheduler.is_over, bench.scheduler.scope.error, bench.file.closed) == (True, None, 1)


def test_a_worker_that_is_refused_pauses_before_it_asks_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served(bench, monkeypatch, "part")
    refusals = [errors.NotAdmitted("refused")]

    def ask(*arguments: Any, **options: Any) -> tuple[Pieces, Answer]:
        if refusals:
            raise refusals.pop()
        return server(*arguments, **options)

    monkeypatch.setattr("dlpool.transfer.worker.request_range", ask)
    bench.scheduler.release_chunk(bench.chunk)
    bench.worker.run(None, bench.file)  # type: ignore[arg-type]
    assert (bench.scheduler.pauses, bench.scheduler.is_over) == ([DELAY_S], True)


def test_others_see_which_chunk_is_in_work(bench: Bench) -> None:
    seen: list[object] = []
    reply = Pieces(b"x" * 100)
    reply.on_read = lambda: seen.append(bench.worker.chunk)
    bench.worker._fetch_chunk(bench.chunk, opened(bench, reply))
    assert seen == [bench.chunk]


def test_each_attempt_is_judged_by_what_it_brought_itself(bench: Bench) -> None:
    bench.chunk.position = bench.chunk.write_end = 40
    reply = Pieces(b"x" * 10, error=errors.ShortBody("short"))
    bench.worker._fetch_chunk(bench.chunk, opened(bench, reply, 40, 60))
    assert (bench.chunk.position, bench.chunk.slow_bytes) == (50, 10)
