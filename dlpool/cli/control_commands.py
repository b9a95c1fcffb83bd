"""Declares ``top`` and the commands that control the queue.

Imports no third-party library until a command runs.
"""

from __future__ import annotations

import argparse

from dlpool.cli.queue_commands import add_queue_options_and_output, parse_limit

VERBS = {
    "cancel": "Cancel jobs for good, with a failure record. A running job stops within "
    "two seconds.",
    "pause": "Pause jobs until they are resumed. They keep their fetched bytes and "
    "free their slots.",
    "resume": "Resume paused jobs.",
    "retry": "Run failed or cancelled jobs again from the start, and delayed jobs now.",
    "promote": "Move waiting jobs to the front of the queue.",
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


def declare_verb(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool cancel``, ``pause``, ``resume``, ``retry`` or ``promote``."""
    verb = parser.get_default("command")
    parser.description = VERBS[verb]
    parser.set_defaults(verb=verb, level="")
    _add_ids(parser)


def declare_priority(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool priority``."""
    parser.description = (
        "Change the priority of jobs; waiting jobs move to the back of that priority."
    )
    parser.set_defaults(verb="priority")
    _add_ids(parser)
    parser.add_argument(
        "level", metavar="high|normal|low", choices=("high", "normal", "low")
    )


def declare_purge(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool purge``."""
    parser.description = (
        "Remove ended jobs before they expire. Records that clients see are kept."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--done", action="store_true", help="jobs that have succeeded")
    which.add_argument(
        "--dead", action="store_true", help="jobs that have failed or were cancelled"
    )
    add_queue_options_and_output(parser, "print one JSON object")


def declare_queue(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool queue``."""
    parser.description = _QUEUE
    parser.add_argument(
        "action", metavar="pause|resume|stats", choices=("pause", "resume", "stats")
    )
    add_queue_options_and_output(parser, "print one JSON object")


def declare_top(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool top``."""
    parser.description = _TOP
    parser.add_argument(
        "--limit",
        metavar="N",
        type=parse_limit,
        default=20,
        help="show at most N running jobs (default: 20)",
    )
    add_queue_options_and_output(parser, "print one sample as a JSON object")


def declare_nodes(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool nodes``."""
    parser.description = _NODES
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


def declare_failed(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool failed``."""
    parser.description = _FAILED
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
