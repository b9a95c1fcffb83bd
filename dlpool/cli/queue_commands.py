"""Declares the commands that add to the queue and show it.

Imports no third-party library before one of them runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from dlpool.cli.options import add_header_options
from dlpool.cli.queue_options import add_output_options, add_queue_options
from dlpool.jobs.audit_events import ACTIONS, KINDS
from dlpool.kinds import parse_count, split_address

STATES = ("queued", "delayed", "paused", "running", "succeeded", "failed", "cancelled")
MAX_LIMIT = 10_000
MAX_JOBS = 1_000_000

_PUSH = """\
Queue a job: the service downloads URL to PATH. PATH is a path of the service's machine; a relative one is relative to
its download_dir. Prints the id of the job.

With -i, each line is 'URL PATH' or a JSON object as clients push it: {"url": ..., "save_path": ..., "dlpool": {...}}.
The options hold for the lines of the first form; an object is pushed as it stands. A bad line is named, and the others
are pushed (exit 14).
"""
_PUSH_EXAMPLES = """\
examples:
  dlpool push https://example.org/model.bin models/model.bin
  dlpool push https://example.org/model.bin models/model.bin --priority high --checksum sha256:9f86d0...
  dlpool push -i jobs.txt --group nightly

"""
_JOBS = (
    "List jobs: running ones first, then queued, delayed, paused, failed, "
    "cancelled and succeeded ones."
)
_STATS = """\
Show how many jobs wait, run and have ended, who works on them, and the counters of the last seven days (UTC).
"""

_HEALTH = """\
Ask the supervisor of this machine whether it is ready: what it checks, a line each, and exit 0 if all is well, else 1.
"""

_EVENTS = """\
Show what has happened to jobs: the last events of the queue's stream, which keeps about 10,000 of them. With --follow,
also what happens from now on, until Ctrl-C. Jobs that clients push to the list are seen from their start on.
"""


_AUDIT = """\
Show who changed jobs, nodes, the queue, uploads and quarantine, and who tried to: the last events of the queue's stream
of audit events, which keeps about as many as audit_events in [redis] says. With --follow, also what happens from now
on, until Ctrl-C. ACTION is as job.cancel; job alone stands for all actions on jobs.
"""


def add_queue_commands(commands: Any, exit_codes: str) -> None:
    """Declare ``dlpool push``, ``jobs``, ``job``, ``events``, ``audit``, ``health`` and
    ``stats``."""
    _add_push(commands, exit_codes)
    parser = add_command(commands, "jobs", "list jobs", _JOBS, exit_codes, _jobs)
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
        help="at most so many (default: 50)",
    )
    add_queue_options_and_output(parser, "print one JSON object a line")
    parser = add_command(
        commands,
        "job",
        "show one job",
        "Show all that is known of one job.",
        exit_codes,
        _job,
    )
    parser.add_argument(
        "id", metavar="ID", help="the id that push printed, or that jobs shows"
    )
    add_queue_options_and_output(parser, "print one JSON object")
    _add_events(commands, exit_codes)
    _add_health(commands, exit_codes)
    _add_audit(commands, exit_codes)
    parser = add_command(
        commands, "stats", "show the queue in figures", _STATS, exit_codes, _stats
    )
    add_queue_options_and_output(parser, "print one JSON object")


def _add_push(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands,
        "push",
        "queue a job, or a list of them",
        _PUSH,
        _PUSH_EXAMPLES + exit_codes,
        _push,
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="http or https")
    parser.add_argument(
        "path", metavar="PATH", nargs="?", help="where the service puts the file"
    )
    group = parser.add_argument_group("the job")
    group.add_argument(
        "-i",
        "--input-file",
        metavar="FILE",
        help="a list of jobs, - for standard input",
    )
    group.add_argument(
        "--id",
        metavar="ID",
        help="its id; pushed again under the same one, nothing happens (default: made)",
    )
    group.add_argument(
        "--priority",
        metavar="high|normal|low|N",
        help="which jobs go first; of integers, those below 0 are high, those above 0 "
        "low (default: normal)",
    )
    group.add_argument(
        "--not-before",
        metavar="TIME",
        help="when it may begin: RFC 3339, or seconds since 1970",
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
        help="when the target exists (default: the service's)",
    )
    group.add_argument(
        "--limit-rate", metavar="SIZE", help="bytes a second at most; takes K M G T"
    )
    group.add_argument(
        "--dedupe",
        action="store_true",
        help="do not download twice what waits or runs already with the same URL and "
        "PATH",
    )
    group.add_argument(
        "--scan",
        action="store_true",
        help="check the file for malware before it gets its name",
    )
    add_queue_options_and_output(
        parser, "print a JSON object for each job: id, result (OK, DUP, FOLLOWS)"
    )


def _add_events(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands, "events", "show what happens to jobs", _EVENTS, exit_codes, _events
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what happens"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--last",
        metavar="N",
        type=_last,
        default=20,
        help="begin with the last N (default: 20)",
    )
    begin.add_argument(
        "--since", metavar="ID", type=_event_id, help="begin after that event"
    )
    add_queue_options_and_output(parser, "print one JSON object a line")
    parser.set_defaults(limit=MAX_LIMIT)


def _add_audit(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands, "audit", "show who changed what", _AUDIT, exit_codes, _audit
    )
    parser.add_argument(
        "--actor", metavar="ACTOR", help="only what this one did, as the list shows it"
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
        help="only what was done to it: the id of a job, upload, node ...",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="only from then on: RFC 3339, seconds since 1970, or a duration before "
        "now, as 2h",
    )
    parser.add_argument(
        "-n",
        "--limit",
        metavar="N",
        type=parse_limit,
        default=50,
        help="the last N of them (default: 50)",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what happens"
    )
    add_queue_options_and_output(parser, "print one JSON object a line")


def _add_health(commands: Any, exit_codes: str) -> None:
    parser = add_command(
        commands, "health", "ask a supervisor how it is", _HEALTH, exit_codes, _health
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the INI file of the service, for its [metrics] listen (default: no file, "
        "and 127.0.0.1:9108)",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", type=_address, help="ask there"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="whether it is alive, whatever else is wrong",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing but errors"
    )


def add_command(
    commands: Any,
    name: str,
    summary: str,
    text: str,
    epilog: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """Declare a command that ``run`` executes; its help ends with ``epilog``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, command=name)
    return parser


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
            f"{text[:80]!r} is no id of an event, such as 1700000000000-0"
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


def _push(arguments: argparse.Namespace) -> int:
    from dlpool.cli.push import run

    return run(arguments)


def _jobs(arguments: argparse.Namespace) -> int:
    from dlpool.cli.jobs import list_jobs

    return list_jobs(arguments)


def _job(arguments: argparse.Namespace) -> int:
    from dlpool.cli.jobs import show_job

    return show_job(arguments)


def _events(arguments: argparse.Namespace) -> int:
    from dlpool.cli.events import show_events

    return show_events(arguments)


def _audit(arguments: argparse.Namespace) -> int:
    from dlpool.cli.audit import run

    return run(arguments)


def _health(arguments: argparse.Namespace) -> int:
    from dlpool.cli.health import run

    return run(arguments)


def _stats(arguments: argparse.Namespace) -> int:
    from dlpool.cli.jobs import show_stats

    return show_stats(arguments)
