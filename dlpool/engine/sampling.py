"""The thread that samples the speeds of an engine and delays the program's exit.

Importing this module registers, if the interpreter supports it, a function that runs
before the interpreter waits for its threads.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

SAMPLE_S = 0.2  # between samples


class StopsAtExit(Protocol):
    """The methods of an engine that are called when the program exits."""

    def stop_at_exit(self) -> None:
        """Stop the downloads, so that a later run of the program can resume them."""

    def wait_at_exit(self) -> None:
        """Wait until no task is pending or running."""


class ProgressSampler:
    """A thread that calls a function every 0.2 seconds while there is work.

    Thread-safe; the lock guards the thread. The thread is not a daemon: the interpreter
    waits for the thread before the program exits (``threading.Thread.daemon``). During
    that wait other threads can still be started; in ``atexit`` handlers they cannot.
    """

    def __init__(self, sample: Callable[[], bool]) -> None:
        """Create the sampler without starting its thread.

        ``sample`` samples all running tasks and returns whether work is left.
        """
        self._sample = sample
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"<ProgressSampler {'idle' if self._thread is None else 'running'}>"

    def wake(self) -> None:
        """Start the thread, unless it is running or the sampler is closed.

        If no thread can be started, nothing is sampled.
        """
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            thread = threading.Thread(
                target=self._run, name="dlpool-sampler", daemon=False
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                return
            self._thread = thread

    def close(self) -> None:
        """Stop the thread and wait for its end.

        A call on the sampler's own thread does not wait.
        """
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until the thread has ended; return at once on the sampler's own thread.

        The thread ends when no work is left, or after ``close``.
        """
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._is_needed():
                return
            self._stop.wait(SAMPLE_S)

    def _is_needed(self) -> bool:
        if self._sample():
            return True
        with self._lock:  # from here on ``wake`` starts another thread
            if self._sample():
                return True
            self._thread = None
            return False


_engines: weakref.WeakSet[StopsAtExit] = weakref.WeakSet()


def stop_at_exit(engine: StopsAtExit) -> None:
    """Register an engine that must be stopped when the program exits."""
    if not _engines:
        atexit.unregister(_stop_engines)
        atexit.register(_stop_engines)
    _engines.add(engine)


def _stop_engines() -> None:
    for engine in list(_engines):
        engine.stop_at_exit()


def _wait_for_engines() -> None:
    """Wait for the downloads at the end of the program.

    Ctrl-C, or a signal handler that raises SystemExit, ends the wait and stops the
    engines. Without this function the interpreter would wait for the samplers' threads,
    and would print a traceback after Ctrl-C.
    """
    try:
        for engine in list(_engines):
            engine.wait_at_exit()
    except (KeyboardInterrupt, SystemExit):
        _stop_engines()


# Functions registered with ``threading._register_atexit`` run before the interpreter
# waits for threads; ``concurrent.futures`` relies on that, too. An interpreter that
# lacks it waits for the threads itself.
_register_at_end: Callable[[Callable[[], None]], None] = getattr(
    threading, "_register_atexit", lambda _: None
)
with suppress(RuntimeError):  # raised while the interpreter exits
    _register_at_end(_wait_for_engines)
