"""A record as text for people: ``TIME [level] event [logger] key=value ...``, and a
stack below it."""

from __future__ import annotations

from structlog.dev import ConsoleRenderer
from structlog.typing import EventDict

from dlpool.observe.processors import MAX_LINE, shortened

_NAMES = {
    "@timestamp": "timestamp",
    "log.level": "level",
    "message": "event",
    "log.logger": "logger",
}
_STACK = "error.stack_trace"
_OMITTED = {
    "event.action",
    "event.dataset",
    "ecs.version",
    "service.name",
    "service.version",
    "service.node.name",
    "host.name",
    "process.thread.name",
    _STACK,
}
_render = ConsoleRenderer(colors=False, sort_keys=False)


def to_text(logger: object, level: str, record: EventDict) -> bytes:
    """Return the record as text, at most 64 KiB long."""
    shown = _rendered(logger, level, record)
    return (
        shown if len(shown) <= MAX_LINE else _rendered(logger, level, shortened(record))
    )


def _rendered(logger: object, level: str, record: EventDict) -> bytes:
    fields = {
        _NAMES.get(key) or _printable(key): _printable(value)
        if isinstance(value, str)
        else value
        for key, value in record.items()
        if key not in _OMITTED
    }
    lines = [
        str(_render(logger, level, fields)),
        *str(record.get(_STACK, "")).splitlines(),
    ]
    return "\n".join(map(_printable, lines)).encode() + b"\n"


def _printable(text: str) -> str:
    """Return ``text`` with line ends and terminal control characters escaped."""
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    )
