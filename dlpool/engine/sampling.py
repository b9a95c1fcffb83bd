"""A thread that runs while an engine has work: it samples speeds, and keeps the program
from exiting."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

SAMPLE_S = 0.2


class StopsAtExit(Protocol):
    """An engine that is stopped when the program exits."""

    def stop_at_exit(self) -> None:
        """Stop soon, and keep what is needed to resume."""

    def wait_at_exit(self) -> None:
        """Wait until there is nothing left to wait for."""


class ProgressSampler:
    """Thread-safe; the lock guards the thread.

    The thread is not a daemon: the interpreter waits for it before it exits
    (threading.Thread.daemon), and other threads can still be started during that wait,
    unlike in ``atexit`` handlers.
    """

    def __init__(self, sample: Callable[[], bool]) -> None:
        """``sample`` samples all running tasks, and returns whether any of them is to
        be waited for."""
        self._sample = sample
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"<Keeper {'at work' if self._thread is not None else 'idle'}>"

    def wake(self) -> None:
        """Start the thread if it is not running. If no thread can be started, there are
        no samples."""
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            thread = threading.Thread(
                target=self._keep, name="dlpool-keeper", daemon=False
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                return
            self._thread = thread

    def close(self) -> None:
        """Stop the thread, and wait for it unless it is the caller."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until there is nothing left to wait for; a keeper's own thread returns
        at once."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _keep(self) -> None:
        while not self._stop.is_set():
            if not self._is_needed():
                return
            self._stop.wait(SAMPLE_S)

    def _is_needed(self) -> bool:
        if self._sample():
            return True
        with self._lock:  # a caller of wake starts another thread from here on
            if self._sample():
                return True
            self._thread = None
            return False


_engines: weakref.WeakSet[StopsAtExit] = weakref.WeakSet()


def stop_at_exit(engine: StopsAtExit) -> None:
    """Stop the engine when the program exits, so that unfinished downloads can be
    resumed, as after Ctrl-C."""
    if not _engines:
        atexit.unregister(_stop_engines)
        atexit.register(_stop_engines)
    _engines.add(engine)


def _stop_engines() -> None:
    for engine in list(_engines):
        engine.stop_at_exit()


def _wait_for_engines() -> None:
    """Wait for the downloads at the end of the program. Ctrl-C, or a signal handler
    that exits, ends the wait.

    Without this the interpreter waits for the keepers' threads itself, and prints a
    traceback when it is interrupted.
    """
    try:
        for engine in list(_engines):
            engine.wait_at_exit()
    except (KeyboardInterrupt, SystemExit):
        _stop_engines()


# Called before the interpreter waits for threads; the function that concurrent.futures
# uses. Where there is none, the interpreter's own wait holds.
_register_at_end: Callable[[Callable[[], None]], None] = getattr(
    threading, "_register_atexit", lambda _: None
)
with suppress(RuntimeError):  # imported while the interpreter ends
    _register_at_end(_wait_for_engines)
