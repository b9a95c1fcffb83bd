"""Decide what is retried, and when. Pure: time and randomness are parameters.

Two loops in ``worker`` retry: ``ConnectionWorker.run_probe`` until the first response,
then ``ConnectionWorker.run``. ``ConnectionWorker._delay_after`` handles failures that
are not counted (network outage, stale or replaced connection) without this policy. The
``Retry-After`` of a host also holds the requests of all other downloads:
``TransferContext.judge`` sets that hold (``http/limits.HostHolds``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dlpool.config import TransferSettings
from dlpool.errors import DlpoolError, RetryRange, TooSlow, WaitTooLong

# bytes: a request that received this many is repeated without a delay
WORTHWHILE = 64 * 1024
# seconds: a shorter request must have received as much as one of this duration
MIN_WAIT_S = 1.0


class RangeAttempt(NamedTuple):
    """The result of one request: bytes received, and seconds spent waiting for them."""

    received: int
    waited_s: float

    def is_progress(self, min_rate: int) -> bool:
        """Return whether the request reached ``min_rate`` bytes per second.

        A slower request counts as failed although it received bytes: otherwise a server
        that sends a few bytes and closes the connection would be retried without end.
        """
        return self.received > 0 and self.received >= min_rate * max(
            self.waited_s, MIN_WAIT_S
        )


class FailureCount(NamedTuple):
    """The count of failures of a chunk after another failed request.

    ``attempts``: consecutive failures without progress. ``progress``: bytes that the
    last request received. ``slow_bytes``: bytes that all ``attempts`` received.
    """

    attempts: int
    progress: int
    slow_bytes: int = 0


class RetryDelay(NamedTuple):
    """Seconds until the chunk may be requested again, and until the thread resumes."""

    chunk_s: float
    worker_s: float


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter. All times in seconds.

    ``retries``: consecutive requests without progress that are allowed.
    ``max_retry_after``: the longest ``Retry-After`` that is honoured.
    """

    retries: int
    delay: float
    max_delay: float
    max_retry_after: float

    @classmethod
    def of(cls, settings: TransferSettings) -> RetryPolicy:
        return cls(
            settings.retries,
            settings.retry_delay,
            settings.retry_max_delay,
            settings.max_retry_after,
        )

    def backoff_s(self, failures: int, jitter: float) -> float:
        """Return the seconds to wait after ``failures`` consecutive failures.

        ``jitter`` is uniform in 0..1.
        """
        ceiling: float = (
            min(self.max_delay, self.delay * 2.0 ** min(failures - 1, 32))
            if failures > 0
            else 0.0
        )
        return ceiling * jitter

    def final_error(
        self, error: RetryRange, failures: int, slow_bytes: int = 0
    ) -> DlpoolError | None:
        """Return the error that ends the job, None for a retry.

        ``failures``: consecutive failures without progress, of which ``error`` is the
        last. ``slow_bytes``: bytes that these requests received.
        """
        if (
            error.retry_after_s is not None
            and error.retry_after_s > self.max_retry_after
        ):
            return WaitTooLong(
                f"{error} and asked to wait {error.retry_after_s:.0f} s, longer than "
                f"max_retry_after"
            )
        if error.is_final:
            return error
        if failures <= self.retries:
            return None
        if slow_bytes or isinstance(error, TooSlow):
            return error.explained(_low_speed_hint(failures, slow_bytes))
        return error

    def next_delay(
        self,
        error: RetryRange,
        failure: FailureCount,
        capacity_failures: int,
        jitter: float,
    ) -> RetryDelay:
        """Return how long to wait after a failed request that may be repeated.

        If ``error`` may mean a limit of connections, the thread pauses, and another
        thread may take the chunk at once. Otherwise the chunk may be requested only
        after the delay. ``capacity_failures``: consecutive failures of this thread that
        may mean such a limit. There is no delay after a request that received
        ``WORTHWHILE`` bytes, or that was only too slow. ``jitter`` is uniform in 0..1.
        """
        if isinstance(error, TooSlow) or failure.progress >= WORTHWHILE:
            return RetryDelay(0.0, 0.0)
        delay = self.backoff_s(max(1, failure.attempts, capacity_failures), jitter)
        return RetryDelay(0.0, delay) if error.is_capacity else RetryDelay(delay, 0.0)


def _low_speed_hint(failures: int, slow_bytes: int) -> str:
    brought = (
        f" (the last {failures} attempts received {slow_bytes} bytes)"
        if slow_bytes
        else ""
    )
    return (
        f"attempts slower than low_speed_limit are limited by retries{brought}: lower "
        f"low_speed_limit for a"
        " server that is always this slow, and bound the time by deadline instead"
    )
