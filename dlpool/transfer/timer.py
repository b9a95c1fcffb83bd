"""Run the periodic callbacks of all downloads of a process on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dlpool import threads
from dlpool.errors import NoThread

TICK_S = 0.25
IDLE_TICKS = 20  # ticks without a callback after which the thread exits


class TimerThread:
    """A daemon thread that exists while callbacks are registered.

    The lock guards the list of callbacks; it is not held while a callback runs. A
    callback must neither block nor raise. A callback may run once more after its
    ``with`` block (``calling``) has ended.
    """

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[bool]:
        """Call ``callback`` every ``TICK_S`` seconds during the ``with`` block.

        Yields False if no thread could be started: ``callback`` is not called then.
        """
        key = object()
        with self._lock:
            self._callbacks[key] = callback
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
                callbacks = list(self._callbacks.values())
                idle = 0 if callbacks else idle + 1
                if idle > IDLE_TICKS:
                    self._thread = None
                    return
            for callback in callbacks:
                callback()
