"""One connection thread of an upload: take a chunk, hash it, send it; again, until none
is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dlpool.errors import DlpoolError, InternalError, RetryRange, TaskClosed
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.retry import RetryDelay
from dlpool.upload.context import ServerTask
from dlpool.upload.localfile import new_buffer, new_md5
from dlpool.upload.retrying import UploadRetryBudget
from dlpool.upload.scheduler import NO_BACKOFF


class UploadWorker:
    """A thread's way through an upload."""

    def __init__(self, task: ServerTask) -> None:
        self._task = task
        self._context = task.context
        self._board = task.scheduler
        self._patience = UploadRetryBudget(task.context)
        self._buffer = new_buffer()

    def run(self) -> None:
        """Work until no chunk is left, or it is over. An error ends it for all."""
        ending = self._context.scope
        try:
            while (index := self._board.next_chunk()) is not None:
                self._serve(index)
        except DlpoolError as error:
            ending.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            ending.cancel(InternalError.of(error))

    def _serve(self, index: int) -> None:
        """One attempt at a chunk, and the rest after a failure."""
        try:
            self._send(index)
        # somebody else sends the same file, and was faster: the merge tells
        except TaskClosed as error:
            self._context.notify("task_closed", error=str(error))
            self._board.close()
            self._board.retry_later(index)
        except RetryRange as error:
            self._board.retry_later(index, self._rest(index, error))
        else:
            self._board.mark_stored(index)
            self._patience.reset()

    def _rest(self, index: int, error: RetryRange) -> RetryDelay:
        """How long to rest after a failed attempt. Where others are at work it may be
        that fewer get more done."""
        if (
            error.is_capacity
            and not error.is_stale
            and self._board.reduce_connections()
        ):
            self._context.notify(
                "fewer_connections", label=error.label, error=str(error)
            )
            return NO_BACKOFF
        return self._patience.backoff_after(
            error, partial(self._board.count_failure, index)
        )

    def _send(self, index: int) -> None:
        context, plan, target = self._context, self._task.plan, self._task.target
        span, digest = plan.span(index), new_md5()
        context.file.hash(digest, span, self._buffer, context.scope.raise_if_cancelled)
        fields = {
            "chunk_index": index,
            "md5": digest.hexdigest(),
            "total_chunks": plan.count,
            "file_size": plan.size,
        }
        with context.scope.open_exchange() as exchange:
            context.server.send_chunk(
                exchange,
                target,
                fields,
                self._blocks(index, span),
                span.end - span.start,
            )
        context.file.check_unchanged()
        context.notify(
            "chunk_sent",
            index=index,
            size=span.end - span.start,
            md5=digest.hexdigest(),
        )

    def _blocks(self, index: int, span: ByteRange) -> Iterator[memoryview]:
        """The chunk, as fast as the limit allows. What was hashed may have changed
        since: then that is the error."""
        context = self._context
        for block in context.file.blocks(
            span, self._buffer[: context.rate.max_read(len(self._buffer))]
        ):
            yield block
            self._board.add_sent(index, len(block))
            context.scope.sleep(context.rate.spend(len(block)))
