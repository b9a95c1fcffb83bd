"""Reads the ``config.json`` of the Go upload server as settings of ``[upload]``.

The file has the keys of ``[upload]``. A size is in bytes. A duration is a text such as
``1h30m``, or a number of milliseconds. A number above one million and above the maximum
of the setting is in nanoseconds, as a ``time.Duration`` of Go.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from functools import cache
from typing import Any

from dlpool.config.sections import SECTIONS
from dlpool.config.sourced import ConfigProblem, SourcedValue
from dlpool.config.web import WORDS
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError
from dlpool.kinds import COUNT, DURATION, RATIO, SIZE, SWITCH, duration_text

SECTION = "upload"
MAX_DEPTH = 8  # objects within objects
_NS_A_MS = 1e6
_GO_UNITS_MS = {
    "ns": 1e-6,
    "us": 1e-3,
    "µs": 1e-3,
    "μs": 1e-3,
    "ms": 1.0,
    "s": 1e3,
    "m": 6e4,
    "h": 3.6e6,
}
_GO_PART = re.compile(
    r"([0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(ns|us|µs|μs|ms|s|m|h)"
)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\s]*):(?P<port>[0-9]+)")


class WrongValue(ValueError):
    """A value that is invalid for its setting. The message completes "it is ..."."""


@dataclass(frozen=True)
class _Pairs:
    """A JSON object as pairs of key and value; a ``dict`` would hide repeated keys."""

    members: Sequence[tuple[str, Any]]


def is_json(text: str) -> bool:
    """Return whether ``text`` is JSON or begins like a JSON object.

    An INI file never begins with a brace.
    """
    start = text.lstrip()
    if start.startswith("{"):
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_json(
    text: str, path: str, problems: list[ConfigProblem], notes: list[str]
) -> list[SourcedValue]:
    """Return the settings in ``text``, the content of the file ``path``.

    Appends a problem for each invalid value to ``problems``, and a warning about
    unknown keys to ``notes``. Raises ConfigurationError if the text is not a JSON
    object.
    """
    found: dict[tuple[str, str], SourcedValue] = {}
    unknown = []
    for names, value in _leaves(_parsed(text, path)):
        shown, origin = ".".join(names), f"{path}:{_line_of(text, names[-1])}"
        declared = _setting_of(names)
        if declared is None:
            unknown.append(shown)
            continue
        setting, reason = (SECTION, declared.name), ""
        if setting in found:
            reason = f": {declared.name} is given twice"
        elif value is not None:  # null leaves the default, as in Go
            try:
                text_value = _text_of(declared, value)
                found[setting] = SourcedValue(*setting, text_value, origin)
            except UnicodeEncodeError:
                reason = ": it is not text that UTF-8 can encode"
            except WrongValue as error:
                reason = f" = {_shown(value)}: it is {error}"
        if reason:
            sentence = f"{origin}: {shown}{reason}"
            problems.append(ConfigProblem(sentence, origin, (setting,)))
    if unknown:
        notes.append(
            f"{path}: unknown keys are ignored: "
            f"{', '.join(name[:80] for name in unknown)}"
        )
    return list(found.values())


def _parsed(text: str, path: str) -> _Pairs:
    try:
        value = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}:{error.lineno}: it begins like JSON, but is not valid JSON: "
            f"{error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, _Pairs):
        raise ConfigurationError(
            f'{path} is JSON, but not an object with settings: {{"upload_dir": ...}}'
        )
    return value


def _no_constant(name: str) -> None:
    raise WrongValue(f"{name} is not a number of JSON")


def _leaves(
    value: _Pairs, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys and the value of each member of a JSON object.

    The members of nested objects are included. The keys lead to the value, the
    outermost key first. A nested object is yielded as one value in two cases: if its
    keys name a setting, or if it is eight levels deep (``MAX_DEPTH``).
    """
    for name, member in value.members:
        names = (*above, name)
        if (
            isinstance(member, _Pairs)
            and len(names) < MAX_DEPTH
            and _setting_of(names) is None
        ):
            yield from _leaves(member, names)
        else:
            yield names, member


def _setting_of(names: Sequence[str]) -> Field[Any] | None:
    """Return the setting that nested keys name; None if they name no setting.

    ``names`` holds the keys, the outermost key first. Examples: ``max_file_size``,
    ``maxFileSize``; ``max_attempts`` in an object ``retry`` (``retry_max_attempts``).
    """
    for begin in range(len(names)):
        if declared := _settings().get(_folded("".join(names[begin:]))):
            return declared
    return None


@cache
def _settings() -> Mapping[str, Field[Any]]:
    return {_folded(one.name): one for one in fields(SECTIONS[SECTION])}


def _folded(name: str) -> str:
    return re.sub("[_ -]", "", name).lower()


def _text_of(declared: Field[Any], value: Any) -> str:
    """Return a value as text of an INI file. Raises WrongValue, UnicodeEncodeError."""
    if isinstance(value, _Pairs):
        raise WrongValue("an object")
    if declared.name == "port":
        text = _port(value)
    elif declared.metadata["kind"] is DURATION:
        text = _duration(value, declared.metadata["high"] * 1000)
    else:
        text = _WRITERS.get(declared.metadata["kind"].metavar, _plain)(value)
    if text != text.strip() or not text:
        raise WrongValue("a text with spaces around it" if text else "empty")
    text.encode()  # fails for a lone surrogate
    return text


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValue("not a text")
    return value


def _switch(value: Any) -> str:
    if not isinstance(value, bool):
        raise WrongValue("neither true nor false")
    return "yes" if value else "no"


def _count(value: Any) -> str:
    return str(_whole(value))


def _ratio(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongValue("not a number from 0 to 1")
    return f"{value:.9f}".rstrip("0").rstrip(".") if 0 <= value <= 1 else str(value)


def _words(value: Any) -> str:
    if isinstance(value, list) and all(
        isinstance(one, str) and "," not in one for one in value
    ):
        return ",".join(value)
    return _plain(value)


def _size(value: Any) -> str:
    """Return a size, given in bytes, as text with the largest unit that divides it.

    A text that is not a whole number, such as ``8M``, is returned unchanged.
    """
    if isinstance(value, str) and not value.strip().isdigit():
        return value
    left, unit = _whole(value), ""
    for larger in "KMGT":
        if left == 0 or left % 1024:
            break
        left, unit = left // 1024, larger
    return f"{left}{unit}"


def _duration(value: Any, most_ms: float) -> str:
    """Return a duration as text of an INI file.

    A number counts milliseconds. A number above ``most_ms`` and above one million
    counts nanoseconds. A text has the format of Go's ``Duration.String``.
    """
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9.]+", value.strip()):
        return duration_text(_go_duration_ms(value.strip()) / 1000)
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise WrongValue(
            "not a duration, such as 2000 (milliseconds) or 1h30m"
        ) from None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise WrongValue("not a number of milliseconds")
    if not math.isfinite(number) or number < 0:
        raise WrongValue("negative" if number < 0 else "too large")
    milliseconds = number / _NS_A_MS if number > max(most_ms, _NS_A_MS) else number
    return duration_text(milliseconds / 1000)


def _go_duration_ms(text: str) -> float:
    parts = _GO_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise WrongValue("not a duration, such as 2000 (milliseconds) or 1h30m")
    return sum(float(number) * _GO_UNITS_MS[unit] for number, unit in parts)


def _port(value: Any) -> str:
    """Return the port in ``18101``, ``"18101"`` or ``":18101"`` as text.

    ``":18101"`` is an address of Go's ``net.Listen`` without a host. Raises WrongValue
    for an address with a host and for any other value.
    """
    if isinstance(value, str) and (match := _ADDRESS.fullmatch(value.strip())):
        if match["host"]:
            raise WrongValue(
                "not a port alone: write the port here, and the address as bind in "
                "[web] of an INI file"
            )
        return match["port"]
    return str(_whole(value))


def _whole(value: Any) -> int:
    """Return an integer, a text of digits or a number such as ``1e9`` as an integer.

    Raises WrongValue.
    """
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongValue("not a whole number")
    if value < 0:
        raise WrongValue("negative")
    return value


def _shown(value: Any) -> str:
    """Return a value as text for a message, cut to 80 characters."""
    text = (
        "{...}"
        if isinstance(value, _Pairs)
        else json.dumps(value, default=lambda _: "{...}")
    )
    return text if len(text) <= 80 else text[:77] + "..."


def _line_of(text: str, name: str) -> int:
    """Return the number of the line with the first key ``name``; 1 without a match."""
    match = re.search(rf"{re.escape(json.dumps(name, ensure_ascii=False))}\s*:", text)
    return text.count("\n", 0, match.start()) + 1 if match else 1


_WRITERS: Mapping[str, Callable[[Any], str]] = {
    SWITCH.metavar: _switch,
    COUNT.metavar: _count,
    RATIO.metavar: _ratio,
    WORDS.metavar: _words,
    SIZE.metavar: _size,
}
