"""Conversions of values from Redis, where other programs may have written anything.
Pure; nothing here raises."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_MS = 10**16  # a later time is invalid, and does not fit into a cursor


def to_text(value: bytes | None) -> str:
    """Return a reply as text: empty for None, with U+FFFD for bytes that are not
    UTF-8."""
    return (value or b"").decode("utf-8", "replace")


def to_int(value: bytes | str | int | None) -> int:
    """Return an integer from a text of up to 18 digits; 0 for anything else."""
    if isinstance(value, int):
        return value
    said = to_text(value) if isinstance(value, bytes) else value or ""
    return int(said) if re.fullmatch("-?[0-9]{1,18}", said) else 0


def to_ms(score: float) -> int:
    """Return the score of a sorted set as ms since 1970, limited to the range from 0 to
    ``MAX_MS``."""
    return int(min(max(score, 0), MAX_MS))


def to_number(value: str | None) -> float | None:
    """Return a number from a decimal text; None for anything else."""
    return (
        float(value)
        if value and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]+)?", value)
        else None
    )


def to_object(value: str | None) -> dict[str, Any]:
    """Return an object from a JSON text; an empty object for anything else."""
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_job_id(name: str) -> bool:
    """Return whether ``name`` is valid as the id of a job."""
    return re.fullmatch("[A-Za-z0-9_.-]{1,64}", name) is not None
