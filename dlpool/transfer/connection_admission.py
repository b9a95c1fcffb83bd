"""Classification of refusals: those of a further connection, and those of the file.

Servers that admit only a few connections answer the others with 429 or 503, but also
with 403, 400, 404 and the like. While another connection receives the same file, such a
status cannot be about the file.
"""

from __future__ import annotations

from dlpool.errors import FailJob, NotAdmitted, ServerBusy
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.source import Reply

FURTHER_REFUSALS = {400, 401, 403, 404, 410, 509}
_BUSY = {429, 503}
# in a row while nothing is received: the server may not have noticed yet that a
# connection was closed
MAX_DENIED = 3
DENIED_S = 0.5  # pause before the next request; doubled each time


class ConnectionAdmission:
    """Judges the answers to one connection thread of a download, ``owner`` on its
    board. Used by that thread."""

    def __init__(self, context: TransferContext, owner: object) -> None:
        self._context = context
        self._owner = owner
        self._denied = 0

    def judge(self, reply: Reply, asked: ByteRange | None) -> Answer:
        """Return the answer that the reply is.

        Raises NotAdmitted if the server does not admit this connection in addition to
        those that it serves. The thread is retired then, unless the number of
        connections is adaptive or it is the last. Raises the errors of
        ``Context.judge`` otherwise.
        """
        try:
            answer = self._context.judge(reply, asked)
        except (FailJob, ServerBusy) as error:
            reply.close()
            if not self._is_capacity(reply.status):
                raise
            wait_s = error.retry_after_s if isinstance(error, ServerBusy) else None
            said = f"{error} to a further connection"
            raise NotAdmitted(
                said, retry_after_s=wait_s, is_away=isinstance(error, ServerBusy)
            ) from error
        self._denied = 0
        if self._context.scheduler.is_crowded:
            others = self._context.scheduler.others_receiving(self._owner)
            self._context.client.host_connections.raise_limit(
                self._context.host, others + 1
            )
        return answer

    def _is_capacity(self, status: int) -> bool:
        """Return whether a status refuses this connection, and not the file."""
        if (
            status in _BUSY
            # these threads stay: the server may be busy for other reasons than their
            # number
        ):
            return self._context.scheduler.others_receiving(self._owner) > 0
        return status in FURTHER_REFUSALS and self._is_crowded()

    def _is_crowded(self) -> bool:
        """Return whether other connections are served; pause first if they were served
        recently."""
        context, board = self._context, self._context.scheduler
        if others := board.others_receiving(self._owner):
            self._denied = 0
            context.client.host_connections.record_limit(context.host, others)
            if not context.is_adaptive and board.retire_if_redundant(self._owner):
                context.notify(
                    "connections_changed",
                    host=context.host,
                    connections=others,
                    reason="refused",
                )
            return True
        if self._denied == MAX_DENIED or not (
            board.is_crowded or board.others_received_recently(self._owner)
        ):
            return False
        board.sleep(DENIED_S * 2**self._denied)
        self._denied += 1
        return True
