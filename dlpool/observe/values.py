"""Conversion of any value to JSON types: bounded in size and without secrets. Pure."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from enum import Enum
from itertools import islice
from typing import Any, TypeAlias

from dlpool.errors import DlpoolError
from dlpool.redaction import REDACTED, is_secret, without_secrets

MAX_TEXT = 8 * 1024
_MAX_NAME = 100
_MAX_ITEMS = 100
_MAX_DEPTH = 6
_MAX_NODES = 500
CUT = "..."

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def safe_text(value: str, limit: int = MAX_TEXT) -> str:
    """Return ``value`` without secrets, cut to ``limit`` characters. Lone surrogates
    are escaped, because strict JSON parsers refuse them."""
    shown = without_secrets(value)
    if not shown.isascii():
        shown = shown.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= limit else shown[: limit - len(CUT)] + CUT


def safe_key(value: object) -> str:
    """Return ``value`` as the key of a JSON object, at most 100 characters long."""
    return safe_text(value if type(value) is str else str(to_json(value)), _MAX_NAME)


def to_json(value: object) -> Json:
    """Return ``value`` in JSON types. Raises nothing: a value that cannot be shown
    becomes ``<unprintable CLASS>``."""
    if value is None:
        return None
    if convert := _COMMON.get(type(value)):
        return convert(value)
    return _ValueWalk().convert(value, 0)


class _ValueWalk:
    """One walk through a value, bounded in depth and number of nodes, because the value
    may contain itself."""

    def __init__(self) -> None:
        self._left = _MAX_NODES

    def convert(self, value: object, depth: int) -> Json:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            return CUT
        try:
            return self._converted(value, depth)
        except Exception:  # noqa: BLE001 - the code of the value itself fails
            return f"<unprintable {type(value).__name__}>"

    def _converted(self, value: object, depth: int) -> Json:
        if value is None:
            return None
        for kind, convert in _SCALARS:
            if isinstance(value, kind):
                return convert(value)
        if isinstance(value, Mapping):
            return self._object(value.items(), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._object(
                (
                    (field.name, getattr(value, field.name))
                    for field in dataclasses.fields(value)
                ),
                depth,
            )
        if isinstance(value, list | tuple | set | frozenset):
            return self._array(list(islice(value, _MAX_ITEMS)), depth)
        return safe_text(repr(value))

    def _object(self, items: Iterable[tuple[object, object]], depth: int) -> Json:
        shown: dict[str, Json] = {}
        for key, value in islice(items, _MAX_ITEMS):
            shown_key = _key(key)
            shown[safe_key(shown_key)] = (
                REDACTED if is_secret(shown_key) else self.convert(value, depth + 1)
            )
        return shown

    def _array(self, items: list[object], depth: int) -> Json:
        if (
            len(items) == 2
            and isinstance(items[0], str | bytes)
            and is_secret(_key(items[0]))
        ):
            return [safe_key(items[0]), REDACTED]  # a header as a pair
        return [self.convert(item, depth + 1) for item in items]


def _key(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _integer(value: int) -> Json:
    """Return an integer of up to 64 bits unchanged, because log stores can keep it.
    Return a longer one as hex text, because its conversion to decimal is slow.

    ``int()`` converts subclasses, such as IntEnum.
    """
    return int(value) if -(2**63) <= value < 2**63 else safe_text(hex(value))


def _float(value: float) -> Json:
    return float(value) if math.isfinite(value) else repr(float(value))


def _bytes(value: bytes | bytearray | memoryview) -> Json:
    return safe_text(bytes(value[: MAX_TEXT * 8]).decode("utf-8", "backslashreplace"))


def may_quote_input(error: BaseException) -> bool:
    """Return whether the message of an error may quote what a parser has read, such as
    the password of a URL."""
    return isinstance(error, ValueError) and not isinstance(error, DlpoolError)


def _error(value: BaseException) -> Json:
    return (
        type(value).__name__
        if may_quote_input(value)
        else safe_text(f"{type(value).__name__}: {value}")
    )


_SCALARS: tuple[tuple[Any, Callable[[Any], Json]], ...] = (
    (Enum, lambda value: to_json(value.value)),
    (str, lambda value: safe_text(str.__str__(value))),
    (bool, bool),
    (int, _integer),
    (float, _float),
    (bytes | bytearray | memoryview, _bytes),
    (os.PathLike, lambda value: safe_text(os.fsdecode(value))),
    (BaseException, _error),
    (timedelta, timedelta.total_seconds),
    (date, date.isoformat),
)
_COMMON: dict[type, Callable[[Any], Json]] = {
    str: safe_text,
    bool: bool,
    int: _integer,
    float: _float,
}
