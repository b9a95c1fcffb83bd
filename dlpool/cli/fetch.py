"""``dlpool fetch``: downloads one URL, or a list of them."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlpool.cli.fetch_report import FetchReport
from dlpool.cli.foreground import DRAW_S, STOP_S, EventPrinter, Interruption
from dlpool.cli.headers import read_headers
from dlpool.cli.items import (
    ItemDefaults,
    items_from_lines,
    parse_header,
    refuse_url,
    single_item,
)
from dlpool.cli.listfile import open_list, shown_list
from dlpool.cli.options import JOBS, load_settings, sourced_options
from dlpool.cli.progress import Display, make_display
from dlpool.config import Settings, TransferSettings
from dlpool.engine.batch import (
    Batch,
    BatchItem,
    BatchProgress,
    BatchResult,
    ListUnreadable,
)
from dlpool.engine.batch_session import BatchSession
from dlpool.engine.collisions import find_collisions
from dlpool.engine.engine import DownloadEngine, core_of
from dlpool.errors import NoThread, UsageError
from dlpool.threads import raise_open_file_limit
from dlpool.transfer.job import Checksum
from dlpool.usertext import read_lines

_ADVICE = "give such lines different PATHs, or use --if-exists rename"


def run(arguments: argparse.Namespace) -> int:
    """Download one URL or a list of URLs, and return the exit code.

    Raises UsageError, LocalFault, ConfigurationError.
    """
    settings = _settings(arguments)
    transfer, network = settings.transfer, settings.network
    is_list = arguments.input_file is not None
    if arguments.jobs is not None and not is_list:
        raise UsageError("-j is for a list (-i); the connections of one file are -c")
    slots = (arguments.jobs or JOBS) if is_list else 1
    raise_open_file_limit()
    events = EventPrinter(is_wanted=arguments.verbose)
    engine = DownloadEngine(
        slots,
        retry_times=transfer.retries,
        retry_delay=transfer.retry_delay,
        timeout=network.connect_timeout,
        verify_hash=transfer.verify,
        transfer=transfer,
        network=network,
        scan=settings.scan,
        keeps_ended=False,
        notify=events.note,
    )
    if results := _collisions(arguments, engine, transfer):
        return _refused(arguments, results)
    with _items(arguments) as items, _open_session(arguments) as earlier:
        batch = Batch(engine, items, earlier)
        began = time.monotonic()
        display = make_display(arguments.progress, quiet=arguments.quiet)
        report = FetchReport(
            display, is_list=is_list, quiet=arguments.quiet, keeps=arguments.json
        )
        try:
            _watch(batch, display, report, events)
        finally:
            display.close()
        return report.end(batch.progress(), time.monotonic() - began)


def _refused(arguments: argparse.Namespace, results: list[BatchResult]) -> int:
    """Report why no download of a list was started, and return the exit code."""
    display = make_display(arguments.progress, quiet=arguments.quiet)
    report = FetchReport(
        display, is_list=True, quiet=arguments.quiet, keeps=arguments.json
    )
    report.add(results)
    is_text = not any(isinstance(result.error, ListUnreadable) for result in results)
    display.print_line(
        f"dlpool: no download was started{': ' + _ADVICE if is_text else ''}"
    )
    display.close()
    return report.end(BatchProgress(failed=len(results)), 0.0)


def _settings(arguments: argparse.Namespace) -> Settings:
    options = [
        *sourced_options(arguments, "transfer"),
        *sourced_options(arguments, "network"),
    ]
    return load_settings(arguments.config, options, is_quiet=arguments.quiet).settings


@contextmanager
def _open_session(arguments: argparse.Namespace) -> Iterator[BatchSession | None]:
    """Open the session file that ``--session`` names, and yield the session.

    Yields None without the option. Raises UsageError, LocalFault.
    """
    if arguments.session is None:
        yield None
        return
    if arguments.input_file is None:
        raise UsageError("--session is for a list (-i): one file resumes without it")
    done = BatchSession(Path(arguments.session))
    try:
        yield done
    finally:
        done.close()


def _watch(
    batch: Batch, display: Display, report: FetchReport, events: EventPrinter
) -> None:
    """Start the batch; show its progress and its results until it ends.

    The first SIGINT or SIGTERM cancels the batch. After the signal this function waits
    at most five seconds (``STOP_S``).
    """
    interruption = Interruption()
    try:
        batch.start()
    except NoThread:
        interruption.interrupt()
        batch.run_in_caller()
    deadline = float("inf")
    while not batch.finished.wait(DRAW_S) and time.monotonic() < deadline:
        if interruption.signal is not None and deadline == float("inf"):
            deadline = time.monotonic() + STOP_S
            report.signal = interruption.signal
            batch.cancel()
        events.print_events(display)
        report.add(batch.take_results())
        progress = batch.progress()
        display.update(progress)
        if batch.stopped.is_set():
            break  # other threads may still wait for a line of the list
    events.print_events(display)
    report.add(batch.take_results())


@contextmanager
def _items(arguments: argparse.Namespace) -> Iterator[Iterator[BatchItem]]:
    """Yield an iterator of the items to download.

    A URL gives one item. A list gives the items of its lines; a line is read when the
    iterator reaches it. Raises UsageError, LocalFault.
    """
    if arguments.input_file is None:
        if arguments.url is None:
            raise UsageError("a URL is missing (or use -i FILE for a list)")
        yield iter(
            [single_item(arguments.url, arguments.path, _defaults(arguments, Path()))]
        )
        return
    if arguments.path is not None:
        raise UsageError("with -i, the only argument is the folder of the files")
    refuse_url(arguments.url)
    if arguments.checksum is not None:
        raise UsageError("with -i, put checksums into the list, as JSON")
    defaults = _defaults(arguments, Path(arguments.url or ""))
    with open_list(arguments.input_file) as read:
        yield items_from_lines(
            read_lines(read), defaults, shown_list(arguments.input_file)
        )


def _collisions(
    arguments: argparse.Namespace, engine: DownloadEngine, transfer: TransferSettings
) -> list[BatchResult]:
    """Return the failures of a list that can be known before its downloads start.

    The result is empty with ``if_exists = rename``, and for a list that is not a
    regular file: a pipe cannot be read twice.
    """
    name = arguments.input_file
    if name is None or not Path(name).is_file() or transfer.if_exists == "rename":
        return []
    with _items(arguments) as items:
        return list(find_collisions(items, core_of(engine).look_up_target))


def _defaults(arguments: argparse.Namespace, folder: Path) -> ItemDefaults:
    headers = read_headers(arguments)
    if arguments.referer is not None:
        headers["Referer"] = parse_header(f"Referer: {arguments.referer}")[1]
    checksum = (
        Checksum.parse(arguments.checksum) if arguments.checksum is not None else None
    )
    return ItemDefaults(folder, headers, _user(arguments), checksum)


def _user(arguments: argparse.Namespace) -> tuple[str, str] | None:
    """Return the name and the password of ``--user``; None without the option.

    If the option has no password, ``DLPOOL_PASSWORD`` or the terminal gives it. Raises
    UsageError if there is no password.
    """
    if arguments.user is None:
        return None
    name, colon, password = arguments.user.partition(":")
    if colon:
        if not arguments.quiet:
            print(
                "dlpool: warning: others on this machine can see a password on the "
                "command line; "
                "use --user NAME with DLPOOL_PASSWORD, or --netrc",
                file=sys.stderr,
            )
        return name, password
    if "DLPOOL_PASSWORD" in os.environ:
        return name, os.environ["DLPOOL_PASSWORD"]
    if not sys.stdin.isatty():
        raise UsageError(
            f"no password for user {name}: set DLPOOL_PASSWORD, or use --netrc"
        )
    try:
        return name, getpass.getpass(f"Password of {name}: ")
    except EOFError as error:
        raise UsageError(f"no password for user {name}") from error
