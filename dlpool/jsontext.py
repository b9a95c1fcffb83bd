"""JSON between dlpool's processes and in its records, by orjson for speed. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import orjson

MAX_DEPTH = 32  # levels of nested objects and arrays in data from outside
MAX_VALUES = 50_000
# all bytes but those that show the structure: quotes, brackets, braces, commas
_OTHERS = bytes(set(range(256)) - set(b'"[]{},'))


def dumps(value: Any) -> bytes:
    """Return ``value`` as JSON; a dataclass becomes an object of its fields.

    Raises TypeError for a type that has no JSON form.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        # an unpaired surrogate, which is not UTF-8, or an integer above 64 bits
        return json.dumps(value, default=_fields).encode()


def _fields(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"no JSON for {type(value).__name__}")
    return asdict(value)


def loads(data: bytes | str) -> Any:
    """Parse JSON. Bytes must be UTF-8; a byte order mark before them is ignored.

    Raises ValueError if the data is not JSON, RecursionError if it is nested too deep.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))


def check_bounds(
    data: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES
) -> None:
    """Raise ValueError if ``data`` is nested too deep or has too many values.

    Call this before parsing: it is faster than a parser and allocates nothing for the
    values. The result for data that is not JSON is unspecified.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # without the content of strings
    structure = b"".join(data.translate(None, _OTHERS).split(b'"')[::2])
    opened = structure.count(b"[") + structure.count(b"{")
    if opened + structure.count(b",") >= values:
        raise ValueError(f"it has more than {values} values")
    if opened <= depth:
        return
    level = 0
    for letter in structure.replace(b",", b""):
        level += 1 if letter in b"[{" else -1
        if level > depth:
            raise ValueError(f"it is nested deeper than {depth} levels")
