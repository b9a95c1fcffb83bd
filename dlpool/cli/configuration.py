"""``dlpool config``: whether the settings can be used, and which hold, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dlpool import jsontext
from dlpool.cli.layers import HOST, Effective, text_of
from dlpool.cli.sections import SECTIONS
from dlpool.cli.supervisor import effective_of
from dlpool.cli.tables import show_lines, show_table
from dlpool.config import LimitSettings, Settings
from dlpool.errors import ConfigurationError, DlpoolError
from dlpool.jobs.connection import connect, shown_server
from dlpool.observe.redaction import without_secrets
from dlpool.service.hooks import check_hooks
from dlpool.transfer.client import Client
from dlpool.transfer.limits import HostGate, NetworkWatch

HIDDEN = "..."


@dataclass(frozen=True)
class Row:
    """A setting that holds. ``text`` as it is written, ``value`` as it is used; a secret is hidden in both."""

    section: str
    key: str
    text: str
    value: Any
    origin: str

    def as_json(self) -> dict[str, Any]:
        """For programs: sizes in bytes, times in seconds."""
        return {"section": self.section, "key": self.key, "value": self.value, "origin": self.origin}


def run(arguments: argparse.Namespace) -> int:
    """``dlpool config check`` or ``show``. Raises ConfigurationError, LocalFault."""
    return _check(arguments) if arguments.action == "check" else _show(arguments)


def rows(found: Effective) -> Iterator[Row]:
    """All settings, those of hosts as far as they are given, without secrets."""
    for section, kind in SECTIONS.items():
        for declared in fields(kind):
            yield _row(found, section, declared.name, text_of(found.given, section, declared.name))
    for (section, name), given in found.given.items():
        if section.startswith(HOST):
            yield _row(found, section, name, given.text)


def unusable(settings: Settings) -> list[str]:
    """What the service would refuse at its start: files, programs and URLs that are of no use. Nothing is changed."""
    checks: list[Callable[[], object]] = [
        Client(settings.network, 1, HostGate(lambda: 0.0), NetworkWatch(lambda: 0.0)).check,
        lambda: check_hooks(settings.hooks),
        lambda: connect(settings.redis, Path(settings.paths.state_dir).absolute()).close(),
    ]
    problems = []
    for check in checks:
        try:
            check()
        except DlpoolError as error:
            problems += str(error).splitlines()
    return problems


def _row(found: Effective, section: str, name: str, text: str) -> Row:
    given = found.given.get((section, name))
    origin = "default" if given is None else given.origin
    if section.startswith(HOST):
        value = getattr(found.settings.hosts[section.removeprefix(HOST)], name)
    else:
        value = getattr(getattr(found.settings, section), name)
    declared = next(one for one in fields(SECTIONS.get(section, LimitSettings)) if one.name == name)
    if declared.metadata["is_secret"] and value is not None:
        return Row(section, name, HIDDEN, HIDDEN, origin)
    clean = shown_server if (section, name) == ("redis", "url") else without_secrets
    return Row(section, name, clean(text), clean(value) if isinstance(value, str) else value, origin)


def _check(arguments: argparse.Namespace) -> int:
    files: tuple[str, ...] = ()
    try:
        found = effective_of(arguments)
        files, problems = found.files, unusable(found.settings)
    except ConfigurationError as error:
        problems = str(error).splitlines()
    if arguments.json:
        report = {"is_usable": not problems, "files": files, "problems": problems}
        show_lines([jsontext.dumps(report).decode()])
    elif problems:
        print(*(f"dlpool: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    elif not arguments.quiet:
        show_lines([f"the settings can be used; read: {', '.join(files) or 'no file'}"])
    return ConfigurationError.exit_code if problems else 0


def _show(arguments: argparse.Namespace) -> int:
    shown = list(rows(effective_of(arguments)))
    if arguments.json:
        show_lines(jsontext.dumps(row.as_json()).decode() for row in shown)
        return 0
    columns = ("section", "key", "value", *(("origin",) if arguments.origin else ()))
    cells = [(row.section, row.key, row.text, row.origin) for row in shown]
    show_table(columns, [row[: len(columns)] for row in cells])
    return 0
