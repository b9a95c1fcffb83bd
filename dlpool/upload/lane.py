"""One connection thread of an upload: take a chunk, hash it, send it; again, until none is left."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dlpool.errors import DlpoolError, InternalError, RetryRange
from dlpool.transfer.answer import Span
from dlpool.transfer.exchange import Exchange
from dlpool.upload.context import Context, Patience
from dlpool.upload.localfile import new_buffer, new_md5


class Lane:
    """A thread's way through an upload. ``exchange`` is read by others, to end it; all else is its own."""

    def __init__(self, context: Context) -> None:
        self.exchange: Exchange | None = None
        self._context = context
        self._patience = Patience(context)
        self._buffer = new_buffer()

    def run(self) -> None:
        """Work until no chunk is left, or it is over. Every error ends up on the board."""
        board = self._context.board
        try:
            while (index := board.take()) is not None:
                board.pause(self._serve(index))
        except DlpoolError as error:
            board.stop(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            board.stop(InternalError.of(error))

    def _serve(self, index: int) -> float:
        """One attempt at a chunk; returns how long to rest, which the chunk does, too."""
        board = self._context.board
        try:
            self._send(index)
        except RetryRange as error:
            rest = self._patience.rest_s(error, partial(board.count_failure, index, error))
            board.give_back(index, rest)
            return rest
        finally:
            self.exchange = None
        board.store(index)
        self._patience.renew()
        return 0.0

    def _send(self, index: int) -> None:
        context, span = self._context, self._context.plan.span(index)
        digest = new_md5()
        context.file.hash(digest, span, self._buffer, context.board.check)
        fields = {"chunk_index": index, "md5": digest.hexdigest(), "total_chunks": context.plan.count,
                  "file_size": context.plan.size}  # fmt: skip
        with context.exchange() as exchange:
            self.exchange = exchange
            context.board.check()  # a stop that came before the exchange could be seen
            context.server.send(exchange, context.target, fields, self._blocks(index, span), span.end - span.start)
        context.file.check_unchanged()
        context.notify("chunk_sent", index=index, size=span.end - span.start, md5=digest.hexdigest())

    def _blocks(self, index: int, span: Span) -> Iterator[memoryview]:
        """The chunk, as fast as the limit allows. What was hashed may have changed since: then that is the error."""
        context = self._context
        for block in context.file.blocks(span, self._buffer[: context.rate.most(len(self._buffer))]):
            yield block
            context.board.sent(index, len(block))
            context.board.pause(context.rate.spend(len(block)))
