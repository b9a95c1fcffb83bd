"""Evidence that all bytes of a file are of one version, where no validator shows it.
Pure, except for a lock.

A file that was received in one response is of one version. One that was joined from
several, with only an equal size, a weak entity tag or a weak date in common, is
compared at the end: spans that were fetched early are requested again. If the remote
file changed in between, the bytes fetched before the change differ.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from dlpool.transfer.http.answer import ByteRange

MOST_SAMPLES = 4
SAMPLE = 4096  # bytes


@dataclass
class ReceivedSpan:
    """The bytes received in one response; ``end`` is set when the response has
    ended."""

    start: int
    end: int


class Evidence:
    """The responses that the file is made of, in the order of their beginnings. The
    lock guards the list."""

    def __init__(self) -> None:
        # it differs between responses of one version, so it is not that of the file
        self.has_wrong_digest = False
        self._lock = threading.Lock()
        self._brought: list[ReceivedSpan] = []

    def begin(self, position: int) -> ReceivedSpan:
        """Record a response whose body begins at ``position``, and return its
        record."""
        brought = ReceivedSpan(position, position)
        with self._lock:
            self._brought.append(brought)
        return brought

    def spans(self) -> list[ByteRange]:
        """Return the span of each response, the earliest first. Called at the end of
        the download."""
        with self._lock:
            return [
                ByteRange(one.start, one.end)
                for one in self._brought
                if one.end > one.start
            ]


def choose_samples(brought: Sequence[ByteRange]) -> list[ByteRange]:
    """Choose up to 4 spans of up to 4 KiB to request again, from the spans of the
    responses, the earliest first.

    These are the beginning and the end of the first response, as versions of one format
    often begin alike, and the beginnings of the next two responses; if there are fewer,
    more spans of the first.
    """
    if not brought:
        return []
    first, others = brought[0], brought[1 : MOST_SAMPLES - 1]
    pieces = MOST_SAMPLES - len(others)
    last = max(first.start, first.end - SAMPLE)
    starts = {
        first.start + (last - first.start) * number // (pieces - 1)
        for number in range(pieces)
    }
    chosen = [_clipped(first, start) for start in starts] + [
        _clipped(span, span.start) for span in others
    ]
    apart: list[ByteRange] = []
    for span in sorted(chosen):
        start = max(span.start, apart[-1].end if apart else 0)
        if start < span.end:
            apart.append(ByteRange(start, span.end))
    return apart


def _clipped(span: ByteRange, start: int) -> ByteRange:
    return ByteRange(start, min(span.end, start + SAMPLE))
