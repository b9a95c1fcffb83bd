"""Plan which bytes are fetched by which connection: split, take, steal, release. Pure.

A ``ChunkMap`` divides the file into chunks without gaps. A chunk has ``start`` and
``end``, with ``position`` and ``write_end`` in between in this order. Bytes below
``position`` are written, bytes from ``position`` to ``write_end`` are being written.
The owner of a chunk is the connection that fetches it; only the owner changes
``position`` and ``write_end``. A connection that steals from the chunk lowers its
``end``, at most down to ``write_end``. This module neither locks nor waits nor reads a
clock: ``ChunkScheduler`` calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from dlpool.dataclass import dataclass
from dlpool.transfer.http.answer import ByteRange

UNKNOWN_END = 2**63 - 1  # end of a chunk whose file has no known size
MIN_STEAL_BYTES = 64 * 1024  # a request for fewer costs more than it gains
MIN_STEAL_GAIN_S = 0.1  # nothing is stolen unless the chunk is done this much earlier
# Fewer than MIN_STEAL_BYTES are stolen only from an owner that needs SLOW_S seconds or
# more, and never fewer than MIN_TAIL_BYTES.
SLOW_S = 2.0
MIN_TAIL_BYTES = 1024


class ThiefSpeed(NamedTuple):
    """What is known about the connection that is to get a part of a chunk.

    ``rate``: its speed in bytes per second, 0 while unknown. ``answer_s``: the seconds
    until the first byte of its response.
    """

    rate: float = 0.0
    answer_s: float = 0.0


UNKNOWN_SPEED = ThiefSpeed()


@dataclass(eq=False)
class Chunk:
    """A range of the file and its state.

    ``rate``: the measured speed of the chunk's owner in bytes per second, 0 while
    unknown. ``assumed_rate``: the expected speed of the owner, 0 if nothing is known.
    """

    start: int
    end: int
    position: int
    write_end: int
    owner: object | None = None
    ready_at: float = 0.0  # when it may be requested again, by the caller's clock
    taken_position: int = 0  # ``position`` when the present owner took the chunk
    failures: int = 0  # consecutive, without progress
    slow_bytes: int = 0  # bytes received by these failed requests
    short_answers: int = 0  # consecutive complete responses with very few bytes
    replacements: int = 0  # connections that were ended for being slower than others
    rate: float = 0.0
    assumed_rate: float = 0.0

    @classmethod
    def missing(cls, span: ByteRange) -> Chunk:
        """Return a chunk of which no byte is written."""
        return cls(span.start, span.end, span.start, span.start)

    @property
    def is_done(self) -> bool:
        return self.position >= self.end

    @property
    def is_finished(self) -> bool:
        """Return whether the chunk is done and its owner has released it."""
        return self.is_done and self.owner is None

    @property
    def remaining(self) -> int:
        """Return the number of bytes behind the write in progress."""
        return self.end - self.write_end

    @property
    def unstealable(self) -> int:
        """Return how many bytes from ``position`` on stay with the owner after a steal.

        The owner reads at most this number at once, so that the other bytes can be
        stolen.
        """
        left = self.end - self.position
        return left if left // 2 < MIN_STEAL_BYTES else (left + 1) // 2

    @property
    def eta_s(self) -> float:
        """Return the seconds until the owner finishes.

        Computed from its measured speed, or else from its assumed speed. Infinite if
        both speeds are unknown.
        """
        rate = self.rate or self.assumed_rate
        return self.remaining / rate if rate > 0 else float("inf")

    def assign(self, owner: object, assumed_rate: float) -> None:
        """Give the chunk to ``owner``, which fetches from ``position`` on."""
        self.owner, self.taken_position = owner, self.position
        self.rate, self.assumed_rate = 0.0, assumed_rate


class ChunkMap:
    """The chunks of one file, sorted; together they cover the complete file.

    With ``piece`` set, work is assigned from the front in pieces of ``piece`` bytes, so
    that a hash can follow. Otherwise a free chunk is assigned undivided.
    ``least_split``: the least number of bytes to steal from an owner of unknown speed.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk],
        *,
        piece: int | None = None,
        least_split: int = MIN_STEAL_BYTES,
    ) -> None:
        self.chunks = list(chunks)
        self.piece = piece
        self.min_split = least_split

    def __repr__(self) -> str:
        owned = sum(chunk.owner is not None for chunk in self.chunks)
        return (
            f"<ChunkMap {len(self.chunks)} chunks: {owned} owned, {self.written()} "
            f"bytes "
            f"written>"
        )

    def take(self, owner: object, now: float, rate: float = 0.0) -> Chunk | None:
        """Assign the first free chunk that is ready at ``now`` to ``owner``.

        ``rate``: the expected speed of ``owner`` in bytes per second, 0 if unknown.
        Returns None if no chunk is ready.
        """
        for index, chunk in enumerate(self.chunks):
            if chunk.owner is None and not chunk.is_done and chunk.ready_at <= now:
                self._cut_piece(index)
                chunk.assign(owner, rate)
                return chunk
        return None

    def steal(self, owner: object, speed: ThiefSpeed = UNKNOWN_SPEED) -> Chunk | None:
        """Split the chunk that would finish last; ``owner`` gets its upper part.

        ``speed``: what is known about ``owner``. ``kept_bytes`` decides where the chunk
        is split. Returns None if no split is worth its cost.
        """
        victims = [
            (chunk, kept)
            for chunk in self.chunks
            if chunk.owner is not None
            and (kept := kept_bytes(chunk, speed, self.min_split)) is not None
        ]
        if not victims:
            return None
        victim, kept = max(victims, key=lambda one: (one[0].eta_s, one[0].remaining))
        middle = victim.write_end + kept
        stolen = Chunk.missing(ByteRange(middle, victim.end))
        stolen.assign(owner, speed.rate)
        victim.end = middle
        self.chunks.insert(self.chunks.index(victim) + 1, stolen)
        return stolen

    def release(self, chunk: Chunk, ready_at: float) -> None:
        """Release a chunk.

        From the time ``ready_at`` on, another owner may take the chunk. It continues at
        ``position``.
        """
        chunk.owner = None
        chunk.write_end = chunk.position
        chunk.ready_at = ready_at
        if chunk.is_done:
            self._join_finished(self.chunks.index(chunk))

    def next_ready_at(self) -> float | None:
        """Return when the next free chunk may be taken; None if none is free."""
        return min(
            (
                chunk.ready_at
                for chunk in self.chunks
                if chunk.owner is None and not chunk.is_done
            ),
            default=None,
        )

    def is_done(self) -> bool:
        return all(chunk.is_done for chunk in self.chunks)

    def written(self) -> int:
        """Return the number of bytes written."""
        return sum(chunk.position - chunk.start for chunk in self.chunks)

    def contiguous_end(self) -> int:
        """Return the position below which all bytes are written."""
        for chunk in self.chunks:
            if not chunk.is_done:
                return chunk.position
        return self.chunks[-1].end if self.chunks else 0

    def first_missing(self) -> ByteRange | None:
        """Return the lowest missing range, None if all bytes are written."""
        return next(
            (
                ByteRange(chunk.position, chunk.end)
                for chunk in self.chunks
                if not chunk.is_done
            ),
            None,
        )

    def _cut_piece(self, index: int) -> None:
        """Cut the chunk at ``index`` down to one piece.

        The remaining bytes become a free chunk after it.
        """
        chunk = self.chunks[index]
        if self.piece is None or chunk.end - chunk.position <= self.piece:
            return
        cut = chunk.position + self.piece
        rest = Chunk.missing(ByteRange(cut, chunk.end))
        chunk.end = cut
        self.chunks.insert(index + 1, rest)

    def _join_finished(self, index: int) -> None:
        """Join a done chunk with finished neighbours, to keep the map small."""
        low = index - 1 if index > 0 and self.chunks[index - 1].is_finished else index
        high = (
            index + 1
            if index + 1 < len(self.chunks) and self.chunks[index + 1].is_finished
            else index
        )
        end = self.chunks[high].end
        self.chunks[low : high + 1] = [Chunk(self.chunks[low].start, end, end, end)]


def kept_bytes(victim: Chunk, thief: ThiefSpeed, min_split: int) -> int | None:
    """Return how many bytes beyond ``write_end`` the owner of a split chunk keeps.

    If the speed of the owner is measured, both parts are done at the same time; a thief
    of unknown speed counts as equally fast. Otherwise the owner keeps at least a half,
    and a half must have ``min_split`` bytes. Returns None if a split is not worth its
    cost.
    """
    left = victim.remaining
    half = (left + 1) // 2
    if victim.end == UNKNOWN_END or left < 2 * MIN_TAIL_BYTES:
        return None
    own = victim.rate or victim.assumed_rate
    if victim.rate <= 0 and left // 2 < max(min_split, MIN_STEAL_BYTES):
        return None
    if own <= 0:
        return half
    rate = thief.rate or own
    if victim.rate <= 0:  # an assumed speed does not justify taking more than half
        rate = min(rate, own)
    work = left + rate * thief.answer_s
    done_s = work / (rate + own)
    kept = max(int(work * (own / (rate + own))), MIN_TAIL_BYTES)
    least = MIN_TAIL_BYTES if victim.eta_s >= SLOW_S else MIN_STEAL_BYTES
    is_worth_it = victim.eta_s - done_s >= MIN_STEAL_GAIN_S and left - kept >= least
    return kept if is_worth_it else None


def plan_chunks(
    missing: Sequence[ByteRange],
    size: int,
    connections: int,
    min_split: int,
    piece: int | None = None,
) -> ChunkMap:
    """Return the chunks of a file of ``size`` bytes, of which some are written already.

    ``missing``: the missing ranges, sorted; all other bytes count as written. The
    ranges are split into ``connections`` parts of similar length. No split makes a part
    shorter than ``min_split`` bytes. With ``piece`` the ranges are not split, see
    ``ChunkMap``.
    """
    if size < 2 * min_split and missing == [(0, size)]:
        return ChunkMap([Chunk.missing(missing[0])], piece=piece, least_split=min_split)
    chunks: list[Chunk] = []
    written_to = 0
    for span, parts in zip(
        missing, _parts_of(missing, connections, min_split, piece), strict=True
    ):
        if written_to < span.start:
            chunks.append(Chunk(written_to, span.start, span.start, span.start))
        chunks += [Chunk.missing(part) for part in _divide(span, parts)]
        written_to = span.end
    if written_to < size:
        chunks.append(Chunk(written_to, size, size, size))
    return ChunkMap(chunks, piece=piece, least_split=min_split)


def single_chunk(size: int | None) -> ChunkMap:
    """Return the chunks of a file that is received as one body: a single one."""
    end = UNKNOWN_END if size is None else size
    return ChunkMap([Chunk.missing(ByteRange(0, end))], least_split=UNKNOWN_END)


def _parts_of(
    missing: Sequence[ByteRange], connections: int, min_split: int, piece: int | None
) -> list[int]:
    """Return the number of parts of each missing range.

    Starts with one part for each range. Then the range with the longest parts gets one
    more part, again and again, until there are ``connections`` parts or the parts of
    that range would be shorter than ``min_split`` bytes. With ``piece`` no range is
    split.
    """
    parts = [1] * len(missing)
    lengths = [span.end - span.start for span in missing]
    while piece is None and missing and sum(parts) < connections:
        index = max(range(len(missing)), key=lambda i: lengths[i] / parts[i])
        if lengths[index] // (parts[index] + 1) < min_split:
            break
        parts[index] += 1
    return parts


def _divide(span: ByteRange, parts: int) -> list[ByteRange]:
    length = span.end - span.start
    cuts = [span.start + length * i // parts for i in range(parts + 1)]
    return [ByteRange(low, high) for low, high in pairwise(cuts)]
