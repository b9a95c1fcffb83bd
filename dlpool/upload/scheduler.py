"""The order in which the threads of an upload send chunks, and the limit of chunks that
are sent at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from dlpool.cancel import CancelScope
from dlpool.transfer.retry import RetryDelay
from dlpool.upload.plan import UploadPlan

# After the server has refused a connection: the number of chunks to be stored before
# the limit of simultaneous chunks is raised by one again.
GROWTH = 8
NO_BACKOFF = RetryDelay(0.0, 0.0)


class UploadScheduler:
    """The state of each chunk: stored, being sent, waiting for a retry, or unsent.

    At most ``max_connections`` chunks are sent at the same time, fewer if the server
    refuses chunks. Thread-safe; the monitor ``scope.changed`` guards all changes.
    """

    def __init__(
        self,
        plan: UploadPlan,
        scope: CancelScope,
        clock: Callable[[], float],
        max_connections: int,
    ) -> None:
        self._plan = plan
        self._scope = scope
        self._changed = scope.changed
        self._clock = clock
        self._max_connections = self._limit = max_connections
        self._stored_since = 0  # chunks stored since the limit changed
        self._stored: set[int] = set()
        self._sending: dict[int, int] = {}  # bytes sent by this attempt, by index
        self._waiting: dict[int, float] = {}  # the time of the retry, by index
        self._unsent: deque[int] = deque()
        self._sleeping = 0  # threads that sleep after a failure and count as sending
        self._failures: dict[int, int] = {}
        self._is_closed = False
        self._stored_bytes = self._accepted = 0
        self._begun = 0  # one more than the highest index that was sent
        self.retries = 0

    def __repr__(self) -> str:
        chunks = f"{len(self._stored)} of {self._plan.count} chunks stored"
        sending = f"{len(self._sending)} of {self._limit} being sent"
        return f"<UploadScheduler {chunks}, {sending}>"

    def reset(self, stored: Collection[int]) -> int:
        """Set the state of all chunks; return the number of unsent chunks.

        ``stored``: the indexes of the chunks that the server has stored. The caller
        ensures that no chunk is being sent.
        """
        with self._changed:
            self._stored = {index for index in stored if 0 <= index < self._plan.count}
            self._stored_bytes = sum(self._plan.length(index) for index in self._stored)
            self._unsent = deque(
                index for index in range(self._plan.count) if index not in self._stored
            )
            self._failures.clear()
            self._is_closed = False
            self._changed.notify_all()
            return len(self._unsent)

    # --- for connection workers ---

    def next_chunk(self) -> int | None:
        """Wait for a chunk that may be sent, and return its index.

        Returns None in three cases: all chunks are stored; the scheduler is closed and
        no chunk is being sent; or the scope was cancelled.
        """
        with self._changed:
            while self._scope.error is None and (
                self._unsent or self._waiting or self._sending
            ):
                is_admitted = len(self._sending) + self._sleeping < self._limit
                now = self._clock()
                index = self._take_ready(now) if is_admitted else None
                if index is not None:
                    self._sending[index] = 0
                    self._begun = max(self._begun, index + 1)
                    self._changed.notify_all()
                    return index
                retry_at = (
                    min(self._waiting.values(), default=None) if is_admitted else None
                )
                self._changed.wait(
                    None if retry_at is None else max(0.001, retry_at - now)
                )
            return None

    def add_sent(self, index: int, size: int) -> None:
        """Add ``size`` to the number of sent bytes of a chunk.

        Raises the scope's error if the scope was cancelled.
        """
        with self._changed:
            self._scope.raise_if_cancelled()
            self._sending[index] += size

    def mark_stored(self, index: int) -> None:
        """Record that the server has stored the chunk.

        Wakes the threads that sleep in ``retry_later``. If ``reduce_connections`` has
        lowered the limit of simultaneous chunks, increases the limit by one after every
        ``GROWTH`` stored chunks, up to ``max_connections``.
        """
        with self._changed:
            self._accepted += self._sending.pop(index)
            self._stored.add(index)
            self._stored_bytes += self._plan.length(index)
            self._failures.pop(index, None)
            self._stored_since += 1
            if self._limit < self._max_connections and self._stored_since >= GROWTH:
                self._limit, self._stored_since = self._limit + 1, 0
            self._changed.notify_all()

    def retry_later(self, index: int, delay: RetryDelay = NO_BACKOFF) -> None:
        """Let any thread send the chunk again after ``delay.chunk_s`` seconds.

        The calling thread sleeps for up to ``delay.worker_s`` seconds. Meanwhile, it
        counts as a sending thread. It wakes early when a chunk is stored, because this
        shows that the server is available. Schedules nothing if the scheduler is
        closed. Raises the scope's error if the scope was cancelled.
        """
        with self._changed:
            self.retries += 1
            del self._sending[index]
            if not self._is_closed:
                self._waiting[index] = self._clock() + delay.chunk_s
            stored_before, must_sleep = len(self._stored), delay.worker_s > 0
            self._sleeping += must_sleep
            self._changed.notify_all()
            if must_sleep:
                self._changed.wait_for(
                    lambda: self._is_over() or len(self._stored) > stored_before,
                    delay.worker_s,
                )
                self._sleeping -= 1
                self._changed.notify_all()
        self._scope.raise_if_cancelled()

    def reduce_connections(self) -> bool:
        """Lower the limit of simultaneous chunks; return False if this is impossible.

        Called by a thread whose chunk the server refused because of too many
        simultaneous chunks. The new limit is at most the number of other chunks that
        are being sent. If there are none, nothing is changed.
        """
        with self._changed:
            others = len(self._sending) - 1
            if others < 1:
                return False
            self._limit, self._stored_since = min(self._limit, others), 0
            return True

    def count_failure(self, index: int) -> int:
        """Count a failure to send a chunk; return the chunk's failures in a row."""
        with self._changed:
            self._failures[index] = self._failures.get(index, 0) + 1
            return self._failures[index]

    def close(self) -> None:
        """Let no thread send a further chunk, because the server accepts none."""
        with self._changed:
            self._is_closed = True
            self._unsent.clear()
            self._waiting.clear()
            self._changed.notify_all()

    # --- for all threads ---

    def wait_until_begun(self, index: int) -> None:
        """Wait until a thread has begun to send the chunk.

        Does not wait if the chunk is stored or the scheduler is closed. Raises the
        scope's error if the scope was cancelled.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over() or self._begun > index or index in self._stored
            )
        self._scope.raise_if_cancelled()

    @property
    def done_bytes(self) -> int:
        """The bytes of stored chunks, plus the sent bytes of chunks being sent."""
        with self._changed:
            return self._stored_bytes + sum(self._sending.values())

    def stored_indexes(self) -> tuple[int, ...]:
        """Return the indexes of the stored chunks, sorted."""
        with self._changed:
            return tuple(sorted(self._stored))

    @property
    def stored_bytes(self) -> int:
        """The bytes of stored chunks."""
        return self._stored_bytes

    @property
    def accepted_bytes(self) -> int:
        """The sent bytes of the chunks that the server stored in this attempt."""
        return self._accepted

    @property
    def sending_count(self) -> int:
        """The number of chunks that are being sent."""
        return len(self._sending)

    def _is_over(self) -> bool:
        return self._scope.error is not None or self._is_closed

    def _take_ready(self, now: float) -> int | None:
        """Remove and return a chunk that may be sent; None if there is none.

        Chunks whose retry is due come before unsent chunks.
        """
        for index, retry_at in self._waiting.items():
            if retry_at <= now:
                del self._waiting[index]
                return index
        return self._unsent.popleft() if self._unsent else None
