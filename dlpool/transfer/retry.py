"""What may be tried again, and when. Pure: clock and chance are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dlpool.config import TransferSettings
from dlpool.errors import DlpoolError, RetryRange, TooSlow, WaitTooLong

WORTHWHILE = (
    64 * 1024
)  # bytes: an attempt that received this many is repeated without a pause
# a shorter attempt must have received as many bytes as the minimum speed gives in this
# time
LEAST_WAIT_S = 1.0


class RangeAttempt(NamedTuple):
    """The result of one request: bytes written, and seconds spent waiting for the
    body."""

    received: int
    waited_s: float

    def is_progress(self, least_rate: int) -> bool:
        """Return whether it received bytes at ``least_rate`` bytes/s or faster.

        An attempt below that rate counts as failed although it brought something: a
        server that trickles, and breaks off again and again, would otherwise be asked
        for ever.
        """
        return self.received > 0 and self.received >= least_rate * max(
            self.waited_s, LEAST_WAIT_S
        )


class FailureCount(NamedTuple):
    """A failed attempt: number of failures in a row without progress, bytes it wrote,
    and bytes the row wrote."""

    attempts: int
    progress: int
    slow_bytes: int = 0


class RetryDelay(NamedTuple):
    """Seconds until a chunk may be asked for again, by anyone, and until the thread
    that failed goes on."""

    chunk_s: float
    worker_s: float


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter. All times in seconds.

    ``retries`` counts attempts in a row without progress; ``max_retry_after`` is the
    longest ``Retry-After`` that is waited for.
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
        """How long to wait after so many failures in a row; ``chance`` is uniform in
        0..1."""
        ceiling: float = (
            min(self.max_delay, self.delay * 2.0 ** min(failures - 1, 32))
            if failures > 0
            else 0.0
        )
        return ceiling * jitter

    def final_error(
        self, error: RetryRange, failures: int, trickled: int = 0
    ) -> DlpoolError | None:
        """Return the error that ends the job after ``failures`` attempts without
        progress; None: try again.

        ``trickled``: bytes that these attempts brought although they made no progress.
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
        if trickled or isinstance(error, TooSlow):
            return error.explained(_advice(failures, trickled))
        return error

    def next_delay(
        self, error: RetryRange, failure: FailureCount, misses: int, chance: float
    ) -> RetryDelay:
        """How long to rest after an attempt that may be repeated.

        Where the server may admit no further connection (``misses`` times in a row, for
        this thread), the thread rests and others may take the chunk; else the chunk
        rests. What brought bytes, or was merely slow, goes on at once over a new
        connection.
        """
        if isinstance(error, TooSlow) or failure.progress >= WORTHWHILE:
            return RetryDelay(0.0, 0.0)
        delay = self.backoff_s(max(1, failure.attempts, misses), chance)
        return RetryDelay(0.0, delay) if error.is_capacity else RetryDelay(delay, 0.0)


def _advice(failures: int, trickled: int) -> str:
    brought = (
        f" (the last {failures} attempts received {trickled} bytes)" if trickled else ""
    )
    return (
        f"attempts slower than low_speed_limit are limited by retries{brought}: lower "
        f"low_speed_limit for a"
        " server that is always this slow, and bound the time by deadline instead"
    )
