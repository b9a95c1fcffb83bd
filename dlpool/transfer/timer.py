"""Run the periodic callbacks of all downloads of a process on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dlpool import threads
from dlpool.dataclass import dataclass
from dlpool.errors import NoThread

TICK_S = 0.1
CALM_TICKS = 3  # ticks between two calls of a callback that is not in a hurry
IDLE_TICKS = 50  # ticks without a callback after which the thread exits

# Returns True to be called again at the next tick, else it is called ``CALM_TICKS``
# ticks later. It must neither block nor raise.
Callback = Callable[[], bool | None]


@dataclass
class _Entry:
    """A callback, and the number of ticks until its next call."""

    callback: Callback
    ticks: int = 1


class TimerThread:
    """A daemon thread that calls the registered callbacks.

    The lock guards the list of callbacks; it is not held while a callback runs. A
    callback may run once more after its ``with`` block (``calling``) has ended.
    """

    def __init__(self) -> None:
        self._callbacks: dict[object, _Entry] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def calling(self, callback: Callback) -> Iterator[bool]:
        """Call ``callback`` several times a second during the ``with`` block.

        Yields False if no thread could be started: expect no calls then.
        """
        key = object()
        with self._lock:
            self._callbacks[key] = _Entry(callback)
            if self._thread is None:
                with suppress(NoThread):
                    self._thread = threads.start_thread(self._run, "dlpool-timer")
            is_called = self._thread is not None
        try:
            yield is_called
        finally:
            with self._lock:
                del self._callbacks[key]

    def _run(self) -> None:
        pause, idle = threading.Event(), 0
        while not pause.wait(TICK_S):
            with self._lock:
                entries = list(self._callbacks.values())
                idle = 0 if entries else idle + 1
                if idle > IDLE_TICKS:
                    self._thread = None
                    return
            for entry in entries:
                entry.ticks -= 1
                if entry.ticks <= 0:
                    entry.ticks = 1 if entry.callback() else CALM_TICKS
