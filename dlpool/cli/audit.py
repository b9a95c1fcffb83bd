"""``dlpool audit``: shows or follows the audit events, as text or JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

from dlpool.cli.console import show_lines
from dlpool.cli.queue_options import open_queue
from dlpool.cli.tables import show_row, show_table
from dlpool.errors import UsageError
from dlpool.jobs.audit_stream import AuditEvent, AuditFilter, AuditReader
from dlpool.jobs.pushed_job import parse_time
from dlpool.kinds import parse_duration

COLUMNS = ("TIME", "ACTION", "RESULT", "OBJECT", "ACTOR", "ADDRESS")
WIDTHS = (24, 18, 12, 32, 24)  # of the columns with --follow


def run(arguments: argparse.Namespace) -> int:
    """Show audit events and return the exit code. Raises UsageError, QueueError.

    With ``--follow`` this function shows new events until an exception ends it. It
    returns, with exit code 1, only if the pipe of standard output is closed.
    """
    since = None if arguments.since is None else since_of(arguments.since, time.time())
    wanted = AuditFilter(arguments.actor, arguments.action, arguments.object, since)
    with open_queue(arguments) as queue:
        reader = AuditReader(queue.client, queue.keys)
        position = reader.newest_id() if arguments.follow else ""
        events = reader.last(arguments.limit, wanted)
        if not arguments.follow:
            _show(events, arguments)
            return 0
        if not arguments.json:
            show_row(COLUMNS, WIDTHS)
        with suppress(BrokenPipeError):
            _follow(reader, events, position, wanted, arguments)
        return 1


def since_of(text: str, now: float) -> float:
    """Return the time of ``--since`` in seconds since 1970.

    ``text`` is a time in RFC 3339, a number of seconds since 1970, or a duration before
    ``now``. Raises UsageError.
    """
    with suppress(UsageError):
        return parse_time(text)
    with suppress(ValueError):
        return now - parse_duration(text)
    raise UsageError(
        f"--since {text[:80]!r} is neither RFC 3339, nor seconds since 1970, nor a "
        f"duration such as 2h"
    )


def _follow(
    reader: AuditReader,
    events: list[AuditEvent],
    position: str,
    wanted: AuditFilter,
    arguments: argparse.Namespace,
) -> NoReturn:
    """Show ``events``, then each newer wanted event when it occurs.

    Newer events come after ``position`` and after ``events``. Raises QueueError, and
    BrokenPipeError if the pipe of standard output is closed.
    """
    position = max(position, events[-1].id if events else position, key=_position)
    while True:
        _show_more(events, arguments)
        page = reader.wait_after(position)
        position = page[-1].id if page else position
        events = [event for event in page if wanted.matches(event)]


def _position(event_id: str) -> tuple[int, int]:
    first, _, second = event_id.partition("-")
    return int(first), int(second)


def _show(events: Iterable[AuditEvent], arguments: argparse.Namespace) -> None:
    if arguments.json:
        show_lines(json.dumps(event.as_json()) for event in events)
    else:
        show_table(COLUMNS, [_row(event) for event in events])


def _show_more(events: Iterable[AuditEvent], arguments: argparse.Namespace) -> None:
    if arguments.json:
        _show(events, arguments)
    else:
        for event in events:
            show_row(_row(event), WIDTHS)


def _row(event: AuditEvent) -> tuple[str, ...]:
    fields = event.fields
    label, count = fields.get("label"), fields.get("count")
    result = fields.get("result", "") + (f" ({label})" if label else "")
    name = fields.get("object", "") + (f" and others, {count} in all" if count else "")
    return (
        event.at,
        fields.get("action", ""),
        result,
        name,
        fields.get("actor", ""),
        fields.get("address", ""),
    )
