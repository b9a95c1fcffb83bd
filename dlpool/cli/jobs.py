"""``dlpool jobs``, ``dlpool job`` and ``dlpool stats``: show the queue."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from dlpool.cli.console import show_lines
from dlpool.cli.queue_options import open_queue
from dlpool.cli.tables import show_pairs, show_table
from dlpool.cli.units import size_text
from dlpool.jobs.job_view import JobView, time_text
from dlpool.jobs.queue_views import DayView, QueueStats, QueueViews, SupervisorView
from dlpool.transfer.http.urls import display_url

COLUMNS = (
    "ID",
    "STATE",
    "PROGRESS",
    "ATTEMPTS",
    "TIME",
    "OWNER",
    "URL",
    "PATH",
    "NOTE",
)
SUPERVISOR_FIELDS = ("host", "pid", "version", "slots", "busy")
COUNTERS = ("pushed", "succeeded", "failed", "retry", "release", "crash", "recovered")
NOTE_SHOWN = 200  # characters


def list_jobs(arguments: argparse.Namespace) -> int:
    """List jobs and return the exit code. Raises QueueError."""
    with open_queue(arguments) as queue:
        found = QueueViews(queue.client, queue.keys).jobs(
            arguments.state, arguments.limit
        )
    if arguments.json:
        show_lines(json.dumps(view.as_json()) for view in found)
        return 0
    show_table(COLUMNS, [_row(view) for view in found])
    if len(found) == arguments.limit and not arguments.quiet:
        print(
            f"dlpool: {arguments.limit} jobs are shown; there may be more (--limit N, "
            f"--state STATE)",
            file=sys.stderr,
        )
    return 0


def show_job(arguments: argparse.Namespace) -> int:
    """Show one job and return the exit code. Raises NoSuchJob, QueueError."""
    with open_queue(arguments) as queue:
        view = QueueViews(queue.client, queue.keys).job(arguments.id)
    if arguments.json:
        show_lines([json.dumps(view.as_json())])
    else:
        show_pairs(_pairs(view))
    return 0


def show_stats(arguments: argparse.Namespace) -> int:
    """Show the statistics of the queue and return the exit code. Raises QueueError."""
    with open_queue(arguments) as queue:
        stats = QueueViews(queue.client, queue.keys).stats()
    if arguments.json:
        show_lines([json.dumps(stats.as_json())])
    else:
        _show_figures(stats)
    return 0


def progress_text(view: JobView) -> str:
    """Return the progress of a job, such as ``45% of 2.0M``; empty if it is unknown."""
    done, size = view.progress.get("done"), view.progress.get("size")
    if not isinstance(done, int):
        return ""
    return (
        f"{100 * done / size:.0f}% of {size_text(size)}"
        if isinstance(size, int) and size > 0
        else size_text(done)
    )


def note_text(view: JobView) -> str:
    """Return the reason of a job's state, or the path of its file, in one line."""
    if view.problem or not view.note:
        return (view.problem or "")[:NOTE_SHOWN]
    message = view.note.get("message") or view.note.get("path")
    return (
        message
        if isinstance(message, str)
        else json.dumps(view.note, ensure_ascii=False)
    )[:NOTE_SHOWN]


def _row(view: JobView) -> tuple[object, ...]:
    moments = {
        "running": view.started_at,
        "delayed": view.due_at,
        "queued": view.created_at,
    }
    return (
        view.id or "-",
        view.state,
        progress_text(view),
        view.attempts or "",
        time_text(moments.get(view.state, view.ended_at)),
        view.owner,
        display_url(view.url or ""),
        view.save_path,
        note_text(view),
    )


def _pairs(view: JobView) -> Iterable[tuple[str, object]]:
    """Yield all fields of a job that have a value, without the secrets of the URL."""
    pairs: dict[str, Any] = {
        **view.as_json(),
        "url": display_url(view.url or ""),
        "progress": progress_text(view),
        "note": note_text(view),
        "problem": None,
    }
    pairs["headers"] = ", ".join(pairs.get("headers", ()))
    for name, value in pairs.items():
        if value not in (None, "", False, 0):
            yield name, "yes" if value is True else value


def _show_figures(stats: QueueStats) -> None:
    show_pairs(stats.counts().items())
    if stats.is_halted:
        show_lines(["the queue is paused: no other job begins (dlpool queue resume)"])
    show_lines(host_lines(stats))
    show_lines([""])
    show_table(
        ("SUPERVISOR", *(name.upper() for name in SUPERVISOR_FIELDS)),
        [_worker(one) for one in stats.supervisors],
    )
    show_lines([""])
    others = {name for day in stats.days for name in day.counters} - set(COUNTERS)
    names = [*COUNTERS, *sorted(others)]
    show_table(
        ("DAY", *(name.upper() for name in names)),
        [_counted(day, names) for day in stats.days],
    )


def host_lines(stats: QueueStats) -> list[str]:
    """Return the lines about hosts whose jobs must wait.

    Jobs wait if their host has reached its limit of jobs or has sent Retry-After.
    """
    lines = [
        f"{count} jobs wait for a slot at {host}"
        for host, count in stats.waiting_hosts.items()
    ]
    return lines + [
        f"{host} is not asked for {seconds:.0f} s"
        for host, seconds in stats.held_hosts.items()
    ]


def _worker(one: SupervisorView) -> tuple[object, ...]:
    return (one.sid, *(one.info.get(name) for name in SUPERVISOR_FIELDS))


def _counted(day: DayView, names: Iterable[str]) -> tuple[object, ...]:
    return (day.day, *(day.counters.get(name, 0) for name in names))
