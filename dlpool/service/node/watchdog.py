"""The watchdog of the service manager hears from us only while each of our threads does
its work."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from dlpool.observe.log import Logger
from dlpool.service.node.systemd import SystemdNotifier

# longer than any thread may wait for Redis; where a manager watches, its limit holds
HUNG_S = 60.0


class ThreadLiveness:
    """Signs of life. A thread signs in its own loop, and only for itself: the sign is
    filed under who calls.

    Thread-safe: a sign is one assignment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made = clock()
        self._signed: dict[int, float] = {}

    def mark_alive(self) -> None:
        """The calling thread goes round."""
        self._signed[threading.get_ident()] = self._clock()

    def silent_s(self, thread: threading.Thread) -> float:
        """Since when there was no sign of ``thread``, in seconds."""
        return self._clock() - self._signed.get(thread.ident or 0, self._made)


class Watchdog:
    """``tend`` by the main thread, whose own sign of life is the ping."""

    def __init__(
        self,
        manager: SystemdNotifier,
        pulse: ThreadLiveness,
        threads: Sequence[threading.Thread],
        log: Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manager = manager
        self._pulse = pulse
        self._threads = threads
        self._log = log
        self._clock = clock
        self._limit_s = HUNG_S if manager.watchdog_s is None else 2 * manager.watchdog_s
        self._pinged = float("-inf")
        self._hung: frozenset[str] = frozenset()
        self._reported: frozenset[str] = frozenset()

    def check(self) -> None:
        """Ping, if that is due and no thread hangs; log one that does, once, and
        where."""
        late = [
            thread
            for thread in self._threads
            if self._pulse.silent_s(thread) > self._limit_s
        ]
        before, self._hung = self._hung, frozenset(thread.name for thread in late)
        for thread in late:
            if (
                thread.name in before - self._reported
            ):  # seen twice: it was not all of us that did not run
                self._report(thread)
        self._reported = self._hung & (self._reported | before)
        now, every_s = self._clock(), self._manager.watchdog_s
        if not late and every_s is not None and now - self._pinged >= every_s:
            self._pinged = now
            self._manager.watchdog()

    def _report(self, thread: threading.Thread) -> None:
        frame = sys._current_frames().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        silent_s = round(self._pulse.silent_s(thread), 1)
        self._log.critical(
            "thread_hung", thread=thread.name, silent_s=silent_s, stacks=stack
        )
