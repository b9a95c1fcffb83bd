"""The dispatcher, which moves jobs from their claim to the record of their result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.errors import InternalError
from dlpool.jobs.states import TERMINAL_DISPOSITIONS, Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest
from dlpool.observe.log import Logger
from dlpool.observe.log_limiter import LogLimiter
from dlpool.service.assignment import JobAssigner
from dlpool.service.cleanup import CleanupDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.hooks.runner import HookRunner
from dlpool.service.host_admission import HostAdmission
from dlpool.service.host_limits import authority_of
from dlpool.service.inflight import (
    InFlightJob,
    InFlightPhase,
    InFlightTable,
    cleanup_entry,
    is_path_implied,
)
from dlpool.service.job_log import (
    LEASE_LOST_REPLIES,
    log_disposition,
    log_fields,
    trace_id_of,
)
from dlpool.service.monitor.metrics_collector import MetricsCollector
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import HostSlotAnswered, ResultRecorded
from dlpool.service.queue.recording import ResultRecorder
from dlpool.service.scheduling import WaitingJob
from dlpool.service.slots import is_refusal
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    EndedFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    LostFrame,
    PublishFrame,
    StatusFrame,
    VerifiedFrame,
)
from dlpool.service.wire.results import AttemptResult
from dlpool.service.worker_handle import WorkerHandle

NO_SLOT = "no slot of the node became free"
MALFORMED_PER_MINUTE = 20  # log lines: a client that pushes many must not fill the log


@dataclass(frozen=True)
class DispatcherServices:
    """The services that a dispatcher uses.

    ``on_node_fault`` is called when a job has met a fault of the node.
    """

    in_flight: InFlightTable
    pool: WorkerPool
    recorder: ResultRecorder
    cleanup: CleanupDispatcher
    hooks: HookRunner
    host_admission: HostAdmission
    collector: MetricsCollector
    log: Logger
    on_node_fault: Callable[[], None]


class JobDispatcher:
    """The dispatcher, which moves jobs through the phases of the in-flight table.

    Used by the main thread only. It is safe to call a method twice for the same job.
    """

    def __init__(self, services: DispatcherServices, policy: DispositionPolicy) -> None:
        self.policy = policy
        # something has changed that the worker pool and the capacity depend on
        self.needs_reconcile = True
        self._in_flight = services.in_flight
        self._pool = services.pool
        self._recorder = services.recorder
        self._cleanup = services.cleanup
        self._assigner = JobAssigner(
            services.in_flight, services.pool, services.cleanup
        )
        self._hooks = services.hooks
        self._host_admission = services.host_admission
        self._collector = services.collector
        self._log = services.log
        self._on_node_fault = services.on_node_fault
        self._malformed = LogLimiter(MALFORMED_PER_MINUTE)
        self._frame_handlers: Mapping[
            type[Frame], Callable[[WorkerHandle, Any], None]
        ] = {
            HelloFrame: self._handle_hello,
            StatusFrame: self._handle_status,
            VerifiedFrame: self._handle_verified,
            EndedFrame: self._handle_ended,
            HoldFrame: self._handle_hold,
            CleanedFrame: self._handle_cleaned,
        }

    # --- claimed jobs ---

    def accept(self, claimed: ClaimedJob, leased_until: float) -> None:
        """Add a claimed job to the table. If the policy does not let the job run now,
        finish the job at once."""
        held = InFlightJob(
            claimed,
            leased_until,
            trace_id=trace_id_of(claimed.lease.job_id, None),
            assigned_at=time.monotonic(),
        )
        with self._failing_only(held):
            held.job, request = self.policy.admit(claimed)
            held.trace_id = trace_id_of(claimed.lease.job_id, held.job)
            held.authority = authority_of(held.job.url) if held.job is not None else ""
            if not self._in_flight.add(held):
                return
            if request is not None:
                self._finish(held, request)
            else:
                self._admit_at_host(held)
        # it may need a quarantine worker
        self.needs_reconcile = self.needs_reconcile or claimed.crashes > 0

    @contextmanager
    def _failing_only(self, held: InFlightJob) -> Iterator[None]:
        """If the block raises an error, fail only this job: the service continues."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it would stop the service
            self._log.error("job_internal_error", error=error, **log_fields(held))
            if (
                not self._in_flight.add(held)
                and self._in_flight.get(str(held.lease)) is not held
            ):
                return  # an earlier claim of the job runs already and is not affected
            self._in_flight.set_phase(held, InFlightPhase.RECORDING)
            request = self.policy.for_internal_error(
                held.claimed, InternalError.of(error)
            )
            request = replace(request, host=held.slot_host, trace_id=held.trace_id)
            self._recorder.record(request)

    def _admit_at_host(self, held: InFlightJob) -> None:
        assert held.job is not None
        request = self._host_admission.admit(held, held.job)
        if request is not None:
            self._finish(held, request)

    def summarize(self, *, now: bool = False) -> None:
        """Log for each minute how many malformed jobs got no log line of their own.

        ``now``: include the current minute.
        """
        for _, count in self._malformed.pop_counts(now=now):
            self._log.warning("jobs_malformed", count=count)

    def assign_waiting(self) -> None:
        """Send waiting jobs to workers that have a free slot or soon will have one."""
        self.summarize()
        waiting = [
            WaitingJob(str(one.lease), self.policy.is_quarantined(one.claimed))
            for one in self._in_flight.all()
            if one.phase is InFlightPhase.WAITING
        ]
        if not waiting:
            return
        for held in self._assigner.assign(waiting):
            assert held.job is not None
            message = "the job's URL, path and headers are too long together"
            self._finish(
                held,
                self.policy.failure(held.claimed, held.job.url, "bad_job", message),
            )

    def count_quarantined(self) -> int:
        """Return the number of waiting and running jobs that need a worker without
        other jobs."""
        return sum(
            not one.is_recording and self.policy.is_quarantined(one.claimed)
            for one in self._in_flight.all()
        )

    # --- frames from workers ---

    def read_frames(self, worker: WorkerHandle) -> None:
        """Read and handle all frames that a worker has sent."""
        for frame in worker.frames():
            self._frame_handlers[type(frame)](worker, frame)

    def reap(self, worker: WorkerHandle, how: str) -> None:
        """Handle the last frames of a dead worker, then requeue or fail its jobs.

        ``how``: how the worker died.
        """
        self.read_frames(worker)
        for lease_id in sorted(worker.jobs):
            held = self._in_flight.get(lease_id)
            if held is None or held.is_recording:
                continue
            if held.is_fenced_off:
                self._in_flight.remove(lease_id)
            elif lease_id in worker.ahead:
                message = f"its worker died before the job began: {how}"
                self._finish(held, self.policy.for_release(held.claimed, message))
            elif worker.hung_job not in (None, lease_id):
                message = f"another job hung the worker: {how}"
                self._finish(held, self.policy.for_release(held.claimed, message))
            elif held.job is not None:
                self._finish(
                    held, self.policy.for_worker_death(held.claimed, held.job.url, how)
                )
        worker.jobs.clear()
        worker.ahead.clear()
        self._cleanup.reassign(worker)

    def _handle_hello(self, worker: WorkerHandle, _: HelloFrame) -> None:
        self._pool.mark_ready(worker)
        self.needs_reconcile = True

    def _handle_status(self, worker: WorkerHandle, frame: StatusFrame) -> None:
        self._collector.add_worker_counters(worker.counters.update(frame.counters))
        for lease_id, progress in frame.jobs.items():
            if (held := self._in_flight.get(lease_id)) is not None:
                held.progress = progress
                held.missing_bytes = frame.missing_bytes.get(lease_id, 0)
                held.is_resumable = lease_id not in frame.unresumable

    def _handle_verified(self, worker: WorkerHandle, frame: VerifiedFrame) -> None:
        held = self._in_flight.get(frame.lease_id)
        if held is None or held.is_fenced_off:
            worker.send(LostFrame(frame.lease_id))
        else:
            self._recorder.check_fence(held.lease)

    def _handle_ended(self, worker: WorkerHandle, frame: EndedFrame) -> None:
        self._assigner.end(worker, frame.lease_id)
        held = self._in_flight.get(frame.lease_id)
        if held is None or held.job is None or held.is_recording:
            return
        self._collector.observe_run(frame, time.monotonic() - held.assigned_at)
        if frame.path is not None and not is_path_implied(
            frame.path, held.job.save_path
        ):
            self._cleanup.record_start(
                cleanup_entry(held, held.job, frame.path, has_failed=True)
            )
        if is_refusal(frame):
            self._host_admission.record_refusal(held)
        if frame.attempt_result is AttemptResult.NODE_FAULT:
            self._on_node_fault()
            self.needs_reconcile = True
            self._log.warning(
                "node_fault",
                label=frame.label,
                reason=frame.message,
                **log_fields(held),
            )
        self._decide(held, frame)

    def _handle_hold(self, _: WorkerHandle, frame: HoldFrame) -> None:
        self._host_admission.hold(frame.host, frame.seconds, is_ours=True)

    def _handle_cleaned(self, worker: WorkerHandle, frame: CleanedFrame) -> None:
        self._cleanup.confirm(worker, frame.job_ids)

    def _decide(self, held: InFlightJob, frame: EndedFrame) -> None:
        """Finish the job as the policy decides.

        If another supervisor holds the lease, remove the job from the table instead.
        """
        assert held.job is not None
        request = None
        if not held.is_fenced_off:
            request = self.policy.for_attempt(
                held.claimed, held.job, frame, held.requested_action, held.yield_reason
            )
        if request is None:
            self._log.warning("job_lost", **log_fields(held))
            self._collector.count_lost()
            self._in_flight.remove(frame.lease_id)
            return
        held.path, held.stack = frame.path, frame.stack
        held.needs_cleanup = frame.needs_cleanup
        self._finish(held, request)

    def _finish(self, held: InFlightJob, request: FinishRequest) -> None:
        """Free the slot of a job and have Redis record its disposition."""
        is_throttled = request.disposition is Disposition.THROTTLE
        host = request.host if is_throttled else self._released_host(held)
        self._in_flight.set_phase(held, InFlightPhase.RECORDING)
        self._recorder.record(replace(request, host=host, trace_id=held.trace_id))

    def _released_host(self, held: InFlightJob) -> str:
        """Return the host whose slot the job frees.

        Log an unexpected error instead of raising it: the disposition must not change.
        """
        try:
            return self._host_admission.released_host(held)
        except Exception as error:  # noqa: BLE001 - see _failing_only
            self._log.error("job_internal_error", error=error, **log_fields(held))
            return held.slot_host

    # --- messages from the queue threads ---

    def handle_fence_check(self, lease_id: str, *, is_ours: bool) -> None:
        """If the lease ``is_ours``, let the job publish its file; otherwise fence the
        job off."""
        if not is_ours:
            self.fence_off(lease_id)
        elif (worker := self._worker_of(lease_id)) is not None:
            worker.send(PublishFrame(lease_id))

    def handle_host_slot(self, message: HostSlotAnswered) -> None:
        """If the job has got a slot of its host, queue the job for a worker. Otherwise
        throttle the job."""
        held = self._in_flight.get(message.lease_id)
        if held is not None and held.phase is InFlightPhase.AWAITING_HOST_SLOT:
            request = self._host_admission.handle_answer(held, message.answer)
            if request is not None:
                self._finish(held, request)

    def fence_off(self, lease_id: str) -> None:
        """Stop a job whose lease another supervisor holds, and discard the result of
        the job."""
        held = self._in_flight.get(lease_id)
        if held is None or held.is_recording or held.is_fenced_off:
            return
        worker = self._worker_of(lease_id)
        if worker is None:
            self._in_flight.remove(lease_id)
        else:
            self._in_flight.set_phase(held, InFlightPhase.FENCED_OFF)
            worker.send(LostFrame(lease_id))

    def request_stop(self, lease_id: str, action: str) -> None:
        """Cancel or pause a job for an operator; ``action`` is ``cancel`` or
        ``pause``."""
        held = self._in_flight.get(lease_id)
        if (
            held is None
            or held.job is None
            or held.requested_action in (action, "cancel")
        ):
            return
        if held.is_recording or held.is_fenced_off:
            return
        held.requested_action = action
        worker = self._worker_of(lease_id)
        if worker is not None:
            worker.send(
                CancelFrame(lease_id, f"an operator requested to {action} the job")
            )
        elif held.worker_pid is None:
            self._finish(
                held, self.policy.for_stop_request(held.claimed, held.job.url, action)
            )

    def yield_slot(self, lease_id: str, reason: str) -> None:
        """Have a running job save a checkpoint and return to the queue."""
        held, worker = self._in_flight.get(lease_id), self._worker_of(lease_id)
        if held is None or worker is None or held.requested_action or held.yield_reason:
            return
        if held.is_recording or held.is_fenced_off:
            return
        held.yield_reason = reason
        self._log.info("job_yielding", label=reason, **log_fields(held))
        worker.send(CancelFrame(lease_id, "the job yields its slot to waiting jobs"))

    def handle_recorded(self, message: ResultRecorded) -> None:
        """Remove a job whose disposition Redis has recorded, and clean up after the
        job.

        If the reply is ``LEADS``, the job does not follow an equal job: let it run
        instead.
        """
        request, lease_id = message.request, str(message.request.lease)
        held = self._in_flight.get(lease_id)
        if held is not None and message.reply == "LEADS":
            self._in_flight.set_phase(held, InFlightPhase.WAITING)
            with self._failing_only(held):
                self._admit_at_host(held)
            return
        self._collector.count_result(request, message.reply)
        if held is None:  # an earlier run of this supervisor had spooled it
            return
        self._in_flight.remove(lease_id)
        if held.job is not None or self._malformed.allow("malformed"):
            log_disposition(self._log, held, request, message.reply)
        if message.reply not in LEASE_LOST_REPLIES:
            self._hooks.schedule(held, request)
        if (
            held.job is not None
            and request.disposition in TERMINAL_DISPOSITIONS
            and message.reply != "FENCED"
        ):
            has_failed = request.disposition is not Disposition.SUCCEED
            entry = cleanup_entry(held, held.job, held.path, has_failed=has_failed)
            if held.needs_cleanup or has_failed:
                self._cleanup.enqueue([entry], held.worker_pid or 0)
            else:
                self._cleanup.forget([entry])

    # --- drain ---

    def recall_overdue(self) -> None:
        """Requeue the jobs that were claimed ahead and wait too long for a slot: other
        nodes may have free slots."""
        self._assigner.recall()
        for held in self._assigner.surplus():
            self._finish(held, self.policy.for_release(held.claimed, NO_SLOT))

    def release_waiting(self, reason: str) -> None:
        """Requeue the jobs that have not begun."""
        self._assigner.recall(at_once=True)
        for held in self._in_flight.all():
            if held.worker_pid is None and not held.is_recording:
                self._finish(held, self.policy.for_release(held.claimed, reason))

    def cancel_running(self, reason: str) -> None:
        """Have running jobs save a checkpoint, stop and return to the queue."""
        for held in self._in_flight.all():
            worker = self._worker_of(str(held.lease))
            if worker is not None and not held.is_recording:
                worker.send(CancelFrame(str(held.lease), reason))

    def _worker_of(self, lease_id: str) -> WorkerHandle | None:
        held = self._in_flight.get(lease_id)
        if held is None or held.worker_pid is None:
            return None
        worker = self._pool.workers.get(held.worker_pid)
        return worker if worker is not None and lease_id in worker.jobs else None
