"""What may be tried again, and when. Pure: clock and chance are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dlpool.config import TransferSettings
from dlpool.errors import DlpoolError, RetryRange, TooSlow, WaitTooLong

WORTHWHILE = 64 * 1024  # bytes: an attempt that brought so many is repeated without a rest


class Failure(NamedTuple):
    """What a failed attempt amounts to: attempts in a row without progress, and bytes written by this one."""

    attempts: int
    progress: int


class Rest(NamedTuple):
    """Seconds until a chunk may be asked for again, by anyone, and until the thread that failed goes on."""

    chunk_s: float
    thread_s: float


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter. All times in seconds.

    ``retries`` counts attempts in a row without progress; ``max_retry_after`` is the longest ``Retry-After`` that
    is waited for.
    """

    retries: int
    delay: float
    max_delay: float
    max_retry_after: float

    @classmethod
    def of(cls, settings: TransferSettings) -> RetryPolicy:
        return cls(settings.retries, settings.retry_delay, settings.retry_max_delay, settings.max_retry_after)

    def backoff_s(self, failures: int, chance: float) -> float:
        """How long to wait after so many failures in a row; ``chance`` is uniform in 0..1."""
        ceiling: float = min(self.max_delay, self.delay * 2.0 ** min(failures - 1, 32)) if failures > 0 else 0.0
        return ceiling * chance

    def verdict(self, error: RetryRange, failures: int) -> DlpoolError | None:
        """The error that ends the job after ``failures`` attempts without progress; None: try again."""
        if error.retry_after_s is not None and error.retry_after_s > self.max_retry_after:
            return WaitTooLong(f"{error} and asked to wait {error.retry_after_s:.0f} s, longer than max_retry_after")
        return error if failures > self.retries else None

    def rest(self, error: RetryRange, failure: Failure, misses: int, chance: float) -> Rest:
        """How long to rest after an attempt that may be repeated.

        Where the server may admit no further connection (``misses`` times in a row, for this thread), the thread
        rests and others may take the chunk; else the chunk rests. What brought bytes, or was merely slow, goes on at
        once over a new connection.
        """
        if isinstance(error, TooSlow) or failure.progress >= WORTHWHILE:
            return Rest(0.0, 0.0)
        delay = self.backoff_s(max(1, failure.attempts, misses), chance)
        return Rest(0.0, delay) if error.is_capacity else Rest(delay, 0.0)
