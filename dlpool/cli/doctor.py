"""``dlpool doctor``: tests what the service depends on, and gives advice."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dlpool import jsontext
from dlpool.cli.configuration import find_problems
from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.doctor_disk import check_file_system
from dlpool.cli.doctor_findings import (
    CONFIGURATION,
    FAILED,
    OK,
    WARNING,
    DoctorFinding,
    exit_code,
    origin_findings,
    verdict,
)
from dlpool.cli.doctor_machine import check_folders, check_limits, check_redis
from dlpool.cli.supervisor import sourced_service_options
from dlpool.cli.tables import show_table
from dlpool.config import Settings
from dlpool.config.layers import load_effective
from dlpool.config.sourced import sort_problems
from dlpool.errors import ConfigurationError, DlpoolError
from dlpool.kinds import AUTO
from dlpool.transfer.http.urls import display_url, split_credentials
from dlpool.transfer.server_inspection import ServerInspection

COLUMNS = ("check", "state", "found", "what to do")
_SIGTERM_CODE = 143
_CHECKS: tuple[Callable[[Settings], Iterator[DoctorFinding]], ...] = (
    check_redis,
    check_folders,
    check_file_system,
    check_limits,
)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks, print the findings and the verdict, and return the exit code.

    Raises UsageError.
    """
    if arguments.url is not None:
        split_credentials(arguments.url)
    # Exit normally, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGTERM_CODE))
    found = list(examine(arguments))
    with reporting_result():
        _show(found, arguments)
    return exit_code(found)


def _show(found: list[DoctorFinding], arguments: argparse.Namespace) -> None:
    if arguments.json:
        report = {
            "verdict": verdict(found),
            "exit_code": exit_code(found),
            "checks": [one.as_json() for one in found],
        }
        show_lines([jsontext.dumps(report).decode()])
    else:
        listed = (
            [one for one in found if one.state == FAILED] if arguments.quiet else found
        )
        if listed:
            show_table(
                COLUMNS,
                [(one.check, one.state, one.found, one.advice) for one in listed],
            )
        if not arguments.quiet:
            show_lines([f"verdict: {verdict(found)}"])


def examine(arguments: argparse.Namespace) -> Iterator[DoctorFinding]:
    """Run the checks and yield their findings.

    With ``--folder``, checks only what ``dlpool fetch`` needs: the settings, the file
    system of the folder, and the URL if one is given. If the settings cannot be read,
    yields only the problems of the settings.
    """
    try:
        read = load_effective(
            arguments.config,
            sourced_service_options(arguments),
            for_service=arguments.folder is None,
        )
    except ConfigurationError as error:
        yield from _unusable(str(error).splitlines())
        return
    yield from (DoctorFinding(CONFIGURATION, WARNING, note) for note in read.notes)
    settings, problems = (
        read.settings,
        [one.text for one in sort_problems(find_problems(read), read.files)],
    )
    yield from _unusable(problems)
    if not problems:
        yield DoctorFinding(
            CONFIGURATION,
            OK,
            f"can be used; read: {', '.join(read.files) or 'no file'}",
        )
    if arguments.folder is not None:
        yield from check_file_system(settings, Path(arguments.folder))
    for check in _CHECKS if arguments.folder is None else ():
        try:
            yield from check(settings)
        except ConfigurationError as error:
            if not any(problem.endswith(str(error)) for problem in problems):
                yield from _unusable(str(error).splitlines())
    if arguments.url is not None:
        yield from _check_origin(arguments.url, settings)


def _check_origin(url: str, settings: Settings) -> Iterator[DoctorFinding]:
    """Test the server of a URL, and describe how dlpool would download the URL."""
    connections = settings.transfer.connections
    max_connections = (
        settings.transfer.max_connections if connections == AUTO else int(connections)
    )
    try:
        report = ServerInspection(url, settings.network).run(max_connections)
    except DlpoolError as error:
        yield DoctorFinding(
            "url",
            FAILED,
            f"{display_url(url)}: {error}",
            "dlpool fetch -v shows each attempt; see the exit codes",
        )
        return
    yield from origin_findings(report, settings)


def _unusable(problems: list[str]) -> Iterator[DoctorFinding]:
    for problem in problems:
        yield DoctorFinding(CONFIGURATION, FAILED, problem, "see docs/configuration.md")
