"""The progress and the speed of one task. Not thread-safe: callers hold a lock."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from dlpool.transfer.job import TransferResult
from dlpool.transfer.transfer import Transfer

SAMPLE_S = 0.1  # the minimum time between two samples of the speed
WINDOW_S = 5.0  # the period over which the speed is averaged
PROGRESS_EVENTS = frozenset({"job_started", "download_restarted"})


class Speedometer:
    """The average speed over about the last five seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, total: int) -> float:
        """Add a sample and return the speed in bytes per second.

        ``now`` is in seconds, ``total`` in bytes. If ``total`` is less than before, the
        download has restarted, and all earlier samples are discarded.
        """
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


class TaskProgress:
    """The progress of a task over all its transfers. Each start of the task is a
    transfer.

    ``done`` and ``total`` are in bytes, ``speed`` in bytes per second. ``path`` is the
    path of the complete or incomplete file. ``total`` and ``path`` are None while they
    are unknown. ``reported`` is the fraction, from 0.0 to 1.0, that the program has set
    by ``DownloadTask.update_progress``.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.done = 0
        self.total: int | None = None
        self.speed = 0.0
        self.reported = 0.0
        self._speedometer = Speedometer()
        self._sampled_at = float("-inf")

    @property
    def fraction(self) -> float:
        """The downloaded fraction, from 0.0 to 1.0."""
        if not self.total:
            return self.reported
        return min(1.0, max(self.reported, self.done / self.total))

    @property
    def eta_s(self) -> int | None:
        """The remaining seconds; None if unknown."""
        if self.total is None or self.speed <= 0:
            return None
        return round((self.total - self.done) / self.speed)

    def begin_attempt(self) -> None:
        """Reset the speed before a new transfer; keep the downloaded bytes."""
        self._speedometer, self.speed = Speedometer(), 0.0

    def sample(self, transfer: Transfer | None) -> None:
        """Update the values from the running transfer; do nothing for None."""
        if transfer is None:
            return
        progress = transfer.progress()
        if progress.phase != "connecting":
            self.path = progress.path
        self.total = progress.size if progress.size is not None else self.total
        self.done = max(self.done, progress.done)
        now = time.monotonic()
        if now - self._sampled_at >= SAMPLE_S:
            self._sampled_at = now
            self.speed = self._speedometer.add(now, progress.done)

    def handle_event(self, event: str, fields: dict[str, object]) -> None:
        """Set the downloaded bytes if a download starts, resumes or restarts.

        Other events change nothing.
        """
        if event == "download_restarted":
            self.done, self.reported = 0, 0.0
        elif event == "job_started":
            self.done = int(str(fields["resumed_from"]))

    def complete(self, outcome: TransferResult) -> None:
        """Set the path and the sizes to the values of the complete file."""
        self.path, self.done, self.total = outcome.path, outcome.size, outcome.size
