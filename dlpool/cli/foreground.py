"""The handling of signals and the printing of events, for ``fetch`` and ``upload``."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Mapping

from dlpool.cli.progress import Display

DRAW_S = 0.1  # between two updates of the display
STOP_S = 5.0  # the longest wait after a signal, for calls that cannot be interrupted


class Interruption:
    """The signal that interrupted the command: the first SIGINT or SIGTERM, or None.

    The handler only records this signal. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def interrupt(self) -> None:
        """Let SIGINT and SIGTERM raise KeyboardInterrupt from now on.

        Call this method before the main thread itself transfers the file: the thread
        cannot poll ``signal`` during the transfer.
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


_LIMITS = {
    "no_threads": "threads: raise ulimit -u",
    "too_many_files": "open files: raise ulimit -n",
}


def _connections_limited(fields: Mapping[str, object]) -> str:
    limit = _LIMITS.get(str(fields["reason"]), fields["reason"])
    return (
        f"connections: {fields['connections']}, as this machine allows no more {limit}"
    )


def _folder_not_synced(fields: Mapping[str, object]) -> str:
    return (
        f"cannot force the names in {fields['folder']} to disk ({fields['reason']}): "
        f"files there are complete, but a "
        "power failure may take the newest names away"
    )


# The events that are also printed without -v, as sentences.
_SENTENCES = {
    "connections_limited": _connections_limited,
    "folder_not_synced": _folder_not_synced,
}


class EventPrinter:
    """Collects events of other threads, for the thread that draws. Thread-safe.

    With ``is_wanted`` (``-v``) all events are printed, otherwise only important ones.
    """

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._events = queue.SimpleQueue[tuple[str, dict[str, object]]]()

    def note(self, event: str, /, **fields: object) -> None:
        """Collect an event. This method has the type ``Notify``."""
        if self._is_wanted or event in _SENTENCES:
            self._events.put((event, fields))

    def print_events(self, display: Display) -> None:
        """Print the events that were collected since the last call."""
        while not self._events.empty():
            event, fields = self._events.get()
            if not self._is_wanted:
                display.print_line(f"dlpool: {_SENTENCES[event](fields)}")
                continue
            details = " ".join(
                f"{name}={_value_text(value)}" for name, value in fields.items()
            )
            display.print_line(f"{time.strftime('%H:%M:%S')} {event} {details}")


def _value_text(value: object) -> str:
    """Return the value of an event's field as text; a path is shown as a string."""
    return repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
