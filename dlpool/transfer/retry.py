"""What may be tried again, and when. Pure: clock and chance are passed in."""

from __future__ import annotations

from dataclasses import dataclass

from dlpool.config import TransferSettings
from dlpool.errors import DlpoolError, RetryRange, WaitTooLong


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
