"""Inspect a server: what its headers say about a file, and how it behaves.

The inspection sends the same requests as a download, and writes nothing to disk. It
keeps several responses open at once, to measure how many connections the server
accepts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from enum import Enum
from functools import partial

from dlpool import threads
from dlpool.config import NetworkSettings
from dlpool.dataclass import dataclass
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
SAMPLE = 4 * MIB  # bytes of the speed measurement
SAMPLE_S = 5.0  # longest duration of the speed measurement
LIMIT_S = 10.0  # for one request and the part of its body that is read
MAX_CONNECTIONS = 8  # tested at once
SETTLE_S = 0.5  # until a server has noticed a closed connection and does not count it
# validators that no file has: an ETag (True) or a date (False)
_OTHER_VERSION = {
    True: '"not-the-version-of-this-file"',
    False: "Thu, 01 Jan 1970 00:00:00 GMT",
}


class IfRange(Enum):
    """How a server treats ``If-Range`` (RFC 9110 section 13.1.5)."""

    HONOURED = "honoured"
    IGNORED = "a part is sent even of another version"
    REFUSED = "the complete file is sent even of the same version"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class InspectionReport:
    """The results of an inspection.

    ``head``: the status of a HEAD request, or the text of its error. ``answer_s``:
    seconds until the first response header. ``refusals``: the reasons of refused
    connections. ``clock_offset_s``: the server's clock minus the local one, None if
    unknown. The speed is ``received`` bytes in ``seconds`` seconds.
    """

    head: int | str
    resource: RemoteResource
    host: str
    is_partial: bool
    answer_s: float
    received: int
    seconds: float
    clock_offset_s: float | None = None
    if_range: IfRange = IfRange.UNTESTED
    connections_tried: int = 1
    refusals: tuple[str, ...] = ()

    @property
    def connections(self) -> int:
        """The number of connections that the server served at once."""
        return self.connections_tried - len(self.refusals)


class ServerInspection:
    """The inspection of one URL. Used by one thread, which starts other threads."""

    def __init__(self, url: str, network: NetworkSettings) -> None:
        """Prepare the requests; nothing is sent.

        Raises UsageError for an invalid URL, ConfigurationError for a bad proxy.
        """
        self._client = HttpClient(
            network,
            MAX_CONNECTIONS,
            HostHolds(time.monotonic),
            NetworkMonitor(time.monotonic),
        )
        self._source = Source(self._client, url, {})

    def run(self, connections: int) -> InspectionReport:
        """Run all tests.

        ``connections``: the number of connections that a download would use. Raises
        RetryRange, FailJob.
        """
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
            with _bounded_exchange() as exchange:
                return self._source.head(exchange).status
        except RetryRange as error:  # HEAD is optional
            return str(error)

    def _sample(self) -> tuple[Answer, float, int, float, float | None]:
        """Measure the first response and the beginning of its body.

        Returns the answer, the seconds until the response header, the number of body
        bytes, the seconds to read them, and the clock offset (see ``clock_offset_s``).
        """
        for requested in (ByteRange(0, SAMPLE), None):
            with self._open_reply(requested) as (reply, exchange):
                if (
                    requested
                    and reply.status in RANGE_REFUSALS
                    and not is_empty_file(reply.status, reply.headers)
                ):
                    continue
                answer = _read_answer(reply, requested)
                offset = clock_offset_s(reply.headers, datetime.now(timezone.utc))
                received, seconds = _read(reply)
                return answer, exchange.answer_s or 0.0, received, seconds, offset
        raise AssertionError("a plain request is refused by its status")

    def _if_range(self, first: Answer) -> IfRange:
        """Return how the server treats ``If-Range``.

        Requests one byte with the validator of the file, then one with an invented
        validator.
        """
        validator = first.resource.if_range
        if not first.is_partial or not first.resource.size or validator is None:
            return IfRange.UNTESTED
        if not self._sends_part(validator):
            return IfRange.REFUSED
        other = _OTHER_VERSION[first.resource.strong_etag is not None]
        return IfRange.IGNORED if self._sends_part(other) else IfRange.HONOURED

    def _sends_part(self, validator: str) -> bool:
        with self._open_reply(ByteRange(0, 1), validator) as (reply, _):
            return _read_answer(reply, ByteRange(0, 1)).is_partial

    def _refusals(self, number: int, share: int) -> tuple[str, ...]:
        """Request ranges over ``number`` connections at once; return the refusals.

        ``share``: bytes that each connection requests; the bodies are not read. The
        result has one reason for each connection that received no range.
        """
        results: queue.SimpleQueue[str] = queue.SimpleQueue()
        all_answered = threading.Event()

        def hold(span: ByteRange) -> None:
            try:
                with self._open_reply(span) as (reply, _):
                    is_part = _read_answer(reply, span).is_partial
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
        with suppress(NoThread):  # fewer threads test fewer connections
            for span in spans:
                started.append(
                    threads.start_thread(partial(hold, span), "dlpool-probe")
                )
        found = [_next_result(results) for _ in started]
        all_answered.set()
        for thread in started:
            thread.join(LIMIT_S)
        return tuple(reason for reason in found if reason)

    @contextmanager
    def _open_reply(
        self, requested: ByteRange | None, if_range: str | None = None
    ) -> Iterator[tuple[Reply, Exchange]]:
        with _bounded_exchange() as exchange:
            reply = self._source.get(exchange, requested, if_range)
            try:
                yield reply, exchange
            finally:
                reply.close()


def clock_offset_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the server's clock minus ``now`` in seconds, None without a ``Date``.

    Adds the ``Age`` of a cached response to its ``Date`` (RFC 9111 section 5.1).
    """
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
def _bounded_exchange() -> Iterator[Exchange]:
    """Yield an exchange that is cancelled after ``LIMIT_S`` seconds."""
    with Exchange(time.monotonic, time.sleep, ExchangeStats(0, 0.0)) as exchange:
        late = TimedOut(f"the server did not answer within {LIMIT_S:g} s")
        timer = threading.Timer(LIMIT_S, exchange.cancel, [late])
        timer.daemon = True
        timer.start()
        try:
            yield exchange
        finally:
            timer.cancel()


def _next_result(results: queue.SimpleQueue[str]) -> str:
    """Return the result of the next connection: the reason of a refusal, else ``""``.

    The wait is bounded, because a name look-up cannot be interrupted.
    """
    try:
        return results.get(timeout=2 * LIMIT_S)
    except queue.Empty:
        return "the server did not respond"


def _read_answer(reply: Reply, requested: ByteRange | None) -> Answer:
    if is_empty_file(reply.status, reply.headers):
        return Answer(
            RemoteResource.from_headers(reply.headers, 0), 0, 0, is_partial=True
        )
    return read_answer(
        reply.status, reply.headers, requested, datetime.now(timezone.utc)
    )


def _read(reply: Reply) -> tuple[int, float]:
    """Read the beginning of a body; return the number of bytes and the seconds."""
    view = memoryview(bytearray(128 * 1024))
    began, received = time.monotonic(), 0
    while received < SAMPLE and time.monotonic() - began < SAMPLE_S:
        size = reply.read(view)
        received += size
        if not size:
            break
    return received, time.monotonic() - began
