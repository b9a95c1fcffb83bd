"""Command-line options, most of them derived from the declared settings."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from typing import Any

from dlpool.config import (
    SECTIONS,
    NetworkSettings,
    Settings,
    TransferSettings,
    option_names,
    parse_setting,
)
from dlpool.config.layers import EffectiveSettings, load_effective
from dlpool.config.sourced import SourcedValue
from dlpool.kinds import parse_count

JOBS = 5  # files of a list at once
_PATH = """\
Download URL to PATH. PATH is a file, or a folder if it ends in / or exists as one
(default: the current folder). In a folder the server or the URL names the file. Missing
folders are created. PATH must not end in .part or .part.meta: the unfinished file and
its state have these names.
"""
_EXAMPLES = """\
examples:
  dlpool fetch https://example.org/model.bin
  dlpool fetch https://example.org/model.bin models/ --checksum sha256:9f86d0...
  dlpool fetch -i urls.txt downloads/ -j 8

"""


def declare_fetch(parser: argparse.ArgumentParser) -> None:
    """Declare ``dlpool fetch``."""
    parser.description = _PATH
    parser.epilog = f"{_EXAMPLES}{parser.epilog}"
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help="http or https; with -i: a folder for the files",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a file, or a folder if it ends in / or exists as one (default: the "
        "current folder)",
    )
    _add_job_options(parser.add_argument_group("what to fetch"))
    for title, settings in (
        ("transfer", TransferSettings),
        ("network", NetworkSettings),
    ):
        group = parser.add_argument_group(title)
        for declared in fields(settings):
            add_setting(group, declared)
    add_output_options(parser.add_argument_group("output"))


def add_setting(group: Any, declared: Field[Any]) -> None:
    """Declare the option of a setting.

    If the option is not given, the parsed arguments have no attribute for the setting.
    """
    meta = declared.metadata
    options: dict[str, Any] = {"dest": declared.name, "default": argparse.SUPPRESS}
    if isinstance(declared.default, bool):
        help_text = f"do not {meta['help']}" if declared.default else meta["help"]
        group.add_argument(
            *option_names(declared),
            action="store_const",
            const=not declared.default,
            help=help_text,
            **options,
        )
        return
    help_text = (
        meta["help"]
        if meta["text"] is None
        else f"{meta['help']} (default: {meta['text']})"
    )
    group.add_argument(
        *option_names(declared),
        metavar=meta["kind"].metavar,
        type=_checked(declared),
        help=help_text.replace("%", "%%"),
        **options,
    )


def sourced_options(
    arguments: argparse.Namespace, section: str, names: Collection[str] | None = None
) -> list[SourcedValue]:
    """Return the values that the options give to the settings of a section.

    ``names`` restricts the result to the settings with these names; None means all.
    """
    values = vars(arguments)
    return [
        SourcedValue(
            section,
            one.name,
            _text(values[one.name]),
            f"option {option_names(one)[-1]}",
            values[one.name],
        )
        for one in fields(SECTIONS[section])
        if one.name in values and (names is None or one.name in names)
    ]


def load_settings(
    config: str | None,
    options: Sequence[SourcedValue] = (),
    *,
    program: str = "dlpool",
    is_quiet: bool = False,
    of_service: bool = False,
) -> EffectiveSettings:
    """Return the effective settings, and print warnings unless ``is_quiet``.

    ``config`` is the path of the INI file, None to read no INI file. With
    ``of_service`` the defaults of the service apply. Raises ConfigurationError, which
    names all problems.
    """
    found = load_effective(config, options, for_service=of_service)
    if not is_quiet:
        print_warnings(found.notes, program)
    return found


def apply_umask(settings: Settings) -> None:
    """Set the umask of ``[paths]`` for this process and its children."""
    os.umask(int(settings.paths.umask, 8))


def print_warnings(notes: Iterable[str], program: str = "dlpool") -> None:
    """Print warnings to standard error; a failure to write is ignored."""
    with suppress(OSError, ValueError, AttributeError):
        for note in notes:
            print(f"{program}: warning: {note}", file=sys.stderr, flush=True)


def _add_job_options(group: Any) -> None:
    group.add_argument(
        "-i",
        "--input-file",
        metavar="FILE",
        help="a list, - for standard input: on each line a URL, "
        'a URL and a PATH, or {"url": ..., "path": ..., "checksum": ..., '
        '"headers": {...}}',
    )
    group.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=_jobs,
        help=f"files at once, with -i (default: {JOBS})",
    )
    group.add_argument(
        "--session",
        metavar="FILE",
        help="with -i: record what is done; the next run downloads the rest",
    )
    add_header_options(group, ", for the URL's own origin")
    group.add_argument(
        "--user",
        metavar="NAME[:PASSWORD]",
        help="HTTP user; the password may be in DLPOOL_PASSWORD, else it is asked for",
    )
    group.add_argument("--referer", metavar="URL", help="Referer header")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="an INI file whose [transfer] and [network] are the defaults",
    )
    group.add_argument(
        "--checksum",
        metavar="ALGO:HEX",
        help="md5, sha1, sha256, sha512 or blake2b of the file",
    )


def add_header_options(group: Any, where: str = "") -> None:
    """Declare ``-H`` and ``--header-file``.

    ``where`` is text for the help that says which servers receive the headers.
    """
    group.add_argument(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        help=f"add a header{where}; @FILE: those of a file; may be repeated",
    )
    group.add_argument(
        "--header-file",
        metavar="FILE",
        dest="header",
        action="append",
        type="@{}".format,
        help="add the headers of a file (- for standard input), NAME: VALUE on each "
        "line; unlike a file, other users of the machine can read the command "
        "line",
    )


def add_output_options(group: Any) -> None:
    """Declare the output options of a command that transfers files."""
    group.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "json", "none"),
        default="auto",
        help="progress on standard error (default: auto, which is bars on a terminal, "
        "else lines)",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print events")
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result as a JSON object on standard output",
    )


def _text(value: object) -> str:
    """Return the value of an option in the syntax of an INI file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checked(declared: Field[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parse_setting(declared, text)
        except ValueError as error:
            hint = (
                " (for an INI: --config)" if declared.metadata["short"] == "-c" else ""
            )
            raise argparse.ArgumentTypeError(
                f"{text[:80]!r} is {error}{hint}"
            ) from error

    return parse


def _jobs(text: str) -> int:
    try:
        count = parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is {error}") from error
    if not 1 <= count <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 256")
    return count
