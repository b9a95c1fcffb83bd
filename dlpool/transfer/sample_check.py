"""Request samples of a received file again, to detect a change of the remote file.

This check runs after all bytes are written. It is needed only if the file was received
in several responses and has no validator.
"""

from __future__ import annotations

from dlpool.errors import DlpoolError, RemoteChanged, RetryRange, ShortBody, TimedOut
from dlpool.transfer.context import (
    DownloadPlan,
    NetworkOutage,
    Requester,
    TransferContext,
)
from dlpool.transfer.evidence import choose_samples
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.source import Reply
from dlpool.transfer.range_request import request_range
from dlpool.transfer.retry import FailureCount
from dlpool.transfer.target.protocol import RangeReader

NETWORK_POLL_S = 2.0
MAX_STALE = 16  # consecutive idle connections that the server had closed
# factor on the sum of connect and read timeout: the time limit of one request
TIMEOUT_FACTOR = 2.0


class SampleCheck(Requester):
    """Requests samples of the file again and compares them with the part file.

    One thread calls ``run``; other threads may use ``exchange`` and
    ``abort_if_overdue``.
    """

    def __init__(self, context: TransferContext, plan: DownloadPlan) -> None:
        super().__init__(context)
        self._plan = plan
        self._network = NetworkOutage(context)

    @property
    def is_needed(self) -> bool:
        """Whether several responses were joined without a validator."""
        plan = self._plan
        is_joined = plan.has_ranges and len(self._context.evidence.spans()) > 1
        return is_joined and not plan.resource.has_validator

    @property
    def received(self) -> int:
        """The number of body bytes received."""
        return self._latest.received if self._latest is not None else 0

    def run(self) -> None:
        """Request and compare the samples.

        Raises RemoteChanged if a sample differs, or the error that ends the job.
        """
        spans = choose_samples(self._context.evidence.spans())
        self._context.notify("samples_compared", path=str(self._plan.target.path))
        reader = self._plan.target.reader()
        try:
            for span in spans:
                self._check(span, reader)
        finally:
            self._end_exchange()
            reader.close()

    def abort_if_overdue(self) -> None:
        """Cancel the present request if it takes too long.

        The timer thread calls this several times a second.
        """
        exchange, network = self.exchange, self._context.client.settings
        if exchange is None or exchange.sent_at is None:
            return
        if self._context.clock() - exchange.sent_at >= TIMEOUT_FACTOR * (
            network.connect_timeout + network.read_timeout
        ):
            exchange.cancel(
                TimedOut("the server did not complete its response within the timeouts")
            )

    def _check(self, span: ByteRange, reader: RangeReader) -> None:
        failures = stale = 0
        while True:
            try:
                return self._compare(span, reader)
            except RetryRange as error:
                self._end_exchange()
                if error.is_stale and stale < MAX_STALE:
                    stale += 1
                    continue
                delay_s = self._delay_s(span, error, failures := failures + 1)
            self._context.scope.sleep(delay_s)

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

    def _create_exchange(self) -> Exchange:
        # all chunks are done, so a pause of the scheduler would end at once
        context = self._context
        return Exchange(context.clock, context.scope.sleep, self.stats())

    def _delay_s(self, span: ByteRange, error: RetryRange, failures: int) -> float:
        """Return the seconds to wait before ``span`` is requested again.

        ``error``: the error of the latest request. ``failures``: the number of failed
        requests for ``span``. After too many failures, raises the error that ends the
        job.
        """
        context = self._context
        if self._network.is_tolerated(error):
            context.notify("network_away", error=str(error))
            return NETWORK_POLL_S
        final: DlpoolError | None = context.policy.final_error(error, failures)
        if final is not None:
            raise final from error
        delay_s = max(
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
            delay_s=round(delay_s, 3),
            seconds=0.0,
        )
        return delay_s


def is_same_span(
    reply: Reply, answer: Answer, span: ByteRange, reader: RangeReader
) -> bool:
    """Return whether the body equals the part file's bytes in ``span``.

    If the response announces fewer bytes than requested, only these are compared.
    Raises ShortBody if the body is cut, or if the response has no byte of ``span``.
    """
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
