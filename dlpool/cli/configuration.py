"""``dlpool config``: checks, shows and converts settings."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from dlpool import jsontext
from dlpool.cli.console import reporting_result, show_lines
from dlpool.cli.conversion import convert
from dlpool.cli.options import load_settings, print_warnings
from dlpool.cli.supervisor import sourced_service_options
from dlpool.cli.tables import show_table
from dlpool.config import SECTIONS, LimitSettings
from dlpool.config.layers import EffectiveSettings, examine, written_text
from dlpool.config.owned_paths import check_owned_paths
from dlpool.config.sourced import HOST, ConfigProblem, concerned, sort_problems
from dlpool.config.web_access import check_web_access
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError, DlpoolError, UsageError
from dlpool.jobs.connection import connect, shown_server
from dlpool.observe.tracing import check_traces
from dlpool.redaction import without_secrets
from dlpool.service.hooks.archiving import check_archive_command
from dlpool.service.hooks.runner import check_hooks
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor

HIDDEN = "..."


@dataclass(frozen=True)
class ConfigurationRow:
    """An effective setting: ``text`` as written, ``value`` as used.

    The value of a secret is hidden in both fields.
    """

    section: str
    key: str
    text: str
    value: Any
    origin: str

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON values: sizes in bytes, times in seconds."""
        return {
            "section": self.section,
            "key": self.key,
            "value": self.value,
            "origin": self.origin,
        }


def run(arguments: argparse.Namespace) -> int:
    """Run ``dlpool config check``, ``show`` or ``convert`` and return the exit code.

    Raises UsageError, ConfigurationError, TargetExists, LocalFault.
    """
    if arguments.action == "convert":
        return convert(arguments)
    if arguments.file is not None or arguments.output is not None:
        raise UsageError(
            f"dlpool config {arguments.action} takes its file with -c FILE, and has no "
            f"--output"
        )
    return _check(arguments) if arguments.action == "check" else _show(arguments)


def rows(found: EffectiveSettings) -> Iterator[ConfigurationRow]:
    """Yield a row for each setting, with secrets hidden.

    A setting of ``[host:NAME]`` has a row only if a source sets it.
    """
    for section, kind in SECTIONS.items():
        for declared in fields(kind):
            yield _row(
                found,
                section,
                declared.name,
                written_text(found.values, section, declared.name),
            )
    for (section, name), sourced in found.values.items():
        if section.startswith(HOST):
            yield _row(found, section, name, sourced.text)


def find_problems(found: EffectiveSettings) -> list[ConfigProblem]:
    """Return the problems that would prevent the service or dlpool-web from starting.

    Checks the files, programs and URLs that the settings name. Changes nothing.
    """
    settings, problems = found.settings, []
    checks: list[tuple[str, Callable[[], object]]] = [
        (
            "network",
            HttpClient(
                settings.network, 1, HostHolds(lambda: 0.0), NetworkMonitor(lambda: 0.0)
            ).check,
        ),
        ("hooks", lambda: check_hooks(settings.hooks)),
        ("logging", lambda: check_archive_command(settings.logging)),
        ("otel", lambda: check_traces(settings.otel)),
        ("paths", lambda: check_owned_paths(settings)),
        (
            "redis",
            lambda: connect(
                settings.redis, Path(settings.paths.state_dir).absolute()
            ).close(),
        ),
        ("web", lambda: check_web_access(settings.web)),
    ]
    for section, check in checks:
        try:
            check()
        except DlpoolError as error:
            problems += [
                _with_source(found, section, sentence)
                for sentence in str(error).splitlines()
            ]
    return problems


def _with_source(
    found: EffectiveSettings, section: str, sentence: str
) -> ConfigProblem:
    """Return ``sentence`` as a problem, with the source of the setting.

    ``sentence`` begins with the setting: ``[SECTION] NAME``, or only NAME for a setting
    of ``section``. The problem has no source if no source sets the setting.
    """
    match = re.match(r"\[([a-z]+)\] (.*)", sentence)
    section, text = (match[1], match[2]) if match else (section, sentence)
    name = text.partition(" ")[0].rstrip(":")
    sourced = found.values.get((section, name))
    if sourced is None:
        return ConfigProblem(sentence, settings=((section, name),))
    return ConfigProblem(
        f"{sourced.origin}: {sentence}", sourced.origin, ((section, name),)
    )


def _row(
    found: EffectiveSettings, section: str, name: str, text: str
) -> ConfigurationRow:
    sourced = found.values.get((section, name))
    origin = "default" if sourced is None else sourced.origin
    if section.startswith(HOST):
        value = getattr(found.settings.hosts[section.removeprefix(HOST)], name)
    else:
        value = getattr(getattr(found.settings, section), name)
    declared = next(
        one for one in fields(SECTIONS.get(section, LimitSettings)) if one.name == name
    )
    if declared.metadata["is_secret"] and value is not None:
        return ConfigurationRow(section, name, HIDDEN, HIDDEN, origin)
    clean = shown_server if (section, name) == ("redis", "url") else without_secrets
    return ConfigurationRow(
        section,
        name,
        clean(text),
        clean(value) if isinstance(value, str) else value,
        origin,
    )


def _check(arguments: argparse.Namespace) -> int:
    found, invalid = examine(
        arguments.config, sourced_service_options(arguments), for_service=True
    )
    known = concerned(invalid)
    invalid += [one for one in find_problems(found) if not one.concerns(known)]
    problems = [problem.text for problem in sort_problems(invalid, found.files)]
    with reporting_result():
        _show_check(problems, found, arguments)
    return ConfigurationError.exit_code if problems else 0


def _show_check(
    problems: list[str], found: EffectiveSettings, arguments: argparse.Namespace
) -> None:
    if not arguments.quiet and not arguments.json:
        print_warnings(found.notes)
    if arguments.json:
        report = {"is_usable": not problems, "files": found.files, "problems": problems}
        report |= {"warnings": found.notes} if found.notes else {}
        show_lines([jsontext.dumps(report).decode()])
    elif problems:
        print(
            *(f"dlpool: {problem}" for problem in problems), sep="\n", file=sys.stderr
        )
    elif not arguments.quiet:
        show_lines(
            [f"the settings are valid; read: {', '.join(found.files) or 'no file'}"]
        )


def _show(arguments: argparse.Namespace) -> int:
    found = load_settings(
        arguments.config,
        sourced_service_options(arguments),
        is_quiet=arguments.quiet,
        of_service=True,
    )
    shown = list(rows(found))
    if arguments.json:
        show_lines(jsontext.dumps(row.as_json()).decode() for row in shown)
        return 0
    columns = ("section", "key", "value", *(("origin",) if arguments.origin else ()))
    cells = [(row.section, row.key, row.text, row.origin) for row in shown]
    show_table(columns, [row[: len(columns)] for row in cells])
    return 0
