"""Bytes a second over the last seconds. Pure."""

from __future__ import annotations

from collections import deque

WINDOW_S = 5.0


class Speedometer:
    """Fed with totals at moments. Not thread-safe."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> float:
        """Take a sample and return the speed; a total that went back (a restart) begins
        anew."""
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0
