"""``dlpool fetch``: URLs to files, from a shell."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from dlpool.cli.items import Common, Item, items_from_lines, parse_header, single_item
from dlpool.cli.options import settings_from
from dlpool.cli.progress import Display, display, size_text
from dlpool.cli.runner import Result, Runner
from dlpool.config import NetworkSettings, TransferSettings
from dlpool.errors import LocalFault, UsageError
from dlpool.transfer.client import Client
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.limits import HostGate, NetworkWatch
from dlpool.transfer.transfer import Transfer

DRAW_S = 0.1
SOME_FAILED = 14


class Interruption:
    """The signal that asked us to stop. The handlers only note it; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


def run(arguments: argparse.Namespace) -> int:
    """Fetch what the arguments say; returns the exit code. Raises UsageError, LocalFault or ConfigurationError."""
    transfer, network = _settings(arguments)
    interruption = Interruption()
    with _items(arguments) as items:
        slots = arguments.jobs if arguments.input_file else 1
        client = Client(network, transfer.connections * slots, HostGate(time.monotonic), NetworkWatch(time.monotonic))
        client.check()
        events: queue.SimpleQueue[tuple[str, dict[str, object]]] = queue.SimpleQueue()

        def notify(event: str, /, **fields: object) -> None:
            events.put((event, fields))

        def make(job: Job, admit: Callable[[Path], None]) -> Transfer:
            return Transfer(job, transfer, client, notify, admit)

        runner = Runner(items, make, slots)
        shown = display(arguments.progress, quiet=arguments.quiet)
        try:
            _watch(runner, shown, interruption, events if arguments.verbose else None)
        finally:
            shown.close()
    return _report(arguments, runner.results(), interruption, shown)


def _settings(arguments: argparse.Namespace) -> tuple[TransferSettings, NetworkSettings]:
    """The options over the INI file over the defaults."""
    transfer, network = TransferSettings(), NetworkSettings()
    if arguments.config is not None:
        from dlpool.cli.ini import load

        sections = load(arguments.config)
        transfer, network = sections["transfer"], sections["network"]
    return settings_from(arguments, transfer), settings_from(arguments, network)


def _watch(
    runner: Runner, shown: Display, interruption: Interruption,
    events: queue.SimpleQueue[tuple[str, dict[str, object]]] | None,
) -> None:  # fmt: skip
    """Draw until everything has ended, and pass an interruption on once."""
    runner.start()
    is_cancelled = False
    while not runner.finished.wait(DRAW_S):
        if interruption.signal is not None and not is_cancelled:
            is_cancelled = True
            runner.cancel()
        _say_events(shown, events)
        shown.update(runner.view())
    _say_events(shown, events)


def _say_events(shown: Display, events: queue.SimpleQueue[tuple[str, dict[str, object]]] | None) -> None:
    while events is not None and not events.empty():
        event, fields = events.get()
        details = " ".join(f"{name}={value!r}" for name, value in fields.items())
        shown.say(f"{time.strftime('%H:%M:%S')} {event} {details}")


@contextmanager
def _items(arguments: argparse.Namespace) -> Iterator[Iterator[Item]]:
    """What is to be fetched, lazily; a list stays open meanwhile."""
    if arguments.input_file is None:
        if arguments.url is None:
            raise UsageError("a URL is missing (or -i FILE for a list of them)")
        yield iter([single_item(arguments.url, arguments.path, _common(arguments, Path()))])
        return
    if arguments.path is not None:
        raise UsageError("with -i, the one argument is the folder for the files")
    if arguments.checksum is not None:
        raise UsageError("with -i, checksums stand in the list, as JSON")
    common = _common(arguments, Path(arguments.url or ""))
    if arguments.input_file == "-":
        yield items_from_lines(sys.stdin, common)
        return
    try:
        file: TextIO = open(arguments.input_file, encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise LocalFault(f"cannot read the list {arguments.input_file}: {error.strerror}") from error
    with file:
        yield items_from_lines(file, common)


def _common(arguments: argparse.Namespace, folder: Path) -> Common:
    headers = dict(parse_header(text) for text in arguments.header)
    if arguments.referer is not None:
        headers["Referer"] = parse_header(f"Referer: {arguments.referer}")[1]
    checksum = Checksum.parse(arguments.checksum) if arguments.checksum else None
    return Common(folder, headers, _user(arguments), checksum)


def _user(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """Name and password of ``--user``: from the environment or the terminal rather than the command line."""
    if arguments.user is None:
        return None
    name, colon, password = arguments.user.partition(":")
    if colon:
        if not arguments.quiet:
            print("dlpool: warning: others on this machine can see a password on the command line; "
                  "use --user NAME with DLPOOL_PASSWORD, or --netrc", file=sys.stderr)  # fmt: skip
        return name, password
    if "DLPOOL_PASSWORD" in os.environ:
        return name, os.environ["DLPOOL_PASSWORD"]
    if not sys.stdin.isatty():
        raise UsageError(f"no password for user {name}: set DLPOOL_PASSWORD, or use --netrc")
    return name, getpass.getpass(f"Password of {name}: ")


def _report(arguments: argparse.Namespace, results: list[Result], interruption: Interruption, shown: Display) -> int:
    """Say how it ended and return the exit code."""
    code = _exit_code(results, interruption, is_list=arguments.input_file is not None)
    for result in results:
        if result.error is not None and result.error.label != "cancelled":
            shown.say(f"dlpool: {_shown_url(result.item.url)}: {result.error}")
        elif result.outcome is not None and not arguments.quiet:
            shown.say(_success_text(result))
    if interruption.signal is not None and not arguments.quiet:
        shown.say("dlpool: interrupted; run the same command again to go on")
    elif arguments.input_file is not None and not arguments.quiet:
        failed = sum(result.error is not None for result in results)
        shown.say(f"{len(results) - failed} of {len(results)} files done, {failed} failed")
    if arguments.json:
        objects = [_as_json(result, code) for result in results]
        is_list = arguments.input_file is not None
        print(json.dumps({"exit_code": code, "files": objects} if is_list else objects[0] if objects else {}))
    return code


def _exit_code(results: list[Result], interruption: Interruption, *, is_list: bool) -> int:
    errors = [result.error for result in results if result.error is not None]
    if interruption.signal is not None and (not results or any(error.label == "cancelled" for error in errors)):
        return 128 + interruption.signal
    if not errors:
        return 0
    return SOME_FAILED if is_list else errors[0].exit_code


def _success_text(result: Result) -> str:
    outcome = result.outcome
    assert outcome is not None
    if outcome.is_skipped:
        return f"{outcome.path}: exists already, skipped"
    resumed = f", resumed from {size_text(outcome.resumed_from)}" if outcome.resumed_from else ""
    verified = f", {outcome.checksum.partition(':')[0]} verified" if outcome.checksum else ""
    speed = outcome.received / outcome.seconds if outcome.seconds > 0 else 0.0
    return (
        f"{outcome.path}: {size_text(outcome.size)} in {outcome.seconds:.1f} s "
        f"({size_text(speed)}/s){resumed}{verified}"
    )


def _as_json(result: Result, code: int) -> dict[str, Any]:
    error = result.error
    status = "done" if error is None else "interrupted" if error.label == "cancelled" else "failed"
    if result.outcome is not None and result.outcome.is_skipped:
        status = "skipped"
    return {
        "status": status,
        "url": _shown_url(result.item.url),
        **(
            result.outcome.as_json()
            if result.outcome
            else {"path": str(result.item.job.target) if result.item.job else None}
        ),
        "error": None if error is None else {"label": error.label, "message": str(error)},
        "exit_code": (code if status == "interrupted" else error.exit_code) if error is not None else 0,
    }


def _shown_url(url: str) -> str:
    """A URL for people: without user info, and not longer than a line can be."""
    try:
        parts = urlsplit(url)
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:
        shown = url
    return shown if len(shown) <= 300 else shown[:297] + "..."
