"""Declares the commands that add jobs to the queue and show the queue.

Imports no third-party library until a command runs.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from dlpool.cli.options import add_header_options
from dlpool.cli.queue_options import add_output_options, add_queue_options
from dlpool.jobs.audit_events import ACTIONS, KINDS
from dlpool.kinds import parse_count, split_address

STATES = ("queued", "delayed", "paused", "running", "succeeded", "failed", "cancelled")
MAX_LIMIT = 10_000
MAX_JOBS = 1_000_000

_PUSH = """\
Queue a job: the service downloads URL to PATH on its machine. A relative PATH is
relative to its download_dir. Prints the id of the job.

With -i, each line is 'URL PATH' or a JSON object as clients push it: {"url": ...,
"save_path": ..., "dlpool": {...}}. The options apply to lines of the first form only;
an object is pushed unchanged. Invalid lines are reported, and the others are pushed
(exit 14).
"""
_PUSH_EXAMPLES = """\
examples:
  dlpool push https://example.org/model.bin models/model.bin
  dlpool push https://example.org/model.bin models/model.bin --priority high
  dlpool push -i jobs.txt --group nightly

"""
_JOBS = (
    "List jobs: running, queued, delayed, paused, failed, cancelled, and succeeded "
    "ones, in this order."
)
_STATS = """\
Show the numbers of waiting, running and ended jobs, the supervisors, and the counters
of the last seven days (UTC).
"""

_HEALTH = """\
Ask the supervisor of this machine whether it is ready. Prints a line for each of its
checks; exits with 0 if all succeed, else with 1.
"""

_EVENTS = """\
Show the last events of the queue's stream, which keeps about 10,000 of them. With
--follow, also show new events until Ctrl-C. Jobs that clients push to the list have
events from their start on.
"""


_AUDIT = """\
Show who changed, or tried to change, jobs, nodes, the queue, uploads and the
quarantine: the last audit events of the queue's stream, which keeps about as many as
audit_events in [redis]. With --follow, also show new events until Ctrl-C. ACTION is a
name such as job.cancel, or job for all actions on jobs.
"""


def declare_jobs(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool jobs``."""
    parser.description = _JOBS
    parser.add_argument(
        "--state",
        choices=STATES,
        metavar="STATE",
        help=f"only those that are {', '.join(STATES)}",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=lambda text: parse_limit(text, MAX_JOBS),
        default=50,
        help="list at most N jobs (default: 50)",
    )
    add_queue_options_and_output(parser, "print one JSON object per line")


def declare_job(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool job``."""
    parser.description = "Show all details of one job."
    parser.add_argument("id", metavar="ID", help="the id that push or jobs prints")
    add_queue_options_and_output(parser, "print one JSON object")


def declare_stats(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool stats``."""
    parser.description = _STATS
    add_queue_options_and_output(parser, "print one JSON object")


def declare_push(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool push``."""
    parser.description = _PUSH
    parser.epilog = f"{_PUSH_EXAMPLES}{parser.epilog}"
    parser.add_argument("url", metavar="URL", nargs="?", help="http or https")
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="the target on the machine of the service",
    )
    _add_job_options(parser.add_argument_group("the job"))
    add_queue_options_and_output(
        parser, "print a JSON object for each job: id, result (OK, DUP, FOLLOWS)"
    )


def _add_job_options(group: Any) -> None:
    group.add_argument(
        "-i",
        "--input-file",
        metavar="FILE",
        help="a list of jobs, - for standard input",
    )
    group.add_argument(
        "--id",
        metavar="ID",
        help="the id of the job; a second push with the same id does nothing "
        "(default: generated)",
    )
    group.add_argument(
        "--priority",
        metavar="high|normal|low|N",
        help="the priority of the job; integers below 0 are high, above 0 low "
        "(default: normal)",
    )
    group.add_argument(
        "--not-before",
        metavar="TIME",
        help="the earliest start: RFC 3339, or seconds since 1970",
    )
    group.add_argument(
        "--checksum",
        metavar="ALGO:HEX",
        help="md5, sha1, sha256, sha512 or blake2b of the file",
    )
    add_header_options(group, ", for the URL's own origin")
    group.add_argument(
        "--if-exists",
        choices=("overwrite", "skip", "fail", "rename"),
        help="what to do if the target exists (default: that of the service)",
    )
    group.add_argument(
        "--limit-rate",
        metavar="SIZE",
        help="the maximum bytes per second; takes K M G T",
    )
    group.add_argument(
        "--dedupe",
        action="store_true",
        help="attach to a waiting or running job with the same URL and PATH",
    )
    group.add_argument(
        "--scan",
        action="store_true",
        help="check the file for malware before it gets its name",
    )


def declare_events(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool events``."""
    parser.description = _EVENTS
    parser.add_argument("-f", "--follow", action="store_true", help="follow new events")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--last",
        metavar="N",
        type=_last,
        default=20,
        help="start with the last N events (default: 20)",
    )
    begin.add_argument(
        "--since", metavar="ID", type=_event_id, help="start after this event"
    )
    add_queue_options_and_output(parser, "print one JSON object per line")
    parser.set_defaults(limit=MAX_LIMIT)


def declare_audit(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool audit``."""
    parser.description = _AUDIT
    parser.add_argument(
        "--actor",
        metavar="ACTOR",
        help="only events of this actor, as the list prints it",
    )
    parser.add_argument(
        "--action",
        metavar="ACTION",
        choices=(*KINDS, *ACTIONS),
        help=f"only that, as job.cancel, or all of one kind: {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--object",
        metavar="OBJECT",
        help="only events of this object: the id of a job, upload, node ...",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="only events since: RFC 3339, seconds since 1970, or a duration before "
        "now such as 2h",
    )
    parser.add_argument(
        "-n",
        "--limit",
        metavar="N",
        type=parse_limit,
        default=50,
        help="the last N events (default: 50)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="follow new events")
    add_queue_options_and_output(parser, "print one JSON object per line")


def declare_health(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool health``."""
    parser.description = _HEALTH
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the INI file of the service, for its [metrics] listen (default: no file, "
        "and 127.0.0.1:9108)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        type=_address,
        help="the address of the supervisor",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="check only whether it is alive, not whether it is ready",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def add_queue_options_and_output(
    parser: argparse.ArgumentParser, json_help: str
) -> None:
    """Declare the options that all commands on the queue share."""
    add_queue_options(parser)
    add_output_options(parser, json_help)


def _last(text: str) -> int:
    return 0 if text == "0" else parse_limit(text)


def _event_id(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is not an event id such as 1700000000000-0"
        )
    return text


def _address(text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error
    return text


def parse_limit(text: str, most: int = MAX_LIMIT) -> int:
    """Parse a number from 1 to ``most``. Raises argparse.ArgumentTypeError."""
    try:
        count = parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error
    if not 1 <= count <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to {most}")
    return count
