"""The worker pool: starts, checks, replaces and stops the worker processes.

When a worker dies, ``_reap`` calls ``JobDispatcher.reap``, the disposition policy
decides whether the worker's jobs run again or fail, and ``finish.lua`` records the
decisions. For the jobs of a dead supervisor see ``queue/heartbeat.py`` and
``recover.lua``.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from dlpool.affinity import choose_cpu
from dlpool.config import SupervisorSettings
from dlpool.errors import DlpoolError
from dlpool.observe.log import Logger
from dlpool.observe.metrics import Metrics
from dlpool.service.scheduling import (
    RespawnBackoff,
    WorkerSlots,
    divide_rate,
    divide_slots,
)
from dlpool.service.slots import max_slots
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import RECEIVED
from dlpool.service.wire.frames import Frame, PingFrame, RetireFrame, SpaceFrame
from dlpool.service.worker import process as worker_process
from dlpool.service.worker.process import WorkerSettings
from dlpool.service.worker_handle import WorkerHandle

PING_S = 1.0
MEMORY_S = 2.0  # between measurements
SHARE_S = 1.0  # between changes of the workers' rates
MAX_FAILED_STARTS = 3
STOP_S = 6.0  # a worker exits within 5 s
MAX_SUMMARIES = 64  # workers that the node's status lists
# after a longer pause between two checks, this process was suspended and silence says
# nothing
FROZEN_S = 2.0

OnDeath = Callable[[WorkerHandle, str], None]


class WorkerStartFailed(DlpoolError):
    """No worker has ever become ready, so the service cannot work."""


class WorkerPool:
    """Starts, checks, replaces and stops the worker processes.

    Used only by the main thread, which is the parent of all workers.
    """

    def __init__(
        self,
        settings: SupervisorSettings,
        worker_settings: WorkerSettings,
        selector: selectors.BaseSelector,
        log: Logger,
        metrics: Metrics,
    ) -> None:
        """Create a pool without workers.

        The sockets and sentinels of its workers are registered with ``selector``.
        """
        self.settings = settings
        self.worker_settings = worker_settings
        self._selector = selector
        self._log = log
        self._metrics = metrics
        self._context = multiprocessing.get_context("spawn")
        slots = max_slots(settings)
        self._wanted_slots = divide_slots(
            slots, settings.workers or min(os.cpu_count() or 1, slots)
        )
        self._respawn = RespawnBackoff()
        self._was_ready = False  # whether any worker has ever been ready
        self._pinged_at = self._measured_at = self._shared_at = 0.0
        self._checked_at = time.monotonic()
        self.workers: dict[int, WorkerHandle] = {}  # by pid
        # ``as_json`` of the workers; any thread may read it
        self.summaries: tuple[dict[str, object], ...] = ()
        # workers that have exceeded their memory limit since the start
        self.over_memory = 0

    def __repr__(self) -> str:
        busy = sum(worker.running for worker in self.workers.values())
        wanted, running = len(self._wanted_slots), len(self.workers)
        return f"<WorkerPool {wanted} wanted: {running} running, {busy} jobs>"

    def worker_slots(self) -> list[WorkerSlots]:
        """Return the free slots of each worker."""
        limit = self.settings.max_jobs_per_worker or sys.maxsize
        now = time.monotonic()
        return [
            WorkerSlots(
                one.pid,
                min(one.free_slots, limit - one.assigned_count),
                len(one.jobs),
                one.is_quarantine,
                max(
                    0,
                    min(
                        one.slots_ahead(now) - len(one.ahead),
                        limit - one.assigned_count - one.free_slots,
                    ),
                ),
            )
            for one in self.workers.values()
        ]

    def slots_ahead(self) -> int:
        """Return how many jobs may wait in the workers for slots that will soon be
        free."""
        now = time.monotonic()
        return sum(one.slots_ahead(now) for one in self.workers.values())

    def capacity(self) -> int:
        """Return how many jobs the workers that accept jobs can run at once.

        Quarantine workers do not count.
        """
        return sum(
            one.slots
            for one in self.workers.values()
            if one.is_accepting and not one.is_quarantine
        )

    def received(self) -> dict[int, int]:
        """Return the number of bytes that each worker has received since its start, by
        pid.

        The numbers are from the last status frames.
        """
        return {
            one.pid: int(one.counters.last(RECEIVED)) for one in self.workers.values()
        }

    def reconcile(self, quarantined: int, on_death: OnDeath) -> None:
        """Start, retire and kill workers as needed.

        ``quarantined``: number of quarantined jobs. ``on_death`` is called for each
        worker that has exited; its arguments are the worker and a text that says how
        the worker exited. Raises WorkerStartFailed.
        """
        now = time.monotonic()
        for worker in [one for one in self.workers.values() if one.has_exited]:
            self._handle_exit(worker, on_death)
        self._check_hung(now)
        self._check_memory(now)
        self._spawn_wanted(quarantined, now)
        self._retire_idle_quarantine(quarantined)
        self._share_rate(now)
        if now - self._pinged_at >= PING_S:
            self._pinged_at = now
            self.broadcast(PingFrame())
            self.summaries = tuple(
                worker.as_json()
                for worker in islice(self.workers.values(), MAX_SUMMARIES)
            )
        for worker in self.workers.values():
            worker.flush()

    def broadcast(self, frame: Frame) -> None:
        """Send a frame to all workers."""
        for worker in self.workers.values():
            worker.send(frame)

    def set_disk_space(self, frame: SpaceFrame) -> None:
        """Tell all workers how much disk space is reserved for running jobs."""
        for worker in self.workers.values():
            worker.set_disk_space(frame)

    def mark_ready(self, worker: WorkerHandle) -> None:
        """Record that a worker is ready for jobs."""
        worker.is_ready = self._was_ready = True
        self._log.info("worker_started", worker_pid=worker.pid, slots=worker.slots)

    def retire_after_limit(self, worker: WorkerHandle) -> None:
        """Retire a worker if it has been assigned ``max_jobs_per_worker`` jobs."""
        limit = self.settings.max_jobs_per_worker
        if limit is not None and worker.assigned_count >= limit:
            self._retire(worker, f"it has run {worker.assigned_count} jobs")

    def stop(self, on_death: OnDeath) -> None:
        """Stop all workers; kill each that does not exit within ``STOP_S`` seconds."""
        for worker in self.workers.values():
            worker.send(RetireFrame())
            self._selector.unregister(worker.channel)
            worker.channel.socket.shutdown(1)
        deadline = time.monotonic() + STOP_S
        for worker in list(self.workers.values()):
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.kill("it did not exit")
            self._reap(worker, on_death)

    def _handle_exit(self, worker: WorkerHandle, on_death: OnDeath) -> None:
        """Reap a worker that has exited; after a failure, delay the next start.

        Raises WorkerStartFailed.
        """
        self._selector.unregister(worker.channel)
        how = self._reap(worker, on_death)
        if not (worker.is_retiring and worker.is_ready):
            now = time.monotonic()
            self._respawn = self._respawn.after_death(now - worker.started_at, now)
        if not self._was_ready and self._respawn.failures >= MAX_FAILED_STARTS:
            raise WorkerStartFailed(f"no worker could be started; the last one: {how}")

    def _reap(self, worker: WorkerHandle, on_death: OnDeath) -> str:
        """Remove a worker that has exited, and pass it to ``on_death``. Return how it
        exited."""
        self._selector.unregister(worker.process.sentinel)
        del self.workers[worker.pid]
        how = self._log_exit(worker)
        on_death(worker, how)
        worker.channel.close()
        return how

    def _log_exit(self, worker: WorkerHandle) -> str:
        worker.process.join()
        stacks = worker.take_stacks(self.worker_settings.state_dir)
        how, running = worker.describe_exit(), len(worker.jobs)
        if stacks and not worker.is_ready:
            how += f": {stacks.splitlines()[0]}"
        if worker.process.exitcode != 0 or worker.kill_reason:
            self._metrics.worker_exits.labels(
                "killed" if worker.kill_reason else "died"
            ).inc()
            self._log.warning(
                "worker_died",
                worker_pid=worker.pid,
                exit_reason=how,
                running=running,
                stacks=stacks,
            )
        else:
            self._metrics.worker_exits.labels("exited").inc()
            self._log.info("worker_exited", worker_pid=worker.pid, running=running)
        return how

    def _check_hung(self, now: float) -> None:
        """Abort each worker that has been silent for ``worker_timeout`` seconds. Kill
        an aborted worker that does not exit in time."""
        was_frozen, self._checked_at = now - self._checked_at > FROZEN_S, now
        timeout_s = self.settings.worker_timeout
        for worker in self.workers.values():
            if was_frozen:
                worker.mark_heard(now)
            silent_s = now - worker.last_heard_at
            if worker.kill_at is not None and now >= worker.kill_at:
                worker.kill("it did not exit")
            elif worker.kill_reason is None and silent_s > timeout_s:
                self._log.warning(
                    "worker_hung", worker_pid=worker.pid, silent_s=round(silent_s, 1)
                )
                worker.abort(f"it was silent for {timeout_s:g} s")
            elif silent_s > timeout_s / 2:
                worker.sample_threads()

    def _check_memory(self, now: float) -> None:
        """Retire workers above the soft memory limit, and kill those above the hard
        memory limit."""
        if now - self._measured_at < MEMORY_S:
            return
        self._measured_at = now
        soft, hard = self.settings.worker_memory_soft, self.settings.worker_memory_hard
        for worker in self.workers.values():
            worker.resident_bytes = size = (
                worker.measure_memory() if worker.kill_reason is None else 0
            )
            if hard is not None and size > hard:
                self.over_memory += 1
                worker.kill(
                    f"it used {size} bytes of memory, more than worker_memory_hard"
                )
            elif (
                soft is not None
                and size > soft
                and worker.assigned_count
                and not worker.is_retiring
            ):
                self.over_memory += 1
                self._retire(
                    worker,
                    f"it used {size} bytes of memory, more than worker_memory_soft",
                )

    def _retire(self, worker: WorkerHandle, reason: str) -> None:
        """Tell a worker to exit after its jobs."""
        self._log.info("worker_retired", worker_pid=worker.pid, reason=reason)
        worker.is_retiring = True
        worker.send(RetireFrame())

    def _spawn_wanted(self, quarantined: int, now: float) -> None:
        serving = [one for one in self.workers.values() if not one.is_retiring]
        missing = list(self._wanted_slots)
        for worker in serving:
            if not worker.is_quarantine and worker.slots in missing:
                missing.remove(worker.slots)
        quarantine = min(quarantined, len(self._wanted_slots)) - sum(
            worker.is_quarantine for worker in serving
        )
        if now < self._respawn.not_before:
            return
        for slots, is_quarantine in [(slots, False) for slots in missing] + [
            (1, True)
        ] * quarantine:
            try:
                self._spawn(slots, is_quarantine=is_quarantine)
            except OSError as error:
                self._handle_failed_start(error, now)
                break

    def _handle_failed_start(self, error: OSError, now: float) -> None:
        """Delay the next start and continue with the present workers.

        Raises WorkerStartFailed after several failures if no worker has ever become
        ready.
        """
        self._log.warning("worker_not_started", error=error)
        self._respawn = self._respawn.after_death(0.0, now)
        if (
            not self.workers
            and not self._was_ready
            and self._respawn.failures >= MAX_FAILED_STARTS
        ):
            raise WorkerStartFailed(
                f"no worker could be started: {error.strerror} (ulimit -u, ulimit -n)"
            ) from error

    def _share_rate(self, now: float) -> None:
        """Divide the node's rate limit among the workers, every ``SHARE_S`` seconds.

        When a worker has no share yet, the rate is divided at once.
        """
        rate, workers = self.settings.node_rate, list(self.workers.values())
        is_new = rate is not None and any(one.rate is None for one in workers)
        if not workers or not (is_new or now - self._shared_at >= SHARE_S):
            return
        self._shared_at = now
        demands = [one.demand() for one in workers]
        shares = (
            divide_rate(rate, demands) if rate is not None else [None] * len(workers)
        )
        for worker, share in zip(workers, shares, strict=True):
            worker.set_rate(share)

    def _retire_idle_quarantine(self, quarantined: int) -> None:
        for worker in self.workers.values():
            if (
                worker.is_quarantine
                and worker.is_ready
                and not (quarantined or worker.jobs or worker.is_retiring)
            ):
                self._retire(worker, "no quarantined job is left")

    def _spawn(self, slots: int, *, is_quarantine: bool) -> None:
        """Start a worker. Raises OSError."""
        channel, worker_socket = FrameChannel.pair()
        cpu = choose_cpu(
            len(self._wanted_slots), [one.cpu for one in self.workers.values()]
        )
        settings = replace(self.worker_settings, slots=slots, cpu=cpu)
        process = self._context.Process(
            target=worker_process.main,
            args=(worker_socket, os.getpid(), settings),
            daemon=True,
            name="dlpool-worker",
        )
        try:
            process.start()
        except OSError:
            worker_socket.close()
            channel.close()
            raise
        self._metrics.worker_starts.inc()
        worker_socket.close()
        worker = WorkerHandle(
            process, channel, slots, is_quarantine=is_quarantine, cpu=cpu
        )
        self.workers[worker.pid] = worker
        self._selector.register(channel, selectors.EVENT_READ, worker)
        self._selector.register(
            process.sentinel, selectors.EVENT_READ, worker.mark_exited
        )
