"""What a test gives to a part of the program instead of the real thing: a clock, a logger, a listener for events."""

from __future__ import annotations

from typing import Any, NamedTuple


class Clock:
    """Time that passes only when the test or a sleep moves it, in seconds.

    It takes the place of a function that returns the time, or of the module ``time``. ``slept``: each sleep.
    """

    def __init__(self, now: float = 100.0) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    time = monotonic = __call__

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Line(NamedTuple):
    """A line of a log."""

    level: str
    event: str
    fields: dict[str, Any]


class Lines:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[Line] = []

    def __getattr__(self, level: str) -> Any:
        if level not in ("debug", "info", "warning", "error", "critical"):
            raise AttributeError(level)
        return lambda event, /, **fields: self.kept.append(Line(level, event, fields))

    def bind(self, **_fields: object) -> Lines:
        return self

    def named(self, event: str) -> list[Line]:
        return [line for line in self.kept if line.event == event]

    @property
    def events(self) -> list[str]:
        return [line.event for line in self.kept]


class Events(list[tuple[str, dict[str, Any]]]):
    """The events of a download, in order: a ``Notify`` that keeps the name and the fields of each."""

    def __call__(self, event: str, /, **fields: object) -> None:
        self.append((event, fields))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self if name == event]
