"""The INI file: read, checked by pydantic, and turned into the frozen dataclasses of ``config``."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from dlpool.config import SECTIONS, LimitSettings, parse_setting
from dlpool.errors import ConfigurationError

_HOST = "host:"
_HEAD = """\
# The settings of dlpool with their defaults. Sizes take K M G T (powers of 1024), times ms s m h.
# Every key is also an option of the command line, with dashes.
"""


def load(path: str) -> dict[str, Any]:
    """The settings of each section, by its name; what is absent has its default.

    ``hosts``: those of the sections ``[host:NAME]``, by NAME, over ``[limits]``.

    Raises ConfigurationError that names every wrong section and key at once.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"), source=path)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no INI file: {error}".replace("\n", " ")) from error
    hosts = [name for name in parser.sections() if name.startswith(_HOST)]
    unknown = [name for name in parser.sections() if name not in SECTIONS and name not in hosts]
    problems = [f"[{name}]: there is no such section" for name in unknown]
    settings: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        given = dict(parser[name]) if parser.has_section(name) else {}
        values, wrong = _checked(name, kind, given)
        settings[name] = kind(**values)
        problems += wrong
    settings["hosts"] = {}
    for section in hosts:
        values, wrong = _checked(section, LimitSettings, dict(parser[section]))
        problems += wrong
        name = section.removeprefix(_HOST).strip().lower()
        if not re.fullmatch(r"[^\s/@{}]{1,255}", name):
            problems.append(f"[{section}]: it names no host")
        settings["hosts"][name] = replace(settings["limits"], **values)
    if problems:
        raise ConfigurationError("\n".join(f"{path}: {problem}" for problem in problems))
    return settings


def default_ini() -> str:
    """An INI file that says every setting, its bounds and its default: what is shipped as ``etc/dlpool.ini``."""
    lines = [_HEAD]
    for name, kind in SECTIONS.items():
        lines.append(f"[{name}]")
        for declared in fields(kind):
            text = declared.metadata["shipped"] or declared.metadata["text"]
            lines.append(f"# {declared.metadata['help']} ({declared.metadata['kind'].metavar}{_bounds(declared)})")
            lines.append(f"{declared.name} = {text}" if text is not None else f"#{declared.name} =")
        if kind is LimitSettings:
            lines += ["# other limits for one host, or for one port of it", "#[host:example.org]", "#max_per_host = 2"]
        lines.append("")
    return "\n".join(lines)


def _checked(name: str, kind: type, given: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What a section says, and what is wrong with it."""
    try:
        return _model(name, kind)(**given).model_dump(exclude_unset=True), []
    except ValidationError as error:
        return {}, [f"[{name}] {_problem(problem)}" for problem in error.errors()]


def _model(name: str, kind: type) -> type[BaseModel]:
    """A pydantic model of a section: each value parsed as its setting says, no key unknown."""
    members: dict[str, Any] = {
        declared.name: (Annotated[Any, BeforeValidator(_parser(declared))], declared.default)
        for declared in fields(kind)
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), **members)


def _parser(declared: Field[Any]) -> Callable[[str], Any]:
    return lambda text: parse_setting(declared, text)


def _problem(problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: there is no such key"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']}: it is {reason}"


def _bounds(declared: Field[Any]) -> str:
    low, high = declared.metadata["low"], declared.metadata["high"]
    return (f", at least {low:g}" if low is not None else "") + (f", at most {high:g}" if high is not None else "")
