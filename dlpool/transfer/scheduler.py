"""What the threads of one download share: its chunks, whether it is over, and why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from dlpool.errors import DlpoolError, NotAdmitted, RetryRange
from dlpool.transfer.chunks import Chunk, ChunkMap, single_chunk
from dlpool.transfer.retry import FailureCount, RangeAttempt

RECENT_S = 5.0  # bytes written less long ago show that a file is moving
# complete responses in a row with very few bytes, before they count as failed attempts
MAX_CRUMBS = 32
# comparisons after which a chunk's failed attempts count: its backoff is at its maximum
# then
MAX_REPLACED = 8


class ChunkSnapshot(NamedTuple):
    """Copies of the chunks, whose positions are all in the file, and the bytes that
    they hold."""

    chunks: list[Chunk]
    written: int


class ChunkScheduler:
    """The state that connection threads, checkpoints and progress share.

    The lock guards the chunk map, the error and the counters. No I/O happens under it.
    """

    def __init__(self, clock: Callable[[], float], min_rate: int = 0) -> None:
        """``least_rate``: bytes/s below which a connection makes no progress; 0: any
        byte is progress."""
        self._clock = clock
        self._least_rate = min_rate
        self._changed = threading.Condition()
        self._map: ChunkMap = single_chunk(None)
        self._error: DlpoolError | None = None
        self._is_over = False
        self._is_sealed = False
        self._writing = 0
        self._dismissed: set[object] = set()
        self._rates: dict[
            object, float
        ] = {}  # last speed of each owner's connection, in bytes/s
        self._waiting = 0  # idle threads
        self._receiving: set[object] = (
            set()
        )  # owners whose connection is receiving a body
        self._received_at: dict[
            object, float
        ] = {}  # by owner, when its last body began or ended
        self.is_crowded = False  # whether the server has refused a further connection
        self._written_at = -RECENT_S
        self._brisk_at = (
            -RECENT_S
        )  # when a connection that was fast enough released its chunk
        self.retries = 0
        self.finished_chunks = 0

    def __repr__(self) -> str:
        return (
            f"<Board {self._map!r}{' over' if self._is_over else ''} "
            f"{self._error or ''}>"
        )

    # --- for the thread that plans ---

    def load_plan(self, chunk_map: ChunkMap, owner: object) -> Chunk | None:
        """Replace the plan; ``owner`` gets its first chunk, None if nothing is
        missing."""
        with self._changed:
            self._map = chunk_map
            self._is_over = self._is_over or chunk_map.is_done()
            self._changed.notify_all()
            return self._take(owner)

    def retire(self, owner: object) -> None:
        """``owner`` gets no more chunks, and should give back the one that it has."""
        with self._changed:
            self._dismissed.add(owner)
            self._changed.notify_all()

    def remove_worker(self, owner: object) -> None:
        """A dismissed owner has gone."""
        with self._changed:
            self._dismissed.discard(owner)
            self._rates.pop(owner, None)
            self._received_at.pop(owner, None)

    # --- for connection threads ---

    def is_retired(self, owner: object) -> bool:
        return owner in self._dismissed

    def take_chunk(self, owner: object) -> Chunk | None:
        """Wait for a chunk: a free one, else a part of the one that would finish last.

        Returns None when the download is over, or ``owner`` dismissed.
        """
        with self._changed:
            while not self._is_over and owner not in self._dismissed:
                rate = self._rates.get(owner, 0.0)
                chunk = (
                    self._take(owner)
                    or self._map.steal(owner, rate)
                    or self._map.steal_tail(owner, rate)
                )
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
        """Return how many other owners receive a body while the server refuses
        ``owner``."""
        with self._changed:
            others = self._others_receiving(owner)
            self.is_crowded = self.is_crowded or others > 0
            return others

    def others_received_recently(self, owner: object) -> bool:
        """Return whether another owner received a body less than ``RECENT_S`` ago."""
        with self._changed:
            since = self._clock() - RECENT_S
            return any(
                at > since
                for other, at in self._received_at.items()
                if other is not owner
            )

    def retire_if_redundant(self, owner: object) -> bool:
        """Retire ``owner`` if another owner receives a body; return whether it was
        retired."""
        with self._changed:
            if not self._others_receiving(owner):
                return False
            self._dismissed.add(owner)
            return True

    def begin_write(self, chunk: Chunk, size: int) -> int:
        """Announce a write at ``position``; returns how much of ``size`` may be
        written. Raises when it is over."""
        with self._changed:
            if self._is_over:
                raise self._error or AssertionError("a write after the end")
            allowed = min(size, chunk.end - chunk.position)
            chunk.write_end = chunk.position + allowed
            self._writing += 1
            return allowed

    def commit_write(self, chunk: Chunk, size: int) -> None:
        """The claimed write ended with ``size`` bytes in the file; 0 if it failed."""
        with self._changed:
            chunk.position += size
            self._written_at = self._clock() if size else self._written_at
            chunk.write_end = chunk.position
            self._writing -= 1
            if self._writing == 0 and self._is_over:
                self._changed.notify_all()

    def release_chunk(self, chunk: Chunk, delay_s: float = 0.0) -> None:
        """The owner is done with the chunk, or lets another go on with it after
        ``delay_s``."""
        with self._changed:
            self.finished_chunks += chunk.is_done
            if self._is_brisk(chunk):
                self._brisk_at = self._clock()
            self._map.release(chunk, self._clock() + delay_s)
            if self._map.is_done():
                self._is_over = True
            self._changed.notify_all()

    def count_failure(
        self, chunk: Chunk, error: RetryRange, attempt: RangeAttempt
    ) -> FailureCount:
        """Record a failed attempt.

        It counts unless it brought bytes at the minimum speed
        (``Attempt.is_progress``). It does not count where the server may just admit no
        further connection while another connection of this file makes progress, nor
        where our own comparison with siblings ended it, up to ``MAX_REPLACED`` times,
        nor where the server refuses a further connection.
        """
        with self._changed:
            self.retries += 1
            is_excused = (
                error.is_comparison and chunk.replacements <= MAX_REPLACED
            ) or isinstance(error, NotAdmitted)
            if attempt.is_progress(self._least_rate):
                chunk.failures = chunk.slow_bytes = 0
            elif not is_excused and not (error.is_capacity and self._is_moving(chunk)):
                chunk.failures += 1
                chunk.slow_bytes += attempt.received
            return FailureCount(chunk.failures, attempt.received, chunk.slow_bytes)

    def count_short_answer(self, chunk: Chunk, attempt: RangeAttempt) -> bool:
        """Record an answer that ended before its chunk did; return False after too many
        tiny ones."""
        with self._changed:
            if attempt.is_progress(self._least_rate):
                chunk.failures = chunk.slow_bytes = chunk.short_answers = 0
            else:
                chunk.short_answers += 1
            return chunk.short_answers <= MAX_CRUMBS

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the end. Raises the error when it ends with one."""
        if seconds <= 0:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._is_over, seconds)
            if self._error is not None:
                raise self._error

    def sleep_unless_failed(self, seconds: float) -> None:
        """Sleep, also when all chunks are done. Raises the error if the download ends
        with one."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, seconds)
        self.check()

    # --- for everyone ---

    def stop(self, error: DlpoolError) -> None:
        """End the download: nobody writes from now on. The first error stands, and none
        after ``seal``."""
        with self._changed:
            if not self._is_sealed:
                self._error, self._is_over = self._error or error, True
            self._changed.notify_all()

    def seal(self) -> None:
        """The file is complete and verified: from now on nothing stops it. Raises what
        did so before."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._is_sealed = True

    def check(self) -> None:
        """Raise the error, if it ended with one."""
        if self._error is not None:
            raise self._error

    def wait_until_over(self, seconds: float) -> bool:
        """Wait until it is over, at most ``seconds``; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_over, seconds)

    def wait_for_writes(self, seconds: float) -> None:
        """After the end: wait until no write is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._writing == 0, seconds)

    def wait_for_contiguous(self, beyond: int, seconds: float) -> int:
        """Wait until more than ``beyond`` bytes stand in the file without a gap, or it
        is over; returns how many."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over or self._map.contiguous_end() > beyond, seconds
            )
            return self._map.contiguous_end()

    @property
    def error(self) -> DlpoolError | None:
        """Why it ended, None if well or not yet."""
        return self._error

    @property
    def is_over(self) -> bool:
        return self._is_over

    def contiguous_end(self) -> int:
        """All bytes below this are in the file."""
        with self._changed:
            return self._map.contiguous_end()

    def written(self) -> int:
        """Bytes in the file."""
        with self._changed:
            return self._map.written()

    def snapshot(self) -> ChunkSnapshot:
        """The chunks as they are, for a checkpoint; adjacent ones of which nothing is
        written are joined."""
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
        """Record the speed of the owner's connection, in bytes/s; idle threads check
        again for a chunk to steal."""
        with self._changed:
            chunk.rate = rate
            if chunk.owner is not None and rate > 0:
                self._rates[chunk.owner] = rate
            self._changed.notify_all()

    def record_rate(self, owner: object, rate: float) -> None:
        """Record the speed of the connection of ``owner`` over a finished chunk, in
        bytes/s."""
        with self._changed:
            self._rates[owner] = rate

    @property
    def has_idle_worker(self) -> bool:
        """Whether a thread waits for a chunk."""
        return self._waiting > 0

    def slowest_s(self) -> float:
        """Return the seconds that the slowest owner of known speed needs for the rest
        of its chunk."""
        with self._changed:
            known = (
                chunk
                for chunk in self._map.chunks
                if chunk.owner is not None and chunk.rate > 0
            )
            return max((chunk.eta_s for chunk in known), default=0.0)

    def end_stream(self, chunk: Chunk) -> None:
        """The body of unknown length has ended: the file ends here."""
        with self._changed:
            chunk.end = chunk.position

    def _is_brisk(self, chunk: Chunk) -> bool:
        """Return whether its owner is at least as fast as the minimum speed; a speed of
        0 is still unknown."""
        brought = chunk.position - chunk.taken_position
        return (
            brought > 0
            and brought >= self._least_rate
            and not 0 < chunk.rate < self._least_rate
        )

    def _others_receiving(self, owner: object) -> int:
        return len(self._receiving - self._dismissed - {owner})

    def _is_moving(self, failed: Chunk) -> bool:
        """Return whether connections other than that of the ``failed`` chunk make
        progress."""
        now = self._clock()
        if now - self._written_at >= RECENT_S:
            return False
        others = (
            chunk
            for chunk in self._map.chunks
            if chunk is not failed and chunk.owner is not None
        )
        return now - self._brisk_at < RECENT_S or any(
            self._is_brisk(chunk) for chunk in others
        )

    def _take(self, owner: object) -> Chunk | None:
        return self._map.take(owner, self._clock())
