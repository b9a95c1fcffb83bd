"""Decide whether and when to retry a request. Pure: time and randomness are parameters.

Two loops in ``worker`` retry requests: ``ConnectionWorker.run_probe`` retries the first
request, and ``ConnectionWorker.run`` retries all later requests. For a network outage
or a stale connection, ``ConnectionWorker._delay_after`` returns a delay without asking
this policy, and counts no failure. A ``Retry-After`` delays all downloads from the
host: ``TransferContext.judge`` records it in ``HostHolds`` (``http/limits``).
"""

from __future__ import annotations

from typing import NamedTuple

from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
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
    """The failures of a chunk, including the latest failed request.

    ``attempts``: consecutive failures without progress. ``progress``: bytes that the
    latest request received. ``slow_bytes``: total bytes received by the requests that
    ``attempts`` counts.
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

    ``retries``: how many consecutive requests without progress are retried. ``delay``:
    the maximum delay after the first failure; it doubles with each failure, up to
    ``max_delay``. ``max_retry_after``: the longest ``Retry-After`` that is honoured.
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

        ``jitter``: a random number, uniform in 0..1.
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
        """Return the error that ends the job, None if the request may be repeated.

        ``failures``: the number of consecutive failures without progress, including
        ``error``. ``slow_bytes``: bytes that these requests received.
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

        There is no delay after a request that received ``WORTHWHILE`` bytes, or that
        was only too slow. If ``error`` may mean a limit of connections, only this
        thread waits: another thread may take the chunk at once. After any other error,
        the chunk waits.

        ``capacity_failures``: consecutive failures of this thread that may mean a limit
        of connections. ``jitter``: a random number, uniform in 0..1.
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
