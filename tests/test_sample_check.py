"""The samples that are asked for again at the end: what is compared, what is tried again, what ends the download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.sample_check import MAX_STALE, NETWORK_POLL_S, SampleCheck, is_same_span
from dlpool.transfer.scheduler import ChunkScheduler
from tests.conftest import FAST, make_data
from tests.contexts import context_of
from tests.fakes import Clock, Events

DATA = make_data(200_000)
DELAY_S = 0.0123456


@dataclass
class Pieces:
    """A reply that brings ``data`` in pieces of ``piece`` bytes, and then ends."""

    data: bytes
    piece: int = 10**6
    closed: int = 0
    wanted: list[int] = field(default_factory=list)

    def read(self, view: memoryview) -> int:
        assert len(self.wanted) < 1000, "read without end"
        self.wanted.append(len(view))
        size = min(len(view), self.piece, len(self.data))
        view[:size], self.data = self.data[:size], self.data[size:]
        return size

    def close(self) -> None:
        self.closed += 1


@dataclass
class File:
    """A part file, and a descriptor of it."""

    data: bytes = DATA
    closed: int = 0

    @property
    def path(self) -> Path:
        return Path("/folder/f")

    def reader(self) -> File:
        return self

    def read(self, position: int, size: int) -> bytes:
        return self.data[position : position + size]

    def close(self) -> None:
        self.closed += 1


class Resting(ChunkScheduler):
    """A scheduler whose rests take no time, and are noted."""

    def __init__(self) -> None:
        super().__init__(lambda: 100.0)
        self.rests: list[float] = []
        self.on_rest: Callable[[], None] = lambda: None
        self.scope.sleep = self._sleep  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.on_rest()
        self.scope.raise_if_cancelled()


class Bench:
    """A check of two samples, and what the server answers to each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any, **settings: Any) -> None:
        self.clock, self.events = Clock(), Events()
        self.scheduler = Resting()
        chosen = replace(FAST, retries=2, retry_delay=DELAY_S, retry_max_delay=10.0, **settings)
        self.context = context_of(self.scheduler, self.clock, self.events, chosen)
        self.network = self.context.client.network_monitor
        for start in (0, 100_000):
            self.context.evidence.begin(start).end = start + 1000
        self.file = File()
        place: Any = self.file
        self.plan = DownloadPlan(RemoteResource(len(DATA)), place, True, 0)
        self.check = SampleCheck(self.context, self.plan)
        self.asked: list[ByteRange] = []
        self.replies: list[Pieces] = []
        self.exchanges: list[object] = []
        self._answers = list(answers)
        monkeypatch.setattr("dlpool.transfer.sample_check.request_range", self._ask)

    def _ask(
        self, _context: TransferContext, exchange: Exchange, span: ByteRange, known: RemoteResource
    ) -> tuple[Pieces, Answer]:
        assert self.check.exchange is exchange
        self.asked.append(span)
        self.exchanges.append(exchange)
        exchange.received += 7
        result = self._answers.pop(0) if self._answers else DATA
        if isinstance(result, Exception):
            raise result
        whole = result is None
        self.replies.append(Pieces((DATA if whole else result)[span.start : span.end]))
        return self.replies[-1], Answer(known, span.start, span.end - span.start, is_partial=not whole)


# --- one sample ---


@pytest.mark.parametrize(
    ("span", "start", "length", "sent", "expected"),
    [
        (ByteRange(0, 10), 0, 10, DATA[:10], True),
        (ByteRange(50, 60), 50, 10, DATA[50:60], True),
        (ByteRange(50, 60), 40, 20, DATA[40:60], True),  # more than was asked for, before it
        (ByteRange(50, 60), 40, 500, DATA[40:540], True),  # and behind it
        (ByteRange(50, 60), 50, None, DATA[50:], True),
        (ByteRange(50, 60), 50, None, DATA[50:60], True),
        (ByteRange(50, 60), 40, None, DATA[40:60], True),
        (ByteRange(50, 60), 40, 500, DATA[40:60] + b"?" * 480, True),  # what is behind it is not compared
        (ByteRange(50, 60), 50, 4, DATA[50:54], True),  # the beginning of it
        (ByteRange(50, 60), 40, 11, DATA[40:51], True),
        (ByteRange(50, 60), 50, 10, DATA[50:59] + b"?", False),
        (ByteRange(50, 60), 50, 10, DATA[51:61], False),
        (ByteRange(50, 60), 50, 4, DATA[50:53] + b"?", False),
        (ByteRange(0, 150_000), 0, 150_000, DATA[:150_000], True),
        (ByteRange(0, 150_000), 0, 150_000, DATA[:149_999] + b"?", False),
    ],
)
@pytest.mark.parametrize("piece", [7, 10**6])
def test_a_sample_is_compared_with_its_place_in_the_file(
    span: ByteRange, start: int, length: int | None, sent: bytes, expected: bool, piece: int
) -> None:
    if piece * 900 < len(sent):
        piece = 1000
    reply, reader = Pieces(sent, piece), File()
    answer = Answer(RemoteResource(len(DATA)), start, length, is_partial=True)
    assert is_same_span(reply, answer, span, reader) is expected  # type: ignore[arg-type]
    assert 0 not in reply.wanted


@pytest.mark.parametrize(
    ("length", "sent"),
    [(10, b""), (10, DATA[40:49]), (20, DATA[40:55]), (10, DATA[40:50])],
    ids=["nothing", "less", "a part", "only what is before it"],
)
def test_a_sample_that_ends_early_proves_nothing(length: int, sent: bytes) -> None:
    answer = Answer(RemoteResource(len(DATA)), 40, length, is_partial=True)
    reply: Any = Pieces(sent)
    reader: Any = File()
    with pytest.raises(errors.ShortBody):
        is_same_span(reply, answer, ByteRange(50, 60), reader)


# --- the check ---


@pytest.mark.parametrize(
    ("has_ranges", "responses", "etag", "is_needed"),
    [(True, 2, None, True), (True, 1, None, False), (False, 2, None, False), (True, 2, '"v1"', False)],
)
def test_only_what_was_joined_without_a_validator_is_checked(
    has_ranges: bool, responses: int, etag: str | None, is_needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(monkeypatch)
    del bench.context.evidence._received[responses:]
    plan = replace(bench.plan, has_ranges=has_ranges, resource=RemoteResource(len(DATA), etag))
    assert SampleCheck(bench.context, plan).is_needed is is_needed


def test_all_samples_are_asked_for_once_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    assert (bench.check.received, bench.check.exchange) == (0, None)
    bench.check.run()
    assert len(bench.asked) > 1
    assert bench.events == [("samples_compared", {"path": "/folder/f"})]
    assert [reply.closed for reply in bench.replies] == [1] * len(bench.asked)
    assert (bench.check.exchange, bench.file.closed, bench.scheduler.rests) == (None, 1, [])
    assert bench.check.received == 7 * len(bench.asked)


@pytest.mark.parametrize(
    ("answer", "message"), [(bytes(len(DATA)), "changed during the download"), (None, "stopped serving ranges")]
)
def test_a_difference_restarts_the_file(answer: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, DATA, answer)
    with pytest.raises(errors.RemoteChanged, match=message):
        bench.check.run()
    assert [reply.closed for reply in bench.replies] == [1, 1]
    assert (bench.check.exchange, bench.file.closed) == (None, 1)


def test_a_failed_request_is_repeated_after_a_rest_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    short, busy = errors.ShortBody("short"), errors.ServerBusy("busy")
    bench = Bench(monkeypatch, short, busy, DATA, short)
    seen: list[object] = []
    bench.scheduler.on_rest = lambda: seen.append(bench.check.exchange)
    bench.check.run()
    assert seen == [None] * 3  # nobody ends a request that has failed already
    assert bench.scheduler.rests == [DELAY_S, 2 * DELAY_S, DELAY_S]
    span, later = bench.asked[0], bench.asked[3]
    assert bench.asked[:5] == [span, span, span, later, later]
    first = {
        "label": "short_body",
        "error": "short",
        "start": span.start,
        "end": span.end,
        "attempt": 1,
        "delay_s": 0.012,
        "seconds": 0.0,
    }
    retries = bench.events.named("range_retry")
    assert retries[0] == first
    assert [retry["attempt"] for retry in retries] == [1, 2, 1]


def test_too_many_failures_end_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, *[errors.ShortBody(f"short {number}") for number in range(5)])
    with pytest.raises(errors.ShortBody, match="short 2"):
        bench.check.run()
    assert (len(bench.asked), bench.file.closed, bench.check.exchange) == (3, 1, None)
    error = errors.ServerBusy("busy", retry_after_s=3600.0)
    bench = Bench(monkeypatch, error)
    with pytest.raises(errors.WaitTooLong) as raised:
        bench.check.run()
    assert raised.value.__cause__ is error


def test_dead_idle_connections_are_replaced_without_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = errors.ConnectionBroken("closed", is_stale=True)
    bench = Bench(monkeypatch, *[stale] * (MAX_STALE + 1))
    bench.check.run()
    assert bench.scheduler.rests == [DELAY_S]


def test_our_own_network_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    away = errors.NameNotResolved("no name", is_own_network=True)
    bench = Bench(monkeypatch, away, away, away, away, network_wait=100.0)
    for host in ("h.test", "other.test"):
        bench.network.failed(host)
    bench.check.run()
    assert bench.scheduler.rests == [NETWORK_POLL_S] * 4
    assert bench.events.named("network_away") == [{"error": "no name"}] * 4


def test_a_stopped_download_asks_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    bench.scheduler.scope.cancel(errors.Cancelled("cancelled"))
    with pytest.raises(errors.Cancelled):
        bench.check.run()
    assert (bench.asked, bench.file.closed) == ([], 1)


@pytest.mark.parametrize(("ago_s", "is_ended"), [(None, False), (29.5, False), (30.0, True), (31.0, True)])
def test_a_request_for_a_sample_has_a_time_limit(
    ago_s: float | None, is_ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the sum of ``connect_timeout``, 5 s, and ``read_timeout``, 10 s."""
    bench = Bench(monkeypatch)
    bench.check.abort_if_overdue()
    exchange = bench.check.exchange = Exchange(bench.clock, bench.scheduler.sleep, ExchangeStats(0, 0.0))
    exchange.sent_at = None if ago_s is None else bench.clock.now - ago_s
    bench.check.abort_if_overdue()
    assert isinstance(exchange.cancel_error, errors.TimedOut) is is_ended
