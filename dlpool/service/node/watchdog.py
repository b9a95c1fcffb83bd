"""The watchdog: pings the service manager while no watched thread of the supervisor
hangs."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from dlpool.observe.log import Logger
from dlpool.service.node.systemd import SystemdNotifier

# longer than any call of Redis; with a service manager, its limit is used instead
HUNG_S = 60.0


class ThreadLiveness:
    """The time of the last sign of life of each thread. Thread-safe, because each sign
    is recorded by one assignment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._created_at = clock()
        self._alive_at: dict[int, float] = {}

    def mark_alive(self) -> None:
        """Record a sign of life of the calling thread. Each thread calls this method in
        its own loop."""
        self._alive_at[threading.get_ident()] = self._clock()

    def silent_s(self, thread: threading.Thread) -> float:
        """Return for how many seconds ``thread`` has given no sign of life."""
        return self._clock() - self._alive_at.get(thread.ident or 0, self._created_at)


class Watchdog:
    """Watches the threads of the supervisor. The main thread calls ``check``. So the
    service manager gets no pings while the main thread hangs."""

    def __init__(
        self,
        systemd: SystemdNotifier,
        liveness: ThreadLiveness,
        threads: Sequence[threading.Thread],
        log: Logger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._systemd = systemd
        self._liveness = liveness
        self._threads = threads
        self._log = log
        self._clock = clock
        self._limit_s = HUNG_S if systemd.watchdog_s is None else 2 * systemd.watchdog_s
        self._pinged = float("-inf")
        self._hung: frozenset[str] = frozenset()
        self._reported: frozenset[str] = frozenset()

    def check(self) -> None:
        """Ping the service manager if that is due and no thread hangs; log a hung
        thread once, with its stack."""
        late = [
            thread
            for thread in self._threads
            if self._liveness.silent_s(thread) > self._limit_s
        ]
        before, self._hung = self._hung, frozenset(thread.name for thread in late)
        for thread in late:
            if thread.name in before - self._reported:
                # found twice: the process as a whole was not suspended
                self._report(thread)
        self._reported = self._hung & (self._reported | before)
        now, every_s = self._clock(), self._systemd.watchdog_s
        if not late and every_s is not None and now - self._pinged >= every_s:
            self._pinged = now
            self._systemd.watchdog()

    def _report(self, thread: threading.Thread) -> None:
        frame = sys._current_frames().get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        silent_s = round(self._liveness.silent_s(thread), 1)
        self._log.critical(
            "thread_hung", thread=thread.name, silent_s=silent_s, stacks=stack
        )
