"""``dlpool events``: shows or follows the events of jobs and uploads."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from dlpool.cli.console import show_lines
from dlpool.cli.queue_options import open_queue
from dlpool.cli.tables import show_row, show_table
from dlpool.jobs.event_stream import BEGIN, PAGE, EventReader, QueueEvent

COLUMNS = ("ID", "TIME", "EVENT", "JOB", "DETAIL")
WIDTHS = (15, 24, 16, 32)  # of the columns with --follow
# Fields that are not shown as NAME=VALUE, but in another form.
_SHOWN_ELSEWHERE = ("note", "upload_id")
DETAIL_SHOWN = 200  # characters


def show_events(arguments: argparse.Namespace) -> int:
    """Show events and return the exit code. Raises QueueError.

    With ``--follow`` this function shows new events until an exception ends it. It
    returns, with exit code 1, only if the pipe of standard output is closed.
    """
    with open_queue(arguments) as queue:
        events = EventReader(queue.client, queue.keys)
        found, position = _first(events, arguments)
        if not arguments.follow:
            _show(found, arguments)
            if len(found) == arguments.limit and not arguments.quiet:
                print(
                    f"dlpool: {len(found)} events are shown; there may be more "
                    f"(--since {position})",
                    file=sys.stderr,
                )
            return 0
        if not arguments.json:
            show_row(COLUMNS, WIDTHS)
        with suppress(BrokenPipeError):
            _follow(events, found, position, arguments)
        return 1


def _follow(
    events: EventReader,
    found: list[QueueEvent],
    position: str,
    arguments: argparse.Namespace,
) -> NoReturn:
    """Show the events ``found``, then each event after ``position`` when it occurs.

    Raises QueueError, and BrokenPipeError if the pipe of standard output is closed.
    """
    while True:
        _show_more(found, arguments)
        found = events.wait_after(position)
        position = found[-1].id if found else position


def _first(
    events: EventReader, arguments: argparse.Namespace
) -> tuple[list[QueueEvent], str]:
    """Return the requested past events, and the position after which to continue."""
    if arguments.since is not None:
        found = list(_since(events, arguments.since, arguments.limit))
        return found, found[-1].id if found else arguments.since
    newest = events.last(max(1, arguments.last))
    return newest[-arguments.last :] if arguments.last else [], newest[
        -1
    ].id if newest else BEGIN


def _since(events: EventReader, position: str, limit: int) -> Iterator[QueueEvent]:
    """Yield at most ``limit`` events after ``position``, page by page."""
    left = limit
    while left > 0:
        page = events.after(position)[:left]
        yield from page
        left -= len(page)
        if len(page) < PAGE:
            return
        position = page[-1].id


def _show(found: list[QueueEvent], arguments: argparse.Namespace) -> None:
    if arguments.json:
        show_lines(json.dumps(event.as_json()) for event in found)
    else:
        show_table(COLUMNS, [_row(event) for event in found])


def _show_more(found: list[QueueEvent], arguments: argparse.Namespace) -> None:
    if arguments.json:
        _show(found, arguments)
    else:
        for event in found:
            show_row(_row(event), WIDTHS)


def _row(event: QueueEvent) -> tuple[str, ...]:
    return (
        event.id,
        event.at,
        event.name,
        event.job_id or event.upload_id,
        detail_text(event),
    )


def detail_text(event: QueueEvent) -> str:
    """Return the fields of an event, and its reason or its path, in one line."""
    details = [
        f"{name}={value}"
        for name, value in event.fields.items()
        if name not in _SHOWN_ELSEWHERE and value
    ]
    reason = event.note.get("message") or event.note.get("path")
    return " ".join([*details, str(reason)] if reason else details)[:DETAIL_SHOWN]
