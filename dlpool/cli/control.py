"""The commands that control jobs, failure records, the queue and nodes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from dlpool.cli.audit_recorder import AuditRecorder
from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.fetch_report import SOME_FAILED
from dlpool.cli.jobs import show_stats
from dlpool.cli.queue_options import open_queue
from dlpool.cli.tables import show_table
from dlpool.cli.units import size_text
from dlpool.errors import DlpoolError, UsageError
from dlpool.jobs.audit_events import DONE, UNCHANGED
from dlpool.jobs.client_records import CANCELLED
from dlpool.jobs.failure_records import FailureRecord, FailureRecords, record_id
from dlpool.jobs.job_admin import JobAdmin, error_of_reply
from dlpool.jobs.nodes import NodeAdmin
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.transfer.http.urls import display_url

WORDS = {"OK": "done", "ASKED": "requested: its supervisor acts within two seconds"}
NODE_FIELDS = (
    "host",
    "pid",
    "version",
    "slots",
    "busy",
    "free",
    "started_at",
    "seen_at",
)
WORKER_FIELDS = ("pid", "state", "busy", "slots", "memory")


def control_jobs(arguments: argparse.Namespace) -> int:
    """Cancel, pause, resume, retry or promote jobs, or change their priority.

    Raises QueueError, and the errors of ``_report_results``.
    """
    with open_queue(arguments) as queue:
        controls = JobAdmin(queue.client, queue.keys)

        def reply_of(job_id: str) -> str:
            return controls.execute(
                arguments.verb,
                job_id,
                priority=arguments.level,
                message=CANCELLED,
                at=time.time(),
            )

        replies = (
            _record_result(queue.audit, arguments.verb, job_id, reply_of(job_id))
            for job_id in arguments.ids
        )
        return _report_results(arguments, arguments.verb, replies, len(arguments.ids))


def failed(arguments: argparse.Namespace) -> int:
    """List, retry or remove failure records.

    Raises UsageError, QueueError, and the errors of ``_report_results``.
    """
    if arguments.action == "list":
        return _list_failed(arguments)
    if bool(arguments.urls) == arguments.all:
        raise UsageError(f"failed {arguments.action} needs URLs, or --all")
    with open_queue(arguments) as queue:
        failures = FailureRecords(queue.client, queue.keys)
        act = failures.retry if arguments.action == "retry" else failures.remove
        replies = (
            (
                display_url(url),
                _record_result(
                    queue.audit,
                    arguments.action,
                    _id(url, one),
                    act(one) if one else "GONE",
                )[1],
            )
            for url, one in _records_of(failures, arguments.urls)
        )
        return _report_results(
            arguments, arguments.action, replies, len(arguments.urls) or 2
        )


def purge(arguments: argparse.Namespace) -> int:
    """Remove all completed jobs (``--done``), or all failed and cancelled jobs.

    Raises QueueError.
    """
    with open_queue(arguments) as queue:
        keys = (
            [queue.keys.done]
            if arguments.done
            else [queue.keys.dead, queue.keys.cancelled]
        )
        count = sum(
            QueueAdmin(queue.client, queue.keys).forget_ended(key) for key in keys
        )
        queue.audit.note(
            "done" if arguments.done else "dead", DONE if count else UNCHANGED, count
        )
    with reporting_result():
        if arguments.json:
            show_lines([json.dumps({"forgotten": count})])
        elif not arguments.quiet:
            show_lines([f"{count} jobs are removed"])
    return 0


def queue(arguments: argparse.Namespace) -> int:
    """Pause or resume the queue, or show its statistics. Raises QueueError."""
    if arguments.action == "stats":
        return show_stats(arguments)
    with open_queue(arguments) as found:
        queue_admin = QueueAdmin(found.client, found.keys)
        is_paused = arguments.action == "pause"
        was_paused = is_paused and not queue_admin.pause()
        if not is_paused:
            queue_admin.resume()
        found.audit.note("", UNCHANGED if was_paused else DONE)
    with reporting_result():
        if arguments.json:
            show_lines([json.dumps({"is_paused": is_paused})])
        elif not arguments.quiet:
            paused = (
                f"{'it was already paused: ' if was_paused else ''}no further job "
                f"starts; "
                f"running jobs continue"
            )
            show_lines(
                [paused if is_paused else "the queue is resumed: jobs start again"]
            )
    return 0


def nodes(arguments: argparse.Namespace) -> int:
    """List nodes, or drain, resume or forget one.

    Raises UsageError, QueueError, NoSuchNode, NotPossible.
    """
    if (arguments.node is None) != (arguments.action == "list"):
        raise UsageError(
            "nodes list needs no NODE"
            if arguments.node
            else f"nodes {arguments.action} needs a NODE"
        )
    with open_queue(arguments) as found:
        node_admin = NodeAdmin(found.client, found.keys)
        if arguments.action != "list":
            {
                "drain": node_admin.drain,
                "resume": node_admin.resume,
                "forget": node_admin.forget,
            }[arguments.action](arguments.node)
            found.audit.note(arguments.node)
        rows = node_admin.list_nodes()
    with nullcontext() if arguments.action == "list" else reporting_result():
        _show_nodes(rows, arguments)
    return 0


def _show_nodes(
    rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace
) -> None:
    if arguments.json:
        show_lines(json.dumps(row) for row in rows)
    elif not arguments.quiet:
        show_table(
            ("NODE", "STATE", *(name.upper() for name in NODE_FIELDS)),
            [_node_row(row) for row in rows],
        )
    if arguments.verbose and not (arguments.json or arguments.quiet):
        show_lines([""])
        show_table(
            ("NODE", *(f"WORKER_{name.upper()}" for name in WORKER_FIELDS)),
            list(_worker_rows(rows)),
        )


def _node_row(row: Mapping[str, Any]) -> list[object]:
    cells = dict(row)
    if isinstance(row.get("free"), int):
        cells["free"] = size_text(row["free"])
    return [row["node"], row["state"], *(cells.get(name) for name in NODE_FIELDS)]


def _worker_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Yield a row for each worker that a node reports."""
    for row in rows:
        for worker in row.get("workers_info", ()):
            cells = {**worker, "memory": size_text(worker.get("memory", 0))}
            yield [row["node"], *(cells.get(name) for name in WORKER_FIELDS)]


def _list_failed(arguments: argparse.Namespace) -> int:
    if arguments.urls or arguments.all:
        raise UsageError("failed list takes neither URLs nor --all")
    with open_queue(arguments) as found:
        failures, _ = FailureRecords(found.client, found.keys).page(arguments.limit)
    if arguments.json:
        show_lines(json.dumps(one.as_json()) for one in failures)
        return 0
    show_table(
        ("FAILED", "URL", "MESSAGE"),
        [
            (
                one.failed_at,
                display_url(one.url.decode("utf-8", "replace")),
                one.message[:200],
            )
            for one in failures
        ],
    )
    return 0


def _records_of(
    failures: FailureRecords, urls: Iterable[str]
) -> Iterator[tuple[str, FailureRecord | None]]:
    """Yield each URL with its failure record; None for a URL without a record.

    If ``urls`` is empty, yields all failure records with their URLs.
    """
    if urls:
        yield from ((url, failures.get(url)) for url in urls)
    else:
        yield from (
            (one.url.decode("utf-8", "replace"), one) for one in list(failures.all())
        )


def _id(url: str, one: FailureRecord | None) -> str:
    return one.id if one else record_id(url.encode("utf-8", "surrogateescape"))


def _record_result(
    audit: AuditRecorder, verb: str, name: str, reply: str
) -> tuple[str, str]:
    """Record the audit event for one object; return ``name`` and ``reply``."""
    problem = error_of_reply(verb, name, reply)
    audit.note(name, problem.label if problem else DONE)
    return name, reply


def _report_results(
    arguments: argparse.Namespace,
    verb: str,
    replies: Iterable[tuple[str, str]],
    count: int,
) -> int:
    """Print the result for each object and return the exit code.

    If ``count`` is 1, raises the error of the object. Otherwise prints the errors, and
    returns exit code 14 (some failed) if there are any.
    """
    problems: list[DlpoolError] = []
    for name, reply in replies:
        if problem := error_of_reply(verb, name, reply):
            problems.append(problem)
        with reporting_result():
            if arguments.json:
                show_lines([json.dumps({"id": name, "result": reply})])
            elif not (problem or arguments.quiet):
                show_lines([f"{name}\t{WORDS[reply]}"])
    if not problems:
        return 0
    if count == 1:
        raise problems[0]
    for problem in problems:
        print(f"dlpool: {problem}", file=sys.stderr)
    return SOME_FAILED
