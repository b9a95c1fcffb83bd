"""How a thread meets failures, and how it asks the server by as many attempts as it
takes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from dlpool.errors import RetryRange
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.retry import FailureCount, RetryDelay, RetryPolicy
from dlpool.upload.context import UploadContext
from dlpool.upload.scheduler import NO_BACKOFF

AWAY_POLL_S = 2.0  # between looks at a server that is away
MAX_STALE = 16  # idle connections in a row that had died
T = TypeVar("T")


class UploadRetryBudget:
    """By the rules of downloads (``RetryPolicy``), but that a server that is away costs
    time and no attempts:

    until it has been for ``network_wait``, if it was ever there. Used by one thread.
    """

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        self._policy = RetryPolicy.of(context.settings)
        self._stale = self._misses = 0

    def reset(self) -> None:
        """Something went well."""
        self._stale = self._misses = 0

    def backoff_after(self, error: RetryRange, fail: Callable[[], int]) -> RetryDelay:
        """How long to rest after ``error``; ``fail`` adds an attempt and returns how
        many in a row came to nothing.

        Raises the error that ends the upload.
        """
        context = self._context
        if error.is_stale and self._stale < MAX_STALE:
            self._stale += 1
            return NO_BACKOFF
        is_waited_for = self._is_waited_for(error)
        attempts = 0 if is_waited_for else fail()
        final = self._policy.final_error(error, attempts)
        if final is not None:
            raise final from error
        if error.retry_after_s:
            context.client.host_holds.hold(context.server.host, error.retry_after_s)
        self._misses += 1
        rest = self._policy.next_delay(
            error, FailureCount(attempts, 0), self._misses, context.chance()
        )
        if is_waited_for:
            rest = RetryDelay(0.0, min(max(rest), AWAY_POLL_S))
        context.notify(
            "retry",
            label=error.label,
            error=str(error),
            attempt=attempts,
            delay_s=round(max(rest), 3),
        )
        return rest

    def _is_waited_for(self, error: RetryRange) -> bool:
        """Whether the server is away, and may be back. Raises the error when it has
        been for too long."""
        wait_s = self._context.settings.network_wait
        missed_s = (
            self._context.server.availability.unavailable_s()
            if error.is_away and wait_s > 0
            else None
        )
        if missed_s is not None and missed_s >= wait_s:
            raise error
        return missed_s is not None


class RequestRetrier:
    """What one thread asks besides sending chunks."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        self._patience = UploadRetryBudget(context)

    def request(
        self,
        question: Callable[[Exchange], T],
        is_final: Callable[[RetryRange], bool] = lambda _error: False,
    ) -> T:
        """What the server says. Raises what ends it, and errors that are final."""
        ending, attempts = self._context.scope, count(1)
        while True:
            try:
                with ending.open_exchange() as exchange:
                    answer = question(exchange)
            except RetryRange as error:
                if is_final(error):
                    raise
                ending.sleep(
                    max(self._patience.backoff_after(error, lambda: next(attempts)))
                )
            else:
                self._patience.reset()
                return answer
