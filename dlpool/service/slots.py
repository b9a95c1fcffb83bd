"""How many jobs a node takes at once: a fixed number, or one that is found by
trying."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlpool.config import SupervisorSettings
from dlpool.observe.log import Logger
from dlpool.service.host_concurrency import HostConcurrency
from dlpool.service.wire.frames import EndedFrame
from dlpool.transfer.aimd import Aimd, ControlParameters

START = 5  # jobs: the default of a fixed number
TEMPO = ControlParameters(
    settle_s=2.0, measure_s=4.0, pause_s=20.0, max_pause_s=300.0
)  # workers report once a second
_REFUSALS = {"server_busy", "connection", "unreachable", "timeout", "too_slow"}


def max_slots(settings: SupervisorSettings) -> int:
    """The largest number of jobs at once that these settings allow."""
    fixed = settings.max_concurrent_downloads
    return fixed if isinstance(fixed, int) else settings.max_slots


def is_refusal(frame: EndedFrame) -> bool:
    """Whether a job ended because its server, or the way there, may have too much to
    do."""
    return frame.attempt_result == "retry" and frame.label in _REFUSALS


class SlotLimit:
    """Used by the main thread; others read ``level``, the number of jobs at once."""

    def __init__(
        self, settings: SupervisorSettings, log: Logger, clock: Callable[[], float]
    ) -> None:
        self.level = max_slots(settings)
        self._log = log
        self._clock = clock
        self._control: Aimd | None = None
        if not isinstance(settings.max_concurrent_downloads, int):
            self._control = Aimd(1, settings.max_slots, START, TEMPO)
            self.level = self._control.level
        is_auto = self._control is not None
        self.hosts = HostConcurrency(
            max_slots(settings), is_auto=is_auto, log=log, clock=clock
        )
        self._received = 0  # bytes
        self._counted: dict[int, int] = {}  # of them, by worker
        self._over_memory = 0

    def __repr__(self) -> str:
        return f"<Slots {self._control or self.level}>"

    def sample(
        self, received: Mapping[int, int], busy: int, *, over_memory: int
    ) -> None:
        """Once a second: bytes received by each worker, by pid, and how many jobs run.

        Workers ``over_memory`` are counted since the start.
        """
        if self._control is None:
            return
        now = self._clock()
        self._count(received)
        if over_memory > self._over_memory:
            self._over_memory = over_memory
            self._control.record_refusal(now, "memory")
        self._control.sample(now, self._received, busy)
        if self._control.level != self.level:
            self.level = self._control.level
            self._log.info(
                "slots_changed",
                slots=self.level,
                reason=self._control.reason,
                rate=round(self._control.rate),
            )

    def _count(self, received: Mapping[int, int]) -> None:
        """Add up; a counter that has fallen behind itself says nothing new."""
        counted = {
            pid: max(size, self._counted.get(pid, 0)) for pid, size in received.items()
        }
        self._received += sum(
            size - self._counted.get(pid, 0) for pid, size in counted.items()
        )
        self._counted = counted
