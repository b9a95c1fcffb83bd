"""Trying out a server: what it says of a file, and what it really does. Nothing is
written to disk.

Makes requests as a download does; how many connections are admitted is found by holding
several answers at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from functools import partial

from dlpool import threads
from dlpool.config import NetworkSettings
from dlpool.errors import DlpoolError, NoThread, RetryRange, TimedOut
from dlpool.transfer.http.answer import (
    RANGE_REFUSALS,
    Answer,
    ByteRange,
    is_empty_file,
    read_answer,
)
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.headers import http_date
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply, Source

MIB = 1024 * 1024
SAMPLE = 4 * MIB  # bytes that the speed is measured by
SAMPLE_S = 5.0  # for how long at most
LIMIT_S = 10.0  # of one request with what is read of its body
MAX_CONNECTIONS = 8  # that are tried at once
SETTLE_S = (
    0.5  # until a server has seen that we closed a connection, and counts it no more
)
_OTHER_VERSION = {
    True: '"not-the-version-of-this-file"',
    False: "Thu, 01 Jan 1970 00:00:00 GMT",
}  # ETag, or date


class IfRange(Enum):
    """What a server makes of ``If-Range`` (RFC 9110 section 13.1.5)."""

    HONOURED = "honoured"
    IGNORED = "a part is sent also of another version"
    REFUSED = "the whole is sent also of the same version"
    UNTRIED = "not tried"


@dataclass(frozen=True)
class InspectionReport:
    """What was found. ``head``: the status of HEAD, or why there is none; ``refusals``:
    of connections, by reason.

    ``clock_offset_s``: the server's clock less ours, if it tells. Speed is ``received``
    bytes in ``seconds``.
    """

    head: int | str
    resource: RemoteResource
    host: str
    is_partial: bool
    answer_s: float
    received: int
    seconds: float
    clock_offset_s: float | None = None
    if_range: IfRange = IfRange.UNTRIED
    connections_tried: int = 1
    refusals: tuple[str, ...] = ()

    @property
    def connections(self) -> int:
        """How many connections were answered at once."""
        return self.connections_tried - len(self.refusals)


class ServerInspection:
    """Used by one thread, which starts others."""

    def __init__(self, url: str, network: NetworkSettings) -> None:
        """Raises UsageError for a URL that is none, ConfigurationError for a proxy that
        is none."""
        self._client = HttpClient(
            network,
            MAX_CONNECTIONS,
            HostHolds(time.monotonic),
            NetworkMonitor(time.monotonic),
        )
        self._source = Source(self._client, url, {})

    def run(self, connections: int) -> InspectionReport:
        """Try all; ``connections``: how many a download would have. Raises RetryRange,
        FailJob."""
        try:
            head = self._head()
            first, answer_s, received, seconds, offset = self._sample()
            if_range, size = self._if_range(first), first.resource.size or 0
            tried = (
                max(1, min(connections, MAX_CONNECTIONS, size // MIB))
                if first.is_partial
                else 1
            )
            refusals: tuple[str, ...] = ()
            if tried > 1:
                time.sleep(SETTLE_S)
                refusals = self._refusals(tried, size // tried)
            return InspectionReport(
                head,
                first.resource,
                self._source.host,
                first.is_partial,
                answer_s,
                received,
                seconds,
                offset,
                if_range,
                tried,
                refusals,
            )
        finally:
            self._client.close()

    def _head(self) -> int | str:
        try:
            with _limited() as exchange:
                return self._source.head(exchange).status
        except RetryRange as error:  # it is not needed
            return str(error)

    def _sample(self) -> tuple[Answer, float, int, float, float | None]:
        """The first answer, seconds until it came, bytes and seconds of its body, and
        how much the clocks differ."""
        for asked in (ByteRange(0, SAMPLE), None):
            with self._asked(asked) as (reply, exchange):
                if (
                    asked
                    and reply.status in RANGE_REFUSALS
                    and not is_empty_file(reply.status, reply.headers)
                ):
                    continue
                answer = _judged(reply, asked)
                offset = clock_offset_s(reply.headers, datetime.now(timezone.utc))
                received, seconds = _read(reply)
                return answer, exchange.answer_s or 0.0, received, seconds, offset
        raise AssertionError("a plain request is refused by its status")

    def _if_range(self, first: Answer) -> IfRange:
        """Ask for a byte of the same version, and of one that never was."""
        validator = first.resource.if_range
        if not first.is_partial or not first.resource.size or validator is None:
            return IfRange.UNTRIED
        if not self._sends_part(validator):
            return IfRange.REFUSED
        other = _OTHER_VERSION[first.resource.strong_etag is not None]
        return IfRange.IGNORED if self._sends_part(other) else IfRange.HONOURED

    def _sends_part(self, validator: str) -> bool:
        with self._asked(ByteRange(0, 1), validator) as (reply, _):
            return _judged(reply, ByteRange(0, 1)).is_partial

    def _refusals(self, number: int, share: int) -> tuple[str, ...]:
        """Why some of so many connections, all open at once, got no part; their bodies
        are not read."""
        results: queue.SimpleQueue[str] = queue.SimpleQueue()
        all_answered = threading.Event()

        def hold(span: ByteRange) -> None:
            try:
                with self._asked(span) as (reply, _):
                    is_part = _judged(reply, span).is_partial
                    results.put(
                        ""
                        if is_part
                        else f"the server answered {reply.status} to a range"
                    )
                    all_answered.wait(LIMIT_S)
            except DlpoolError as error:
                results.put(str(error))

        spans = [
            ByteRange(share * index, share * (index + 1)) for index in range(number)
        ]
        started: list[threads.DaemonThread] = []
        with suppress(NoThread):  # with fewer threads fewer connections are tried
            for span in spans:
                started.append(
                    threads.start_thread(partial(hold, span), "dlpool-probe")
                )
        found = [_next(results) for _ in started]
        all_answered.set()
        for thread in started:
            thread.join(LIMIT_S)
        return tuple(reason for reason in found if reason)

    @contextmanager
    def _asked(
        self, asked: ByteRange | None, if_range: str | None = None
    ) -> Iterator[tuple[Reply, Exchange]]:
        with _limited() as exchange:
            reply = self._source.get(exchange, asked, if_range)
            try:
                yield reply, exchange
            finally:
                reply.close()


def clock_offset_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The clock of the server less ``now``; an answer from a cache is as old as its
    ``Age`` (RFC 9111 section 5.1)."""
    sent = http_date(headers.get("Date"))
    age = headers.get("Age", "").strip()
    if sent is None:
        return None
    return (
        sent
        + timedelta(seconds=int(age) if age.isdecimal() and len(age) < 10 else 0)
        - now
    ).total_seconds()


@contextmanager
def _limited() -> Iterator[Exchange]:
    """A request that ends after LIMIT_S, wherever it is then."""
    with Exchange(time.monotonic, time.sleep, ExchangeStats(0, 0.0)) as exchange:
        late = TimedOut(f"the server did not answer within {LIMIT_S:g} s")
        timer = threading.Timer(LIMIT_S, exchange.cancel, [late])
        timer.daemon = True
        timer.start()
        try:
            yield exchange
        finally:
            timer.cancel()


def _next(results: queue.SimpleQueue[str]) -> str:
    """Looking up a name cannot be ended; so nobody is waited for without end."""
    try:
        return results.get(timeout=2 * LIMIT_S)
    except queue.Empty:
        return "no answer came"


def _judged(reply: Reply, asked: ByteRange | None) -> Answer:
    if is_empty_file(reply.status, reply.headers):
        return Answer(
            RemoteResource.from_headers(reply.headers, 0), 0, 0, is_partial=True
        )
    return read_answer(reply.status, reply.headers, asked, datetime.now(timezone.utc))


def _read(reply: Reply) -> tuple[int, float]:
    """Bytes and seconds of the beginning of a body."""
    view = memoryview(bytearray(128 * 1024))
    began, received = time.monotonic(), 0
    while received < SAMPLE and time.monotonic() - began < SAMPLE_S:
        size = reply.read(view)
        received += size
        if not size:
            break
    return received, time.monotonic() - began
