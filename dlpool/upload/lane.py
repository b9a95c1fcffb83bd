"""One connection thread of an upload: take a chunk, hash it, send it; again, until none is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dlpool.errors import DlpoolError, InternalError, RetryRange, TaskClosed
from dlpool.transfer.answer import Span
from dlpool.transfer.retry import Rest
from dlpool.upload.asking import Patience
from dlpool.upload.board import NO_REST
from dlpool.upload.context import Task
from dlpool.upload.localfile import new_buffer, new_md5


class Lane:
    """A thread's way through an upload."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._context = task.context
        self._board = task.board
        self._patience = Patience(task.context)
        self._buffer = new_buffer()

    def run(self) -> None:
        """Work until no chunk is left, or it is over. An error ends it for all."""
        ending = self._context.ending
        try:
            while (index := self._board.take()) is not None:
                self._serve(index)
        except DlpoolError as error:
            ending.stop(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            ending.stop(InternalError.of(error))

    def _serve(self, index: int) -> None:
        """One attempt at a chunk, and the rest after a failure."""
        try:
            self._send(index)
        except TaskClosed as error:  # somebody else sends the same file, and was faster: the merge tells
            self._context.notify("task_closed", error=str(error))
            self._board.close()
            self._board.give_back(index)
        except RetryRange as error:
            self._board.give_back(index, self._rest(index, error))
        else:
            self._board.store(index)
            self._patience.renew()

    def _rest(self, index: int, error: RetryRange) -> Rest:
        """How long to rest after a failed attempt. Where others are at work it may be that fewer get more done."""
        if error.is_capacity and not error.is_stale and self._board.make_room():
            self._context.notify("fewer_connections", label=error.label, error=str(error))
            return NO_REST
        return self._patience.rest(error, partial(self._board.count_failure, index))

    def _send(self, index: int) -> None:
        context, plan, target = self._context, self._task.plan, self._task.target
        span, digest = plan.span(index), new_md5()
        context.file.hash(digest, span, self._buffer, context.ending.check)
        fields = {"chunk_index": index, "md5": digest.hexdigest(), "total_chunks": plan.count, "file_size": plan.size}
        with context.ending.exchange() as exchange:
            context.server.send(exchange, target, fields, self._blocks(index, span), span.end - span.start)
        context.file.check_unchanged()
        context.notify("chunk_sent", index=index, size=span.end - span.start, md5=digest.hexdigest())

    def _blocks(self, index: int, span: Span) -> Iterator[memoryview]:
        """The chunk, as fast as the limit allows. What was hashed may have changed since: then that is the error."""
        context = self._context
        for block in context.file.blocks(span, self._buffer[: context.rate.most(len(self._buffer))]):
            yield block
            self._board.sent(index, len(block))
            context.ending.pause(context.rate.spend(len(block)))
