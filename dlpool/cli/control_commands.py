"""Declares the commands that control the queue, and ``top``.

Imports no third-party library until a command runs.
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
        "Cancel jobs for good, with a failure record. A running job stops within two "
        "seconds.",
    ),
    "pause": (
        "pause jobs",
        "Pause jobs until they are resumed. They keep their fetched bytes and free "
        "their slots.",
    ),
    "resume": ("resume jobs", "Resume paused jobs."),
    "retry": (
        "retry jobs",
        "Run failed or cancelled jobs again from the start, and delayed jobs now.",
    ),
    "promote": ("promote jobs", "Move waiting jobs to the front of the queue."),
}
_FAILED = """\
list: list the failure records that clients see, also those of another service. retry:
run their jobs again. purge: remove the records. retry and purge need URLs, or --all.
"""
_QUEUE = (
    "pause: start no further job. resume: start jobs again. stats: show the "
    "statistics of the queue."
)
_NODES = """\
list: list the nodes that work on the queue. drain: let a node finish its jobs and start
no others until resume, also after a restart. A node that stopped reporting without a
shutdown is listed as lost for a day, until it reports again, or until forget removes it
and returns its jobs to the queue at once.
"""
_TOP = """\
Show nodes, rates, running jobs and waiting jobs, updated every second until Ctrl-C.
Without a terminal it prints one sample as text.
"""

Run = Callable[[argparse.Namespace], int]


def add_control_commands(commands: Any, exit_codes: str) -> None:
    """Declare the commands that control jobs, failure records, the queue and nodes."""
    for verb, (summary, text) in VERBS.items():
        parser = add_command(
            commands, verb, summary, text, exit_codes, _late("control", "control_jobs")
        )
        parser.set_defaults(verb=verb, level="")
        _add_ids(parser)
    parser = add_command(
        commands,
        "priority",
        "change the priority of jobs",
        "Change the priority of jobs; waiting jobs move to the back of that priority.",
        exit_codes,
        _late("control", "control_jobs"),
    )
    parser.set_defaults(verb="priority")
    _add_ids(parser)
    parser.add_argument(
        "level", metavar="high|normal|low", choices=("high", "normal", "low")
    )
    _add_failed(commands, exit_codes)
    _add_purge(commands, exit_codes)
    _add_queue(commands, exit_codes)
    _add_nodes(commands, exit_codes)
    _add_top(commands, exit_codes)


def _add_purge(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands,
        "purge",
        "remove ended jobs",
        "Remove ended jobs before they expire. Records that clients see are kept.",
        exit_codes,
        _late("control", "purge"),
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--done", action="store_true", help="jobs that have succeeded")
    which.add_argument(
        "--dead", action="store_true", help="jobs that have failed or were cancelled"
    )
    add_queue_options_and_output(parser, "print one JSON object")


def _add_queue(commands: Any, exit_codes: str) -> None:
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


def _add_top(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands,
        "top",
        "show the queue as it changes",
        _TOP,
        exit_codes,
        _late("top", "run"),
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse_limit,
        default=20,
        help="show at most N running jobs (default: 20)",
    )
    add_queue_options_and_output(parser, "print one sample as a JSON object")


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
        "node", metavar="NODE", nargs="?", help="the id that list prints"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="also list their workers"
    )
    add_queue_options_and_output(parser, "print one JSON object per line")


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
    parser.add_argument(
        "urls", metavar="URL", nargs="*", help="the URLs of the records"
    )
    parser.add_argument("--all", action="store_true", help="all records")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse_limit,
        default=50,
        help="list at most N records (default: 50)",
    )
    add_queue_options_and_output(parser, "print one JSON object per line")


def _add_ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids",
        metavar="ID",
        nargs="+",
        help="the id that push or jobs prints",
    )
    add_queue_options_and_output(parser, "print a JSON object for each job: id, result")


def _late(module: str, name: str) -> Run:
    """Return a function that imports a command's module when it is called.

    ``module`` is the name below ``dlpool.cli``, ``name`` the function to call.
    """

    def run(arguments: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"dlpool.cli.{module}"), name)(arguments)
        return code

    return run
