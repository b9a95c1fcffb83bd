"""A circuit breaker for Redis, so that requests do not occupy all threads while Redis
does not respond."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlpool.errors import NoSuchJob, QueueAway, QueueError
from dlpool.jobs.job_admin import NoSuchNode, NotPossible

SLOW_S = 1.0  # faster failures do not open the circuit
PROBE_S = 1.0  # interval of requests that test whether Redis responds again


class CircuitBreaker:
    """Opens when Redis does not respond for ``SLOW_S`` seconds or more.

    While the circuit is open, one request every ``PROBE_S`` seconds tests Redis. All
    other requests fail at once. Thread-safe; the lock guards all state.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._error = ""  # of the last failure; empty while closed
        self._next = 0.0  # time of the next test
        self._is_testing = False

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run the block, which uses Redis. Raises QueueAway at once if the circuit is
        open and no test is due."""
        is_test, started_at = self._enter(), self._clock()
        try:
            yield
        except QueueAway as error:
            self._leave(
                is_test, str(error) if self._clock() - started_at >= SLOW_S else ""
            )
            raise
        except (QueueError, NoSuchJob, NoSuchNode, NotPossible):  # Redis did respond
            self._leave(is_test, "")
            raise
        except BaseException:
            self._leave(is_test, self._error)
            raise
        self._leave(is_test, "")

    def _enter(self) -> bool:
        """Return whether this request tests Redis. Raises QueueAway if the circuit is
        open and no test is due."""
        with self._lock:
            if not self._error:
                return False
            if self._is_testing or self._clock() < self._next:
                raise QueueAway(self._error)
            self._is_testing = True
            return True

    def _leave(self, is_test: bool, error: str) -> None:
        with self._lock:
            self._error, self._next = error, self._clock() + PROBE_S
            if is_test:
                self._is_testing = False
