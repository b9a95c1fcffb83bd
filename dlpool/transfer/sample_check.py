"""The final check of a file without a validator: samples are requested again and
compared.

It runs after all bytes are written and before they are published, only if the file was
received in several responses.
"""

from __future__ import annotations

from dlpool.errors import DlpoolError, RemoteChanged, RetryRange, ShortBody, TimedOut
from dlpool.transfer.context import DownloadPlan, NetworkOutage, TransferContext
from dlpool.transfer.evidence import choose_samples
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.source import Reply
from dlpool.transfer.range_request import request_range
from dlpool.transfer.retry import FailureCount
from dlpool.transfer.target.protocol import RangeReader

NETWORK_POLL_S = 2.0
MAX_STALE = 16  # idle connections in a row that the server had closed
# times the sum of connect and read timeout: the limit of a request for one sample
ANSWERS = 2.0


class SampleCheck:
    """Requests samples again. One thread calls ``run``; other threads may use
    ``exchange`` and ``look``."""

    def __init__(self, context: TransferContext, plan: DownloadPlan) -> None:
        self.exchange: Exchange | None = None
        self._context = context
        self._plan = plan
        self._latest: Exchange | None = None
        self._network = NetworkOutage(context)

    @property
    def is_needed(self) -> bool:
        """True if several responses were joined and no validator shows that they are of
        one version."""
        plan = self._plan
        is_joined = plan.has_ranges and len(self._context.evidence.spans()) > 1
        return is_joined and not plan.resource.has_validator

    @property
    def received(self) -> int:
        """Bytes of bodies that were received."""
        return self._latest.received if self._latest is not None else 0

    def run(self) -> None:
        """Request and compare the samples. Raises RemoteChanged for a difference, or
        the error that ends the job."""
        spans = choose_samples(self._context.evidence.spans())
        self._context.notify("end_checked", path=str(self._plan.target.path))
        reader = self._plan.target.reader()
        try:
            for span in spans:
                self._check(span, reader)
        finally:
            self.exchange = None
            reader.close()

    def abort_if_overdue(self) -> None:
        """Abort a request that takes too long; called several times a second, by
        another thread."""
        exchange, network = self.exchange, self._context.client.settings
        if exchange is None or exchange.sent_at is None:
            return
        if self._context.clock() - exchange.sent_at >= ANSWERS * (
            network.connect_timeout + network.read_timeout
        ):
            exchange.cancel(
                TimedOut(
                    "the server did not complete its answer within the time limits"
                )
            )

    def _check(self, span: ByteRange, reader: RangeReader) -> None:
        failures = stale = 0
        while True:
            try:
                return self._compare(span, reader)
            except RetryRange as error:
                self.exchange = None
                if error.is_stale and stale < MAX_STALE:
                    stale += 1
                    continue
                rest_s = self._rest_s(span, error, failures := failures + 1)
            self._context.scheduler.sleep_unless_failed(rest_s)

    def _compare(self, span: ByteRange, reader: RangeReader) -> None:
        context, known = self._context, self._plan.resource
        with self._new_exchange() as exchange:
            reply, answer = request_range(context, exchange, span, known)
        try:
            if not answer.is_partial:
                raise RemoteChanged(
                    "the server stopped serving ranges: the bytes may be of different "
                    "versions"
                )
            if not is_same_span(reply, answer, span, reader):
                raise RemoteChanged(
                    "the remote file changed during the download: bytes received "
                    "earlier are different now"
                )
        finally:
            reply.close()

    def _new_exchange(self) -> Exchange:
        context, latest = self._context, self._latest
        before = latest.stats() if latest is not None else ExchangeStats(0, 0.0)
        self.exchange = self._latest = Exchange(
            context.clock, context.scheduler.sleep_unless_failed, before
        )
        # the download may have been stopped before the exchange was visible
        context.scheduler.check()
        return self.exchange

    def _rest_s(self, span: ByteRange, error: RetryRange, failures: int) -> float:
        """Return the seconds until the next attempt. Raises the error that ends the job
        after too many failures."""
        context = self._context
        if self._network.is_tolerated(error):
            context.notify("network_away", error=str(error))
            return NETWORK_POLL_S
        final: DlpoolError | None = context.policy.final_error(error, failures)
        if final is not None:
            raise final from error
        rest_s = max(
            context.policy.next_delay(
                error, FailureCount(failures, 0), failures, context.jitter()
            )
        )
        context.notify(
            "range_retry",
            label=error.label,
            error=str(error),
            start=span.start,
            end=span.end,
            attempt=failures,
            delay_s=round(rest_s, 3),
            seconds=0.0,
        )
        return rest_s


def is_same_span(
    reply: Reply, answer: Answer, span: ByteRange, reader: RangeReader
) -> bool:
    """Return whether the body equals the bytes of the part file in ``span``, or a
    prefix of them if it ends early."""
    ahead = span.start - answer.start
    left = span.end - span.start + ahead
    if answer.length is not None:
        left = min(left, answer.length)
    data, view = bytearray(), memoryview(bytearray(64 * 1024))
    while len(data) < left:
        size = reply.read(view[: min(len(view), left - len(data))])
        if not size:
            raise ShortBody("the connection ended before the body did")
        data += view[:size]
    wanted = bytes(data[ahead:])
    if not wanted:
        raise ShortBody("the server sent none of the requested bytes")
    return wanted == reader.read(span.start, len(wanted))
