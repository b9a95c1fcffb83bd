"""``dlpool top``: shows the queue as it changes.

Each sample asks the supervisors for new reports, which the next sample shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import field
from typing import Any

from dlpool.cli.console import show_lines, stream_for_rich
from dlpool.cli.jobs import host_lines, progress_text
from dlpool.cli.queue_options import OpenQueue, open_queue
from dlpool.cli.tables import clean, show_pairs, show_table
from dlpool.cli.units import size_text
from dlpool.dataclass import dataclass
from dlpool.errors import QueueAway
from dlpool.jobs.job_view import JobView
from dlpool.jobs.keys import node_of
from dlpool.jobs.nodes import node_rows
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.queue_views import QueueStats, QueueViews
from dlpool.transfer.http.urls import display_url

SAMPLE_S = 1.0  # between samples
FIRST_SAMPLE_S = 0.3  # the wait for the reports of supervisors before the first sample
BAR = 20  # characters
COLUMNS = ("ID", "NODE", "DONE", "RATE", "PHASE", "URL", "PATH")


@dataclass
class JobRates:
    """The bytes per second of each job, between two samples.

    ``seen`` maps each job id to the time and the downloaded bytes of the last sample.
    ``now`` maps each job id to the rate in bytes per second.
    """

    seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    now: dict[str, float] = field(default_factory=dict)

    def sample(self, views: list[JobView], at: float) -> None:
        """Update the rates at the time ``at``, in seconds; a new job has the rate 0."""
        seen: dict[str, tuple[float, int]] = {}
        now: dict[str, float] = {}
        for view in views:
            job_id, done = view.id or "", view.progress.get("done")
            if not isinstance(done, int):
                continue
            before_at, before = self.seen.get(job_id, (at, done))
            seen[job_id] = (at, done)
            now[job_id] = (
                max(0, done - before) / (at - before_at) if at > before_at else 0.0
            )
        self.seen, self.now = seen, now


class QueueMonitor:
    """The last sample of the queue, and its presentation as rows and lines."""

    def __init__(self, queue: OpenQueue, limit: int) -> None:
        self._views = QueueViews(queue.client, queue.keys)
        self._admin = QueueAdmin(queue.client, queue.keys)
        self._limit = limit
        self._rates = JobRates()
        self.stats: QueueStats | None = None
        self.running: list[JobView] = []
        self.drained: set[str] = set()

    def begin(self) -> None:
        """Request new reports, wait 0.3 seconds for them, and take the first sample.

        Reports that are already stored have different ages and would give wrong rates.
        """
        self.sample()
        time.sleep(FIRST_SAMPLE_S)
        self._rates = JobRates()
        self.sample()

    def sample(self) -> None:
        """Take a sample. Raises QueueError."""
        self.stats = self._views.stats()
        self.running = self._views.jobs("running", self._limit)
        self.drained = self._admin.drained_nodes()
        self._rates.sample(self.running, time.monotonic())
        self._admin.request_status(self.stats.supervisors)

    def as_json(self) -> dict[str, Any]:
        """Return the last sample as JSON values."""
        assert self.stats is not None
        return {
            **self.stats.as_json(),
            "jobs": [view.as_json() for view in self.running],
        }

    def jobs(self) -> list[tuple[object, ...]]:
        """Return the running jobs as rows."""
        return [
            (
                view.id,
                node_of(view.owner or "") or view.owner,
                _bar(view),
                self._rate(view),
                view.progress.get("phase", ""),
                display_url(view.url or ""),
                view.save_path,
            )
            for view in self.running
        ]

    def nodes(self) -> list[tuple[object, ...]]:
        """Return the nodes as rows: name, state, busy slots, rate."""
        assert self.stats is not None
        rows: list[tuple[object, ...]] = []
        for row in node_rows(self.stats, self.drained):
            state = (
                f"lost since {row['seen_at']}"
                if row["state"] == "lost"
                else row["state"]
            )
            busy = f"{row.get('busy', '?')} of {row['slots']}" if "slots" in row else ""
            rate = sum(
                self._rates.now.get(view.id or "", 0.0)
                for view in self.running
                if view.owner == row.get("sid")
            )
            rows.append(
                (
                    row["node"] or row.get("sid"),
                    state,
                    busy,
                    f"{size_text(round(rate))}/s" if busy else "",
                )
            )
        return rows

    def headline(self) -> str:
        """Return the numbers of jobs in one line."""
        assert self.stats is not None
        figures = self.stats.counts()
        today = self.stats.days[0].counters if self.stats.days else {}
        rate = size_text(round(sum(self._rates.now.values())))
        return (
            f"{'PAUSED  ' if self.stats.is_halted else ''}{self.stats.waiting} waiting "
            f" {figures['delayed']} delayed  "
            f"{figures['throttled']} throttled  "
            f"{figures['paused']} paused  {figures['running']} running  {rate}/s  "
            f"today: {today.get('succeeded', 0)} succeeded, {today.get('failed', 0)} "
            f"failed"
        )

    def hosts(self) -> list[str]:
        """Return the lines about hosts whose jobs must wait."""
        assert self.stats is not None
        return host_lines(self.stats)

    def _rate(self, view: JobView) -> str:
        rate = self._rates.now.get(view.id or "")
        return f"{size_text(round(rate))}/s" if rate else ""


def run(arguments: argparse.Namespace) -> int:
    """Show the queue until Ctrl-C; only once with ``--json`` or without a terminal.

    Raises QueueError.
    """
    with open_queue(arguments) as queue:
        top = QueueMonitor(queue, arguments.limit)
        top.begin()
        if arguments.json or not sys.stdout.isatty():
            time.sleep(SAMPLE_S)
            top.sample()
            return _print(top, is_json=arguments.json)
        return _watch(top)


def _print(top: QueueMonitor, *, is_json: bool) -> int:
    if is_json:
        show_lines([json.dumps(top.as_json())])
        return 0
    show_pairs([("queue", top.headline())])
    show_lines(top.hosts())
    show_table(("NODE", "STATE", "BUSY", "RATE"), top.nodes())
    show_table(COLUMNS, top.jobs())
    return 0


def _watch(top: QueueMonitor) -> int:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def drawn() -> Group:
        tables: list[RenderableType] = []
        for columns, rows in (
            (("NODE", "STATE", "BUSY", "RATE"), top.nodes()),
            (COLUMNS, top.jobs()),
        ):
            table = Table(box=None, pad_edge=False)
            for column in columns:
                table.add_column(column, no_wrap=True, overflow="ellipsis")
            for row in rows:
                table.add_row(*(Text(clean(cell)) for cell in row))
            tables += [table, Text("")]
        hosts = [Text(clean(line), style="yellow") for line in top.hosts()]
        return Group(
            Text(top.headline(), style="bold"),
            *hosts,
            Text(""),
            *tables,
            Text(clean(problem), style="red"),
        )

    problem = ""
    with Live(
        drawn(),
        console=Console(file=stream_for_rich(sys.stdout)),
        screen=True,
        auto_refresh=False,
    ) as live:
        while True:
            time.sleep(SAMPLE_S)
            try:
                top.sample()
                problem = ""
            except QueueAway as error:  # the last sample stays visible, with the reason
                problem = str(error)
            live.update(drawn(), refresh=True)


def _bar(view: JobView) -> str:
    done, size = view.progress.get("done"), view.progress.get("size")
    if not (isinstance(done, int) and isinstance(size, int) and size > 0):
        return progress_text(view)
    full = min(BAR, BAR * done // size)
    return f"{'#' * full}{'-' * (BAR - full)} {progress_text(view)}"
