"""How far a task is. Not thread-safe: its task's lock guards it."""

from __future__ import annotations

import time
from pathlib import Path

from dlpool.engine.speed import Speedometer
from dlpool.transfer.job import TransferResult
from dlpool.transfer.transfer import Transfer

SAMPLE_S = 0.1  # between two looks that count for the speed


class TaskProgress:
    """Looks at one transfer after another; what is done goes back only when a restart
    was announced.

    ``done`` and ``total`` in bytes, ``speed`` in bytes a second, ``path``: of the file,
    now or later; ``told`` is what somebody said of it, from 0.0 to 1.0.
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
        """From 0.0 to 1.0."""
        return (
            min(1.0, max(self.reported, self.done / self.total))
            if self.total
            else self.reported
        )

    @property
    def eta_s(self) -> int | None:
        """Seconds left; None if that cannot be told."""
        return (
            round((self.total - self.done) / self.speed)
            if self.total is not None and self.speed > 0
            else None
        )

    def begin_attempt(self) -> None:
        """Another transfer: what is done stays, the speed is a new one."""
        self._speedometer, self.speed = Speedometer(), 0.0

    def sample(self, transfer: Transfer | None) -> None:
        """Take over where it is."""
        if transfer is None:
            return
        now = transfer.progress()
        if now.phase != "connecting":
            self.path = now.path
        self.total = now.size if now.size is not None else self.total
        self.done = max(self.done, now.done)
        at = time.monotonic()
        if at - self._sampled_at >= SAMPLE_S:
            self._sampled_at = at
            self.speed = self._speedometer.add(at, now.done)

    def handle_event(self, event: str, fields: dict[str, object]) -> None:
        """Bytes that are thrown away are not done any more."""
        if event == "download_restarted":
            self.done, self.reported = 0, 0.0
        elif event == "job_started":
            self.done = int(str(fields["resumed_from"]))

    def complete(self, outcome: TransferResult) -> None:
        """The file is there."""
        self.path, self.done, self.total = outcome.path, outcome.size, outcome.size
