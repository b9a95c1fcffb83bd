"""One connection of an upload: hash and send chunks until no chunk is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dlpool.errors import DlpoolError, InternalError, RetryRange, TaskClosed
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.retry import RetryDelay
from dlpool.upload.context import ServerTask
from dlpool.upload.file_hash import FileHashThread
from dlpool.upload.localfile import new_buffer, new_hash
from dlpool.upload.retrying import UploadRetryBudget
from dlpool.upload.scheduler import NO_BACKOFF


class UploadWorker:
    """Sends chunks on one thread."""

    def __init__(self, task: ServerTask, file_hash: FileHashThread) -> None:
        """``file_hash`` receives the digest of each chunk that this worker sends."""
        self._task = task
        self._file_hash = file_hash
        self._context = task.context
        self._scheduler = task.scheduler
        self._budget = UploadRetryBudget(task.context)
        self._buffer = new_buffer()

    def run(self) -> None:
        """Send chunks until no chunk is left; an error cancels the scope."""
        scope = self._context.scope
        try:
            while (index := self._scheduler.next_chunk()) is not None:
                self._attempt(index)
        except DlpoolError as error:
            scope.cancel(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            scope.cancel(InternalError.of(error))

    def _attempt(self, index: int) -> None:
        """Send a chunk once, and report the outcome to the scheduler."""
        try:
            self._send(index)
        # Another client has completed the same file: the merge reports it.
        except TaskClosed as error:
            self._context.notify("task_closed", error=str(error))
            self._scheduler.close()
            self._scheduler.retry_later(index)
        except RetryRange as error:
            self._scheduler.retry_later(index, self._backoff_after(index, error))
        else:
            self._scheduler.mark_stored(index)
            self._budget.reset()

    def _backoff_after(self, index: int, error: RetryRange) -> RetryDelay:
        """Return the delay before the next attempt to send the chunk.

        If the server has too many connections, and their number can be reduced, reduces
        it and returns a delay of 0. Otherwise, the retry budget determines the delay.
        """
        if (
            error.is_capacity
            and not error.is_stale
            and self._scheduler.reduce_connections()
        ):
            self._context.notify(
                "fewer_connections", label=error.label, error=str(error)
            )
            return NO_BACKOFF
        return self._budget.backoff_after(
            error, partial(self._scheduler.count_failure, index)
        )

    def _send(self, index: int) -> None:
        context, plan, target = self._context, self._task.plan, self._task.target
        span, algorithm = plan.span(index), self._file_hash.algorithm
        size, digest = span.end - span.start, new_hash(algorithm)
        self._task.hash_chunk(digest, index, self._buffer)
        self._file_hash.add_chunk(index, digest)
        fields = {
            "chunk_index": index,
            algorithm: digest.hexdigest(),
            "total_chunks": plan.count,
            "file_size": plan.size,
        }
        with context.open_exchange() as exchange:
            context.server.send_chunk(
                exchange, target, fields, self._blocks(index, span), size
            )
        context.file.check_unchanged()
        details = {"index": index, "size": size, algorithm: digest.hexdigest()}
        context.notify("chunk_sent", **details)

    def _blocks(self, index: int, span: ByteRange) -> Iterator[memoryview]:
        """Yield the bytes of a chunk, not faster than the rate limit.

        If these bytes have changed since they were hashed, the server rejects the chunk
        because of its digest.
        """
        context = self._context
        block_size = context.rate.max_read(len(self._buffer))
        for block in context.file.blocks(span, self._buffer[:block_size]):
            yield block
            self._scheduler.add_sent(index, len(block))
            context.scope.sleep(context.rate.spend(len(block)))
