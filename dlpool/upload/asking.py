"""How a thread meets failures, and how it asks the server by as many attempts as it takes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from dlpool.errors import RetryRange
from dlpool.transfer.exchange import Exchange
from dlpool.transfer.retry import Failure, Rest, RetryPolicy
from dlpool.upload.board import NO_REST
from dlpool.upload.context import Context

AWAY_POLL_S = 2.0  # between looks at a server that is away
MAX_STALE = 16  # idle connections in a row that had died
T = TypeVar("T")


class Patience:
    """By the rules of downloads (``RetryPolicy``), but that a server that is away costs time and no attempts:

    until it has been for ``network_wait``, if it was ever there. Used by one thread.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policy = RetryPolicy.of(context.settings)
        self._stale = self._misses = 0

    def renew(self) -> None:
        """Something went well."""
        self._stale = self._misses = 0

    def rest(self, error: RetryRange, fail: Callable[[], int]) -> Rest:
        """How long to rest after ``error``; ``fail`` adds an attempt and returns how many in a row came to nothing.

        Raises the error that ends the upload.
        """
        context = self._context
        if error.is_stale and self._stale < MAX_STALE:
            self._stale += 1
            return NO_REST
        is_waited_for = self._is_waited_for(error)
        attempts = 0 if is_waited_for else fail()
        final = self._policy.verdict(error, attempts)
        if final is not None:
            raise final from error
        if error.retry_after_s:
            context.client.gate.hold(context.server.host, error.retry_after_s)
        self._misses += 1
        rest = self._policy.rest(error, Failure(attempts, 0), self._misses, context.chance())
        if is_waited_for:
            rest = Rest(0.0, min(max(rest), AWAY_POLL_S))
        context.notify("retry", label=error.label, error=str(error), attempt=attempts, delay_s=round(max(rest), 3))
        return rest

    def _is_waited_for(self, error: RetryRange) -> bool:
        """Whether the server is away, and may be back. Raises the error when it has been for too long."""
        wait_s = self._context.settings.network_wait
        missed_s = self._context.server.presence.missed_s() if error.is_away and wait_s > 0 else None
        if missed_s is not None and missed_s >= wait_s:
            raise error
        return missed_s is not None


class Asker:
    """What one thread asks besides sending chunks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._patience = Patience(context)

    def ask(
        self, question: Callable[[Exchange], T], is_final: Callable[[RetryRange], bool] = lambda _error: False
    ) -> T:
        """What the server says. Raises what ends it, and errors that are final."""
        ending, attempts = self._context.ending, count(1)
        while True:
            try:
                with ending.exchange() as exchange:
                    answer = question(exchange)
            except RetryRange as error:
                if is_final(error):
                    raise
                ending.pause(max(self._patience.rest(error, lambda: next(attempts))))
            else:
                self._patience.renew()
                return answer
