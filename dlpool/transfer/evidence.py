"""Record which responses a file consists of, to check that they are of one version.

This module does no input or output. A file received in one response is of one version.
A file joined from several responses without a strong validator is checked at the end:
byte ranges that were received early are requested again. If the remote file changed in
between, the bytes received before the change differ.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dlpool.dataclass import dataclass
from dlpool.transfer.http.answer import ByteRange

MAX_SAMPLES = 4
SAMPLE = 4096  # bytes


@dataclass
class ReceivedSpan:
    """The range of the bytes received in one response.

    ``end`` is set when the response has ended.
    """

    start: int
    end: int


class Evidence:
    """The responses that the file is joined from, in the order in which they began.

    The lock guards the list.
    """

    def __init__(self) -> None:
        # the server's digest differs between responses of one version
        self.has_wrong_digest = False
        self._lock = threading.Lock()
        self._received: list[ReceivedSpan] = []

    def begin(self, position: int) -> ReceivedSpan:
        """Record a response whose body begins at ``position``; return the record."""
        received = ReceivedSpan(position, position)
        with self._lock:
            self._received.append(received)
        return received

    def spans(self) -> list[ByteRange]:
        """Return the range of each response, the earliest first.

        Call it at the end of the download.
        """
        with self._lock:
            return [
                ByteRange(one.start, one.end)
                for one in self._received
                if one.end > one.start
            ]


def choose_samples(received: Sequence[ByteRange]) -> list[ByteRange]:
    """Choose up to 4 ranges of up to 4 KiB to request again.

    ``received``: the ranges of the responses, the earliest first. Chosen are the
    beginning and the end of the first response, and the beginnings of the next two. The
    end is needed because the versions of a file often begin alike. With fewer
    responses, more ranges of the first response are chosen.
    """
    if not received:
        return []
    first, others = received[0], received[1 : MAX_SAMPLES - 1]
    pieces = MAX_SAMPLES - len(others)
    last = max(first.start, first.end - SAMPLE)
    starts = {
        first.start + (last - first.start) * number // (pieces - 1)
        for number in range(pieces)
    }
    chosen = [_clipped(first, start) for start in starts] + [
        _clipped(span, span.start) for span in others
    ]
    disjoint: list[ByteRange] = []
    for span in sorted(chosen):
        start = max(span.start, disjoint[-1].end if disjoint else 0)
        if start < span.end:
            disjoint.append(ByteRange(start, span.end))
    return disjoint


def _clipped(span: ByteRange, start: int) -> ByteRange:
    return ByteRange(start, min(span.end, start + SAMPLE))
