"""``dlpool config convert``: converts the ``config.json`` of the Go upload server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dlpool.cli.console import show_lines
from dlpool.cli.options import print_warnings
from dlpool.config.go_config import SECTION, is_json, read_json
from dlpool.config.ini import checked, text_of_file
from dlpool.config.sourced import ConfigProblem, SourcedValue, sort_problems
from dlpool.disk import atomic_create
from dlpool.disk_errors import translated
from dlpool.errors import ConfigurationError, TargetExists, UsageError


def convert(arguments: argparse.Namespace) -> int:
    """Convert a ``config.json`` to an INI file and return the exit code.

    The arguments give both file names; by default the INI file is written to standard
    output. Raises UsageError, ConfigurationError, TargetExists, LocalFault.
    """
    source = arguments.file or arguments.config
    if source is None:
        raise UsageError(
            "dlpool config convert needs the file to read: dlpool config convert "
            "config.json"
        )
    notes: list[str] = []
    lines = ini_lines(source, read_go_settings(source, notes))
    if not arguments.quiet:
        print_warnings(notes)
    if arguments.output is None:
        show_lines(lines)
        return 0
    _write(Path(arguments.output), ("\n".join(lines) + "\n").encode())
    if not arguments.quiet:
        show_lines([f"written: {arguments.output}"])
    return 0


def read_go_settings(source: str, notes: list[str]) -> Sequence[SourcedValue]:
    """Return the settings in ``source``, a ``config.json`` of the Go upload server.

    Appends warnings to ``notes``. Raises ConfigurationError. Its message has a line for
    each problem.
    """
    text = text_of_file(source)
    if not is_json(text):
        raise ConfigurationError(
            f"{source} is not JSON: it is already an INI file, or neither format"
        )
    problems: list[ConfigProblem] = []
    settings = checked(read_json(text, source, problems, notes), problems)
    if problems:
        raise ConfigurationError(
            "\n".join(one.text for one in sort_problems(problems, (source,)))
        )
    return settings


def ini_lines(source: str, settings: Sequence[SourcedValue]) -> list[str]:
    """Return the lines of an INI file with these settings."""
    return [
        f"# The settings of {Path(source).name!r}, by dlpool config convert.",
        f"[{SECTION}]",
        *(f"{one.name} = {one.text}" for one in settings),
    ]


def _write(path: Path, data: bytes) -> None:
    """Write a new file atomically. Raises TargetExists, LocalFault."""
    new = path.with_name(f".{path.name}.new")
    with translated(f"write {path}"):
        try:
            # 0600, as the file may contain the secret key.
            atomic_create(path, data, sync=True, mode=0o600, temporary=new)
        except FileExistsError:
            raise TargetExists(
                f"{path} exists and was not overwritten: name another file, or move it "
                f"away"
            ) from None
