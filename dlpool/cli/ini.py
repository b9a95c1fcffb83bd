"""The INI file: read, checked by pydantic, and turned into the frozen dataclasses of ``config``."""

from __future__ import annotations

import configparser
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from dlpool.config import SECTIONS, parse_setting
from dlpool.errors import ConfigurationError

_HEAD = """\
# The settings of dlpool with their defaults. Sizes take K M G T (powers of 1024), times ms s m h.
# Every key is also an option of the command line, with dashes.
"""


def load(path: str) -> dict[str, Any]:
    """The settings of each section, by its name; what is absent has its default.

    Raises ConfigurationError that names every wrong section and key at once.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"), source=path)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no INI file: {error}".replace("\n", " ")) from error
    problems = [f"[{name}]: there is no such section" for name in parser.sections() if name not in SECTIONS]
    settings: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        given = dict(parser[name]) if parser.has_section(name) else {}
        settings[name], wrong = _checked(name, kind, given)
        problems += wrong
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
        lines.append("")
    return "\n".join(lines)


def _checked(name: str, kind: type, given: Mapping[str, str]) -> tuple[Any, list[str]]:
    """The settings of a section, and what is wrong with it."""
    try:
        values = _model(name, kind)(**given).model_dump(exclude_unset=True)
        return kind(**values), []
    except ValidationError as error:
        return None, [f"[{name}] {_problem(problem)}" for problem in error.errors()]


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
