"""A worker process as its supervisor sees it."""

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

from dlpool.service.node.hung_jobs import ThreadTicks, find_hung_job, thread_ticks
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import CounterDeltas
from dlpool.service.wire.frames import (
    CleanupEntry,
    Frame,
    RateFrame,
    SpaceFrame,
    encode,
)
from dlpool.service.worker.process import stacks_file

MAX_STACKS = 32 * 1024  # bytes of a dump that go into the log


def remove_old_stacks(state_dir: Path) -> None:
    """Remove what workers of a killed supervisor left that could not end in order."""
    for path in state_dir.glob("stacks-*"):
        with suppress(OSError):
            path.unlink()


class WorkerHandle:
    """Used by the main thread only. ``is_alone``: it runs one suspect job at a time,
    and nothing else."""

    def __init__(
        self,
        process: SpawnProcess,
        channel: FrameChannel,
        slots: int,
        *,
        is_alone: bool,
        cpu: int | None,
    ) -> None:
        self.process = process
        self.channel = channel
        self.slots = slots
        self.is_quarantine = is_alone
        self.cpu = cpu
        self.pid = process.pid or 0
        self.jobs: set[str] = set()
        self.finishing: set[str] = set()  # those whose slot is as good as free
        self.cleanup_requests: dict[
            str, CleanupEntry
        ] = {}  # by job: what it was told to remove
        self.assigned_count = 0  # jobs in all
        self.started_at = self.last_heard_at = time.monotonic()
        self.is_ready = False
        self.has_exited = False
        self.resident_bytes = 0  # bytes, when it was weighed last
        self.is_retiring = False
        self.kill_reason: str | None = None
        self.kill_at: float | None = None
        self.hung_job: str | None = (
            # the job that had the interpreter's lock when it hung, if that can be told
            None
        )
        self._usage: ThreadTicks | None = (
            None  # of its threads, when its silence was first noticed
        )
        self.counters = CounterDeltas()
        self.rate: int | None = None  # its share of the node's, as it was told
        self.space: SpaceFrame | None = None  # as it was told
        self._seen = 0  # of the jobs taken, when its demand was asked for
        self._unsent: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"<Worker {self.pid} {self.state}: {len(self.jobs)} of {self.slots}>"

    @property
    def state(self) -> str:
        """What it is there for just now."""
        if self.is_retiring:
            return "retiring"
        return (
            "alone" if self.is_quarantine else "ready" if self.is_ready else "starting"
        )

    def as_json(self) -> dict[str, object]:
        """What is shown of it; ``memory`` in bytes, when it was weighed last."""
        return {
            "pid": self.pid,
            "busy": len(self.jobs),
            "slots": self.slots,
            "memory": self.resident_bytes,
            "state": self.state,
        }

    @property
    def free_slots(self) -> int:
        """How many more jobs it may be given."""
        return self.slots - len(self.jobs - self.finishing) if self.is_accepting else 0

    @property
    def is_accepting(self) -> bool:
        """Whether it is up, and nobody has told it to end."""
        return self.is_ready and not self.is_retiring and not self.kill_reason

    def demand(self) -> int:
        """How many jobs it has, or has got since the last call."""
        fresh, self._seen = self.assigned_count - self._seen, self.assigned_count
        return max(len(self.jobs), min(fresh, self.slots))

    def set_rate(self, rate: int | None) -> None:
        """Tell it its share of the node's rate, if that is another one."""
        if rate != self.rate:
            self.rate = rate
            self.send(RateFrame(rate))

    def set_disk_space(self, frame: SpaceFrame) -> None:
        """Tell it what jobs leave to each other on the disks, if that has changed."""
        if frame != self.space:
            self.space = frame
            self.send(frame)

    def send(self, frame: Frame) -> None:
        """Send it now, or as soon as the worker reads again; order is kept. Raises
        InternalError if it is too large."""
        self._unsent.append(encode(frame))
        self.flush()

    def mark_exited(self) -> None:
        """Its sentinel says that the process has ended."""
        self.has_exited = True

    def flush(self) -> None:
        """Send what could not be sent before."""
        while self._unsent and self.channel.send_encoded(self._unsent[0]):
            self._unsent.popleft()

    def frames(self) -> Iterator[Frame]:
        """What it has sent. Stops at the end of data; the process's own end is seen by
        its sentinel."""
        with suppress(BlockingIOError):
            while (frame := self.channel.receive()) is not None:
                self.mark_heard(time.monotonic())
                yield frame

    def measure_memory(self) -> int:
        """Resident memory in bytes, 0 if it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def mark_heard(self, now: float) -> None:
        """It has said something, or could not be heard."""
        self.last_heard_at, self._usage = now, None

    def sample_threads(self) -> None:
        """Look at its threads when it has been silent for a while; what they do from
        now on tells the culprit."""
        self._usage = thread_ticks(self.pid) if self._usage is None else self._usage

    def abort(self, reason: str) -> None:
        """Have it dump its stacks and die, also if it is stopped; a second later it is
        killed."""
        if self._usage is not None:
            self.hung_job = find_hung_job(
                self._usage, thread_ticks(self.pid), self.jobs
            )
        self.kill_reason = reason
        self.kill_at = time.monotonic() + 1.0
        self._signal(signal.SIGABRT)
        self._signal(
            signal.SIGCONT
        )  # SIGABRT comes first: a stopped process takes no other step before it

    def kill(self, reason: str) -> None:
        """End it at once."""
        self.kill_reason = self.kill_reason or reason
        self._signal(signal.SIGKILL)

    def describe_exit(self) -> str:
        """How the process, which has ended, did so."""
        code = self.process.exitcode or 0
        how = (
            f"killed by {signal.Signals(-code).name}"
            if code < 0
            else f"exit code {code}"
        )
        return f"{self.kill_reason} ({how})" if self.kill_reason else how

    def take_stacks(self, state_dir: Path) -> str:
        """The stacks that it dumped when it died, if any; the file goes."""
        path = stacks_file(state_dir, self.pid)
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            path.unlink()
            return text[:MAX_STACKS]
        return ""

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
