"""What shows that all bytes of a file are of one version, where no validator does. Pure, but for a lock.

A file that came by one answer is of one version. One that was joined out of several, by nothing but an equal size, a
weak entity tag or a date that is no proof, is compared at its end: spans that were fetched early are asked for again.
If the remote changed in between, what was fetched before the change is what differs.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from dlpool.transfer.answer import Span

MOST_SAMPLES = 4
SAMPLE = 4096  # bytes


@dataclass
class Brought:
    """The bytes that one answer has brought: ``end`` is set when it has ended."""

    start: int
    end: int


class Evidence:
    """Which answers the file is made of, in the order in which they came. The lock guards the list."""

    def __init__(self) -> None:
        self.has_wrong_digest = False  # one that changes from answer to answer of one version is not of the whole file
        self._lock = threading.Lock()
        self._brought: list[Brought] = []

    def begin(self, position: int) -> Brought:
        """Note that an answer brings bytes from ``position`` on."""
        brought = Brought(position, position)
        with self._lock:
            self._brought.append(brought)
        return brought

    def spans(self) -> list[Span]:
        """Return what each answer has brought, the earliest first; at the end of the download."""
        with self._lock:
            return [Span(one.start, one.end) for one in self._brought if one.end > one.start]


def samples(brought: Sequence[Span]) -> list[Span]:
    """Choose what to ask for again, of what answers have brought, the earliest first: up to 4 spans of up to 4 KiB.

    The beginning and the end of the first answer, as versions of one format often begin alike, and the beginnings
    of the next two; where there are fewer, more of the first.
    """
    if not brought:
        return []
    first, others = brought[0], brought[1 : MOST_SAMPLES - 1]
    pieces = MOST_SAMPLES - len(others)
    last = max(first.start, first.end - SAMPLE)
    starts = {first.start + (last - first.start) * number // (pieces - 1) for number in range(pieces)}
    chosen = [_clipped(first, start) for start in starts] + [_clipped(span, span.start) for span in others]
    apart: list[Span] = []
    for span in sorted(chosen):
        start = max(span.start, apart[-1].end if apart else 0)
        if start < span.end:
            apart.append(Span(start, span.end))
    return apart


def _clipped(span: Span, start: int) -> Span:
    return Span(start, min(span.end, start + SAMPLE))
