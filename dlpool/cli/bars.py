"""Progress bars on a terminal, drawn by the library ``rich``."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from dlpool.cli.console import stream_for_rich
from dlpool.cli.tables import clean
from dlpool.cli.units import eta_s, percent, size_text, time_text
from dlpool.engine.batch import BatchProgress
from dlpool.engine.progress import Speedometer
from dlpool.transfer.job import Progress

MAX_LINES = 20  # files shown at once


class BarDisplay:
    """A ``Display`` with a progress bar for each active file, and one for the total.

    The bars of at most 20 files are shown. No thread of ``rich`` draws the bars.
    """

    def __init__(self) -> None:
        self._console = Console(file=stream_for_rich(sys.stderr))
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._tasks: dict[int, TaskID] = {}
        self._speeds: dict[int, Speedometer] = {}
        self._total: TaskID | None = None
        self._bars.start()

    def update(self, view: BatchProgress) -> None:
        """Draw the bars for the progress ``view``."""
        now = time.monotonic()
        for number in self._tasks.keys() - view.active.keys():
            self._bars.remove_task(self._tasks.pop(number))
            del self._speeds[number]
        speed = 0.0
        for number, progress in list(view.active.items())[:MAX_LINES]:
            speed += self._draw(number, progress, now)
        if len(view.active) > 1 or view.done + view.failed:
            self._draw_total(view, speed)
        self._bars.refresh()

    def print_line(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bars."""
        self._bars.stop()

    def _draw(self, number: int, progress: Progress, now: float) -> float:
        if number not in self._tasks:
            self._tasks[number] = self._bars.add_task("", total=None, figures="")
            self._speeds[number] = Speedometer()
        speed = self._speeds[number].add(now, progress.done)
        share, left = percent(progress), eta_s(progress, speed)
        total = size_text(progress.size) if progress.size else "?"
        at_work = (
            f"{progress.connections} conn" if progress.connections else progress.phase
        )
        figures = (
            f"{'' if share is None else f'{share:5.1f}%'} "
            f"{size_text(progress.done)}/{total} {size_text(speed):>7}/s "
            f"{'' if left is None else 'ETA ' + time_text(left)} {at_work}"
        )
        name = escape(clean(progress.path.name[-40:]) or progress.phase)
        self._bars.update(
            self._tasks[number],
            description=name,
            completed=progress.done,
            total=progress.size,
            figures=figures,
        )
        return speed

    def _draw_total(self, view: BatchProgress, speed: float) -> None:
        if self._total is None:
            self._total = self._bars.add_task("total", total=None, figures="")
        done = view.completed_bytes + sum(
            progress.done for progress in view.active.values()
        )
        figures = (
            f"{view.done} done, {view.failed} failed, {size_text(done)} "
            f"{size_text(speed):>7}/s"
        )
        self._bars.update(self._total, completed=view.done, total=None, figures=figures)
