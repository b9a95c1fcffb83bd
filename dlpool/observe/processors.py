"""From the fields of a log call to its line: ECS names, who and when, JSON. Processors
in structlog's sense, pure."""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson
from structlog.typing import EventDict, Processor

from dlpool.errors import DlpoolError
from dlpool.observe.values import (
    CUT,
    MAX_TEXT,
    Json,
    may_quote_input,
    safe_key,
    safe_text,
    to_json,
)
from dlpool.redaction import REDACTED, is_secret, without_secrets
from dlpool.transfer.http.urls import display_url

ECS_VERSION = "8.11.0"
MAX_LINE = 64 * 1024
_MAX_SHORTENED = 256
_MAX_FRAMES = 100

_RENAMED = {
    "logger": "log.logger",
    "job_id": "dlpool.job.id",
    "path": "file.path",
    "size": "file.size",
    "trace_id": "trace.id",
    "user_id": "user.id",
    "status": "http.response.status_code",
    "label": "error.code",
    "method": "http.request.method",
    "location": "url.path",
    "client": "client.address",
    "sha256": "file.hash.sha256",
    "user_name": "user.name",
}
_OUTCOMES = {
    "success": "success",
    "succeeded": "success",
    "done": "success",
    "failure": "failure",
    "failed": "failure",
}
_WITH_STACK = {"error", "critical"}
# as Python says it
_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"

_encode = json.JSONEncoder(
    check_circular=False, allow_nan=False, separators=(",", ":")
).encode  # ASCII: no odd line end


@dataclass(frozen=True)
class Origin:
    """Whose log it is."""

    service: str
    version: str
    node_id: str
    host: str

    def as_ecs(self) -> dict[str, Json]:
        """What every record of the process says."""
        return {
            "event.dataset": "dlpool",
            "ecs.version": ECS_VERSION,
            "service.name": safe_text(self.service),
            "service.version": safe_text(self.version),
            "service.node.name": safe_text(self.node_id),
            "host.name": safe_text(self.host),
        }


def processors(
    origin: Origin, clock: Callable[[], datetime], log_format: str = "json"
) -> list[Processor]:
    """The chain whose result is one record, as bytes with their newline. ``clock``
    gives the time in UTC."""
    if log_format == "console":
        from dlpool.observe.console import to_text

        return [to_ecs, _stamp(origin, clock), to_text]
    return [to_ecs, _stamp(origin, clock), to_line]


def to_ecs(_logger: object, level: str, fields: EventDict) -> EventDict:
    """Rename and convert the fields of a call; what ECS has no name for becomes
    ``dlpool.NAME``."""
    event = str(to_json(fields.pop("event", None)))
    record: dict[str, Any] = {"message": event, "event.action": event}
    for key, value in fields.items():
        if key in _EXPANDED:
            record |= _EXPANDED[key](value, level)
        else:
            record[_ecs_name(key)] = REDACTED if is_secret(key) else to_json(value)
    return record


@lru_cache(maxsize=4096)
def _ecs_name(key: str) -> str:
    return _RENAMED.get(key) or f"dlpool.{safe_key(key)}"


def to_line(_logger: object, _level: str, record: EventDict) -> bytes:
    """One line of JSON, at most 64 KiB long."""
    line = orjson.dumps(record)
    if not line.isascii() or b"\x7f" in line:
        line = _encode(record).encode("ascii").replace(b"\x7f", b"\\u007f")
    if len(line) >= MAX_LINE:
        line = _encode(shortened(record)).encode("ascii").replace(b"\x7f", b"\\u007f")
    return line + b"\n"


def _stamp(origin: Origin, clock: Callable[[], datetime]) -> Processor:
    """Prepend the fields of the process to a record.

    ``@timestamp`` comes first, as rotation reads it, and then the logger: a shipper
    that knows files by their first 64 bytes tells the log of dlpool-web from that of
    the service even if both begin within one millisecond.
    """
    known = origin.as_ecs()

    def stamped(_logger: object, level: str, record: EventDict) -> EventDict:
        return {
            "@timestamp": clock().isoformat(timespec="milliseconds")[:-6] + "Z",
            "log.logger": record.get("log.logger"),
            "log.level": level,
            "message": record["message"],
            **known,
            "process.pid": os.getpid(),
            "process.thread.name": safe_text(threading.current_thread().name),
            **record,
        }

    return stamped


def shortened(record: EventDict) -> EventDict:
    """The record with long values cut, and without its last fields where it has far too
    many."""
    shown: dict[str, Any] = {}
    left = MAX_LINE // 2
    for key, value in record.items():
        said = value if isinstance(value, str) else _encode(value)
        value = value if len(said) <= _MAX_SHORTENED else said[:_MAX_SHORTENED] + CUT
        left -= len(_encode(key)) + len(_encode(value))
        if left < 0:
            break
        shown[key] = value
    return {**shown, "dlpool.is_cut": True}


# --- fields that become several, or another kind of value
# ---------------------------------------------------------


def _url(value: object, _level: str) -> dict[str, Json]:
    return _url_fields(value if type(value) is str else str(to_json(value)))


@lru_cache(maxsize=256)
def _url_fields(url: str) -> dict[str, Json]:
    shown = safe_text(display_url(url))
    try:
        host = urlsplit(shown).hostname
    except ValueError:
        host = None
    return {"url.full": shown, "url.domain": host} if host else {"url.full": shown}


def _duration(value: object, _level: str) -> dict[str, Json]:
    if isinstance(value, int | float) and abs(value) < 2**32:
        return {"event.duration": round(value * 1e9)}
    return {"dlpool.seconds": to_json(value)}


def _outcome(value: object, _level: str) -> dict[str, Json]:
    """ECS knows three outcomes; another is kept under a name of our own."""
    said = to_json(value)
    known = _OUTCOMES.get(said) if isinstance(said, str) else None
    return (
        {"event.outcome": known}
        if known
        else {"event.outcome": "unknown", "dlpool.outcome": said}
    )


def _error(value: object, level: str) -> dict[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, BaseException):
        return {"error.message": to_json(value)}
    fields: dict[str, Json] = {
        "error.type": type(value).__name__,
        "error.message": _message(value),
    }
    if isinstance(value, DlpoolError):
        fields["error.code"] = value.label
    if level in _WITH_STACK and value.__traceback__ is not None:
        fields["error.stack_trace"] = stack_of(value)
    return fields


def _told_stack(value: object, _level: str) -> dict[str, Json]:
    """Return the field for the stack of an error in another process, as ``stack_of``
    made it there."""
    return {"error.stack_trace": to_json(value)} if value else {}


def _message(error: BaseException) -> str:
    if may_quote_input(error):
        return type(error).__name__
    try:
        return safe_text(str(error))
    except Exception:  # noqa: BLE001 - the foreign __str__ fails
        return "<unprintable>"


def stack_of(error: BaseException, frames: int | None = None) -> str:
    """Return the stack without secrets, causes first; of a long one the end, which
    shows where it was raised.

    ``frames``: only the innermost ones of each cause, so that the first cause is not
    cut off.
    """
    lines = without_secrets(
        "".join(_stacks(error, None if frames is None else -frames)[-_MAX_FRAMES:])
    )
    return safe_text(
        lines if len(lines) <= MAX_TEXT else CUT + lines[-MAX_TEXT + len(CUT) :]
    )


def _class_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _stacks(error: BaseException, limit: int | None) -> list[str]:
    """Return the lines of the stack of each cause, the first cause first; parse errors
    are told by their class."""
    found: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        frames = traceback.format_tb(one.__traceback__, limit)
        head = ["Traceback (most recent call last):\n"] if frames else []
        last = (
            [f"{_class_of(one)}\n"]
            if may_quote_input(one)
            else traceback.format_exception_only(one)
        )
        following = None if one.__suppress_context__ else one.__context__
        link = _CAUSED if one.__cause__ is not None else _DURING
        one = one.__cause__ or following
        found = [
            *([link] if one is not None and id(one) not in seen else []),
            *head,
            *frames,
            *last,
            *found,
        ]
    return found


_EXPANDED = {
    "url": _url,
    "seconds": _duration,
    "outcome": _outcome,
    "error": _error,
    "stack": _told_stack,
}
