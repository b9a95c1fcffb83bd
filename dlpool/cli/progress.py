"""Shows progress on standard error: bars, lines, JSON lines or nothing.

Only the main thread draws.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol, TextIO

from dlpool.cli.tables import clean
from dlpool.cli.units import eta_s, percent, size_text, status_text
from dlpool.engine.batch import BatchProgress
from dlpool.engine.progress import Speedometer

PLAIN_EVERY_S = 10.0
JSON_EVERY_S = 1.0


class Display(Protocol):
    """Shows the progress of a run to a user or a program."""

    def update(self, view: BatchProgress) -> None:
        """Draw the progress if an update is due."""

    def print_line(self, text: str) -> None:
        """Print a line above the progress display, with control characters escaped."""

    def close(self) -> None:
        """Restore the terminal."""


class SilentDisplay:
    """Shows no progress; lines are still printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def update(self, view: BatchProgress) -> None:
        """Do nothing."""

    def print_line(self, text: str) -> None:
        """Print a line."""
        print(clean(text), file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class PlainDisplay(SilentDisplay):
    """Prints a line every ten seconds, for pipes and logs."""

    every_s = PLAIN_EVERY_S

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._shown_at = time.monotonic()
        self._speeds: dict[int, Speedometer] = {}

    def update(self, view: BatchProgress) -> None:
        """Measure the speeds; print the progress if an update is due."""
        now = time.monotonic()
        rates = {
            n: self._speeds.setdefault(n, Speedometer()).add(now, p.done)
            for n, p in view.active.items()
        }
        self._speeds = {number: self._speeds[number] for number in rates}
        if now - self._shown_at >= self.every_s:
            self._shown_at = now
            self.show(view, rates)

    def show(self, view: BatchProgress, rates: dict[int, float]) -> None:
        """Print the current progress."""
        if len(view.active) == 1 and not view.done + view.failed:
            number, progress = next(iter(view.active.items()))
            self.print_line(
                f"{clean(progress.path.name)}: {status_text(progress, rates[number])}"
            )
            return
        done = view.completed_bytes + sum(
            progress.done for progress in view.active.values()
        )
        self.print_line(
            f"{view.done} files done, {view.failed} failed, {len(view.active)} active, "
            f"{size_text(done)}, {size_text(sum(rates.values()))}/s"
        )


class JsonDisplay(PlainDisplay):
    """Every second, prints a JSON object for each running file, for programs."""

    every_s = JSON_EVERY_S

    def show(self, view: BatchProgress, rates: dict[int, float]) -> None:
        """Print an object for each running file."""
        for number, progress in view.active.items():
            share, left = percent(progress), eta_s(progress, rates[number])
            line: dict[str, Any] = {
                "event": "progress",
                "path": str(progress.path),
                "done": progress.done,
                "size": progress.size,
                "percent": None if share is None else round(share, 1),
                "bytes_per_second": round(rates[number]),
                "eta_s": None if left is None else round(left, 1),
                "connections": progress.connections,
                "phase": progress.phase,
            }
            self.print_line(json.dumps(line))


def make_display(kind: str, *, quiet: bool) -> Display:
    """Return the display for the value ``kind`` of the option ``--progress``."""
    if quiet or kind == "none":
        return SilentDisplay(sys.stderr)
    if kind == "json":
        return JsonDisplay(sys.stderr)
    if kind == "bar" or (kind == "auto" and sys.stderr.isatty()):
        from dlpool.cli.bars import BarDisplay

        return BarDisplay()
    return PlainDisplay(sys.stderr)
