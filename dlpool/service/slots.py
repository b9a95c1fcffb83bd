"""The number of jobs that a node runs at once: fixed, or adapted to throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlpool.config import SupervisorSettings
from dlpool.observe.log import Logger
from dlpool.service.host_concurrency import HostConcurrency
from dlpool.service.wire.frames import EndedFrame
from dlpool.service.wire.results import AttemptResult
from dlpool.transfer.aimd import Aimd, ControlParameters

START = 5  # jobs at which the adaptive number begins; the default of a fixed one
# workers report their received bytes every second
CONTROL = ControlParameters(
    settle_s=2.0, measure_s=4.0, pause_s=20.0, max_pause_s=300.0
)
# labels of errors that an overloaded server or network may cause
_REFUSALS = {"server_busy", "connection", "unreachable", "timeout", "too_slow"}


def max_slots(settings: SupervisorSettings) -> int:
    """Return the largest number of simultaneous jobs that the settings allow."""
    fixed = settings.max_concurrent_downloads
    return fixed if isinstance(fixed, int) else settings.max_slots


def is_refusal(frame: EndedFrame) -> bool:
    """Return whether an attempt ended with an error that suggests an overload.

    The server of the file, or the network to it, may be overloaded.
    """
    return frame.attempt_result is AttemptResult.RETRY and frame.label in _REFUSALS


class SlotLimit:
    """Limits the jobs that run at once; ``level`` is the present limit.

    Used by the main thread. Other threads may read ``level``.
    """

    def __init__(
        self, settings: SupervisorSettings, log: Logger, clock: Callable[[], float]
    ) -> None:
        self.level = max_slots(settings)
        self._log = log
        self._clock = clock
        self._control: Aimd | None = None
        if not isinstance(settings.max_concurrent_downloads, int):
            self._control = Aimd(1, settings.max_slots, START, CONTROL)
            self.level = self._control.level
        is_auto = self._control is not None
        self.hosts = HostConcurrency(
            max_slots(settings), is_auto=is_auto, log=log, clock=clock
        )
        self._received = 0  # bytes, by all workers since the start
        self._received_by_worker: dict[int, int] = {}
        self._over_memory = 0

    def __repr__(self) -> str:
        return f"<SlotLimit {self._control or self.level}>"

    def sample(
        self, received: Mapping[int, int], busy: int, *, over_memory: int
    ) -> None:
        """Adapt the level if it is not fixed; called once a second.

        ``received``: bytes by worker pid. ``busy``: running jobs. ``over_memory``: how
        many workers have exceeded their memory limit since the start.
        """
        if self._control is None:
            return
        now = self._clock()
        self._add_received(received)
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

    def _add_received(self, received: Mapping[int, int]) -> None:
        """Add the bytes that workers have received since the last call.

        A counter that went backwards adds nothing.
        """
        latest = {
            pid: max(size, self._received_by_worker.get(pid, 0))
            for pid, size in received.items()
        }
        self._received += sum(
            size - self._received_by_worker.get(pid, 0) for pid, size in latest.items()
        )
        self._received_by_worker = latest
