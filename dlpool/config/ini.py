"""Reads and checks INI files."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from dlpool.config import go_config
from dlpool.config.declaration import parse_setting
from dlpool.config.downloads import LimitSettings, TransferSettings
from dlpool.config.sections import SECTIONS
from dlpool.config.sourced import GROUP, HOST, ConfigProblem, SourcedValue
from dlpool.errors import ConfigurationError
from dlpool.redaction import without_secrets
from dlpool.usertext import split_byte_order_mark

_CONVERT = (
    "all other sections have their defaults; `dlpool config convert` writes it as "
    "an INI file"
)


class _Parser(configparser.ConfigParser):
    """A parser that records the line numbers of sections and keys.

    The base class calls ``optionxform`` for each key, in the order of the file.
    """

    def __init__(self) -> None:
        super().__init__(interpolation=None, default_section="")
        self._line = 0
        self._noted: list[int] | None = []
        self.lines: dict[str, int] = {}  # of sections

    def read_text(self, text: str, source: str) -> Iterator[tuple[str, str, str, int]]:
        """Yield section, key, value and line number of each setting.

        Raises configparser.Error.
        """
        self.read_file(self._counted(io.StringIO(text)), source)
        lines, self._noted = self._noted or [], None
        found = [
            (name, key, value)
            for name in self.sections()
            for key, value in self[name].items()
        ]
        return ((*one, line) for one, line in zip(found, lines, strict=True))

    def optionxform(self, optionstr: str) -> str:
        if self._noted is not None:
            self._noted.append(self._line)
        return super().optionxform(optionstr)

    def _counted(self, lines: Iterable[str]) -> Iterator[str]:
        for self._line, line in enumerate(lines, 1):
            if found := self.SECTCRE.match(line.strip()):
                self.lines.setdefault(found["header"], self._line)
            yield line


def read_settings_file(
    path: str, problems: list[ConfigProblem], notes: list[str] | None = None
) -> list[SourcedValue]:
    """Return the values of an INI file, or of a ``config.json`` of the Go server.

    The content decides which format is used. Appends problems to ``problems``, and
    warnings to ``notes``. Raises ConfigurationError for a file that is unreadable or in
    neither format.
    """
    text, notes = text_of_file(path), [] if notes is None else notes
    if go_config.is_json(text):
        notes.append(
            f"{path} is read as the configuration of the Go upload server: {_CONVERT}"
        )
        return go_config.read_json(text, path, problems, notes)
    parser = _Parser()
    try:
        found = list(parser.read_text(text, path))
    except configparser.Error as error:
        raise ConfigurationError(
            f"{path} is not an INI file: {_syntax_problem(error)}"
        ) from error
    for name in parser.sections():
        if problem := _unknown(name):
            place = f"{path}:{parser.lines[name]}"
            problems.append(ConfigProblem(f"{place}: [{name}]: {problem}", place))
    return [
        SourcedValue(
            HOST + _host(section) if section.startswith(HOST) else section,
            key,
            text,
            f"{path}:{line}",
        )
        for section, key, text, line in found
        if section in SECTIONS or section.startswith((HOST, GROUP))
    ]


def _unknown(section: str) -> str:
    """Return what is wrong with the name of a section; '' if it is valid."""
    if section.startswith(HOST):
        return (
            ""
            if re.fullmatch(r"[^\s/@{}]{1,255}", _host(section))
            else "it names no host"
        )
    if section.startswith(GROUP):
        return "" if section != GROUP else "it names no group"
    return "" if section in SECTIONS else "there is no such section"


def text_of_file(path: str) -> str:
    """Return the text of a configuration file.

    The encoding is UTF-8 unless a byte order mark names another one. Raises
    ConfigurationError.
    """
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError as error:
        raise ConfigurationError(
            f"cannot read {path or '.'}: it is a folder, not a file with settings"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"cannot read {path}: {reason}") from error
    encoding, data = split_byte_order_mark(data)
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path} is not an INI file: line {line}: not UTF-8: save it in that "
            f"encoding"
        ) from error
    before, nul, _ = text.partition("\0")
    if nul:  # as in UTF-16 without a byte order mark
        number, begin = before.count("\n") + 1, before.rpartition("\n")[2]
        place = f"line {number}: {_cut(begin)}"
        raise ConfigurationError(
            f"{path} is not an INI file: it has NUL characters ({place}): save it as "
            f"text "
            f"in UTF-8"
        )
    return text


def _syntax_problem(error: configparser.Error) -> str:
    """Return a sentence about a syntax error of an INI file, with its line."""
    if isinstance(error, configparser.DuplicateOptionError):
        return f"line {error.lineno}: [{error.section}] {error.option} is given twice"
    if isinstance(error, configparser.DuplicateSectionError):
        return (
            f"line {error.lineno}: the section [{error.section}] is there twice: write "
            f"all "
            f"its keys in one place"
        )
    if isinstance(error, configparser.MissingSectionHeaderError):
        return (
            f"line {error.lineno}: {_cut(error.line)} comes before the first [section]"
        )
    if isinstance(error, configparser.ParsingError) and error.errors:
        line, text = error.errors[0]
        return f"line {line}: {_cut(text)} is neither a [section] nor NAME = VALUE"
    return str(error).replace("\n", " ")


def _cut(line: str) -> str:
    """Return the first word of a line for a message; the other words may be secret."""
    text = line.strip().strip("'").replace("\\n", "").strip()
    word = re.split(r"[\s=:]", text, maxsplit=1)[0][:40]
    return repr(word if word == text else f"{word}...")


def checked(
    layer: Sequence[SourcedValue], problems: list[ConfigProblem]
) -> list[SourcedValue]:
    """Return the valid values of a source, parsed.

    Appends a problem to ``problems`` for each invalid value.
    """
    right = []
    for section, members in groupby(
        sorted(layer, key=lambda one: one.section), key=lambda one: one.section
    ):
        given = {one.name: one for one in members}
        values, wrong = _values(
            section, {name: one.text for name, one in given.items()}
        )
        right += [
            replace(one, value=values[one.name])
            for one in given.values()
            if one.name in values
        ]
        problems += [
            ConfigProblem(
                f"{given[name].origin}: [{section}] {sentence}",
                given[name].origin,
                ((section, name),),
            )
            for name, sentence in wrong
        ]
    return right


def section_class(section: str) -> type:
    """Return the class of a section.

    ``[host:NAME]`` has the class of ``[limits]``; ``[group:NAME]`` has the class of
    ``[transfer]``.
    """
    return SECTIONS.get(
        section, TransferSettings if section.startswith(GROUP) else LimitSettings
    )


def _host(section: str) -> str:
    return section.removeprefix(HOST).strip().lower()


def _values(
    section: str, texts: Mapping[str, str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the parsed values of a section, and a sentence for each wrong key.

    A key is wrong if its value is invalid or the key is unknown. Unknown keys are last.
    """
    declared = {one.name: one for one in fields(section_class(section))}
    values: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for key in declared:
        if key in texts:
            try:
                values[key] = parse_setting(declared[key], texts[key])
            except ValueError as error:
                wrong.append(
                    (key, f"{key} = {_shown(declared[key], texts[key])}: it is {error}")
                )
    return values, wrong + [
        (key, f"{key}: there is no such key") for key in texts if key not in declared
    ]


def _shown(declared: Field[Any], text: str) -> str:
    return (
        "..."
        if declared.metadata["is_secret"]
        else without_secrets(text).replace("\n", " ")
    )
