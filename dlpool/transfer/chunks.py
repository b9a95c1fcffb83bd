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

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from dlpool.dataclass import dataclass
from dlpool.transfer.http.answer import ByteRange

UNKNOWN_END = 2**63 - 1  # end of a chunk whose file has no known size
MIN_STEAL_BYTES = 64 * 1024  # a request for fewer costs more than it gains
MIN_STEAL_S = 0.5  # nothing is stolen from an owner that finishes within this time
# Fewer than MIN_STEAL_BYTES are stolen only from an owner that needs SLOW_S seconds or
# more, and never fewer than MIN_TAIL_BYTES.
SLOW_S = 2.0
MIN_TAIL_BYTES = 1024
FASTER = 2.0  # a thief this many times as fast as its victim gets more than half


@dataclass(eq=False)
class Chunk:
    """A range of the file and its state.

    ``rate``: the speed of the chunk's owner in bytes per second, 0 while unknown.
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

    @classmethod
    def missing(cls, span: ByteRange) -> Chunk:
        """Return a chunk without any byte written."""
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
        """Return the number of bytes that another owner could steal."""
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

        Infinite while the speed of the owner is unknown.
        """
        return self.remaining / self.rate if self.rate > 0 else float("inf")


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

    def take(self, owner: object, now: float) -> Chunk | None:
        """Assign to ``owner`` the first free chunk that is ready at ``now``.

        Returns None if no chunk is ready.
        """
        for index, chunk in enumerate(self.chunks):
            if chunk.owner is None and not chunk.is_done and chunk.ready_at <= now:
                self._cut_piece(index)
                chunk.owner, chunk.rate, chunk.taken_position = (
                    owner,
                    0.0,
                    chunk.position,
                )
                return chunk
        return None

    def steal(self, owner: object, rate: float = 0.0) -> Chunk | None:
        """Split the chunk that would finish last; ``owner`` gets its upper part.

        ``rate``: speed of ``owner`` in bytes per second, 0 if unknown. If ``owner`` is
        at least ``FASTER`` times as fast as the owner of the chunk, the sizes of the
        parts are in proportion to the two speeds. Otherwise the chunk is halved.
        Returns None if no split is worth its cost.
        """
        return self._split(owner, rate, self._is_worth_stealing)

    def steal_tail(self, owner: object, rate: float = 0.0) -> Chunk | None:
        """Split a small chunk whose owner would need longer than ``SLOW_S``.

        ``owner`` gets the upper part; ``rate`` is as in ``steal``. Returns None if
        there is no such chunk.
        """
        return self._split(owner, rate, _is_slow_tail)

    def _split(
        self, owner: object, rate: float, is_worth_it: Callable[[Chunk], bool]
    ) -> Chunk | None:
        victims = [
            chunk
            for chunk in self.chunks
            if chunk.owner is not None and is_worth_it(chunk)
        ]
        if not victims:
            return None
        victim = max(victims, key=lambda chunk: (chunk.eta_s, chunk.remaining))
        middle = victim.write_end + _kept_bytes(victim, rate)
        stolen = Chunk.missing(ByteRange(middle, victim.end))
        stolen.owner, stolen.taken_position = owner, middle
        victim.end = middle
        self.chunks.insert(self.chunks.index(victim) + 1, stolen)
        return stolen

    def release(self, chunk: Chunk, ready_at: float) -> None:
        """Release a chunk.

        Another owner may take it from the time ``ready_at`` on, and fetches it from its
        ``position`` on.
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

    def _is_worth_stealing(self, chunk: Chunk) -> bool:
        half = chunk.remaining // 2
        if chunk.end == UNKNOWN_END or half < MIN_STEAL_BYTES:
            return False
        return half >= self.min_split if chunk.rate <= 0 else chunk.eta_s >= MIN_STEAL_S

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


def _is_slow_tail(chunk: Chunk) -> bool:
    half = chunk.remaining // 2
    return (
        MIN_TAIL_BYTES <= half < MIN_STEAL_BYTES
        and chunk.rate > 0
        and chunk.eta_s >= SLOW_S
    )


def _kept_bytes(victim: Chunk, rate: float) -> int:
    """Return how many bytes beyond ``write_end`` the owner of a split chunk keeps.

    ``victim``: the chunk to split. ``rate``: speed of the connection that gets the
    upper part, in bytes per second.
    """
    half = (victim.remaining + 1) // 2
    if victim.rate <= 0 or rate < FASTER * victim.rate:
        return half
    share = int(victim.remaining * victim.rate / (victim.rate + rate))
    return max(share, min(half, MIN_TAIL_BYTES))


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
    """Return one chunk for a file that is received as one body.

    No part of it can be stolen.
    """
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
