"""JSON between our own processes and in our own records, by orjson: a queue of small jobs is half made of it. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """``value`` as JSON, a dataclass as its fields. Raises TypeError for what JSON does not know."""
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, which JSON can say and UTF-8 cannot; an integer above 64 bits
        return json.dumps(value, default=_fields).encode()


def _fields(value: Any) -> dict[str, Any]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"no JSON for {type(value).__name__}")
    return asdict(value)


def loads(data: bytes | str) -> Any:
    """What ``data`` says. Raises ValueError if it is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)
