"""What the threads of one upload share: which chunks are yet to be sent, whether it is over, and why."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection

from dlpool.errors import DlpoolError, RetryRange
from dlpool.upload.plan import Plan

RECENT_S = 5.0  # bytes sent so lately show that the upload is moving


class Board:
    """Of each chunk: stored at the server, being sent, resting after a failure, or fresh.

    The lock guards all of it. No I/O happens under it.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._clock = clock
        self._changed = threading.Condition()
        self._stored: set[int] = set()
        self._sending: dict[int, int] = {}  # by index: bytes sent by this attempt
        self._resting: dict[int, float] = {}  # by index: until when
        self._fresh: deque[int] = deque()
        self._failures: dict[int, int] = {}
        self._error: DlpoolError | None = None
        self._stored_bytes = self._accepted = self._front = 0
        self._moved_at = -RECENT_S
        self.retries = 0

    def __repr__(self) -> str:
        return f"<Board {len(self._stored)} of {self._plan.count} chunks stored, {self._error or ''}>"

    def begin(self, stored: Collection[int]) -> int:
        """The server has these chunks; returns how many are yet to be sent. Nothing is being sent meanwhile."""
        with self._changed:
            self._stored = {index for index in stored if 0 <= index < self._plan.count}
            self._stored_bytes = sum(self._plan.length(index) for index in self._stored)
            self._fresh = deque(index for index in range(self._plan.count) if index not in self._stored)
            self._failures.clear()
            self._changed.notify_all()
            return len(self._fresh)

    # --- for lanes ---

    def take(self) -> int | None:
        """Wait for a chunk that may be sent; None: all are stored, or it is over."""
        with self._changed:
            while self._error is None and (self._fresh or self._resting or self._sending):
                now = self._clock()
                index = self._ready(now)
                if index is not None:
                    self._sending[index] = 0
                    self._front = max(self._front, index + 1)
                    self._changed.notify_all()
                    return index
                ready_at = min(self._resting.values(), default=None)
                self._changed.wait(None if ready_at is None else max(0.001, ready_at - now))
            return None

    def sent(self, index: int, size: int) -> None:
        """So many more bytes of a chunk are on their way. Raises when it is over."""
        with self._changed:
            self._check()
            self._sending[index] += size
            self._moved_at = self._clock()

    def store(self, index: int) -> None:
        """The server has the chunk."""
        with self._changed:
            self._accepted += self._sending.pop(index)
            self._stored.add(index)
            self._stored_bytes += self._plan.length(index)
            self._failures.pop(index, None)
            self._changed.notify_all()

    def give_back(self, index: int, delay_s: float) -> None:
        """Another attempt, by any lane, after ``delay_s``."""
        with self._changed:
            del self._sending[index]
            self._resting[index] = self._clock() + delay_s
            self._changed.notify_all()

    def count_failure(self, index: int, error: RetryRange) -> int:
        """Record a failed attempt; returns how many in a row count.

        Where the server may just admit no further connection, it does not count while other chunks move.
        """
        with self._changed:
            self.retries += 1
            is_moving = len(self._sending) > 1 and self._clock() - self._moved_at < RECENT_S
            if not (error.is_capacity and is_moving):
                self._failures[index] = self._failures.get(index, 0) + 1
            return self._failures.get(index, 0)

    # --- for everyone ---

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond an error, which is raised."""
        if seconds <= 0:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, seconds)
            self._check()

    def stop(self, error: DlpoolError) -> None:
        """End it; the first error stands."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self._error is not None:
            raise self._error

    def wait_for_front(self, index: int) -> None:
        """Wait until a lane has begun with the chunk, or it is stored. Raises when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._front > index or index in self._stored)
            self._check()

    @property
    def done(self) -> int:
        """Bytes that the server has, and those on their way."""
        with self._changed:
            return self._stored_bytes + sum(self._sending.values())

    @property
    def stored(self) -> int:
        """Bytes that the server has."""
        return self._stored_bytes

    @property
    def accepted(self) -> int:
        """Bytes that the server has taken from this run."""
        return self._accepted

    @property
    def sending(self) -> int:
        """Chunks that are being sent."""
        return len(self._sending)

    def _ready(self, now: float) -> int | None:
        for index, until in self._resting.items():
            if until <= now:
                del self._resting[index]
                return index
        return self._fresh.popleft() if self._fresh else None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
