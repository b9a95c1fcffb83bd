"""Lets jobs begin that their hosts have room for; the others are parked, and give their
places to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlpool.jobs.host_slots import SlotReply
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.host_concurrency import HostConcurrency
from dlpool.service.host_limits import HostLimits
from dlpool.service.inflight import InFlightJob
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import HostHeld, HostSlotRequest
from dlpool.service.queue.recording import ResultRecorder
from dlpool.service.wire.frames import HoldFrame

PATIENCE_S = 1.0  # a host that may be asked so soon is waited for
# until a parked job tries again by itself: a slot may have become free with nobody to
# say so
FULL_S = 5.0


class HostAdmission:
    """Used by the main thread only."""

    def __init__(
        self,
        hosts: HostLimits,
        of_hosts: HostConcurrency,
        recorder: ResultRecorder,
        pool: WorkerPool,
        log: Logger,
    ) -> None:
        self.hosts = hosts
        self.concurrency = of_hosts
        self._recorder = recorder
        self._pool = pool
        self._log = log

    def admit(
        self,
        held: InFlightJob,
        job: PushedJob,
        all_held: Callable[[], Iterable[InFlightJob]],
    ) -> FinishRequest | None:
        """What becomes of a new job whose host does not want to be asked; else it may
        have to wait for a slot."""
        wait_s, host = self.hosts.hold_remaining_s(job.url), held.authority
        if wait_s > PATIENCE_S:
            return throttled(held, host, wait_s, is_paid=held.claimed.is_start_reserved)
        if not self.concurrency.has_free_slot(host, lambda: _at(host, all_held()) - 1):
            return throttled(
                held,
                host,
                FULL_S,
                is_paid=held.claimed.is_start_reserved,
                is_for_slot=True,
            )
        limit = self.hosts.limit(job.url)
        if limit is not None:
            held.slot_host, held.is_at_door = limit.host, True
            self._recorder.request_host_slot(
                HostSlotRequest(held.lease, limit, held.claimed.is_start_reserved)
            )
        return None

    def record_refusal(
        self, held: InFlightJob, all_held: Callable[[], Iterable[InFlightJob]]
    ) -> None:
        """A host has turned a job of ours away, or could not be reached."""
        self.concurrency.record_refusal(
            held.authority, lambda: _at(held.authority, all_held())
        )

    def released_host(self, held: InFlightJob) -> str:
        """The host for which others may wait in vain no longer when this job has ended,
        or ''."""
        if held.slot_host or held.job is None:
            return held.slot_host
        return held.authority if self.concurrency.is_limited(held.authority) else ""

    def handle_answer(
        self, held: InFlightJob, place: SlotReply
    ) -> FinishRequest | None:
        """Redis has said whether there is a slot: None, or what becomes of the job
        instead."""
        held.is_at_door = False
        if place.problem is not None:
            self._log.warning(
                "host_slot_unknown", host=held.slot_host, reason=place.problem
            )
        if place.wait_s == 0:
            return None
        host, held.slot_host = held.slot_host, ""
        delay_s = FULL_S if place.wait_s is None else place.wait_s
        return throttled(
            held,
            host,
            delay_s,
            is_paid=place.is_start_reserved,
            is_for_slot=place.wait_s is None,
        )

    def hold(self, host: str, seconds: float, *, is_ours: bool) -> None:
        """A host does not want to be asked for a while: all workers hear of it, and if
        it is ours, all nodes."""
        if not self.hosts.hold(host, seconds):
            return
        self._pool.broadcast(HoldFrame(host, seconds))
        if is_ours:
            self._recorder.hold_host(HostHeld(host, seconds))
        self._log.info("host_held", host=host, seconds=seconds, is_ours=is_ours)


def _at(host: str, all_held: Iterable[InFlightJob]) -> int:
    """How many jobs of a host are held and have not ended."""
    return sum(
        not one.is_ending and one.job is not None and one.authority == host
        for one in all_held
    )


def throttled(
    held: InFlightJob,
    host: str,
    delay_s: float,
    *,
    is_paid: bool,
    is_for_slot: bool = False,
) -> FinishRequest:
    """The transition for a job that has to wait for its host."""
    note = {"label": "host_limit", "message": f"{host} has to be asked later"}
    return FinishRequest(
        held.lease,
        "park",
        note=note,
        delay_s=max(0.001, delay_s),
        host=host,
        is_start_reserved=is_paid,
        waits_for_slot=is_for_slot,
    )
