"""How long a scan may wait, and what ends it earlier."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

POLL_S = 0.2  # between two questions whether the caller wants to end


class ScanTimedOut(Exception):
    """The scanner needs longer than it may."""


def never_abort() -> None:
    """Nothing ends the scan before its time."""


@dataclass(frozen=True)
class ScanDeadline:
    """The end of one scan. ``check`` raises what ends it earlier; it is called several
    times a second."""

    timeout_s: float
    check: Callable[[], None] = never_abort
    began: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Return the seconds that one wait may take. Raises TooSlow, and what ``check``
        raises."""
        self.check()
        left = self.began + self.timeout_s - time.monotonic()
        if left <= 0:
            raise ScanTimedOut
        return min(left, POLL_S)

    def wait(self, waiting: select.poll) -> int:
        """Wait until a descriptor of ``waiting`` is ready, and return its events.
        Raises as ``left_s``."""
        while True:
            ready = waiting.poll(self.left_s() * 1000)
            if ready:
                return ready[0][1]

    def pause(self) -> None:
        """Sleep for a moment. Raises as ``left_s``."""
        time.sleep(min(self.left_s(), 0.05))
