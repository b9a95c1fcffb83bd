"""The main thread of a supervisor without processes and without Redis: what it is told, and what it tells others."""

from __future__ import annotations

import os
import selectors
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from dlpool.config import HookSettings, Settings
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import compose_job
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.observe.metrics import Metrics
from dlpool.service.cleanup import CleanupDispatcher
from dlpool.service.dispatcher import DispatcherServices, JobDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.host_admission import HostAdmission
from dlpool.service.host_concurrency import HostConcurrency
from dlpool.service.host_limits import HostLimits
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from dlpool.service.journal import CleanupJournal
from dlpool.service.monitor.metrics_collector import MetricsCollector
from dlpool.service.pool import WorkerPool
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import RANGE_BOUNDS_S
from dlpool.service.wire.frames import Frame
from dlpool.service.worker_handle import WorkerHandle
from tests.fakes import Clock, Lines

NOW = 1_800_000_000.0
URL = "http://host/file"


class Told:
    """The recorder's side that the main thread uses: what it is told, by kind."""

    def __init__(self) -> None:
        self.ended: list[FinishRequest] = []
        self.checked: list[JobLease] = []
        self.requests: list[Any] = []
        self.holds: list[Any] = []
        self.record, self.check_fence = self.ended.append, self.checked.append
        self.request_host_slot, self.hold_host = self.requests.append, self.holds.append


class Process:
    """A worker process that ends when it is told to; its pid is this process's, and gets no signals."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self.sentinel = os.eventfd(0)
        self.joined: list[float | None] = []

    def join(self, timeout: float | None = None) -> None:
        self.joined.append(timeout)

    def is_alive(self) -> bool:
        return self.exitcode is None


def received(channel: FrameChannel) -> list[Frame]:
    """Return the frames that have come on a channel that does not wait."""
    frames = []
    with suppress(BlockingIOError):
        while (frame := channel.receive()) is not None:
            frames.append(frame)
    return frames


class Worker(NamedTuple):
    """A worker as the supervisor sees it, and its own end of the channel."""

    handle: WorkerHandle
    sock: socket.socket
    channel: FrameChannel

    def heard(self) -> list[Frame]:
        """The frames that it was sent since the last call."""
        return received(self.channel)

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            assert self.channel.send(frame)


def job_of(name: str = "a", *, raw: bytes | None = None, url: str = URL, **fields: Any) -> ClaimedJob:
    """A job that was claimed; what is no field of ``ClaimedJob`` is one of the job's own."""
    known = ("fence", "attempts", "crashes", "takeovers", "flag", "is_start_reserved", "priority")
    own = {key: value for key, value in fields.items() if key not in known}
    raw = compose_job(url, f"/data/{name}", **own) if raw is None else raw
    usual: dict[str, Any] = {"attempts": 1, "crashes": 0, "takeovers": 0, "created_ms": 0, "priority": "normal"}
    given = {key: value for key, value in fields.items() if key in known and key != "fence"}
    return ClaimedJob(JobLease(name, fields.get("fence", 1)), raw, len(raw), **(usual | given))


class Bench:
    """A dispatcher with its real parts, but for the threads that talk to Redis and the processes of workers."""

    def __init__(self, folder: Path, **supervisor: Any) -> None:
        settings = Settings()
        self.settings = replace(settings, supervisor=replace(settings.supervisor, **supervisor))
        self.clock = Clock(1000.0)
        self.lines, self.told = Lines(), Told()
        log: Any = self.lines
        recorder: Any = self.told
        self.metrics = Metrics(RANGE_BOUNDS_S)
        self.in_flight = InFlightTable()
        self.selector = selectors.DefaultSelector()
        given: Any = SimpleNamespace(state_dir=folder)
        self.pool = WorkerPool(self.settings.supervisor, given, self.selector, log, self.metrics)
        self.journal = CleanupJournal(folder)
        self.cleanup = CleanupDispatcher(self.pool, self.journal, log)
        self.concurrency = HostConcurrency(16, is_auto=True, log=log, clock=self.clock)
        self.hosts = HostLimits(self.settings, self.clock)
        self.host_admission = HostAdmission(self.in_flight, self.hosts, self.concurrency, recorder, self.pool, log)
        policy = DispositionPolicy(QueueKeys(), self.settings.supervisor, lambda: NOW, lambda: 1.0)
        self.hooked: list[tuple[InFlightJob, FinishRequest]] = []
        hooks: Any = SimpleNamespace(settings=HookSettings(), schedule=lambda *ended: self.hooked.append(ended))
        self.collector = MetricsCollector(self.metrics)
        self.node_faults: list[float] = []  # when a fault of the node was met
        services = DispatcherServices(
            self.in_flight,
            self.pool,
            recorder,
            self.cleanup,
            hooks,
            self.host_admission,
            self.collector,
            log,
            lambda: self.node_faults.append(self.clock.now),
        )
        self.dispatcher = JobDispatcher(services, policy)
        self._pids = iter(range(2_000_000_001, 2_000_001_000))  # above every process's

    def worker(self, slots: int = 2, *, is_quarantine: bool = False, is_ready: bool = True) -> Worker:
        """One more worker."""
        channel, theirs = FrameChannel.pair()
        process: Any = Process(next(self._pids))
        handle = WorkerHandle(process, channel, slots, is_quarantine=is_quarantine, cpu=None)
        handle.is_ready = is_ready
        self.pool.workers[handle.pid] = handle
        self.selector.register(channel, selectors.EVENT_READ, handle)
        self.selector.register(process.sentinel, selectors.EVENT_READ, handle.mark_exited)
        theirs.setblocking(False)
        return Worker(handle, theirs, FrameChannel(theirs))

    def held(self, name: str = "a", worker: Worker | None = None, **fields: Any) -> InFlightJob:
        """A job that was taken in; it runs in ``worker``, if one is given."""
        claimed = job_of(name, **fields)
        self.dispatcher.accept(claimed, 0.0)
        held = self.in_flight.get(str(claimed.lease))
        assert held is not None
        if worker is not None:
            held.worker_pid, held.phase = worker.handle.pid, InFlightPhase.RUNNING
            worker.handle.jobs[str(claimed.lease)] = self.clock.now
        return held

    def last(self) -> FinishRequest:
        """How the last job ended; there was one."""
        return self.told.ended[-1]

    def value(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 without one."""
        found = self.metrics._registry.get_sample_value(name, labels)
        return 0.0 if found is None else found
