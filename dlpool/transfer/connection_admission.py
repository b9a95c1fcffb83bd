"""Distinguish a refused connection from a refused file.

Some servers accept only a few connections. They refuse further connections with 429 or
503, but sometimes with 403, 400, 404 and the like. While another connection receives
the same file, such a status does not refer to the file.
"""

from __future__ import annotations

from dlpool.errors import FailJob, NotAdmitted, ServerBusy
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.answer import Answer, ByteRange
from dlpool.transfer.http.source import Reply

FURTHER_REFUSALS = {400, 401, 403, 404, 410, 509}
_BUSY = {429, 503}
# consecutive refusals while nothing is received: the server may not have noticed a
# closed connection
MAX_REFUSALS = 3
REFUSAL_PAUSE_S = 0.5  # before the next request; doubled each time


class ConnectionAdmission:
    """Judges the responses to one connection worker, on the thread of that worker.

    ``owner``: the worker; the scheduler knows it as the owner of chunks.
    """

    def __init__(self, context: TransferContext, owner: object) -> None:
        self._context = context
        self._owner = owner
        self._refusals = 0

    def judge(self, reply: Reply, requested: ByteRange | None) -> Answer:
        """Return the answer that the reply contains.

        Raises NotAdmitted if the server refuses this connection because it serves other
        connections. Before that, retires the worker if the status is neither 429 nor
        503, the number of connections is fixed, and another worker receives the file.
        For any other failure, raises the error of ``TransferContext.judge``.
        """
        try:
            answer = self._context.judge(reply, requested)
        except (FailJob, ServerBusy) as error:
            reply.close()
            if not self._is_capacity(reply.status):
                raise
            wait_s = error.retry_after_s if isinstance(error, ServerBusy) else None
            message = f"{error} to an additional connection"
            raise NotAdmitted(
                message, retry_after_s=wait_s, is_away=isinstance(error, ServerBusy)
            ) from error
        self._refusals = 0
        if self._context.scheduler.is_crowded:
            others = self._context.scheduler.others_receiving(self._owner)
            self._context.client.host_connections.raise_limit(
                self._context.host, others + 1
            )
        return answer

    def _is_capacity(self, status: int) -> bool:
        """Return whether the server refused this connection and not the file."""
        if status in _BUSY:
            # the worker is not retired: the server may be busy for other reasons
            return self._context.scheduler.others_receiving(self._owner) > 0
        return status in FURTHER_REFUSALS and self._is_crowded()

    def _is_crowded(self) -> bool:
        """Return whether the server refused because other connections receive the file.

        A server may not have noticed yet that another connection was closed. So if no
        other connection receives the file now, but one did recently, this method pauses
        and returns True, a limited number of times in a row.
        """
        context, scheduler = self._context, self._context.scheduler
        if others := scheduler.others_receiving(self._owner):
            self._refusals = 0
            context.client.host_connections.record_limit(context.host, others)
            if not context.is_adaptive and scheduler.retire_if_redundant(self._owner):
                context.notify(
                    "connections_changed",
                    host=context.host,
                    connections=others,
                    reason="refused",
                )
            return True
        if self._refusals == MAX_REFUSALS or not (
            scheduler.is_crowded or scheduler.others_received_recently(self._owner)
        ):
            return False
        scheduler.sleep(REFUSAL_PAUSE_S * 2**self._refusals)
        self._refusals += 1
        return True
