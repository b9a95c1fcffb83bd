"""The structlog processors of the log. They turn the fields of a log call into one line
of JSON with names of the Elastic Common Schema (ECS)."""

from __future__ import annotations

import json
import os
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import field
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson
from structlog.typing import EventDict, Processor

from dlpool.dataclass import dataclass
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
from dlpool.version import __version__

ECS_VERSION = "8.11.0"
MAX_LINE = 64 * 1024
_MAX_SHORTENED = 256  # characters of each value of a record that is too long
_MAX_FRAMES = 100  # lines of a stack, from its end

_RENAMED = {
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
# as Python's traceback module writes them
_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"

_encode = json.JSONEncoder(
    check_circular=False, allow_nan=False, separators=(",", ":")
).encode  # ASCII: no line separators of Unicode
# for names that the program itself gives, of which there are few
_constant_text = lru_cache(maxsize=1024)(safe_text)


@dataclass(frozen=True)
class LogOrigin:
    """The process that writes a log: the name of its program, its node, its version and
    its machine."""

    service: str
    node_id: str
    version: str = __version__
    host: str = field(default_factory=socket.gethostname)

    def as_ecs(self) -> dict[str, Json]:
        """Return the fields that are the same in every record of the process."""
        return {
            "event.dataset": "dlpool",
            "ecs.version": ECS_VERSION,
            "service.name": safe_text(self.service),
            "service.version": safe_text(self.version),
            "service.node.name": safe_text(self.node_id),
            "host.name": safe_text(self.host),
        }


def to_ecs(_logger: object, level: str, fields: EventDict) -> EventDict:
    """Give the fields of a log record their ECS names and JSON values.

    A field without an ECS name becomes ``dlpool.NAME``.
    """
    event = fields.pop("event", None)
    event = _constant_text(event) if type(event) is str else str(to_json(event))
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
    """Return the record as one line of JSON in ASCII, at most 64 KiB long."""
    line = orjson.dumps(record)
    if not line.isascii() or b"\x7f" in line:
        line = _encode(record).encode("ascii").replace(b"\x7f", b"\\u007f")
    if len(line) >= MAX_LINE:
        line = _encode(shortened(record)).encode("ascii").replace(b"\x7f", b"\\u007f")
    return line + b"\n"


def add_process_fields(origin: LogOrigin, clock: Callable[[], datetime]) -> Processor:
    """Return a processor that prepends the fields of the process to a record.

    ``@timestamp`` is the first field, because rotation reads it there. ``log.logger``
    is the second, because some log shippers identify a file by its first 64 bytes. The
    field distinguishes the logs of dlpool-web and of the service if both begin within
    one millisecond.
    """
    known = origin.as_ecs()

    def add(_logger: object, level: str, record: EventDict) -> EventDict:
        return {
            "@timestamp": clock().isoformat(timespec="milliseconds")[:-6] + "Z",
            "log.logger": record.get("log.logger"),
            "log.level": level,
            "message": record["message"],
            **known,
            "process.pid": os.getpid(),
            "process.thread.name": _constant_text(threading.current_thread().name),
            **record,
        }

    return add


def shortened(record: EventDict) -> EventDict:
    """Return the record with long values cut, and without its last fields if it is
    still too long."""
    shown: dict[str, Any] = {}
    left = MAX_LINE // 2
    for key, value in record.items():
        encoded = value if isinstance(value, str) else _encode(value)
        value = (
            value if len(encoded) <= _MAX_SHORTENED else encoded[:_MAX_SHORTENED] + CUT
        )
        left -= len(_encode(key)) + len(_encode(value))
        if left < 0:
            break
        shown[key] = value
    return {**shown, "dlpool.is_cut": True}


# --- fields that become several fields, or values of another kind ---


def _logger_name(value: object, _level: str) -> dict[str, Json]:
    return {
        "log.logger": _constant_text(value) if type(value) is str else to_json(value)
    }


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
    """Return the field ``event.outcome``. A value that ECS does not know becomes
    ``unknown``, with the value in ``dlpool.outcome``."""
    outcome = to_json(value)
    known = _OUTCOMES.get(outcome) if isinstance(outcome, str) else None
    return (
        {"event.outcome": known}
        if known
        else {"event.outcome": "unknown", "dlpool.outcome": outcome}
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


def _stack_text(value: object, _level: str) -> dict[str, Json]:
    """Return the field for a stack trace that ``stack_of`` made in another process. For
    an empty stack trace, return no field."""
    return {"error.stack_trace": to_json(value)} if value else {}


def _message(error: BaseException) -> str:
    if may_quote_input(error):
        return type(error).__name__
    try:
        return safe_text(str(error))
    except Exception:  # noqa: BLE001 - the error's own __str__ fails
        return "<unprintable>"


def stack_of(error: BaseException, frames: int | None = None) -> str:
    """Return the stack trace without secrets, causes first. The beginning of a long
    stack trace is cut off, because the end shows where the error was raised.

    ``frames``: show only this number of innermost frames of each cause, so that the
    first cause is not cut off; None shows all frames.
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
    """Return the lines of the stacks of the error and its causes, the first cause
    first. For a parse error, include the class but not the message, which may quote
    secrets."""
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
    "logger": _logger_name,
    "url": _url,
    "seconds": _duration,
    "outcome": _outcome,
    "error": _error,
    "stack": _stack_text,
}
