"""INI files: read, checked, and written with their defaults."""

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
from dlpool.config.declaration import format_bound, parse_setting
from dlpool.config.layers import GROUP, HOST, SourcedValue, load_effective
from dlpool.config.sections import SECTIONS, LimitSettings, TransferSettings
from dlpool.config.sourced import ConfigProblem
from dlpool.config.web import is_profile_setting
from dlpool.errors import ConfigurationError
from dlpool.redaction import without_secrets
from dlpool.usertext import split_byte_order_mark

_HEAD = """\
# The settings of dlpool with their defaults, but for those that say so. Sizes take K M G T (powers of 1024), times ms s
# m h. What conf.d/*.ini beside this file say goes over it, variables DLPOOL_SECTION_KEY of the environment over that.
"""


_CONVERT = (
    "all other sections have their defaults; `dlpool config convert` writes it as "
    "an INI file"
)


class _Parser(configparser.ConfigParser):
    """Notes the lines of sections and keys: its hook for names is called for each of
    them, in their order."""

    def __init__(self) -> None:
        super().__init__(interpolation=None, default_section="")
        self._line = 0
        self._noted: list[int] | None = []
        self.lines: dict[str, int] = {}  # of sections

    def read_text(self, text: str, source: str) -> Iterator[tuple[str, str, str, int]]:
        """Section, key, value and line of each setting. Raises configparser.Error."""
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


def load(path: str | None) -> dict[str, Any]:
    """The settings of each section, by its name, from ``path`` and whatever goes over
    it; see ``layers``.

    ``hosts``: those of the sections ``[host:NAME]``, by NAME, over ``[limits]``.

    Raises ConfigurationError that names every wrong section and key at once.
    """
    return load_effective(path).sections()


def read_settings_file(
    path: str, problems: list[ConfigProblem], notes: list[str] | None = None
) -> list[SourcedValue]:
    """Return the settings of an INI file, or of a ``config.json`` of the Go upload
    server, detected by content.

    Unknown sections go to ``problems``, what is worth a warning to ``notes``. Raises
    ConfigurationError for a file that cannot be read, and for one that is neither.
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
            f"{path} is no INI file: {_syntax_problem(error)}"
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
    """What is wrong with the name of a section, "" for none."""
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
    """Return the text of a configuration file in UTF-8, or in the encoding that its
    byte order mark names.

    Raises ConfigurationError.
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
            f"{path} is no INI file: line {line}: not UTF-8: save it in that encoding"
        ) from error
    before, nul, _ = text.partition("\0")
    if nul:  # UTF-16 without a mark has many
        number, begin = before.count("\n") + 1, before.rpartition("\n")[2]
        place = f"line {number}: {_cut(begin)}"
        raise ConfigurationError(
            f"{path} is no INI file: it has NUL characters ({place}): save it as text "
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
    """Return the first word of a line for a message; the rest may be a secret."""
    text = line.strip().strip("'").replace("\\n", "").strip()
    word = re.split(r"[\s=:]", text, maxsplit=1)[0][:40]
    return repr(word if word == text else f"{word}...")


def checked(
    layer: Sequence[SourcedValue], problems: list[ConfigProblem]
) -> list[SourcedValue]:
    """``layer`` with its values; what is wrong with it goes to ``problems``, and is
    left out."""
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


def default_ini(instead: Mapping[str, str] | None = None) -> str:
    """An INI file that says every setting, its bounds and its default: what is shipped
    as ``etc/dlpool.ini``.

    ``instead`` says other values, by key.
    """
    lines = [_HEAD]
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        for declared in fields(kind):
            usual = declared.metadata["text"]
            text = (
                (instead or {}).get(declared.name)
                or declared.metadata["shipped"]
                or usual
            )
            notice = (
                f"; not the default, which is {usual}"
                if text != usual is not None
                else ""
            )
            said = (
                f"{declared.metadata['kind'].metavar}{bounds(declared, name)}{notice}"
            )
            lines.append(f"# {declared.metadata['help']} ({said})")
            is_shown = text is not None and not is_profile_setting(name, declared.name)
            lines.append(
                f"{declared.name} = {text}"
                if is_shown
                else f"#{declared.name} = {text or ''}".rstrip()
            )
        if kind is TransferSettings:
            lines += [
                "# other settings of [transfer] for the jobs of one group",
                "#[group:nightly]",
                "#max_file_size = 1G",
            ]
        if kind is LimitSettings:
            lines += [
                "# other limits for one host, or for one port of it",
                "#[host:example.org]",
                "#max_per_host = 2",
            ]
        lines.append("")
    return "\n".join(lines)


def section_class(section: str) -> type:
    """Return the class of a section's settings: ``[host:NAME]`` has those of limits,
    ``[group:NAME]`` of transfers."""
    return SECTIONS.get(
        section, TransferSettings if section.startswith(GROUP) else LimitSettings
    )


def _host(section: str) -> str:
    return section.removeprefix(HOST).strip().lower()


def _values(
    section: str, texts: Mapping[str, str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the values of a section, and what is wrong with the rest of it, by key:
    unknown keys come last."""
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


def bounds(declared: Field[Any], section: str) -> str:
    """What a value must keep besides its kind, to follow its name."""
    meta = declared.metadata
    least, most, other = meta["low"], meta["high"], meta["not_below"]
    said = [
        f"at least {least:g}" if least is not None else "",
        f"at most {format_bound(declared, most)}" if most is not None else "",
        f"not below {other}" if other else "",
        "by profile" if is_profile_setting(section, declared.name) else "",
    ]
    return "".join(f", {text}" for text in said if text)
