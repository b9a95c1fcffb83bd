"""A Redis that does not answer must not keep all threads waiting for it, one request
after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlpool.errors import NoSuchJob, QueueAway, QueueError
from dlpool.jobs.job_admin import NoSuchNode, NotPossible

LONG_S = 1.0  # who fails sooner keeps nobody waiting
TRIES_S = 1.0  # between two of those that try whether it answers again


class CircuitBreaker:
    """While it is known that Redis does not answer, one request at a time tries, and
    the others fail at once.

    Thread-safe; the lock guards all of the state.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._error = ""  # what it said, while it lasts
        self._next = 0.0  # when somebody may try
        self._is_trying = False

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Ask Redis within it. Raises QueueAway without asking, and what the block
        raises."""
        is_try, begun = self._begin(), self._clock()
        try:
            yield
        except QueueAway as error:
            self._end(is_try, str(error) if self._clock() - begun >= LONG_S else "")
            raise
        except (QueueError, NoSuchJob, NoSuchNode, NotPossible):  # it did answer
            self._end(is_try, "")
            raise
        except BaseException:
            self._end(is_try, self._error)
            raise
        self._end(is_try, "")

    def _begin(self) -> bool:
        """Whether this one tries for the others. Raises QueueAway."""
        with self._lock:
            if not self._error:
                return False
            if self._is_trying or self._clock() < self._next:
                raise QueueAway(self._error)
            self._is_trying = True
            return True

    def _end(self, is_try: bool, error: str) -> None:
        with self._lock:
            self._error, self._next = error, self._clock() + TRIES_S
            if is_try:
                self._is_trying = False
