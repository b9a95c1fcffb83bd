"""The admission of jobs at origin hosts: jobs of hosts without capacity are
throttled."""

from __future__ import annotations

from dlpool.jobs.host_slots import SlotReply
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.host_concurrency import HostConcurrency
from dlpool.service.host_limits import HostLimits
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import HostHeld, HostSlotRequest
from dlpool.service.queue.recording import ResultRecorder
from dlpool.service.wire.frames import HoldFrame

# a job is not throttled for a shorter hold of its host; its worker waits
MAX_HOLD_S = 1.0
# until a throttled job tries again, even if Redis reports no free slot
NO_SLOT_DELAY_S = 5.0


class HostAdmission:
    """The rules that decide whether jobs may start at their hosts: by the holds, the
    configured limits and the adaptive limits of the hosts.

    Used by the main thread only.
    """

    def __init__(
        self,
        in_flight: InFlightTable,
        limits: HostLimits,
        concurrency: HostConcurrency,
        recorder: ResultRecorder,
        pool: WorkerPool,
        log: Logger,
    ) -> None:
        self._in_flight = in_flight
        self.limits = limits
        self.concurrency = concurrency
        self._recorder = recorder
        self._pool = pool
        self._log = log

    def admit(self, held: InFlightJob, job: PushedJob) -> FinishRequest | None:
        """Return the request that throttles a new job, None if the job may continue.

        If the job may continue and its host has configured limits, ask Redis for a
        slot. ``handle_answer`` gets the answer and decides whether to throttle the job.
        """
        hold_s, host = self.limits.hold_remaining_s(job.url), held.authority
        is_reserved = held.claimed.is_start_reserved
        if hold_s > MAX_HOLD_S:
            return throttled(held, host, hold_s, is_start_reserved=is_reserved)
        if not self.concurrency.has_free_slot(host, lambda: self._count_at(host) - 1):
            return throttled(
                held,
                host,
                NO_SLOT_DELAY_S,
                is_start_reserved=is_reserved,
                waits_for_slot=True,
            )
        limit = self.limits.limit(job.url)
        if limit is not None:
            held.slot_host = limit.host
            self._in_flight.set_phase(held, InFlightPhase.AWAITING_HOST_SLOT)
            self._recorder.request_host_slot(
                HostSlotRequest(held.lease, limit, is_reserved)
            )
        return None

    def handle_answer(
        self, held: InFlightJob, answer: SlotReply
    ) -> FinishRequest | None:
        """Handle the answer of Redis to a job's request for a slot of its host.

        If the job has got a slot, let it wait for a worker and return None. Otherwise
        return the request that throttles the job.
        """
        self._in_flight.set_phase(held, InFlightPhase.WAITING)
        if answer.problem is not None:
            self._log.warning(
                "host_slot_unknown", host=held.slot_host, reason=answer.problem
            )
        if answer.wait_s == 0:
            return None
        host, held.slot_host = held.slot_host, ""
        delay_s = NO_SLOT_DELAY_S if answer.wait_s is None else answer.wait_s
        return throttled(
            held,
            host,
            delay_s,
            is_start_reserved=answer.is_start_reserved,
            waits_for_slot=answer.wait_s is None,
        )

    def record_refusal(self, held: InFlightJob) -> None:
        """Record that a host has refused a job or could not be reached."""
        self.concurrency.record_refusal(
            held.authority, lambda: self._count_at(held.authority)
        )

    def released_host(self, held: InFlightJob) -> str:
        """Return the host at which a slot becomes free when this job leaves.

        Return '' if the host has no limit, because no job waits for a slot of the host.
        """
        if held.slot_host or held.job is None:
            return held.slot_host
        return held.authority if self.concurrency.is_limited(held.authority) else ""

    def hold(self, host: str, seconds: float, *, is_ours: bool) -> None:
        """Let this node send no requests to a host for ``seconds``, and tell all its
        workers.

        ``is_ours``: a worker of this node has reported the hold; tell the other nodes
        as well.
        """
        if not self.limits.hold(host, seconds):
            return
        self._pool.broadcast(HoldFrame(host, seconds))
        if is_ours:
            self._recorder.hold_host(HostHeld(host, seconds))
        self._log.info("host_held", host=host, seconds=seconds, is_ours=is_ours)

    def _count_at(self, host: str) -> int:
        """Return how many jobs of a host are waiting or running."""
        return sum(
            not one.is_recording and one.job is not None and one.authority == host
            for one in self._in_flight.all()
        )


def throttled(
    held: InFlightJob,
    host: str,
    delay_s: float,
    *,
    is_start_reserved: bool,
    waits_for_slot: bool = False,
) -> FinishRequest:
    """Return the request that delays a job because of its host.

    ``is_start_reserved``: the rate limit of the host has already counted the start of
    the job. ``waits_for_slot``: the delay ends early if a slot of the host becomes
    free.
    """
    return FinishRequest(
        held.lease,
        Disposition.THROTTLE,
        note={"label": "host_limit", "message": f"requests to {host} are limited"},
        delay_s=max(0.001, delay_s),
        host=host,
        is_start_reserved=is_start_reserved,
        waits_for_slot=waits_for_slot,
    )
