"""The jobs of a supervisor on their way through its workers: the part of the main
thread that moves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from dlpool.errors import InternalError
from dlpool.jobs.transitions import ClaimedJob, FinishRequest
from dlpool.observe.log import Logger
from dlpool.observe.log_limiter import LogLimiter
from dlpool.service.cleanup import CleanupDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.hooks.runner import HookRunner
from dlpool.service.host_admission import HostAdmission
from dlpool.service.host_limits import authority_of
from dlpool.service.inflight import (
    InFlightJob,
    InFlightTable,
    cleanup_entry,
    is_path_implied,
    job_frame,
)
from dlpool.service.job_log import DISOWNED, log_disposition, log_fields, trace_id_of
from dlpool.service.monitor.metrics_collector import MetricsCollector
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import HostSlotDecided, ResultRecorded
from dlpool.service.queue.recording import ResultRecorder
from dlpool.service.scheduling import WaitingJob, assign
from dlpool.service.slots import is_refusal
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    EndedFrame,
    FinishingFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    LostFrame,
    PublishFrame,
    StatusFrame,
    VerifiedFrame,
)
from dlpool.service.worker_handle import WorkerHandle

ENDS = ("success", "failed", "cancelled")
# of what is no job that are logged in a minute: whoever pushes it must not fill the log
MALFORMED = 20


class JobDispatcher:
    """Ledger, workers and recorder as one. Used by the main thread only; each step may
    be repeated."""

    def __init__(
        self,
        ledger: InFlightTable,
        pool: WorkerPool,
        recorder: ResultRecorder,
        judge: DispositionPolicy,
        cleaner: CleanupDispatcher,
        log: Logger,
        hooks: HookRunner,
        doorman: HostAdmission,
        meter: MetricsCollector,
        on_fault: Callable[[], None],
    ) -> None:
        """``on_fault`` is called when a job has met a fault of the node."""
        self.policy = judge
        self.needs_reconcile = True  # something that pool and capacity depend on
        self._ledger = ledger
        self._pool = pool
        self._recorder = recorder
        self._log = log
        self._cleaner = cleaner
        self._hooks = hooks
        self._doorman = doorman
        self._meter = meter
        self._malformed = LogLimiter(MALFORMED)
        self._on_fault = on_fault

    # --- in ---

    def accept(self, claimed: ClaimedJob, leased_until: float) -> None:
        """A job was claimed: run it, or say why not."""
        held = InFlightJob(
            claimed, leased_until, trace_id=trace_id_of(claimed.lease.job_id, None)
        )
        with self._each_alone(held):
            held.job, instead = self.policy.admit(claimed)
            held.trace_id = trace_id_of(claimed.lease.job_id, held.job)
            held.authority = authority_of(held.job.url) if held.job is not None else ""
            if not self._ledger.add(held):
                return
            if instead is not None:
                self._end(held, instead)
            else:
                self._bring_to_door(held)
        self.needs_reconcile = (
            self.needs_reconcile or claimed.crashes > 0
        )  # it may want a worker of its own

    @contextmanager
    def _each_alone(self, held: InFlightJob) -> Iterator[None]:
        """What nobody foresaw while a job is taken in fails that job, and nothing
        else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the service would end with it, and the next one again
            self._log.error("job_broke", error=error, **log_fields(held))
            if (
                not self._ledger.add(held)
                and self._ledger.get(str(held.lease)) is not held
            ):
                return  # it runs already, and ends by itself
            self._ledger.mark_ending(held)
            ending = self.policy.for_internal_error(
                held.claimed, InternalError.of(error)
            )
            self._recorder.record(
                replace(ending, host=held.slot_host, trace_id=held.trace_id)
            )

    def _bring_to_door(self, held: InFlightJob) -> None:
        assert held.job is not None
        instead = self._doorman.admit(held, held.job, self._ledger.all)
        if instead is not None:
            self._end(held, instead)

    def summarize(self, *, now: bool = False) -> None:
        """Log how many malformed jobs had no line of their own, of each minute that is
        over; ``now``: of all."""
        for _, count in self._malformed.pop_counts(now=now):
            self._log.warning("jobs_malformed", count=count)

    def assign_waiting(self) -> None:
        """Give waiting jobs to workers with free slots."""
        self.summarize()
        waiting = [
            one for one in self._ledger.all() if one.worker_pid is None and one.is_idle
        ]
        wanted = [
            WaitingJob(str(one.lease), self.policy.is_quarantined(one.claimed))
            for one in waiting
        ]
        for ticket, pid in assign(wanted, self._pool.worker_slots()) if wanted else ():
            held, handle = self._ledger.get(ticket), self._pool.workers[pid]
            assert held is not None and held.job is not None
            try:
                handle.send(job_frame(held, held.job))
            except InternalError:
                message = "the job's URL, path and headers are too long together"
                self._end(
                    held,
                    self.policy.failure(held.claimed, held.job.url, "bad_job", message),
                )
                continue
            self._cleaner.record_start(
                cleanup_entry(held, held.job, None, has_failed=True)
            )
            held.worker_pid, held.assigned_at = pid, time.monotonic()
            handle.jobs.add(ticket)
            self._pool.count_assigned(handle)

    def count_quarantined(self) -> int:
        """How many jobs that must run alone are held."""
        return sum(
            not one.is_ending and self.policy.is_quarantined(one.claimed)
            for one in self._ledger.all()
        )

    # --- from workers ---

    def read_frames(self, handle: WorkerHandle) -> None:
        """Take what a worker has sent."""
        for frame in handle.frames():
            self._heard(handle, frame)

    def reap(self, handle: WorkerHandle, how: str) -> None:
        """A worker has died: its last words first, then its jobs go back at once."""
        self.read_frames(handle)
        for ticket in sorted(handle.jobs):
            held = self._ledger.get(ticket)
            if held is None or held.is_ending:
                continue
            if held.is_lost:
                self._ledger.remove(ticket)
            elif handle.hung_job not in (None, ticket):
                self._end(held, self.policy.for_bystander(held.claimed, how))
            elif held.job is not None:
                self._end(
                    held, self.policy.for_worker_death(held.claimed, held.job.url, how)
                )
        handle.jobs.clear()
        handle.finishing.clear()
        self._cleaner.reassign(handle)

    def _heard(self, handle: WorkerHandle, frame: Frame) -> None:
        if isinstance(frame, HelloFrame):
            self._pool.mark_ready(handle)
            self.needs_reconcile = True
        elif isinstance(frame, StatusFrame):
            self._meter.add_worker_counters(handle.counters.update(frame.counters))
            for ticket, progress in frame.jobs.items():
                if (held := self._ledger.get(ticket)) is not None:
                    held.progress = progress
                    held.missing_bytes = frame.missing_bytes.get(ticket, 0)
                    held.is_resumable = ticket not in frame.unresumable
        elif isinstance(frame, VerifiedFrame):
            self._verified(handle, frame.lease_id)
        elif isinstance(frame, EndedFrame):
            handle.jobs.discard(frame.lease_id)
            handle.finishing.discard(frame.lease_id)
            self._ended(frame)
        elif isinstance(frame, FinishingFrame):
            self._finishing(handle, frame.lease_id)
        elif isinstance(frame, HoldFrame):
            self._doorman.hold(frame.host, frame.seconds, is_ours=True)
        elif isinstance(frame, CleanedFrame):
            self._cleaner.confirm(handle, frame.job_ids)

    def _verified(self, handle: WorkerHandle, ticket: str) -> None:
        held = self._ledger.get(ticket)
        if held is None or held.is_lost:
            handle.send(LostFrame(ticket))
        else:
            self._recorder.check_fence(held.lease)

    def _finishing(self, handle: WorkerHandle, ticket: str) -> None:
        held = self._ledger.get(ticket)
        if held is not None and ticket in handle.jobs and not handle.is_quarantine:
            handle.finishing.add(ticket)
            self._ledger.mark_finishing(held)

    def _ended(self, frame: EndedFrame) -> None:
        held = self._ledger.get(frame.lease_id)
        if held is None or held.job is None or held.is_ending:
            return
        self._meter.observe_run(frame, time.monotonic() - held.assigned_at)
        if frame.path is not None and not is_path_implied(
            frame.path, held.job.save_path
        ):
            self._cleaner.record_start(
                cleanup_entry(held, held.job, frame.path, has_failed=True)
            )
        if is_refusal(frame):
            self._doorman.record_refusal(held, self._ledger.all)
        ending = (
            None
            if held.is_lost
            else self.policy.for_attempt(
                held.claimed, held.job, frame, held.requested_action, held.yield_reason
            )
        )
        if frame.attempt_result == "node_fault":
            self._on_fault()
            self.needs_reconcile = True
            self._log.warning(
                "node_fault",
                label=frame.label,
                reason=frame.message,
                **log_fields(held),
            )
        if ending is None:
            self._log.warning("job_lost", **log_fields(held))
            self._meter.count_lost()
            self._ledger.remove(frame.lease_id)
            return
        held.path, held.needs_cleanup, held.stack = (
            frame.path,
            frame.needs_cleanup,
            frame.stack,
        )
        self._end(held, ending)

    def _end(self, held: InFlightJob, ending: FinishRequest) -> None:
        host = ending.host if ending.disposition == "park" else self._left(held)
        ending = replace(ending, host=host, trace_id=held.trace_id)
        self._ledger.mark_ending(held)
        self._recorder.record(ending)

    def _left(self, held: InFlightJob) -> str:
        """The host that has room again; how the job ended stands, whatever goes wrong
        with that."""
        try:
            return self._doorman.released_host(held)
        except Exception as error:  # noqa: BLE001 - as above
            self._log.error("job_broke", error=error, **log_fields(held))
            return held.slot_host

    # --- from Redis ---

    def handle_fence_check(self, ticket: str, *, is_ours: bool) -> None:
        """Redis has said whether a verified job may be published."""
        if not is_ours:
            self.fence_off(ticket)
        elif (handle := self._worker_of(ticket)) is not None:
            handle.send(PublishFrame(ticket))

    def handle_host_slot(self, message: HostSlotDecided) -> None:
        """Redis has said whether the host of a job has a slot for it."""
        held = self._ledger.get(message.lease_id)
        if held is not None and held.is_at_door and not held.is_ending:
            instead = self._doorman.handle_answer(held, message.decision)
            if instead is not None:
                self._end(held, instead)

    def fence_off(self, ticket: str) -> None:
        """The job is another's by now: it ends here without a record."""
        held = self._ledger.get(ticket)
        if held is None or held.is_ending or held.is_lost:
            return
        held.is_lost = True
        handle = self._worker_of(ticket)
        if handle is None:
            self._ledger.remove(ticket)
        else:
            handle.send(LostFrame(ticket))

    def request_stop(self, ticket: str, action: str) -> None:
        """An operator wants a job cancelled or paused; may be called again and
        again."""
        held = self._ledger.get(ticket)
        if (
            held is None
            or held.is_ending
            or held.is_lost
            or held.requested_action in (action, "cancel")
            or held.job is None
        ):
            return
        held.requested_action = action
        handle = self._worker_of(ticket)
        if handle is not None:
            handle.send(CancelFrame(ticket, f"an operator asked to {action} it"))
        elif held.worker_pid is None:
            self._end(
                held, self.policy.for_stop_request(held.claimed, held.job.url, action)
            )

    def yield_slot(self, ticket: str, reason: str) -> None:
        """A job is to give its slot to others: it is checkpointed and goes back to the
        queue."""
        held, handle = self._ledger.get(ticket), self._worker_of(ticket)
        if (
            held is None
            or handle is None
            or held.is_ending
            or held.is_lost
            or held.requested_action
            or held.yield_reason
        ):
            return
        held.yield_reason = reason
        self._log.info("job_yielding", label=reason, **log_fields(held))
        handle.send(CancelFrame(ticket, "jobs of others wait for its slot"))

    def handle_recorded(self, message: ResultRecorded) -> None:
        """Redis knows how a job ended."""
        ending, ticket = message.finish, str(message.finish.lease)
        held = self._ledger.get(ticket)
        if held is not None and message.reply == "LEADS":
            self._ledger.mark_ending(held, is_ending=False)
            with self._each_alone(held):
                self._bring_to_door(held)
            return
        self._meter.count_result(ending, message.reply)
        if held is None:  # an earlier start had spooled it
            return
        self._ledger.remove(ticket)
        if held.job is not None or self._malformed.allow("malformed"):
            log_disposition(self._log, held, ending, message.reply)
        if message.reply not in DISOWNED:
            self._hooks.schedule(held, ending)
        if (
            held.job is not None
            and ending.disposition in ENDS
            and message.reply != "FENCED"
        ):
            ended = cleanup_entry(
                held, held.job, held.path, has_failed=ending.disposition != "success"
            )
            if held.needs_cleanup or ended.has_failed:
                self._cleaner.enqueue([ended], held.worker_pid or 0)
            else:
                self._cleaner.forget([ended])

    # --- the end ---

    def release_waiting(self, reason: str) -> None:
        """Give back what no worker has begun."""
        for held in self._ledger.all():
            if held.worker_pid is None and not held.is_ending:
                self._end(
                    held,
                    FinishRequest(
                        held.lease,
                        "release",
                        note={"label": "released", "message": reason},
                    ),
                )

    def cancel_running(self, reason: str) -> None:
        """Have running jobs checkpointed and given back."""
        for held in self._ledger.all():
            handle = self._worker_of(str(held.lease))
            if handle is not None and not held.is_ending:
                handle.send(CancelFrame(str(held.lease), reason))

    def _worker_of(self, ticket: str) -> WorkerHandle | None:
        held = self._ledger.get(ticket)
        if held is None or held.worker_pid is None:
            return None
        handle = self._pool.workers.get(held.worker_pid)
        return handle if handle is not None and ticket in handle.jobs else None
