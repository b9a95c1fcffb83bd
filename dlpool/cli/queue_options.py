"""The options that name a queue, and the connection to its Redis.

Imports no third-party library before the queue is opened.
"""

from __future__ import annotations

import argparse
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dlpool.cli.audit_recorder import AuditRecorder
from dlpool.cli.options import load_settings
from dlpool.config import Settings
from dlpool.config.sourced import SourcedValue
from dlpool.dataclass import dataclass
from dlpool.errors import QueueAway
from dlpool.kinds import parse_group, parse_text

if TYPE_CHECKING:
    import redis

    from dlpool.jobs.keys import QueueKeys

SUPERVISOR = "dlpool-supervisor"
PROBE_S = 3.0  # timeout of the connection that tests the embedded Redis
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})")


@dataclass(frozen=True)
class OpenQueue:
    """A queue whose Redis has answered: client, keys, and audit recorder."""

    client: redis.Redis
    keys: QueueKeys
    audit: AuditRecorder


def add_queue_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name the queue; an option that is not given is None."""
    group = parser.add_argument_group("queue")
    group.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the INI file of the service (default: no file, and a Redis at "
        "localhost:6379)",
    )
    place = group.add_mutually_exclusive_group()
    place.add_argument(
        "--redis-url",
        metavar="URL",
        type=_text,
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL",
    )
    place.add_argument(
        "--redis-addr",
        metavar="HOST:PORT",
        type=_address,
        help="the same as --redis-url redis://HOST:PORT",
    )
    group.add_argument(
        "--redis-password",
        metavar="TEXT",
        help="password; other users can see the command line: prefer password_file in "
        "the INI",
    )
    group.add_argument(
        "--group",
        metavar="NAME",
        type=_group,
        help="use the list NAME:go_download_urls",
    )


def add_output_options(parser: argparse.ArgumentParser, json_help: str) -> None:
    """Declare the output options of a command on the queue."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help=json_help)
    group.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def queue_settings(arguments: argparse.Namespace) -> Settings:
    """Return the effective settings, with the values of the queue's options.

    Raises ConfigurationError.
    """
    return load_settings(
        arguments.config,
        sourced_queue_options(arguments),
        is_quiet=getattr(arguments, "quiet", False),
    ).settings


def sourced_queue_options(arguments: argparse.Namespace) -> list[SourcedValue]:
    """Return the values that the options give to ``[redis]``.

    Prints a warning about a password on the command line, unless ``--quiet``.
    """
    options = (
        ("redis_url", "url"),
        ("redis_addr", "url"),
        ("group", "group"),
        ("redis_password", "password"),
    )
    if arguments.redis_password is not None and not arguments.quiet:
        print(
            "dlpool: warning: others on this machine can see a password on the command "
            "line; "
            "use password_file in the INI",
            file=sys.stderr,
        )
    given = [(option, name, getattr(arguments, option)) for option, name in options]
    return [
        SourcedValue(
            "redis", name, value, f"option --{option.replace('_', '-')}", value
        )
        for option, name, value in given
        if value is not None
    ]


@contextmanager
def open_queue(arguments: argparse.Namespace) -> Iterator[OpenQueue]:
    """Connect to the queue that the arguments name, and check that its Redis answers.

    On exit the audit recorder writes its events; see ``AuditRecorder.recording``.
    Raises QueueError, ConfigurationError.
    """
    from dlpool.jobs.connection import AUTO, EMBEDDED, connect
    from dlpool.jobs.keys import QueueKeys
    from dlpool.jobs.server_check import check_server

    recorder = AuditRecorder.of(arguments, queue_settings(arguments))
    settings = recorder.settings.redis
    state_dir = Path(recorder.settings.paths.state_dir)
    if settings.url == EMBEDDED:
        _check_supervisor(state_dir, arguments.config)
    client = connect(settings, state_dir, name="dlpool-cli")
    try:
        try:
            check_server(client)
        except QueueAway as error:
            if settings.url != AUTO:
                raise
            start = _start_command(arguments.config)
            raise QueueAway(
                f"{error}; and no supervisor runs for {state_dir.absolute()}: start "
                f"it with {start}"
            ) from error
        recorder.attach(client, QueueKeys(settings.group))
        with recorder.recording():
            yield OpenQueue(client, QueueKeys(settings.group), recorder)
    finally:
        client.close()


def _check_supervisor(state_dir: Path, config: str | None) -> None:
    """Check that the supervisor, which starts the embedded Redis, is running.

    Raises QueueAway.
    """
    from dlpool.jobs.embedded_socket import socket_path

    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            probe.connect(str(socket_path(state_dir)))
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        start = _start_command(config)
        raise QueueAway(
            f"no supervisor runs for {state_dir.absolute()}: start it with {start}"
        ) from error
    except OSError as error:
        raise QueueAway(
            f"the embedded Redis of {state_dir.absolute()} cannot be reached: "
            f"{error.strerror}"
        ) from error


def _start_command(config: str | None) -> str:
    return f"{SUPERVISOR} -c {shlex.quote(config)}" if config else SUPERVISOR


def _address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not of the form HOST:PORT")
    return f"redis://{match[1] or 'localhost'}:{match[2]}"


def _text(text: str) -> str:
    try:
        return parse_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the URL is {error}") from error


def _group(text: str) -> str:
    try:
        return parse_group(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error
