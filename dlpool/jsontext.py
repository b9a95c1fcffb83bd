"""JSON between our own processes and in our own records, by orjson: a queue of small
jobs is half made of it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import orjson

MAX_DEPTH = 32  # of objects and arrays in each other, in what others send
MAX_VALUES = 50_000
_OTHERS = bytes(
    set(range(256)) - set(b'"[]{},')
)  # all bytes that have no part in the structure


def dumps(value: Any) -> bytes:
    """``value`` as JSON, a dataclass as its fields. Raises TypeError for what JSON does
    not know."""
    try:
        return orjson.dumps(value)
    # half a surrogate pair, which JSON can say and UTF-8 cannot; an integer above 64
    # bits
    except TypeError:
        return json.dumps(value, default=_fields).encode()


def _fields(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"no JSON for {type(value).__name__}")
    return asdict(value)


def loads(data: bytes | str) -> Any:
    """What ``data`` says. Raises ValueError if it is no JSON; in another encoding than
    UTF-8 it is none.

    RFC 8259, section 8.1; a byte order mark of UTF-8 is passed over.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))


def check_bounds(
    data: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES
) -> None:
    """Raise ValueError, before anything is parsed, if ``data`` is nested deeper or has
    more values than that.

    Takes less time than to parse it, and no memory for its values. Of what is no JSON
    it may say anything.
    """
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = b"".join(
        data.translate(None, _OTHERS).split(b'"')[::2]
    )  # without what texts contain
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
