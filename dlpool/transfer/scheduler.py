"""Assign chunks to the connection threads of one download."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dlpool.cancel import CancelScope
from dlpool.errors import NotAdmitted, RetryRange
from dlpool.transfer.chunks import Chunk, ChunkMap, ThiefSpeed, single_chunk
from dlpool.transfer.retry import FailureCount, RangeAttempt

RECENT_S = 5.0  # bytes written within this time show progress
# consecutive complete responses with very few bytes that do not count as failures
MAX_SHORT_ANSWERS = 32
# A chunk's connections that are replaced beyond this number count as failures. The
# delay before the next comparison is at its maximum then.
MAX_REPLACED = 8


class ChunkSnapshot(NamedTuple):
    """Copies of the chunks, and the number of bytes that are written.

    All bytes of a chunk below its ``position`` are written.
    """

    chunks: list[Chunk]
    written: int


class ChunkScheduler:
    """The chunks of a download, and which connection worker owns which chunk.

    Connection threads, checkpoints and progress reports share it. Thread-safe.
    ``scope`` cancels the download. The lock of ``scope`` also guards the chunk map and
    the counters; no I/O happens under this lock.
    """

    def __init__(self, clock: Callable[[], float], min_rate: int = 0) -> None:
        """Prepare an empty schedule.

        ``min_rate``: the speed in bytes per second from which a connection makes
        progress; with 0, any byte is progress.
        """
        self._clock = clock
        self._min_rate = min_rate
        self.scope = CancelScope()
        self._changed = self.scope.changed
        self._map: ChunkMap = single_chunk(None)
        self._is_complete = False  # all chunks are done
        self._writing = 0
        self._retired: set[object] = set()
        # last speed of each owner's connection, in bytes/s
        self._rates: dict[object, float] = {}
        self._waiting = 0  # idle threads
        # owners whose connection is receiving a body
        self._receiving: set[object] = set()
        # by owner, when its last body began or ended
        self._received_at: dict[object, float] = {}
        # whether the server has refused an additional connection
        self.is_crowded = False
        self._written_at = -RECENT_S
        # when a connection of at least the minimum speed released its chunk
        self._min_rate_reached_at = -RECENT_S
        self.retries = 0
        self.finished_chunks = 0

    def __repr__(self) -> str:
        return (
            f"<ChunkScheduler {self._map!r}{' over' if self.is_over else ''} "
            f"{self.scope.error or ''}>"
        )

    # --- the attempt's thread ---

    def load_plan(self, chunk_map: ChunkMap, owner: object) -> Chunk | None:
        """Replace the chunk map, and assign a first chunk to ``owner``.

        Returns this chunk, None if no byte is missing.
        """
        with self._changed:
            self._map = chunk_map
            self._is_complete = chunk_map.is_done()
            self._changed.notify_all()
            return chunk_map.take(owner, self._clock())

    def retire(self, owner: object) -> None:
        """Assign no more chunks to ``owner``.

        Its thread releases the present chunk.
        """
        with self._changed:
            self._retired.add(owner)
            self._changed.notify_all()

    def remove_worker(self, owner: object) -> None:
        """Forget a retired owner whose thread has finished."""
        with self._changed:
            self._retired.discard(owner)
            self._rates.pop(owner, None)
            self._received_at.pop(owner, None)

    # --- connection threads ---

    def is_retired(self, owner: object) -> bool:
        return owner in self._retired

    def take_chunk(self, owner: object, answer_s: float = 0.0) -> Chunk | None:
        """Wait for a chunk and assign it to ``owner``.

        A free chunk is preferred. If there is none, a chunk in progress is split, and
        ``owner`` gets its upper part. ``answer_s``: the seconds that ``owner`` waits
        for the response to a request. Returns None when the download is over or
        ``owner`` is retired.
        """
        with self._changed:
            while not self.is_over and owner not in self._retired:
                speed = ThiefSpeed(self._expected_rate(owner), answer_s)
                chunk = self._map.take(
                    owner, self._clock(), speed.rate
                ) or self._map.steal(owner, speed)
                if chunk is not None:
                    return chunk
                ready_at = self._map.next_ready_at()
                self._waiting += 1
                self._changed.wait(
                    None if ready_at is None else max(0.001, ready_at - self._clock())
                )
                self._waiting -= 1
            return None

    def begin_body(self, owner: object) -> None:
        """Record that ``owner`` receives a body, until ``end_body``."""
        with self._changed:
            self._receiving.add(owner)
            self._received_at[owner] = self._clock()

    def end_body(self, owner: object) -> None:
        """Record that ``owner`` has stopped receiving."""
        with self._changed:
            if owner in self._receiving:
                self._receiving.discard(owner)
                self._received_at[owner] = self._clock()

    def others_receiving(self, owner: object) -> int:
        """Return how many other owners receive a body at this moment.

        Sets ``is_crowded`` if the result is not 0. So call it only when the server has
        refused the request of ``owner``.
        """
        with self._changed:
            others = self._others_receiving(owner)
            self.is_crowded = self.is_crowded or others > 0
            return others

    def others_received_recently(self, owner: object) -> bool:
        """Return whether a body of another owner began or ended recently.

        Recently means less than ``RECENT_S`` seconds ago.
        """
        with self._changed:
            since = self._clock() - RECENT_S
            return any(
                at > since
                for other, at in self._received_at.items()
                if other is not owner
            )

    def retire_if_redundant(self, owner: object) -> bool:
        """Retire ``owner`` if another owner receives a body.

        Returns whether ``owner`` was retired.
        """
        with self._changed:
            if not self._others_receiving(owner):
                return False
            self._retired.add(owner)
            return True

    def begin_write(self, chunk: Chunk, size: int) -> int:
        """Announce a write at ``chunk.position``; return how many bytes may be written.

        The result is less than ``size`` if the chunk ends earlier. If the download has
        been cancelled, raises the error that cancelled it.
        """
        with self._changed:
            if self._is_complete or self.scope.error:
                raise self.scope.error or AssertionError("a write after the end")
            allowed = min(size, chunk.end - chunk.position)
            chunk.write_end = chunk.position + allowed
            self._writing += 1
            return allowed

    def commit_write(self, chunk: Chunk, size: int) -> None:
        """Record that the announced write has ended.

        ``size``: the number of bytes that it stored, 0 if it failed.
        """
        with self._changed:
            chunk.position += size
            self._written_at = self._clock() if size else self._written_at
            chunk.write_end = chunk.position
            self._writing -= 1
            if self._writing == 0 and (self._is_complete or self.scope.error):
                self._changed.notify_all()

    def release_chunk(self, chunk: Chunk, delay_s: float = 0.0) -> None:
        """End the ownership of a chunk.

        If the chunk is not done, any owner may take it after ``delay_s`` seconds.
        """
        with self._changed:
            self.finished_chunks += chunk.is_done
            if self._reaches_min_rate(chunk):
                self._min_rate_reached_at = self._clock()
            self._map.release(chunk, self._clock() + delay_s)
            if self._map.is_done():
                self._is_complete = True
            self._changed.notify_all()

    def count_failure(
        self, chunk: Chunk, error: RetryRange, attempt: RangeAttempt
    ) -> FailureCount:
        """Record a failed request, and return the failures of its chunk.

        A request that received bytes at the minimum speed
        (``RangeAttempt.is_progress``) resets the count. Other requests increase it,
        with three exceptions:

        - The error may mean a limit of connections, and other chunks make progress.
        - The server refused an additional connection (NotAdmitted).
        - The speed monitor ended the connection because other connections were faster.
          A chunk has at most ``MAX_REPLACED`` exceptions of this kind.
        """
        with self._changed:
            self.retries += 1
            if error.is_comparison:  # the next connection may be faster
                self._rates.pop(chunk.owner, None)
            is_excused = (
                error.is_comparison and chunk.replacements <= MAX_REPLACED
            ) or isinstance(error, NotAdmitted)
            if attempt.is_progress(self._min_rate):
                chunk.failures = chunk.slow_bytes = 0
            elif not is_excused and not (error.is_capacity and self._is_moving(chunk)):
                chunk.failures += 1
                chunk.slow_bytes += attempt.received
            return FailureCount(chunk.failures, attempt.received, chunk.slow_bytes)

    def count_short_answer(self, chunk: Chunk, attempt: RangeAttempt) -> bool:
        """Record a complete response that ended before the end of its chunk.

        Returns False after more than ``MAX_SHORT_ANSWERS`` such responses in a row,
        each with too few bytes to count as progress (``RangeAttempt.is_progress``).
        """
        with self._changed:
            if attempt.is_progress(self._min_rate):
                chunk.failures = chunk.slow_bytes = chunk.short_answers = 0
            else:
                chunk.short_answers += 1
            return chunk.short_answers <= MAX_SHORT_ANSWERS

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until the download is over if that is earlier.

        If the download has been cancelled, raises the error that cancelled it.
        """
        if seconds <= 0:
            return
        with self._changed:
            self._changed.wait_for(lambda: self.is_over, seconds)
        self.scope.raise_if_cancelled()

    # --- any thread ---

    def wait_until_over(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until the download is over; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over, seconds)

    def wait_for_writes(self, seconds: float) -> None:
        """Wait up to ``seconds`` until no write is in progress.

        Call it after the end of the download.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._writing == 0, seconds)

    def wait_for_contiguous(self, beyond: int, seconds: float) -> int:
        """Wait until the first ``beyond + 1`` bytes of the file are written.

        Stops waiting after ``seconds`` seconds or when the download is over. Returns
        how many bytes from the beginning are written without a gap.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_over or self._map.contiguous_end() > beyond, seconds
            )
            return self._map.contiguous_end()

    @property
    def is_over(self) -> bool:
        """Whether all chunks are done, or the download has been cancelled."""
        return self._is_complete or self.scope.error is not None

    def contiguous_end(self) -> int:
        """Return the position below which all bytes are written."""
        with self._changed:
            return self._map.contiguous_end()

    def written(self) -> int:
        """Return the number of bytes written."""
        with self._changed:
            return self._map.written()

    def snapshot(self) -> ChunkSnapshot:
        """Return copies of the chunks for a checkpoint.

        Adjacent chunks without a written byte are joined into one.
        """
        with self._changed:
            joined: list[Chunk] = []
            for chunk in self._map.chunks:
                is_empty = chunk.position == chunk.start
                if is_empty and joined and joined[-1].position == joined[-1].start:
                    joined[-1].end = chunk.end
                else:
                    joined.append(
                        Chunk(chunk.start, chunk.end, chunk.position, chunk.position)
                    )
            return ChunkSnapshot(joined, self._map.written())

    def set_rate(self, chunk: Chunk, rate: float) -> None:
        """Record the present speed of the connection that fetches ``chunk``.

        ``rate`` is in bytes per second. Wakes idle threads, which may now be able to
        steal a part of the chunk.
        """
        with self._changed:
            chunk.rate = rate
            if chunk.owner is not None and rate > 0:
                self._rates[chunk.owner] = rate
            self._changed.notify_all()

    def record_rate(self, owner: object, rate: float) -> None:
        """Record the mean speed of ``owner`` over its last request, in bytes/s."""
        with self._changed:
            self._rates[owner] = rate

    @property
    def has_idle_worker(self) -> bool:
        """Whether a thread waits for a chunk."""
        return self._waiting > 0

    def slowest_s(self) -> float:
        """Return the longest time in seconds that an owner still needs for its chunk.

        0 if the speed of no owner is known.
        """
        with self._changed:
            known = (
                chunk
                for chunk in self._map.chunks
                if chunk.owner is not None and chunk.rate > 0
            )
            return max((chunk.eta_s for chunk in known), default=0.0)

    def end_stream(self, chunk: Chunk) -> None:
        """Set the end of a chunk of unknown length, after its body has ended."""
        with self._changed:
            chunk.end = chunk.position

    def _reaches_min_rate(self, chunk: Chunk) -> bool:
        """Return whether the chunk's owner reaches the minimum speed.

        The owner must have written at least ``min_rate`` bytes of the chunk (one second
        at the minimum speed), and its present speed must be unknown or at least the
        minimum.
        """
        brought = chunk.position - chunk.taken_position
        return (
            brought > 0
            and brought >= self._min_rate
            and not 0 < chunk.rate < self._min_rate
        )

    def _expected_rate(self, owner: object) -> float:
        """Return the speed of ``owner``; while unknown, the mean of the known ones."""
        known = self._rates.values()
        return self._rates.get(owner, 0.0) or sum(known) / max(1, len(known))

    def _others_receiving(self, owner: object) -> int:
        return len(self._receiving - self._retired - {owner})

    def _is_moving(self, failed: Chunk) -> bool:
        """Return whether chunks other than ``failed`` make progress."""
        now = self._clock()
        if now - self._written_at >= RECENT_S:
            return False
        others = (
            chunk
            for chunk in self._map.chunks
            if chunk is not failed and chunk.owner is not None
        )
        return now - self._min_rate_reached_at < RECENT_S or any(
            self._reaches_min_rate(chunk) for chunk in others
        )
