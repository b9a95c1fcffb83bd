"""One connection thread of a download: take a chunk, ask for it, copy what comes;
again, until none is left."""

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
from dlpool.transfer.chunks import UNKNOWN_END, Chunk
from dlpool.transfer.connection_admission import ConnectionAdmission
from dlpool.transfer.context import DownloadPlan, NetworkOutage, TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.source import Reply
from dlpool.transfer.probe import Probe, ProbeResult
from dlpool.transfer.range_request import request_range
from dlpool.transfer.retry import RangeAttempt, RetryDelay
from dlpool.transfer.space_rules import WriteBudget
from dlpool.transfer.target.protocol import RangeWriter

BUFFER = (
    256 * 1024
)  # bytes, made once a lane: new ones of that size would be faulted in at each read
MAX_SKIP = (
    1024 * 1024
)  # bytes before the asked range that are read and dropped rather than asked for again
NETWORK_POLL_S = 2.0
LEAST_SPAN_S = 0.05  # of waiting, to compute a speed
# seconds for which a thread whose connection was too slow leaves its chunk to an idle
# one
YIELD_S = 0.1
MAX_STALE = 16  # idle connections in a row that had died
# at a disk that has become full, before a file that could be continued gives its bytes
# back
ROOM_LOOKS = 8
ROOM_LOOK_S = 0.25


class ConnectionWorker:
    """A thread's way through a download. All its attributes are its own, but for
    ``exchange`` and ``chunk``, which others read.

    The first lane has no ``plan`` yet and finds it by ``open``. ``after_write`` is
    called where no other thread could look whether a checkpoint is due.
    """

    def __init__(
        self, context: TransferContext, plan: DownloadPlan | None = None
    ) -> None:
        self.exchange: Exchange | None = None
        self.chunk: Chunk | None = None
        self.after_write: Callable[[], None] | None = None
        self._context = context
        self._plan = plan
        self._writer: RangeWriter | None = None
        self._latest: Exchange | None = None
        self._admission = ConnectionAdmission(context, self)
        self._base = RangeAttempt(
            0, 0.0
        )  # position, and seconds waited in all, when the present attempt began
        self._misses = 0  # failures in a row that say "no further connection"
        self._stale = 0
        self._network = NetworkOutage(context)
        self._distrusts_if_range = False
        self._view = memoryview(b"")
        self._ahead = WriteBudget(context.space, reserves=context.reserves_blocks)

    @property
    def reserved(self) -> int:
        """Bytes that are reserved on the disk for this connection, and not written
        yet."""
        chunk = self.chunk
        return (
            0
            if chunk is None
            else max(0, min(self._ahead.reserved_to, chunk.end) - chunk.position)
        )

    def stats(self) -> ExchangeStats:
        """What this lane has received and waited, over all its exchanges."""
        latest = self._latest
        return latest.stats() if latest is not None else ExchangeStats(0, 0.0)

    @property
    def is_retired(self) -> bool:
        """Whether its connection is not wanted any more."""
        return self._context.scheduler.is_retired(self)

    def latest_answer_s(self) -> float | None:
        """Seconds that its last answer took to come."""
        latest = self._latest
        return latest.answer_s if latest is not None else None

    def run_probe(self, opening: Probe) -> ProbeResult:
        """Make the first request until it leads to a plan. Raises what ends the job."""
        board = self._context.scheduler
        while (chunk := board.take_chunk(self)) is not None:
            try:
                with self._new_exchange() as exchange:
                    opened = opening.run(exchange)
                self._plan = opened.plan
                self.chunk = board.load_plan(opened.chunks, self)
                board.begin_body(self)
                return opened
            except RetryRange as error:
                self.exchange = None
                rest = self._rest(chunk, error)
            board.release_chunk(chunk, rest.chunk_s)
            board.sleep(rest.worker_s)
        raise board.error or AssertionError("over before it began")

    def run(
        self, opened: ProbeResult | None = None, writer: RangeWriter | None = None
    ) -> None:
        """Work until it is over, beginning with the body that ``open`` left. Every
        error ends up on the board.

        ``writer``: what to write with, instead of a descriptor of its own.
        """
        board = self._context.scheduler
        self._writer = writer
        try:
            if opened is not None:
                board.sleep(self._serve(self.chunk, opened))
            while (chunk := board.take_chunk(self)) is not None:
                board.sleep(self._serve(chunk))
        except DlpoolError as error:
            board.stop(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            board.stop(InternalError.of(error))
        finally:
            self._close_writer()

    def _close_writer(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except DlpoolError as error:
                self._context.scheduler.stop(error)

    def _serve(self, chunk: Chunk | None, opened: ProbeResult | None = None) -> float:
        """One request for ``chunk``, or the rest of the first one; returns for how long
        this thread should rest."""
        self.chunk = chunk
        self._begin_attempt(chunk)
        rest = RetryDelay(0.0, 0.0)
        try:
            self._fetch(chunk, opened)
        except RetryRange as error:
            assert chunk is not None
            rest = self._rest(chunk, error)
        finally:
            self._context.scheduler.end_body(self)
            self.exchange = None
            self.chunk = None
            if chunk is not None:
                self._context.scheduler.release_chunk(chunk, rest.chunk_s)
        return rest.worker_s

    def _fetch(self, chunk: Chunk | None, opened: ProbeResult | None) -> None:
        reply, answer = (opened.reply, opened.answer) if opened else self._asked(chunk)
        try:
            if chunk is not None and not (opened and is_outside_chunk(answer, chunk)):
                brought = self._context.evidence.begin(chunk.position)
                try:
                    self._copy(reply, answer, chunk)
                finally:
                    brought.end = chunk.position
        finally:
            reply.close()

    def _new_exchange(self) -> Exchange:
        self.exchange = self._latest = self._context.new_exchange(self.stats())
        # a stop that came before the exchange could be seen
        self._context.scheduler.check()
        return self.exchange

    def _asked(self, chunk: Chunk | None) -> tuple[Reply, Answer]:
        assert chunk is not None
        with self._new_exchange() as exchange:
            return self._ask(exchange, chunk)

    def _ask(self, exchange: Exchange, chunk: Chunk) -> tuple[Reply, Answer]:
        context, plan = self._context, self._plan
        assert plan is not None
        asked = ByteRange(chunk.position, chunk.end) if plan.has_ranges else None
        if_range = None if self._distrusts_if_range else plan.resource.if_range
        judge = self._admission.judge
        reply, answer = request_range(
            context, exchange, asked, plan.resource, if_range, judge=judge
        )
        if context.is_adaptive and exchange.answer_s is not None:
            context.client.host_connections.answered(context.host, exchange.answer_s)
        if asked is None or answer.is_partial:
            return reply, answer
        reply.close()
        if if_range is None:
            raise BadAnswer(
                "the server sent the whole file although a range was asked for"
            )
        self._distrusts_if_range = (
            True  # the version is the same: this server does not know If-Range
        )
        return self._ask(exchange, chunk)

    def _copy(self, reply: Reply, answer: Answer, chunk: Chunk) -> None:
        """Copy the body to its place, at most up to the end of the chunk, whatever the
        server sends."""
        ahead = chunk.position - answer.start
        left = UNKNOWN_END if answer.length is None else answer.length - ahead
        if left <= 0 or ahead > MAX_SKIP:
            raise BadAnswer(
                f"the server sent bytes from {answer.start} on, asked was for "
                f"{chunk.position}"
            )
        context, begin = self._context, chunk.position
        context.scheduler.begin_body(self)
        self._skip(reply, ahead)
        while left > 0 and not chunk.is_done and not self.is_retired:
            size = reply.read(self._space(min(left, chunk.unstealable)))
            if not size:
                if answer.length is not None:
                    raise ShortBody("the connection ended before the body did")
                context.scheduler.end_stream(chunk)
                break
            self._write(chunk, self._view[:size])
            left -= size
            context.scheduler.sleep(context.rate.spend(size))
        if (
            left <= 0
            and not chunk.is_done
            and not context.scheduler.count_short_answer(chunk, self._attempt(chunk))
        ):
            asked = chunk.end - begin
            raise BadAnswer(
                f"the server keeps answering with {chunk.position - begin} of {asked} "
                f"bytes asked for"
            )
        self._note_rate(chunk)
        self._misses = self._stale = 0
        self._network.end()
        if self._latest is not None and self._latest.sent_at is not None:
            context.notify(
                "range_fetched",
                seconds=self._asked_s(),
                start=begin,
                end=chunk.position,
                status=reply.status,
            )

    def _begin_attempt(self, chunk: Chunk | None) -> None:
        self._base = RangeAttempt(
            chunk.position if chunk is not None else 0, self.stats().waited_s
        )

    def _attempt(self, chunk: Chunk) -> RangeAttempt:
        """Return what the present request has received so far."""
        return RangeAttempt(
            chunk.position - self._base.received,
            self.stats().waited_s - self._base.waited_s,
        )

    def _note_rate(self, chunk: Chunk) -> None:
        """Report a lower bound of this connection's speed to the board, for its next
        steal."""
        attempt = self._attempt(chunk)
        if attempt.received > 0:
            self._context.scheduler.record_rate(
                self, attempt.received / max(attempt.waited_s, LEAST_SPAN_S)
            )

    def _asked_s(self) -> float:
        """Seconds since the latest request was sent; 0 if it never was."""
        asked_at = self._latest.sent_at if self._latest is not None else None
        return 0.0 if asked_at is None else round(self._context.clock() - asked_at, 6)

    def _skip(self, reply: Reply, size: int) -> None:
        while size > 0:
            skipped = reply.read(self._space(size))
            if not skipped:
                raise ShortBody("the connection ended before the body did")
            size -= skipped

    def _space(self, size: int) -> memoryview:
        """Room for one read: as much as is wanted, up to a buffer, and to what the rate
        limits allow."""
        size = min(
            size,
            self._context.rate.max_read(
                max(BUFFER, self._context.client.min_read_bytes)
            ),
        )
        if len(self._view) < size:
            self._view = memoryview(bytearray(size))
        return self._view[:size]

    def _write(self, chunk: Chunk, data: memoryview) -> None:
        board, plan = self._context.scheduler, self._plan
        assert plan is not None
        if self._writer is None:
            self._writer = _writer(plan)
        limit = self._context.max_bytes(is_stream=chunk.end == UNKNOWN_END)
        if limit is not None and chunk.position + len(data) > limit:
            raise PolicyRefused(f"the file is larger than max_file_size, {limit} bytes")
        self._make_room(chunk, len(data))
        allowed = board.begin_write(chunk, len(data))
        written = 0
        try:
            self._writer.write(chunk.position, data[:allowed])
            written = allowed
        finally:
            board.commit_write(chunk, written)
        if self.after_write is not None:
            self.after_write()

    def _make_room(self, chunk: Chunk, size: int) -> None:
        """Look at the disk, if it is time to. A file whose size is known waits a little
        for others to give way.

        Raises TooLarge, NoRoom.
        """
        assert self._writer is not None
        for looks in range(ROOM_LOOKS + 1):
            try:
                self._ahead.spend(self._writer, chunk, size)
                return
            except NoRoom:
                if chunk.end == UNKNOWN_END or looks == ROOM_LOOKS:
                    raise
            self._context.scheduler.sleep(ROOM_LOOK_S)

    def _rest(self, chunk: Chunk, error: RetryRange) -> RetryDelay:
        """How long the chunk and this thread rest after a failed attempt.

        Raises what ends the job: the error after too many attempts, or StreamBroken
        where nothing can go on.
        """
        context, plan = self._context, self._plan
        if plan is not None and not plan.has_ranges:
            raise StreamBroken(error) from error
        if self.is_retired:  # another thread will request the chunk, and count
            return RetryDelay(0.0, 0.0)
        if error.is_stale and self._stale < MAX_STALE:
            self._stale += 1
            return RetryDelay(0.0, 0.0)
        if self._network.is_tolerated(error):
            context.notify("network_away", error=str(error))
            return RetryDelay(NETWORK_POLL_S, 0.0)
        if context.is_adaptive and error.is_capacity and self._is_sign(error):
            context.client.host_connections.refused(context.host, error.label)
        if isinstance(error, OutOfDescriptors):
            context.report_limit(error.label, 1)
        failure = context.scheduler.count_failure(chunk, error, self._attempt(chunk))
        final = context.policy.final_error(error, failure.attempts, failure.slow_bytes)
        if final is not None:
            raise final from (error.__cause__ if final is error else error)
        self._misses = self._misses + 1 if error.is_capacity else 0
        rest = context.policy.next_delay(error, failure, self._misses, context.jitter())
        if error.is_comparison and context.scheduler.has_idle_worker:
            rest = RetryDelay(0.0, YIELD_S)
        context.notify(
            "range_retry",
            label=error.label,
            error=str(error),
            start=chunk.position,
            end=chunk.end,
            attempt=failure.attempts,
            delay_s=round(max(rest), 3),
            seconds=self._asked_s(),
        )
        return rest

    def _is_sign(self, error: RetryRange) -> bool:
        """Whether the server may want fewer connections; a mere comparison says so if
        there was no answer at all."""
        return not error.is_comparison or self.latest_answer_s() is None


def _writer(plan: DownloadPlan) -> RangeWriter:
    """Return a descriptor to write with. Raises LocalFault, and OutOfDescriptors, which
    is temporary."""
    try:
        return plan.target.writer()
    except OutOfFiles as fault:
        raise OutOfDescriptors(str(fault)) from fault


def is_outside_chunk(answer: Answer, chunk: Chunk) -> bool:
    """Whether the first answer is of bytes that an earlier run had fetched, so that the
    chunk is asked for itself."""
    end = chunk.end if answer.length is None else answer.start + answer.length
    return not answer.start <= chunk.position < end
