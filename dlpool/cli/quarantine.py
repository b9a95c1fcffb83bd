"""``dlpool quarantine``: lists, shows, releases and deletes infected files."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dlpool.cli.audit_recorder import open_audit
from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.fetch_report import SOME_FAILED
from dlpool.cli.options import load_settings
from dlpool.cli.tables import show_pairs, show_table
from dlpool.config import Settings
from dlpool.disk_errors import translated
from dlpool.errors import DlpoolError, UsageError
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.scan.quarantine import Quarantine, QuarantinedFile

COLUMNS = ("ID", "AT", "SIZE", "SIGNATURE", "OWNER", "TARGET")


def run(arguments: argparse.Namespace) -> int:
    """List, show, release or delete quarantined files, and return the exit code.

    Raises UsageError, ConfigurationError, NotFound, TargetExists, LocalFault.
    """
    _check(arguments)
    settings = load_settings(arguments.config, is_quiet=arguments.quiet).settings
    quarantine = Quarantine(
        Path(settings.scan.quarantine_dir), settings.scan.quarantine_size
    )
    with translated(f"read {quarantine.folder}"):
        found = (
            quarantine.items() if arguments.action == "list" or arguments.all else []
        )
        ids = [item.id for item in found] if arguments.all else arguments.ids
        if arguments.action == "list":
            _list(found, arguments)
            return 0
        if arguments.action == "show":
            _show([quarantine.item(item_id) for item_id in ids], arguments)
            return 0
    return _act_on_each(quarantine, ids, arguments, settings)


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for arguments that contradict each other."""
    action = arguments.action
    if action == "list" and (arguments.ids or arguments.all):
        raise UsageError("quarantine list takes neither IDs nor --all")
    if arguments.all and action != "delete":
        raise UsageError("--all is for quarantine delete")
    if action != "list" and bool(arguments.ids) == arguments.all:
        raise UsageError(
            f"quarantine {action} needs IDs{', or --all' if action == 'delete' else ''}"
        )
    if arguments.to is not None and (action != "release" or len(arguments.ids) != 1):
        raise UsageError("--to is for quarantine release of one ID")


def _list(items: Iterable[QuarantinedFile], arguments: argparse.Namespace) -> None:
    if arguments.json:
        show_lines(json.dumps(item.as_json()) for item in items)
    else:
        rows = [
            (i.id, i.at, i.size, i.finding.signature, i.finding.owner, i.finding.target)
            for i in items
        ]
        show_table(COLUMNS, rows)


def _show(items: Iterable[QuarantinedFile], arguments: argparse.Namespace) -> None:
    for item in items:
        if arguments.json:
            show_lines([json.dumps(item.as_json())])
        else:
            show_pairs(item.as_json().items())


def _act_on_each(
    quarantine: Quarantine,
    ids: list[str],
    arguments: argparse.Namespace,
    settings: Settings,
) -> int:
    """Release or delete each file and return the exit code.

    If only one file is named, raises its error. Otherwise prints the errors, and
    returns exit code 14 (some failed) if there are any.
    """
    log = _log(settings)
    problems: list[DlpoolError] = []
    with open_audit(arguments, settings) as audit:
        for item_id in ids:
            try:
                message = _act(quarantine, item_id, arguments, log)
            except DlpoolError as error:
                problems.append(error)
                audit.note(item_id, error.label)
            else:
                audit.note(item_id)
                _tell(message, item_id, arguments)
    log.close()
    if len(ids) == 1 and problems:
        raise problems[0]
    for problem in problems:
        print(f"dlpool: {problem}", file=sys.stderr)
    return SOME_FAILED if problems else 0


def _tell(message: str, item_id: str, arguments: argparse.Namespace) -> None:
    with reporting_result():
        if arguments.json:
            show_lines([json.dumps({"id": item_id, "result": "OK"})])
        elif not arguments.quiet:
            show_lines([message])


def _act(
    quarantine: Quarantine, item_id: str, arguments: argparse.Namespace, log: Log
) -> str:
    """Release or delete one file, log the action, and return a message for the user.

    Raises NotFound, TargetExists, LocalFault.
    """
    path: Path | None = None
    with translated(f"{arguments.action} {item_id[:40]}"):
        if arguments.action == "release":
            target = None if arguments.to is None else Path(arguments.to).absolute()
            item, path = quarantine.release(item_id, target)
        else:
            item = quarantine.delete(item_id)
    logger, finding = log.logger("supervisor"), item.finding
    fields = {
        "quarantine": item.id,
        "signature": finding.signature,
        "sha256": item.sha256,
        "user_name": _actor(),
    }
    if path is None:
        logger.warning("quarantine_deleted", path=finding.target, **fields)
    else:
        logger.warning("quarantine_released", path=path, **fields)
    return f"{item.id}\tdeleted" if path is None else f"{item.id}\treleased to {path}"


def _log(settings: Settings) -> Log:
    """Return the log of the service; it drops records that it cannot write."""
    folder, node = Path(settings.paths.log_dir), settings.supervisor.node_id or "cli"
    return Log(
        folder,
        settings.logging,
        LogOrigin("dlpool-cli", node),
        is_required=False,
    )


def _actor() -> str:
    """Return the user who called sudo; without sudo, the user who runs the command."""
    names = [os.environ.get("SUDO_USER", "")]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    return next(filter(None, names), str(os.getuid()))
