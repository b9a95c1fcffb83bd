"""The worker processes: wanted and actual. Level-triggered: ``tend`` may be called at
any time, any number of times."""

from __future__ import annotations

import multiprocessing
import os
import selectors
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from dlpool.config import SupervisorSettings
from dlpool.errors import DlpoolError
from dlpool.observe.log import Logger
from dlpool.observe.metrics import Metrics
from dlpool.service.scheduling import RespawnBackoff, WorkerSlots, shares_of, slots_of
from dlpool.service.slots import max_slots
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import RECEIVED
from dlpool.service.wire.frames import Frame, PingFrame, RetireFrame, SpaceFrame
from dlpool.service.worker import process as worker
from dlpool.service.worker.affinity import choose_cpu
from dlpool.service.worker.process import WorkerSettings
from dlpool.service.worker_handle import WorkerHandle

PING_S = 1.0
MEMORY_S = 2.0
SHARE_S = 1.0
MAX_FAILED_STARTS = 3
STOP_S = 6.0  # a worker ends within 5
MAX_SHOWN = 64  # workers that a supervisor tells of
# between two turns: then it was we who did not run, and the workers' silence says
# nothing
FROZEN_S = 2.0


class WorkerStartFailed(DlpoolError):
    """No worker has ever come up: the service cannot work."""


class WorkerPool:
    """Used by the main thread only, which is also the parent of all workers."""

    def __init__(
        self,
        settings: SupervisorSettings,
        given: WorkerSettings,
        selector: selectors.BaseSelector,
        log: Logger,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.worker_settings = given
        self._selector = selector
        self._log = log
        self._metrics = metrics
        self._context = multiprocessing.get_context("spawn")
        slots = max_slots(settings)
        self._shares = slots_of(
            slots, settings.workers or min(os.cpu_count() or 1, slots)
        )
        self._respawn = RespawnBackoff()
        self._has_come_up = False
        self._pinged = self._weighed = self._shared = 0.0
        self._looked = time.monotonic()
        self.workers: dict[int, WorkerHandle] = {}
        self.summaries: tuple[
            dict[str, object], ...
        ] = ()  # what others may see of them; any thread may read it
        self.over_memory = 0  # workers that were, since the start

    def __repr__(self) -> str:
        busy = sum(len(handle.jobs) for handle in self.workers.values())
        return (
            f"<WorkerPool {len(self._shares)} wanted: {len(self.workers)} there, "
            f"{busy} "
            f"jobs>"
        )

    def worker_slots(self) -> list[WorkerSlots]:
        """Where jobs may go."""
        most = self.settings.max_jobs_per_worker or sys.maxsize
        return [
            WorkerSlots(
                one.pid,
                min(one.free_slots, most - one.assigned_count),
                len(one.jobs),
                one.is_quarantine,
            )
            for one in self.workers.values()
        ]

    def capacity(self) -> int:
        """How many jobs the workers that are there can have at once."""
        ordinary = [
            one
            for one in self.workers.values()
            if not one.is_quarantine and one.is_ready
        ]
        return sum(
            one.slots for one in ordinary if not one.is_retiring and not one.kill_reason
        )

    def received(self) -> dict[int, int]:
        """Bytes that each worker has received, by its pid, as of its last report."""
        return {
            one.pid: int(one.counters.last(RECEIVED)) for one in self.workers.values()
        }

    def reconcile(
        self, suspects: int, on_death: Callable[[WorkerHandle, str], None]
    ) -> None:
        """Compare wanted with actual. ``suspects``: jobs that must run alone. Raises
        WorkerStartFailed."""
        now = time.monotonic()
        for handle in [one for one in self.workers.values() if one.has_exited]:
            self._lose(handle, on_death)
        self._look_for_hung(now)
        self._weigh(now)
        self._spawn_wanted(suspects, now)
        self._retire_idle_quarantine(suspects)
        self._share_rate(now)
        if now - self._pinged >= PING_S:
            self._pinged = now
            self.broadcast(PingFrame())
            self.summaries = tuple(
                handle.as_json() for handle in islice(self.workers.values(), MAX_SHOWN)
            )
        for handle in self.workers.values():
            handle.flush()

    def broadcast(self, frame: Frame) -> None:
        """Send a frame to every worker."""
        for handle in self.workers.values():
            handle.send(frame)

    def set_disk_space(self, frame: SpaceFrame) -> None:
        """Tell every worker what jobs leave to each other on the disks."""
        for handle in self.workers.values():
            handle.set_disk_space(frame)

    def mark_ready(self, handle: WorkerHandle) -> None:
        """A worker said hello."""
        handle.is_ready = self._has_come_up = True
        self._log.info("worker_started", worker_pid=handle.pid, slots=handle.slots)

    def count_assigned(self, handle: WorkerHandle) -> None:
        """One more job went to the worker; it is replaced after its share of them."""
        handle.assigned_count += 1
        limit = self.settings.max_jobs_per_worker
        if limit is not None and handle.assigned_count >= limit:
            self._retire(handle, f"it has run {handle.assigned_count} jobs")

    def stop(self, on_death: Callable[[WorkerHandle, str], None]) -> None:
        """End all workers: by the end of their sockets, in the end by SIGKILL."""
        for handle in self.workers.values():
            handle.send(RetireFrame())
            self._selector.unregister(handle.channel)
            handle.channel.socket.shutdown(1)
        deadline = time.monotonic() + STOP_S
        for handle in list(self.workers.values()):
            handle.process.join(max(0.0, deadline - time.monotonic()))
            if handle.process.is_alive():
                handle.kill("it did not end")
            self._bury(handle, on_death)

    def _lose(
        self, handle: WorkerHandle, on_death: Callable[[WorkerHandle, str], None]
    ) -> None:
        """A worker has ended in the midst of the service: is another one worth a try,
        and when?"""
        self._selector.unregister(handle.channel)
        how = self._bury(handle, on_death)
        if not (handle.is_retiring and handle.is_ready):
            now = time.monotonic()
            self._respawn = self._respawn.after_death(now - handle.started_at, now)
        if not self._has_come_up and self._respawn.failures >= MAX_FAILED_STARTS:
            raise WorkerStartFailed(f"no worker could be started; the last one: {how}")

    def _bury(
        self, handle: WorkerHandle, on_death: Callable[[WorkerHandle, str], None]
    ) -> str:
        """A worker has ended: hear its last words, then give back what it had. Returns
        how it ended."""
        self._selector.unregister(handle.process.sentinel)
        del self.workers[handle.pid]
        how = self._describe(handle)
        on_death(handle, how)
        handle.channel.close()
        return how

    def _describe(self, handle: WorkerHandle) -> str:
        handle.process.join()
        stacks = handle.take_stacks(self.worker_settings.state_dir)
        code = handle.process.exitcode
        how = handle.describe_exit()
        if stacks and not handle.is_ready:
            how += f": {stacks.splitlines()[0]}"
        if code != 0 or handle.kill_reason:
            self._metrics.worker_exits.labels(
                "killed" if handle.kill_reason else "died"
            ).inc()
            self._log.warning(
                "worker_died",
                worker_pid=handle.pid,
                how=how,
                running=len(handle.jobs),
                stacks=stacks,
            )
        else:
            self._metrics.worker_exits.labels("ended").inc()
            self._log.info(
                "worker_ended", worker_pid=handle.pid, running=len(handle.jobs)
            )
        return how

    def _look_for_hung(self, now: float) -> None:
        was_frozen, self._looked = now - self._looked > FROZEN_S, now
        for handle in self.workers.values():
            if was_frozen:
                handle.mark_heard(now)
            if handle.kill_at is not None and now >= handle.kill_at:
                handle.kill("it did not end")
            elif (
                handle.kill_reason is None
                and now - handle.last_heard_at > self.settings.worker_timeout
            ):
                self._log.warning(
                    "worker_hung",
                    worker_pid=handle.pid,
                    silent_s=round(now - handle.last_heard_at, 1),
                )
                handle.abort(f"it was silent for {self.settings.worker_timeout:g} s")
            elif now - handle.last_heard_at > self.settings.worker_timeout / 2:
                handle.sample_threads()

    def _weigh(self, now: float) -> None:
        if now - self._weighed < MEMORY_S:
            return
        self._weighed = now
        soft, hard = self.settings.worker_memory_soft, self.settings.worker_memory_hard
        for handle in self.workers.values():
            handle.resident_bytes = size = (
                handle.measure_memory() if handle.kill_reason is None else 0
            )
            if hard is not None and size > hard:
                self.over_memory += 1
                handle.kill(
                    f"it used {size} bytes of memory, more than worker_memory_hard"
                )
            elif (
                soft is not None
                and size > soft
                and handle.assigned_count
                and not handle.is_retiring
            ):
                self.over_memory += 1
                self._retire(
                    handle,
                    f"it used {size} bytes of memory, more than worker_memory_soft",
                )

    def _retire(self, handle: WorkerHandle, reason: str) -> None:
        """It ends after its jobs; a replacement is wanted at once."""
        self._log.info("worker_retired", worker_pid=handle.pid, reason=reason)
        handle.is_retiring = True
        handle.send(RetireFrame())

    def _spawn_wanted(self, suspects: int, now: float) -> None:
        serving = [one for one in self.workers.values() if not one.is_retiring]
        shares = list(self._shares)
        for handle in serving:
            if not handle.is_quarantine and handle.slots in shares:
                shares.remove(handle.slots)
        alone = min(suspects, len(self._shares)) - sum(
            handle.is_quarantine for handle in serving
        )
        if now < self._respawn.not_before:
            return
        wanted = [(slots, False) for slots in shares] + [(1, True)] * alone
        for slots, is_alone in wanted:
            try:
                self._spawn(slots, is_alone=is_alone)
            except OSError as error:
                self._cannot_spawn(error, now)
                break

    def _cannot_spawn(self, error: OSError, now: float) -> None:
        """Continue with the existing workers after a failed start, and try again later.

        Raises WorkerStartFailed if there has never been one.
        """
        self._log.warning("worker_not_started", error=error)
        self._respawn = self._respawn.after_death(0.0, now)
        if (
            not self.workers
            and not self._has_come_up
            and self._respawn.failures >= MAX_FAILED_STARTS
        ):
            raise WorkerStartFailed(
                f"no worker could be started: {error.strerror} (ulimit -u, ulimit -n)"
            ) from error

    def _share_rate(self, now: float) -> None:
        """Deal the node's rate over the workers: once a second, and at once when one of
        them has no share yet."""
        rate, handles = self.settings.node_rate, list(self.workers.values())
        is_new = rate is not None and any(one.rate is None for one in handles)
        if not handles or not (is_new or now - self._shared >= SHARE_S):
            return
        self._shared = now
        demands = [one.demand() for one in handles]
        shares = shares_of(rate, demands) if rate is not None else [None] * len(handles)
        for handle, share in zip(handles, shares, strict=True):
            handle.set_rate(share)

    def _retire_idle_quarantine(self, suspects: int) -> None:
        for handle in self.workers.values():
            if (
                handle.is_quarantine
                and handle.is_ready
                and not suspects
                and not handle.jobs
                and not handle.is_retiring
            ):
                self._retire(handle, "no suspect job is left")

    def _spawn(self, slots: int, *, is_alone: bool) -> None:
        channel, theirs = FrameChannel.pair()
        cpu = choose_cpu(len(self._shares), [one.cpu for one in self.workers.values()])
        given = replace(self.worker_settings, slots=slots, cpu=cpu)
        process = self._context.Process(
            target=worker.main,
            args=(theirs, os.getpid(), given),
            daemon=True,
            name="dlpool-worker",
        )
        try:
            process.start()
        except OSError:
            theirs.close()
            channel.close()
            raise
        self._metrics.worker_starts.inc()
        theirs.close()
        handle = WorkerHandle(process, channel, slots, is_alone=is_alone, cpu=cpu)
        self.workers[handle.pid] = handle
        self._selector.register(channel, selectors.EVENT_READ, handle)
        self._selector.register(
            process.sentinel, selectors.EVENT_READ, handle.mark_exited
        )
