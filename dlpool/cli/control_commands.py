"""Declares the commands that control the queue, and ``top``.

Imports no third-party library before one of them runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

from dlpool.cli.queue_commands import (
    add_command,
    add_queue_options_and_output,
    parse_limit,
)

VERBS = {
    "cancel": (
        "cancel jobs",
        "End jobs for good, with a failure record. A running one stops within two "
        "seconds.",
    ),
    "pause": (
        "pause jobs",
        "Stop jobs until they are resumed. They keep what they have fetched, and no "
        "slot.",
    ),
    "resume": ("resume jobs", "Let paused jobs go on."),
    "retry": (
        "retry jobs",
        "Run failed or cancelled jobs again from the beginning, and delayed ones now.",
    ),
    "promote": ("promote jobs", "Let waiting jobs run before all others."),
}
_FAILED = """\
List the failure records that clients see, also those that another service wrote; or run their jobs again (retry), or
remove them (purge): those of the given URLs, or --all.
"""
_QUEUE = (
    "Let nobody begin another job (pause), let them begin again (resume), or show "
    "the queue in figures (stats)."
)
_NODES = """\
List the nodes that work on the queue; or let a node end its jobs and begin no others (drain), until it may (resume).
That outlives restarts of the node. A node that has fallen silent without an end is listed for a day as lost, until it
is there again, or forgotten (forget): what it still held goes back to the queue at once.
"""
_TOP = """\
Watch the queue: nodes, rates, running jobs, what waits. Ends with Ctrl-C. Not on a terminal: one view, as text.
"""

Run = Callable[[argparse.Namespace], int]


def add_control_commands(commands: Any, exit_codes: str) -> None:
    """Declare ``cancel``, ``pause``, ``resume``, ``retry``, ``promote``, ``priority``,
    ``failed``, ``purge``, ``queue``, ``nodes`` and ``top``."""
    for verb, (summary, text) in VERBS.items():
        parser = add_command(
            commands, verb, summary, text, exit_codes, _late("control", "steer")
        )
        parser.set_defaults(verb=verb, level="")
        _add_ids(parser)
    parser = add_command(
        commands,
        "priority",
        "change the priority of jobs",
        "Change the priority of jobs; waiting ones go to its back.",
        exit_codes,
        _late("control", "steer"),
    )
    parser.set_defaults(verb="priority")
    _add_ids(parser)
    parser.add_argument(
        "level", metavar="high|normal|low", choices=("high", "normal", "low")
    )
    _add_failed(commands, exit_codes)
    parser = add_command(
        commands,
        "purge",
        "forget ended jobs",
        "Forget ended jobs before their time. Records that clients see stay.",
        exit_codes,
        _late("control", "purge"),
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--done", action="store_true", help="those that have succeeded")
    which.add_argument(
        "--dead", action="store_true", help="those that have failed or were cancelled"
    )
    add_queue_options_and_output(parser, "print one JSON object")
    parser = add_command(
        commands,
        "queue",
        "pause or resume the queue",
        _QUEUE,
        exit_codes,
        _late("control", "queue"),
    )
    parser.add_argument(
        "action", metavar="pause|resume|stats", choices=("pause", "resume", "stats")
    )
    add_queue_options_and_output(parser, "print one JSON object")
    _add_nodes(commands, exit_codes)
    parser = add_command(
        commands, "top", "watch the queue", _TOP, exit_codes, _late("top", "run")
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse_limit,
        default=20,
        help="at most so many running jobs (default: 20)",
    )
    add_queue_options_and_output(parser, "print one JSON object, and end")


def _add_nodes(commands: Any, exit_codes: str) -> None:
    run = _late("control", "nodes")
    parser = add_command(
        commands, "nodes", "list, drain or forget nodes", _NODES, exit_codes, run
    )
    parser.add_argument(
        "action",
        metavar="list|drain|resume|forget",
        nargs="?",
        default="list",
        choices=("list", "drain", "resume", "forget"),
    )
    parser.add_argument(
        "node", metavar="NODE", nargs="?", help="its id, as the list shows it"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="list their workers, too"
    )
    add_queue_options_and_output(parser, "print one JSON object a line")


def _add_failed(commands: Any, exit_codes: str) -> None:
    run = _late("control", "failed")
    parser = add_command(
        commands,
        "failed",
        "list, retry or purge failure records",
        _FAILED,
        exit_codes,
        run,
    )
    parser.add_argument(
        "action",
        metavar="list|retry|purge",
        nargs="?",
        default="list",
        choices=("list", "retry", "purge"),
    )
    parser.add_argument("urls", metavar="URL", nargs="*", help="whose records")
    parser.add_argument("--all", action="store_true", help="all records")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse_limit,
        default=50,
        help="list at most so many (default: 50)",
    )
    add_queue_options_and_output(parser, "print one JSON object a line")


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids",
        metavar="ID",
        nargs="+",
        help="the id that push printed, or that jobs shows",
    )
    add_queue_options_and_output(parser, "print a JSON object for each job: id, result")


def _late(module: str, name: str) -> Run:
    """Return a function that imports ``dlpool.cli.MODULE`` when it is called, and calls
    the function ``name`` of it."""

    def run(arguments: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"dlpool.cli.{module}"), name)(arguments)
        return code

    return run
