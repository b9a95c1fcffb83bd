"""The program ``dlpool-supervisor``: its options, its start, its first messages."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dlpool.cli.console import run_program
from dlpool.cli.container_init import fork_if_init
from dlpool.cli.options import add_setting, apply_umask, load_settings, sourced_options
from dlpool.cli.parser import EXIT_CODES, HelpFormatter, Parser
from dlpool.cli.queue_options import add_queue_options, sourced_queue_options
from dlpool.config import LoggingSettings, Settings, SupervisorSettings
from dlpool.config.sourced import SourcedValue
from dlpool.jobs.keys import node_of
from dlpool.kinds import AUTO
from dlpool.version import __version__

# The settings of [supervisor] and [logging] that have an option.
_OPTIONS = ("max_concurrent_downloads", "drain_timeout", "log_format")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the program's options."""
    parser = Parser(
        prog="dlpool-supervisor",
        description="Runs the download jobs of a Redis queue until it is stopped.",
        epilog=EXIT_CODES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlpool {__version__}")
    add_service_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def add_service_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that configure the service."""
    add_queue_options(parser)
    group = parser.add_argument_group("service")
    for declared in (*fields(SupervisorSettings), *fields(LoggingSettings)):
        if declared.name in _OPTIONS:
            add_setting(group, declared)


def sourced_service_options(arguments: argparse.Namespace) -> list[SourcedValue]:
    """Return the values that the options give to the settings of the service."""
    sourced = [
        one
        for section in ("supervisor", "logging")
        for one in sourced_options(arguments, section, _OPTIONS)
    ]
    return [*sourced_queue_options(arguments), *sourced]


def load_service_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of a service. Raises ConfigurationError."""
    return load_settings(
        arguments.config,
        sourced_service_options(arguments),
        program="dlpool-supervisor",
        is_quiet=arguments.quiet,
        of_service=True,
    ).settings


_START_EVENTS = frozenset(
    {
        "service_started",
        "service_ready",
        "embedded_listen_in_use",
        "embedded_data_unused",
    }
)


class StartPrinter:
    """Prints the first messages of the service on standard error, each only once.

    The messages are the start summary, warnings about Redis, "ready", and a notice that
    the service waits for Redis. Thread-safe.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._unprinted = {"redis_unavailable", *(() if is_quiet else _START_EVENTS)}

    def handle_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Print the message of a log event; do nothing if the event has no message."""
        if event not in self._unprinted:
            return
        self._unprinted.discard(event)
        if event == "service_started":
            lines = start_lines(fields)
        elif event == "service_ready":
            lines = ["ready"]
        elif event in _START_EVENTS:
            lines = [f"warning: {fields['reason']}"]
        else:
            lines = [f"{fields.get('error')}; waiting until Redis can be used"]
        print(
            *(f"dlpool-supervisor: {line}" for line in lines),
            sep="\n",
            file=sys.stderr,
            flush=True,
        )


def start_lines(fields: Mapping[str, Any]) -> list[str]:
    """Return the lines of the start summary, from the fields of ``service_started``."""
    shown = fields["configuration"]
    slots, max_slots = (
        shown["supervisor"][name] for name in ("max_concurrent_downloads", "max_slots")
    )
    at_once = (
        f"up to {max_slots} jobs at once, as many as raise the throughput"
        if slots == AUTO
        else f"{slots} jobs at once"
    )
    downloads, state, log = (
        Path(shown["paths"][name]).absolute()
        for name in ("download_dir", "state_dir", "log_dir")
    )
    redis, clients = fields["redis"], fields["client_url"]
    local = "" if clients == redis else f" (clients on this machine: {clients})"
    return [
        f"dlpool {__version__}, node {node_of(fields['sid'])}, {at_once}",
        f"queue {fields['queue']} at {redis}{local}",
        f"downloads in {downloads}, state in {state}, log in {log}",
    ]


def _queued_signals() -> deque[int]:
    """Return a queue that collects SIGHUP, SIGUSR1 and SIGUSR2.

    The service handles the collected signals after its start. Without a handler these
    signals would kill the process. SIGTERM has no handler yet and ends the process.
    """
    waiting: deque[int] = deque()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, _: waiting.append(number))
    return waiting


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service and return its exit code. The user never sees a traceback."""
    return run_program("dlpool-supervisor", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    fork_if_init()
    early_signals = _queued_signals()
    from dlpool.service.service import serve

    settings = load_service_settings(arguments)
    apply_umask(settings)
    printer = StartPrinter(is_quiet=arguments.quiet)
    if sys.stderr.isatty() and not arguments.quiet:
        print(
            f"dlpool-supervisor: the log is {settings.paths.log_dir}/dlpool.log; "
            f"Ctrl-C stops the service",
            file=sys.stderr,
        )
    arguments.quiet = True  # a reload does not warn again
    serve(
        settings,
        lambda: load_service_settings(arguments),
        early_signals,
        printer.handle_event,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
