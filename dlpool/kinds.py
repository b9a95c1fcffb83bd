"""The types of settings: how text becomes a value. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dlpool.dataclass import dataclass

AUTO = "auto"
KIB = 1024
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0
MAX_DURATION_S = 366 * DAY_S
LEVELS = ("debug", "info", "warning", "error", "critical")
LOGGERS = (
    "supervisor",
    "redis",
    "hooks",
    "jobs",
    "worker",
    "log",
    "metrics",
    "web",
    "audit",
)


@dataclass(frozen=True)
class Kind:
    """The type of a setting.

    ``metavar``: the value's placeholder in the help. ``parse`` turns text into the
    value. It raises ValueError with a message that completes the sentence "it is ...".
    """

    metavar: str
    parse: Callable[[str], Any]


def _number(text: str, units: dict[str, float], unit_names: str) -> float:
    match = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None:
        raise ValueError(f"not a number with a unit ({unit_names})")
    if match[1].startswith("-"):
        raise ValueError("negative")
    if match[2].lower() not in units:
        raise ValueError(f"in an unknown unit ({match[2]!r}; known are {unit_names})")
    value = float(match[1]) * units[match[2].lower()]
    if not math.isfinite(value) or value >= 2**63:
        raise ValueError("too large")
    return value


_SIZE_UNITS = {
    "": 1.0,
    "b": 1.0,
    "k": 1024.0,
    "m": 1024.0**2,
    "g": 1024.0**3,
    "t": 1024.0**4,
}
_SIZE_UNITS |= {
    f"{unit}{ending}": factor
    for unit, factor in _SIZE_UNITS.items()
    if unit in "kmgt" and unit
    for ending in ("b", "ib")
}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Return bytes from ``512``, ``64K``, ``1.5M``, ``2G`` (powers of 1024)."""
    return int(_number(text, _SIZE_UNITS, "K, M, G, T"))


def parse_duration(text: str) -> float:
    """Return seconds from ``500ms``, ``30s``, ``5m``, ``2h``.

    The default unit is seconds.
    """
    seconds = _number(text, _DURATION_UNITS, "ms, s, m, h")
    if seconds > MAX_DURATION_S:
        raise ValueError(f"longer than a year{unit_hint(text)}")
    return seconds


def unit_hint(text: str) -> str:
    """Return a hint about the default unit if a duration has no unit, else ``""``."""
    number = text.strip()
    return (
        f" (without a unit it is in seconds; milliseconds are {number}ms)"
        if number[-1:].isdigit()
        else ""
    )


def duration_text(seconds: float) -> str:
    """Return ``seconds`` as text with a unit that avoids a fraction: ``90s``,
    ``5m``."""
    for unit, factor in (("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0"


def parse_count(text: str) -> int:
    """Return an integer of zero or more."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise ValueError("not a whole number")
    if text.strip().startswith("-"):
        raise ValueError("negative")
    return int(text)


def parse_count_or_auto(text: str) -> int | str:
    """Return an integer of zero or more, or ``auto``."""
    if text.strip() == AUTO:
        return AUTO
    if not re.search("[0-9]", text):
        raise ValueError(f"neither a whole number nor {AUTO}")
    return parse_count(text)


_SWITCH = {
    "yes": True,
    "true": True,
    "on": True,
    "1": True,
    "no": False,
    "false": False,
    "off": False,
    "0": False,
}


def parse_frequency(text: str) -> float:
    """Return the events per second from ``10``, ``10/s``, ``100/m``, ``5/h``."""
    count, _, unit = text.strip().partition("/")
    seconds = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}.get(unit.strip().lower())
    if seconds is None:
        raise ValueError(f"in an unknown unit ({unit[:20]!r}; known are /s, /m, /h)")
    value = parse_count(count)
    if value == 0:
        raise ValueError("zero")
    return value / seconds


def parse_switch(text: str) -> bool:
    """Return a boolean from ``yes`` or ``no`` (or true, on, 1, false, off, 0)."""
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ValueError("neither yes nor no") from None


def parse_text(text: str) -> str:
    """Return ``text`` if it has no control characters."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("text with control characters")
    return text


def parse_ratio(text: str) -> float:
    """Return a number from 0 to 1."""
    if not re.fullmatch(r"0|1|[01]?\.[0-9]{1,9}", text) or float(text) > 1:
        raise ValueError("not a number from 0 to 1")
    return float(text)


def parse_base_url(text: str) -> str:
    """Return ``text`` if it is empty or a plain http or https URL.

    User info, query and fragment are not allowed.
    """
    if text and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError("not an http or https URL without user, query and fragment")
    return text


def parse_name(text: str) -> str:
    """Return ``text`` if it is 1 to 64 characters of ``A-Za-z0-9_.-``."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise ValueError("not 1 to 64 of A-Z a-z 0-9 _ . -")
    return text


def parse_group(text: str) -> str:
    """Return ``text`` if it can be the hash tag of a Redis key.

    A hash tag is enclosed in braces, so it cannot contain braces.
    """
    if not re.fullmatch(r"[^\x00-\x20\x7f{}]{1,200}", text):
        raise ValueError("not 1 to 200 characters without spaces and braces")
    return text


def parse_command(text: str) -> str:
    """Return ``text`` if ``shlex`` can split it into a command line."""
    try:
        words = shlex.split(parse_text(text))
    except ValueError as error:
        raise ValueError(f"not a command line ({error})") from error
    if not words or not words[0]:
        raise ValueError("not a command line (it names no program)")
    return text


def redacted_command(command: str) -> str:
    """Return a command line with ``...`` instead of its arguments, which may be
    secret."""
    program, *arguments = shlex.split(command)
    return f"{program} ..." if arguments else program


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[::1]:PORT``.

    An empty host means all addresses of this machine. Raises ValueError.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("not of the form HOST:PORT")
    return match[1].strip("[]"), int(match[2])


def parse_address(text: str) -> str:
    """Return ``text`` if it is ``HOST:PORT`` or empty."""
    if text:
        split_address(text)
    return text


def split_clamd(text: str) -> str | tuple[str, int]:
    """Return the path of ``unix:PATH``, or host and port of ``tcp://HOST:PORT``.

    Raises ValueError.
    """
    if text.startswith("unix:/") and parse_text(text):
        return text.removeprefix("unix:")
    if text.startswith("tcp://"):
        with suppress(ValueError):
            host, port = split_address(text.removeprefix("tcp://").removesuffix("/"))
            if host:
                return host, port
    raise ValueError("neither unix:/PATH nor tcp://HOST:PORT")


def parse_clamd(text: str) -> str:
    """Return ``text`` if it is the address of a clamd. Raises ValueError."""
    split_clamd(text)
    return text


def parse_loopback(text: str) -> str:
    """Return ``text`` if it is empty, or ``HOST:PORT`` of the loopback interface.

    Raises ValueError.
    """
    if text and not re.fullmatch(
        r"localhost|127(\.[0-9]{1,3}){3}|::1", split_address(text)[0]
    ):
        raise ValueError(
            "not an address of the loopback interface (127.0.0.1, [::1], localhost)"
        )
    return text


def parse_umask(text: str) -> str:
    """Return ``text`` if it is an octal umask that keeps all rights of the owner.

    Raises ValueError.
    """
    if not re.fullmatch("0{0,2}[0-7]{1,2}", text):
        raise ValueError(
            "not an octal number from 000 to 077 (the rights that group and others do "
            "not get)"
        )
    return text


def parse_levels(text: str) -> str:
    """Return ``text`` if ``logger_levels`` can parse it. Raises ValueError."""
    logger_levels(text)
    return text


def logger_levels(text: str) -> dict[str, str]:
    """Return the level of each logger in a list of ``LOGGER=LEVEL``.

    Commas separate the items of the list. Raises ValueError.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        logger, equals, level = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError(
                f"not LOGGER=LEVEL with commas between ({part.strip()[:40]!r})"
            )
        if logger not in LOGGERS:
            raise ValueError(
                f"of an unknown logger ({logger[:40]!r}; known are "
                f"{', '.join(LOGGERS)})"
            )
        if level not in LEVELS:
            raise ValueError(f"not one of {', '.join(LEVELS)} ({level[:40]!r})")
        found[logger] = level
    return found


def choice(*values: str) -> Kind:
    """Return the type of a setting that has one of ``values``."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"not one of {', '.join(values)}")
        return text

    return Kind("|".join(values), parse)


SIZE = Kind("SIZE", parse_size)
RATE = Kind("SIZE", parse_size)
DURATION = Kind("TIME", parse_duration)
COUNT = Kind("N", parse_count)
COUNT_OR_AUTO = Kind(f"N|{AUTO}", parse_count_or_auto)
FREQUENCY = Kind("N/s|m|h", parse_frequency)
SWITCH = Kind("yes|no", parse_switch)
TEXT = Kind("TEXT", parse_text)
RATIO = Kind("0..1", parse_ratio)
BASE_URL = Kind("URL", parse_base_url)
PATH = Kind("FILE", parse_text)
UMASK = Kind("OCTAL", parse_umask)
NAME = Kind("NAME", parse_name)
GROUP = Kind("NAME", parse_group)
ADDRESS = Kind("HOST:PORT", parse_address)
LOOPBACK = Kind("HOST:PORT", parse_loopback)
COMMAND = Kind("COMMAND", parse_command)
CLAMD = Kind("unix:PATH|tcp://HOST:PORT", parse_clamd)
LOGGER_LEVELS = Kind("LOGGER=LEVEL,...", parse_levels)
