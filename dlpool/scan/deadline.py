"""The time limit of a scan, and the callback that lets the caller abort the scan."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import field

from dlpool.dataclass import dataclass

POLL_S = 0.2  # longest time between two calls of ``check_abort``


class ScanTimedOut(Exception):
    """The scanner did not finish within the time limit."""


def never_abort() -> None:
    """Do nothing. This is the default of callbacks that may raise to abort a scan."""


@dataclass(frozen=True)
class ScanDeadline:
    """The deadline of one scan, ``timeout_s`` seconds after its start.

    ``check_abort`` is called several times a second, and raises to abort the scan.
    """

    timeout_s: float
    check_abort: Callable[[], None] = never_abort
    started_at: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Return the timeout of the next wait, at most ``POLL_S`` seconds.

        Raises ScanTimedOut, and what ``check_abort`` raises.
        """
        self.check_abort()
        remaining = self.started_at + self.timeout_s - time.monotonic()
        if remaining <= 0:
            raise ScanTimedOut
        return min(remaining, POLL_S)

    def wait(self, poller: select.poll) -> int:
        """Wait until a descriptor of ``poller`` is ready, and return its events.

        Raises like ``left_s``.
        """
        while True:
            ready = poller.poll(self.left_s() * 1000)
            if ready:
                return ready[0][1]

    def pause(self) -> None:
        """Sleep for 0.05 s, but not beyond the deadline. Raises like ``left_s``."""
        time.sleep(min(self.left_s(), 0.05))
