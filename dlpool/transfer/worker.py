"""Fetch chunks over one connection until none is left.

``ConnectionWorker.run`` repeats a failed request; ``_delay_after`` asks the policy in
``retry`` for the delay of a failure that is counted.
"""

from __future__ import annotations

from collections.abc import Callable

from dlpool.errors import (
    BadAnswer,
    DlpoolError,
    InternalError,
    NoRoom,
    OutOfDescriptors,
    OutOfFiles,
    PolicyRefused,
    RetryRange,
    ShortBody,
    StreamBroken,
)
from dlpool.transfer.body_copy import BodyCopy
from dlpool.transfer.chunks import UNKNOWN_END, Chunk
from dlpool.transfer.connection_admission import ConnectionAdmission
from dlpool.transfer.context import (
    DownloadPlan,
    NetworkOutage,
    Requester,
    TransferContext,
)
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.source import Reply
from dlpool.transfer.planning import ProbeResult
from dlpool.transfer.probe import Probe
from dlpool.transfer.range_request import request_range
from dlpool.transfer.retry import RangeAttempt, RetryDelay
from dlpool.transfer.small_body import SmallBody
from dlpool.transfer.space_rules import WriteBudget
from dlpool.transfer.target.protocol import RangeWriter

# bytes before the requested range that are skipped instead of another request
MAX_SKIP = 1024 * 1024
NETWORK_POLL_S = 2.0
LEAST_SPAN_S = 0.05  # least waiting time from which a speed is computed
# seconds that a thread whose connection was too slow waits before it takes a chunk, so
# that an idle thread takes the released one
YIELD_S = 0.1
MAX_STALE = 16  # consecutive idle connections that the server had closed
# further checks of a full disk before the download fails, and the seconds between two
SPACE_RETRIES = 8
SPACE_RETRY_S = 0.25


class ConnectionWorker(Requester):
    """One connection thread of a download.

    Other threads may read ``exchange``, ``chunk``, ``reserved`` and the statistics. The
    first worker has no plan yet; ``run_probe`` finds it. ``after_write`` commits
    checkpoints between the writes; it is set only for a worker on the attempt's thread.
    """

    def __init__(
        self, context: TransferContext, plan: DownloadPlan | None = None
    ) -> None:
        super().__init__(context)
        self.chunk: Chunk | None = None
        self.after_write: Callable[[], None] | None = None
        self._plan = plan
        self._writer: RangeWriter | None = None
        self._admission = ConnectionAdmission(context, self)
        # position, and total seconds waited, when the present request began
        self._request_start = RangeAttempt(0, 0.0)
        # consecutive failures that suggest a limit of connections
        self._capacity_failures = 0
        self._stale_connections = 0
        self._outage = NetworkOutage(context)
        self._distrusts_if_range = False
        self._body = BodyCopy(context.client, context.rate)
        self._write_budget = WriteBudget(
            context.space, reserves=context.reserves_blocks
        )

    @property
    def reserved(self) -> int:
        """The bytes of the present chunk that are reserved on disk but unwritten."""
        chunk = self.chunk
        return (
            0
            if chunk is None
            else max(0, min(self._write_budget.reserved_to, chunk.end) - chunk.position)
        )

    @property
    def is_retired(self) -> bool:
        """Whether the scheduler has retired this worker."""
        return self._context.scheduler.is_retired(self)

    def latest_answer_s(self) -> float | None:
        """Return the seconds from the latest request to its response header.

        None before the response header.
        """
        latest = self._latest
        return latest.answer_s if latest is not None else None

    def run_probe(self, probe: Probe) -> ProbeResult:
        """Repeat the first request until it leads to a plan.

        Raises the error that ends the job.
        """
        scheduler = self._context.scheduler
        while (chunk := scheduler.take_chunk(self)) is not None:
            try:
                with self._new_exchange() as exchange:
                    probed = probe.run(exchange)
                self._plan = probed.plan
                self.chunk = scheduler.load_plan(probed.chunks, self)
                scheduler.begin_body(self)
                return probed
            except RetryRange as error:
                self._end_exchange()
                delay = self._delay_after(chunk, error)
            scheduler.release_chunk(chunk, delay.chunk_s)
            scheduler.sleep(delay.worker_s)
        raise self._context.scope.error or AssertionError(
            "the download ended before its first request"
        )

    def run(
        self, probed: ProbeResult | None = None, writer: RangeWriter | None = None
    ) -> None:
        """Fetch chunks until the download is over; errors stop the download.

        ``probed``: the probe's result, whose response is used first. ``writer``: the
        writer to use; with None, the worker opens one with its own descriptor.
        """
        scheduler = self._context.scheduler
        self._writer = writer
        try:
            if probed is not None:
                scheduler.sleep(self._fetch_chunk(self.chunk, probed))
            while (chunk := self._take_chunk()) is not None:
                scheduler.sleep(self._fetch_chunk(chunk))
        except DlpoolError as error:
            self._context.scope.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            self._context.scope.cancel(InternalError.of(error))
        finally:
            self._close_writer()

    def run_at_once(
        self, probed: ProbeResult, writer: RangeWriter
    ) -> ProbeResult | None:
        """Receive a small file completely, and write it with one call.

        Returns None if that is done. Otherwise no byte is written, and ``run`` must
        fetch the file from the returned result. Raises the error that ends the job.
        """
        body, chunk = SmallBody(self._context, probed), self.chunk
        if chunk is None or not body.is_of(chunk) or not body.receive():
            return body.probed
        try:
            body.write(writer, chunk)
            self._notify_fetched(probed.reply, 0, chunk.end)
        finally:
            probed.reply.close()
            self._end_exchange()
            self.chunk = None
            self._context.scheduler.release_chunk(chunk)
        return None

    def _take_chunk(self) -> Chunk | None:
        return self._context.scheduler.take_chunk(self, self.usual_answer_s() or 0.0)

    def _close_writer(self) -> None:
        self._body.close()
        if self._writer is not None:
            try:
                self._writer.close()
            except DlpoolError as error:
                self._context.scope.cancel(error)

    def _fetch_chunk(
        self, chunk: Chunk | None, probed: ProbeResult | None = None
    ) -> float:
        """Fetch ``chunk`` with one request, or from the probe's response.

        ``chunk`` is None if the probe left no byte to fetch. Returns the seconds that
        this thread must pause.
        """
        self.chunk = chunk
        self._mark_request_start(chunk)
        delay = RetryDelay(0.0, 0.0)
        try:
            self._receive(chunk, probed)
        except RetryRange as error:
            assert chunk is not None
            delay = self._delay_after(chunk, error)
        finally:
            self._context.scheduler.end_body(self)
            self._end_exchange()
            self.chunk = None
            if chunk is not None:
                self._context.scheduler.release_chunk(chunk, delay.chunk_s)
        return delay.worker_s

    def _receive(self, chunk: Chunk | None, probed: ProbeResult | None) -> None:
        reply, answer = (
            (probed.reply, probed.answer) if probed else self._request(chunk)
        )
        try:
            if chunk is not None and not (probed and is_outside_chunk(answer, chunk)):
                span = self._context.evidence.begin(chunk.position)
                try:
                    self._copy(reply, answer, chunk)
                finally:
                    span.end = chunk.position
        finally:
            reply.close()

    def _request(self, chunk: Chunk | None) -> tuple[Reply, Answer]:
        assert chunk is not None
        with self._new_exchange() as exchange:
            return self._request_chunk(exchange, chunk)

    def _request_chunk(self, exchange: Exchange, chunk: Chunk) -> tuple[Reply, Answer]:
        context, plan = self._context, self._plan
        assert plan is not None
        requested = ByteRange(chunk.position, chunk.end) if plan.has_ranges else None
        if_range = None if self._distrusts_if_range else plan.resource.if_range
        judge = self._admission.judge
        reply, answer = request_range(
            context, exchange, requested, plan.resource, if_range, judge=judge
        )
        if context.is_adaptive and exchange.answer_s is not None:
            context.client.host_connections.answered(context.host, exchange.answer_s)
        if requested is None or answer.is_partial:
            return reply, answer
        reply.close()
        if if_range is None:
            raise BadAnswer(
                "the server sent the complete file although a range was requested"
            )
        # the version is the same: this server does not support If-Range
        self._distrusts_if_range = True
        return self._request_chunk(exchange, chunk)

    def _copy(self, reply: Reply, answer: Answer, chunk: Chunk) -> None:
        """Write the body to the part file, at most to the end of the chunk."""
        ahead = chunk.position - answer.start
        left = UNKNOWN_END if answer.length is None else answer.length - ahead
        if left <= 0 or ahead > MAX_SKIP:
            raise BadAnswer(
                f"the server sent bytes from {answer.start} on, requested were those "
                f"from {chunk.position} on"
            )
        context, begin = self._context, chunk.position
        context.scheduler.begin_body(self)
        self._skip(reply, ahead)
        while left > 0 and not chunk.is_done and not self.is_retired:
            size = self._body.receive(reply, min(left, chunk.unstealable))
            if not size:
                if answer.length is not None:
                    raise ShortBody("the connection ended before the body did")
                context.scheduler.end_stream(chunk)
                break
            self._write(chunk, size)
            left -= size
            context.scheduler.sleep(context.rate.spend(size))
        if (
            left <= 0
            and not chunk.is_done
            and not context.scheduler.count_short_answer(
                chunk, self._received_so_far(chunk)
            )
        ):
            requested = chunk.end - begin
            raise BadAnswer(
                f"the server keeps sending {chunk.position - begin} of {requested} "
                f"requested bytes"
            )
        self._report_rate(chunk)
        self._capacity_failures = self._stale_connections = 0
        self._outage.end()
        self._notify_fetched(reply, begin, chunk.position)

    def _notify_fetched(self, reply: Reply, start: int, end: int) -> None:
        if self._latest is not None and self._latest.sent_at is not None:
            self._context.notify(
                "range_fetched",
                seconds=self._since_sent_s(),
                start=start,
                end=end,
                status=reply.status,
            )

    def _mark_request_start(self, chunk: Chunk | None) -> None:
        self._request_start = RangeAttempt(
            chunk.position if chunk is not None else 0, self.stats().waited_s
        )

    def _received_so_far(self, chunk: Chunk) -> RangeAttempt:
        """Return the bytes received by the present request, and its waiting time."""
        return RangeAttempt(
            chunk.position - self._request_start.received,
            self.stats().waited_s - self._request_start.waited_s,
        )

    def _report_rate(self, chunk: Chunk) -> None:
        """Report a lower bound of this connection's speed to the scheduler."""
        attempt = self._received_so_far(chunk)
        if attempt.received > 0:
            self._context.scheduler.record_rate(
                self, attempt.received / max(attempt.waited_s, LEAST_SPAN_S)
            )

    def _since_sent_s(self) -> float:
        """Return the seconds since the latest request was sent; 0 if there is none."""
        asked_at = self._latest.sent_at if self._latest is not None else None
        return 0.0 if asked_at is None else round(self._context.clock() - asked_at, 6)

    def _skip(self, reply: Reply, size: int) -> None:
        while size > 0:
            skipped = self._body.skip(reply, size)
            if not skipped:
                raise ShortBody("the connection ended before the body did")
            size -= skipped

    def _write(self, chunk: Chunk, size: int) -> None:
        """Write the received block of ``size`` bytes, but not beyond the chunk's end.

        Raises the error that ends the job, or OutOfDescriptors.
        """
        scheduler, plan = self._context.scheduler, self._plan
        assert plan is not None
        if self._writer is None:
            self._writer = _open_writer(plan)
        limit = self._context.max_bytes(is_stream=chunk.end == UNKNOWN_END)
        if limit is not None and chunk.position + size > limit:
            raise PolicyRefused(f"the file is larger than max_file_size, {limit} bytes")
        self._check_space(chunk, size)
        allowed = scheduler.begin_write(chunk, size)
        written = 0
        try:
            self._body.write(self._writer, chunk.position, allowed)
            written = allowed
        finally:
            scheduler.commit_write(chunk, written)
        if self.after_write is not None:
            self.after_write()

    def _check_space(self, chunk: Chunk, size: int) -> None:
        """Take ``size`` bytes from the write budget, which checks the free space.

        For a file of known size, waits up to ``SPACE_RETRIES * SPACE_RETRY_S`` seconds
        until other downloads release space. Raises TooLarge, NoRoom.
        """
        assert self._writer is not None
        for attempt in range(SPACE_RETRIES + 1):
            try:
                self._write_budget.spend(self._writer, chunk, size)
                return
            except NoRoom:
                if chunk.end == UNKNOWN_END or attempt == SPACE_RETRIES:
                    raise
            self._context.scheduler.sleep(SPACE_RETRY_S)

    def _delay_after(self, chunk: Chunk, error: RetryRange) -> RetryDelay:
        """Return how long the chunk and this thread pause after a failed request.

        After too many failures, raises the error that ends the job. Raises StreamBroken
        if the download cannot be resumed.
        """
        context, plan = self._context, self._plan
        if plan is not None and not plan.has_ranges:
            raise StreamBroken(error) from error
        if self.is_retired:  # another thread will request the chunk, and count failures
            return RetryDelay(0.0, 0.0)
        if error.is_stale and self._stale_connections < MAX_STALE:
            self._stale_connections += 1
            return RetryDelay(0.0, 0.0)
        if self._outage.is_tolerated(error):
            context.notify("network_away", error=str(error))
            return RetryDelay(NETWORK_POLL_S, 0.0)
        if (
            context.is_adaptive
            and error.is_capacity
            and self._suggests_fewer_connections(error)
        ):
            context.client.host_connections.refused(context.host, error.label)
        if isinstance(error, OutOfDescriptors):
            context.report_limit(error.label, 1)
        failure = context.scheduler.count_failure(
            chunk, error, self._received_so_far(chunk)
        )
        final = context.policy.final_error(error, failure.attempts, failure.slow_bytes)
        if final is not None:
            raise final from (error.__cause__ if final is error else error)
        self._capacity_failures = (
            self._capacity_failures + 1 if error.is_capacity else 0
        )
        delay = context.policy.next_delay(
            error, failure, self._capacity_failures, context.jitter()
        )
        if error.is_comparison and context.scheduler.has_idle_worker:
            delay = RetryDelay(0.0, YIELD_S)
        context.notify(
            "range_retry",
            label=error.label,
            error=str(error),
            start=chunk.position,
            end=chunk.end,
            attempt=failure.attempts,
            delay_s=round(max(delay), 3),
            seconds=self._since_sent_s(),
        )
        return delay

    def _suggests_fewer_connections(self, error: RetryRange) -> bool:
        """Return whether ``error`` may mean that the server accepts fewer connections.

        A connection that was slower than others (``TooSlow``) counts only if its
        request got no response.
        """
        return not error.is_comparison or self.latest_answer_s() is None


def _open_writer(plan: DownloadPlan) -> RangeWriter:
    """Open a writer for this connection.

    Raises LocalFault, or OutOfDescriptors if the process has no free descriptor; then a
    retry may succeed.
    """
    try:
        return plan.target.writer()
    except OutOfFiles as fault:
        raise OutOfDescriptors(str(fault)) from fault


def is_outside_chunk(answer: Answer, chunk: Chunk) -> bool:
    """Return whether the response lacks the first missing byte of the chunk."""
    end = chunk.end if answer.length is None else answer.start + answer.length
    return not answer.start <= chunk.position < end
