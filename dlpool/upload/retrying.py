"""Retries of the upload client, with the same policy as downloads (``RetryPolicy``)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from dlpool.errors import RetryRange
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.retry import FailureCount, RetryDelay, RetryPolicy
from dlpool.upload.context import UploadContext
from dlpool.upload.scheduler import NO_BACKOFF

AWAY_POLL_S = 2.0  # between attempts while the server is unavailable
MAX_STALE = 16  # closed idle connections in a row that do not count as failures
T = TypeVar("T")


class UploadRetryBudget:
    """Decides whether a thread retries a request, and when. Used by one thread.

    If a server that has answered before becomes unavailable, failures are not counted
    as attempts. Instead, the upload fails when the server has been unavailable for
    ``network_wait`` seconds. If ``network_wait`` is 0, all failures are counted.
    """

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        self._policy = RetryPolicy.of(context.settings)
        self._stale = self._misses = 0

    def reset(self) -> None:
        """Reset the budget after a success."""
        self._stale = self._misses = 0

    def backoff_after(self, error: RetryRange, fail: Callable[[], int]) -> RetryDelay:
        """Return the delay before the next attempt.

        ``fail`` counts a failed attempt and returns the number of failed attempts in a
        row. Raises DlpoolError if no retry is possible.
        """
        context = self._context
        if error.is_stale and self._stale < MAX_STALE:
            self._stale += 1
            return NO_BACKOFF
        is_away = self._is_away(error)
        attempts = 0 if is_away else fail()
        final = self._policy.final_error(error, attempts)
        if final is not None:
            raise final from error
        if error.retry_after_s:
            context.client.host_holds.hold(context.server.host, error.retry_after_s)
        self._misses += 1
        delay = self._policy.next_delay(
            error, FailureCount(attempts, 0), self._misses, context.jitter()
        )
        if is_away:
            delay = RetryDelay(0.0, min(max(delay), AWAY_POLL_S))
        context.notify(
            "retry",
            label=error.label,
            error=str(error),
            attempt=attempts,
            delay_s=round(max(delay), 3),
        )
        return delay

    def _is_away(self, error: RetryRange) -> bool:
        """Return whether to wait for the server because it is unavailable.

        Raises ``error`` if the server has been unavailable for ``network_wait`` seconds
        or more.
        """
        wait_s = self._context.settings.network_wait
        if not error.is_away or wait_s <= 0:
            return False
        away_s = self._context.server.availability.unavailable_s()
        if away_s is not None and away_s >= wait_s:
            raise error
        return away_s is not None


class RequestRetrier:
    """Sends requests other than chunks, with retries. Used by one thread."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        self._budget = UploadRetryBudget(context)

    def request(
        self,
        send: Callable[[Exchange], T],
        is_final: Callable[[RetryRange], bool] = lambda _error: False,
    ) -> T:
        """Call ``send`` repeatedly until it succeeds; return its result.

        Raises DlpoolError if no retry is possible, or if ``is_final`` returns True for
        an error. Errors other than RetryRange are not retried.
        """
        attempts = count(1)
        while True:
            try:
                with self._context.open_exchange() as exchange:
                    result = send(exchange)
            except RetryRange as error:
                if is_final(error):
                    raise
                delay = self._budget.backoff_after(error, lambda: next(attempts))
                self._context.scope.sleep(max(delay))
            else:
                self._budget.reset()
                return result
