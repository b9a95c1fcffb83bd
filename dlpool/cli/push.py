"""``dlpool push``: queues one job, or the lines of a list.

Each job is validated before it is sent to Redis.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from dlpool.cli.audit_recorder import AuditRecorder
from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.fetch_report import SOME_FAILED
from dlpool.cli.headers import read_headers
from dlpool.cli.items import refuse_url
from dlpool.cli.listfile import open_list, shown_list
from dlpool.cli.queue_options import open_queue
from dlpool.errors import DlpoolError, QueueAway, UsageError
from dlpool.jobs.audit_events import UNCHANGED
from dlpool.jobs.pushed_job import PushedJob, compose_job, parse_valid_job
from dlpool.jobs.transitions import Transitions, new_id
from dlpool.transfer.http.urls import split_credentials
from dlpool.usertext import READ_BYTES, NotText, TextLines

BATCH = 500  # jobs per round trip
WORDS = {
    "DUP": "already known",
    "FOLLOWS": "the same as a waiting or running job, and ends with it",
}


def run(arguments: argparse.Namespace) -> int:
    """Push one job or a list of jobs, and return the exit code.

    Raises UsageError, QueueError, LocalFault.
    """
    options = _options(arguments)
    if arguments.input_file is None:
        return _push_one(arguments, options)
    if arguments.url is not None:
        raise UsageError("with -i, put URLs and PATHs into the list")
    if arguments.checksum is not None or arguments.id is not None:
        raise UsageError("with -i, put checksums and ids into the list, as JSON")
    # Check the options once, with a job that is not pushed.
    parse_valid_job(compose_job("http://localhost/", "options", **options))
    return _push_list(arguments, options)


def job_of_line(line: bytes, options: dict[str, Any]) -> PushedJob | None:
    """Return the job of a line; None for an empty line or a comment.

    A line is a JSON object, or has the form ``URL PATH``. For ``URL PATH``, ``options``
    holds the other fields of the job. Raises UsageError.
    """
    if not line or line.startswith(b"#"):
        return None
    if line.startswith(b"{"):
        return parse_valid_job(line)
    words = line.decode("utf-8", "surrogateescape").split(None, 1)
    split_credentials(words[0])
    if len(words) < 2:
        raise UsageError("a PATH is missing")
    refuse_url(words[1])
    return parse_valid_job(compose_job(*words, **options))


def blocks_of_lines(read: Callable[[], bytes]) -> Iterator[list[bytes]]:
    """Call ``read`` until the end; after each call, yield the new complete lines.

    Lines are in UTF-8. A line that is too long for a valid job is truncated. Raises
    UsageError for input that is not text.
    """
    lines = TextLines(truncates=True)
    is_end = False
    while not is_end:
        data = read()
        is_end = not data
        ready: list[bytes] = []
        try:
            ready.extend(
                line.encode("utf-8", "surrogateescape")
                for line in lines.feed(data, is_end=is_end)
            )
        except NotText as error:
            if ready:
                yield ready
            raise UsageError(str(error)) from error
        if ready or not is_end:
            yield ready


class ListPush:
    """Pushes the jobs of a list, and counts the results."""

    def __init__(
        self,
        transitions: Transitions,
        audit: AuditRecorder,
        options: dict[str, Any],
        *,
        is_json: bool,
    ) -> None:
        self._transitions = transitions
        self._audit = audit
        self._options = options
        self._is_json = is_json
        self._read = 0  # lines
        self._done = 0  # lines that were pushed or refused
        self._refused = 0
        self._results = dict.fromkeys(("OK", "DUP", "FOLLOWS"), 0)

    @property
    def exit_code(self) -> int:
        """The exit code: 14 (some failed) if lines were refused, else 0."""
        return SOME_FAILED if self._refused else 0

    def add(self, lines: Sequence[bytes]) -> None:
        """Push the jobs of ``lines`` and print their ids. Raises QueueError."""
        for start in range(0, len(lines), BATCH):
            batch = list(self._jobs(lines[start : start + BATCH]))
            results = (
                self._transitions.push([(job, job_id) for _, job, job_id in batch])
                if batch
                else []
            )
            self._done = self._read
            for result in results:
                self._results[result] += 1
            note_pushed(self._audit, [job_id for _, _, job_id in batch], results)
            with reporting_result():
                show_lines(
                    json.dumps({"line": line, "id": job_id, "result": result})
                    if self._is_json
                    else job_id
                    for (line, _, job_id), result in zip(batch, results, strict=True)
                )

    def summary(self) -> str:
        """Return the results in one sentence."""
        known, same = self._results["DUP"], self._results["FOLLOWS"]
        parts = [f"{_counted(self._results['OK'] + same, 'job')} pushed"]
        parts += [f"{same} of them the same as other jobs"] if same else []
        parts += [f"{known} already known"] if known else []
        parts += [f"{_counted(self._refused, 'line')} refused"] if self._refused else []
        return ", ".join(parts)

    def stopped(self) -> str:
        """Return a sentence that names the last completed line.

        The user can continue after that line.
        """
        doubt = (
            f"; lines {self._done + 1} to {self._read} may or may not be pushed"
            if self._read > self._done
            else ""
        )
        return f"stopped after line {self._done}: {self.summary()}{doubt}"

    def _jobs(self, lines: Sequence[bytes]) -> Iterator[tuple[int, PushedJob, str]]:
        for line in lines:
            self._read += 1
            try:
                job = job_of_line(line.strip(), self._options)
            except UsageError as error:
                self._refused += 1
                print(f"dlpool: line {self._read}: {error}", file=sys.stderr)
                continue
            if job is not None:
                yield self._read, job, job.id or new_id()


def note_pushed(
    audit: AuditRecorder, job_ids: Sequence[str], results: Sequence[str]
) -> None:
    """Record a batch of pushes as one audit event.

    The event has the id of the first new job. If no job is new, the event has the id of
    the first job, and its result is ``UNCHANGED``: nothing was changed.
    """
    new_ids = [
        job_id
        for job_id, result in zip(job_ids, results, strict=True)
        if result != "DUP"
    ]
    if new_ids:
        audit.note(new_ids[0], count=len(new_ids))
    elif job_ids:
        audit.note(job_ids[0], UNCHANGED, len(job_ids))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _push_one(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    if arguments.url is None or arguments.path is None:
        missing = "URL" if arguments.url is None else "PATH"
        raise UsageError(f"a {missing} is missing (or -i FILE for a list of jobs)")
    refuse_url(arguments.path)
    job = parse_valid_job(
        compose_job(
            arguments.url,
            arguments.path,
            **options,
            checksum=arguments.checksum,
            id=arguments.id,
        )
    )
    job_id = job.id or new_id()
    with open_queue(arguments) as queue:
        try:
            result = Transitions(queue.client, queue.keys).push([(job, job_id)])[0]
        except QueueAway as error:
            raise QueueAway(
                f"{error} (if it was pushed nevertheless, it is job {job_id})"
            ) from error
        note_pushed(queue.audit, [job_id], [result])
    if result in WORDS and not arguments.quiet:
        print(f"dlpool: job {job_id} is {WORDS[result]}", file=sys.stderr)
    with reporting_result():
        show_lines(
            [json.dumps({"id": job_id, "result": result}) if arguments.json else job_id]
        )
    return 0


def _push_list(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    name = arguments.input_file
    with open_list(name) as read, open_queue(arguments) as queue:
        pushed = ListPush(
            Transitions(queue.client, queue.keys),
            queue.audit,
            options,
            is_json=arguments.json,
        )
        try:
            for lines in blocks_of_lines(partial(read, READ_BYTES)):
                pushed.add(lines)
        except UsageError as error:
            print(f"dlpool: {pushed.stopped()}", file=sys.stderr)
            raise UsageError(f"cannot read {shown_list(name)}: {error}") from error
        except (DlpoolError, KeyboardInterrupt):
            print(f"dlpool: {pushed.stopped()}", file=sys.stderr)
            raise
    if not arguments.quiet:
        print(f"dlpool: {pushed.summary()}", file=sys.stderr)
    return pushed.exit_code


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a job that the options set for all jobs."""
    priority = arguments.priority
    if priority is not None and re.fullmatch(r"[+-]?[0-9]{1,9}", priority):
        priority = int(priority)
    headers = read_headers(arguments)
    return {
        "priority": priority,
        "not_before": arguments.not_before,
        "headers": headers or None,
        "if_exists": arguments.if_exists,
        "limit_rate": arguments.limit_rate,
        "dedupe": arguments.dedupe or None,
        "scan": arguments.scan or None,
    }
