"""The worker handle: a worker process as its supervisor sees it."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil

from dlpool.service.node.hung_jobs import (
    ThreadTicks,
    find_hung_job,
    stacks_file,
    thread_ticks,
)
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import CounterDeltas
from dlpool.service.wire.frames import (
    CleanupEntry,
    Frame,
    RateFrame,
    SpaceFrame,
    encode,
)

ABORT_S = 1.0  # from SIGABRT to SIGKILL
MAX_STACKS = 32 * 1024  # bytes of a stack dump that are logged
# enough for the time in which the supervisor claims more jobs
AHEAD_PER_SLOT = 2
# jobs wait in a worker for its slots only if its last runs took less on average
SHORT_S = 0.1
RUN_WEIGHT = 0.25  # of the last run in this average
# a job that has waited longer in a worker is returned to the queue
RECALL_S = 0.25


def remove_old_stacks(state_dir: Path) -> None:
    """Remove the stack dumps of workers whose supervisor was killed."""
    for path in state_dir.glob("stacks-*"):
        with suppress(OSError):
            path.unlink()


class WorkerHandle:
    """Sends frames to a worker process, and records what is known about it.

    Used by the main thread only. A quarantine worker runs only quarantined jobs, one at
    a time.
    """

    def __init__(
        self,
        process: SpawnProcess,
        channel: FrameChannel,
        slots: int,
        *,
        is_quarantine: bool,
        cpu: int | None,
    ) -> None:
        self.process = process
        self.channel = channel
        self.slots = slots
        self.is_quarantine = is_quarantine
        self.cpu = cpu  # the CPU that small jobs run on
        self.pid = process.pid or 0
        # the jobs of the worker, in the order of their assignment: when each began, or
        # when it was assigned if it is in ``ahead`` (lease id -> monotonic clock)
        self.jobs: dict[str, float] = {}
        # the jobs that wait in the worker for a slot: whether each has been recalled
        self.ahead: dict[str, bool] = {}
        # the mean duration of the last runs; later runs weigh more
        self._mean_run_s: float | None = None
        # sent and not confirmed, by job id
        self.cleanup_requests: dict[str, CleanupEntry] = {}
        self.assigned_count = 0  # jobs since the start
        self.started_at = self.last_heard_at = time.monotonic()
        self.is_ready = False
        self.has_exited = False
        self.resident_bytes = 0  # memory at the last measurement
        self.is_retiring = False
        self.kill_reason: str | None = None
        self.kill_at: float | None = None
        # lease id of the job whose thread held the GIL when the worker hung, if known
        self.hung_job: str | None = None
        self.counters = CounterDeltas()
        self.rate: int | None = None  # bytes/s that the worker has been told
        self.space: SpaceFrame | None = None  # the last one sent
        # of the threads when the worker was first seen silent, None while it is heard
        self._ticks: ThreadTicks | None = None
        # ``assigned_count`` at the last call of ``demand``
        self._counted_demand = 0
        self._unsent: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"<Worker {self.pid} {self.state}: {self.running} of {self.slots}>"

    @property
    def state(self) -> str:
        """Return the state for display: retiring, quarantine, ready or starting."""
        if self.is_retiring:
            return "retiring"
        if self.is_quarantine:
            return "quarantine"
        return "ready" if self.is_ready else "starting"

    def as_json(self) -> dict[str, object]:
        """Return the worker's entry in the node's status; ``memory`` in bytes."""
        return {
            "pid": self.pid,
            "busy": self.running,
            "slots": self.slots,
            "memory": self.resident_bytes,
            "state": self.state,
        }

    @property
    def running(self) -> int:
        """Return how many jobs run in the slots of the worker."""
        return len(self.jobs) - len(self.ahead)

    @property
    def free_slots(self) -> int:
        """Return how many more jobs the worker can begin now."""
        return self.slots - self.running if self.is_accepting else 0

    def slots_ahead(self, now: float) -> int:
        """Return how many jobs may wait in the worker for a slot.

        Jobs may wait for each slot that will soon be free. A slot will soon be free if
        the last runs of the worker were short, and the present run of the slot has not
        lasted long. Return 0 for a quarantine worker.
        """
        mean_s = self._mean_run_s
        if self.is_quarantine or not self.is_accepting:
            return 0
        if mean_s is None or mean_s > SHORT_S:
            return 0
        busy = sum(
            now - began_at > SHORT_S
            for lease_id, began_at in self.jobs.items()
            if lease_id not in self.ahead
        )
        return AHEAD_PER_SLOT * (self.slots - busy)

    def assign(self, lease_id: str, now: float) -> bool:
        """Add a job. Return whether it begins at once; otherwise it waits for a slot.

        A worker begins its jobs in the order of their assignment.
        """
        begins = self.free_slots > 0
        self.jobs[lease_id] = now
        if not begins:
            self.ahead[lease_id] = False
        self.assigned_count += 1
        return begins

    def remove(self, lease_id: str, now: float) -> str | None:
        """Remove a job that has ended. Return the waiting job that begins now, if
        any."""
        self.ahead.pop(lease_id, None)
        began_at = self.jobs.pop(lease_id, None)
        if began_at is not None:
            mean_s = self._mean_run_s
            run_s = now - began_at
            self._mean_run_s = (
                run_s if mean_s is None else mean_s + (run_s - mean_s) * RUN_WEIGHT
            )
        if not self.ahead or self.running >= self.slots:
            return None
        first = next(iter(self.ahead))
        del self.ahead[first]
        self.jobs[first] = now
        return first

    def overdue(self, now: float) -> list[str]:
        """Return the jobs that have waited too long for a slot. Each job is returned
        once."""
        found = [
            lease_id
            for lease_id, is_recalled in self.ahead.items()
            if not is_recalled and now - self.jobs[lease_id] >= RECALL_S
        ]
        self.ahead |= dict.fromkeys(found, True)
        return found

    @property
    def is_accepting(self) -> bool:
        """Return whether the worker is ready and has not been told to stop."""
        return self.is_ready and not self.is_retiring and not self.kill_reason

    def demand(self) -> int:
        """Return for how many jobs the worker needs a share of the node's rate.

        This is the larger of two numbers: the jobs that run now, and the jobs that the
        worker was assigned since the last call. The second number is at most ``slots``.
        """
        new, self._counted_demand = (
            self.assigned_count - self._counted_demand,
            self.assigned_count,
        )
        return max(self.running, min(new, self.slots))

    def set_rate(self, rate: int | None) -> None:
        """Send the worker its share of the node's rate, if that has changed.

        ``rate``: in bytes/s, None for no limit.
        """
        if rate != self.rate:
            self.rate = rate
            self.send(RateFrame(rate))

    def set_disk_space(self, frame: SpaceFrame) -> None:
        """Send the worker the reserved disk space, if that has changed."""
        if frame != self.space:
            self.space = frame
            self.send(frame)

    def send(self, frame: Frame) -> None:
        """Send a frame, or queue it until the worker reads again.

        Raises InternalError if the frame is too large.
        """
        self._unsent.append(encode(frame))
        self.flush()

    def flush(self) -> None:
        """Send queued frames in order, until the worker does not accept the next."""
        while self._unsent and self.channel.send_encoded(self._unsent[0]):
            self._unsent.popleft()

    def frames(self) -> Iterator[Frame]:
        """Read and yield the frames that the worker has sent."""
        with suppress(BlockingIOError):
            while (frame := self.channel.receive()) is not None:
                self.mark_heard(time.monotonic())
                yield frame

    def mark_exited(self) -> None:
        """Record that the process has exited. Called when its sentinel is ready."""
        self.has_exited = True

    def mark_heard(self, now: float) -> None:
        """Record that the worker was heard at ``now`` (monotonic clock)."""
        self.last_heard_at, self._ticks = now, None

    def sample_threads(self) -> None:
        """Record the CPU time of each thread of a silent worker.

        Later calls during the same silence have no effect. ``abort`` compares this
        sample with a later one to find the job that hangs.
        """
        self._ticks = thread_ticks(self.pid) if self._ticks is None else self._ticks

    def measure_memory(self) -> int:
        """Return the resident memory in bytes, 0 if it cannot be measured."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def abort(self, reason: str) -> None:
        """Have the worker dump its stacks and exit, even if SIGSTOP has stopped it.

        If the worker is still alive after ``ABORT_S`` seconds, the supervisor kills it.
        """
        if self._ticks is not None:
            self.hung_job = find_hung_job(
                self._ticks, thread_ticks(self.pid), self.jobs
            )
        self.kill_reason = reason
        self.kill_at = time.monotonic() + ABORT_S
        self._signal(signal.SIGABRT)
        # after SIGABRT: a stopped process then handles SIGABRT first
        self._signal(signal.SIGCONT)

    def kill(self, reason: str) -> None:
        """Kill the worker with SIGKILL."""
        self.kill_reason = self.kill_reason or reason
        self._signal(signal.SIGKILL)

    def describe_exit(self) -> str:
        """Return how the process exited, for the log."""
        code = self.process.exitcode or 0
        how = f"exit code {code}"
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        return f"{self.kill_reason} ({how})" if self.kill_reason else how

    def take_stacks(self, state_dir: Path) -> str:
        """Return the stack dump of a dead worker, and remove its file.

        Return '' if the file does not exist or cannot be read.
        """
        path = stacks_file(state_dir, self.pid)
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            path.unlink()
            return text[:MAX_STACKS]
        return ""

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
