"""What the threads of one upload share: which chunks are yet to be sent, and how many
may be sent at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from dlpool.transfer.retry import RetryDelay
from dlpool.upload.cancel_scope import UploadCancelScope
from dlpool.upload.plan import UploadPlan

# chunks that are stored before one more is sent at once, after the server had admitted
# fewer
GROWTH = 8
NO_BACKOFF = RetryDelay(0.0, 0.0)


class UploadScheduler:
    """Of each chunk: stored at the server, being sent, resting after a failure, or
    fresh.

    At most ``lanes`` are sent at once, and fewer where the server admits fewer.
    ``changed`` of the ending guards all of it.
    """

    def __init__(
        self,
        plan: UploadPlan,
        ending: UploadCancelScope,
        clock: Callable[[], float],
        max_connections: int,
    ) -> None:
        self._plan = plan
        self._ending = ending
        self._changed = ending.changed
        self._clock = clock
        self._lanes = self._limit = max_connections
        self._stored_since = 0  # chunks, since the limit changed
        self._stored: set[int] = set()
        self._sending: dict[int, int] = {}  # by index: bytes sent by this attempt
        self._resting: dict[int, float] = {}  # by index: until when
        self._fresh: deque[int] = deque()
        self._asleep = 0  # threads that keep their place
        self._failures: dict[int, int] = {}
        self._is_closed = False
        self._stored_bytes = self._accepted = self._front = 0
        self.retries = 0

    def __repr__(self) -> str:
        chunks = f"{len(self._stored)} of {self._plan.count} chunks stored"
        return f"<Board {chunks}, {len(self._sending)} of {self._limit} being sent>"

    def reset(self, stored: Collection[int]) -> int:
        """The server has these chunks; returns how many are yet to be sent. Nothing is
        being sent meanwhile."""
        with self._changed:
            self._stored = {index for index in stored if 0 <= index < self._plan.count}
            self._stored_bytes = sum(self._plan.length(index) for index in self._stored)
            self._fresh = deque(
                index for index in range(self._plan.count) if index not in self._stored
            )
            self._failures.clear()
            self._is_closed = False
            self._changed.notify_all()
            return len(self._fresh)

    # --- for lanes ---

    def next_chunk(self) -> int | None:
        """Wait for a chunk that may be sent; None: all are stored, or it is over."""
        with self._changed:
            while self._ending.error is None and (
                self._fresh or self._resting or self._sending
            ):
                has_room = len(self._sending) + self._asleep < self._limit
                now = self._clock()
                index = self._ready(now) if has_room else None
                if index is not None:
                    self._sending[index] = 0
                    self._front = max(self._front, index + 1)
                    self._changed.notify_all()
                    return index
                ready_at = (
                    min(self._resting.values(), default=None) if has_room else None
                )
                self._changed.wait(
                    None if ready_at is None else max(0.001, ready_at - now)
                )
            return None

    def add_sent(self, index: int, size: int) -> None:
        """So many more bytes of a chunk are on their way. Raises when it is over."""
        with self._changed:
            self._ending.raise_if_cancelled()
            self._sending[index] += size

    def mark_stored(self, index: int) -> None:
        """The server has the chunk: who rests looks again, and after some chunks one
        more is sent at once."""
        with self._changed:
            self._accepted += self._sending.pop(index)
            self._stored.add(index)
            self._stored_bytes += self._plan.length(index)
            self._failures.pop(index, None)
            self._stored_since += 1
            if self._limit < self._lanes and self._stored_since >= GROWTH:
                self._limit, self._stored_since = self._limit + 1, 0
            self._changed.notify_all()

    def retry_later(self, index: int, rest: RetryDelay = NO_BACKOFF) -> None:
        """Another attempt, by any lane, after ``rest.chunk_s``. This thread sleeps for
        ``rest.thread_s``:

        it keeps its place meanwhile, and goes on when a chunk is stored, as the server
        is there then. Raises when it is over.
        """
        with self._changed:
            self.retries += 1
            del self._sending[index]
            if not self._is_closed:
                self._resting[index] = self._clock() + rest.chunk_s
            before, is_asleep = len(self._stored), rest.worker_s > 0
            self._asleep += is_asleep
            self._changed.notify_all()
            if is_asleep:
                self._changed.wait_for(
                    lambda: self._is_over() or len(self._stored) > before, rest.worker_s
                )
                self._asleep -= 1
                self._changed.notify_all()
        self._ending.raise_if_cancelled()

    def reduce_connections(self) -> bool:
        """The server may admit no further connection: fewer from now on; returns
        whether others are at work."""
        with self._changed:
            others = len(self._sending) - 1
            if others < 1:
                return False
            self._limit, self._stored_since = min(self._limit, others), 0
            return True

    def count_failure(self, index: int) -> int:
        """One more failed attempt at a chunk; returns how many there were in a row."""
        with self._changed:
            self._failures[index] = self._failures.get(index, 0) + 1
            return self._failures[index]

    def close(self) -> None:
        """The server takes no more: what is not being sent now stays here."""
        with self._changed:
            self._is_closed = True
            self._fresh.clear()
            self._resting.clear()
            self._changed.notify_all()

    # --- for everyone ---

    def wait_until_begun(self, index: int) -> None:
        """Wait until a lane has begun with the chunk, or none will. Raises when it is
        over."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over() or self._front > index or index in self._stored
            )
        self._ending.raise_if_cancelled()

    @property
    def done_bytes(self) -> int:
        """Bytes that the server has, and those on their way."""
        with self._changed:
            return self._stored_bytes + sum(self._sending.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes that the server has."""
        return self._stored_bytes

    @property
    def accepted_bytes(self) -> int:
        """Bytes that the server has taken from this run."""
        return self._accepted

    @property
    def sending_count(self) -> int:
        """Chunks that are being sent."""
        return len(self._sending)

    def _is_over(self) -> bool:
        return self._ending.error is not None or self._is_closed

    def _ready(self, now: float) -> int | None:
        for index, until in self._resting.items():
            if until <= now:
                del self._resting[index]
                return index
        return self._fresh.popleft() if self._fresh else None
