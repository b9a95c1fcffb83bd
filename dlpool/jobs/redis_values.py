"""Texts and numbers out of Redis, where other programs may have written anything. Pure,
and raises nothing."""

from __future__ import annotations

import re

MOST_MS = 10**16  # of a moment: later ones are none, and cannot be said in a cursor


def to_text(value: bytes | None) -> str:
    """Return the text of a reply; empty for none, with U+FFFD for bytes that are not
    UTF-8."""
    return (value or b"").decode("utf-8", "replace")


def to_int(value: bytes | str | int | None) -> int:
    """Return a whole number of up to 18 digits; 0 for whatever is none."""
    if isinstance(value, int):
        return value
    said = to_text(value) if isinstance(value, bytes) else value or ""
    return int(said) if re.fullmatch("-?[0-9]{1,18}", said) else 0


def to_ms(score: float) -> int:
    """Return the score of a sorted set as a moment (ms since 1970), from 0 to
    ``MOST_MS``."""
    return int(min(max(score, 0), MOST_MS))


def is_job_id(name: str) -> bool:
    """Return whether a job can have that id."""
    return re.fullmatch("[A-Za-z0-9_.-]{1,64}", name) is not None
