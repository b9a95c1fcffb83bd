"""The record thread: tells Redis how jobs ended, asks whether fences stand, and for
slots of hosts. Nothing is lost.

While Redis is away final outcomes are spooled; what cannot be told stays in line, in
order.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace

from dlpool.errors import LocalFault, QueueAway, QueueError, QueueRefused
from dlpool.jobs.host_slots import HostSlots
from dlpool.jobs.outbox import Delivery
from dlpool.jobs.transitions import FinishRequest, JobLease, Transitions
from dlpool.observe.log import Logger
from dlpool.service.queue.messages import (
    FenceChecked,
    HostHeld,
    HostSlotDecided,
    HostSlotRequest,
    Message,
    ResultRecorded,
)
from dlpool.service.queue.redis_state import Backoff, CallSpacing, RedisState
from dlpool.service.queue.spool import Spool

AT_ONCE = 64  # in one round trip
APART_S = 0.02  # two round trips, so that one tells of several jobs
LOOK_S = 0.5
RETRY_MAX_S = 1.0  # what comes meanwhile is not on disk yet


Told = FinishRequest | JobLease | HostSlotRequest | HostHeld


class ResultRecorder:
    """``end``, ``ask``, ``wish`` and ``hold`` from the main thread, ``serve`` is the
    thread."""

    def __init__(
        self,
        transitions: Transitions,
        sid: str,
        lease_s: float,
        spool: Spool,
        link: RedisState,
        log: Logger,
        post: Callable[[Message], None],
    ) -> None:
        self._transitions = transitions
        self._sid = sid
        self._lease_s = lease_s
        self._spool = spool
        self._link = link
        self._log = log
        self._post = post
        self._slots = HostSlots(transitions)
        self._line: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._backoff = Backoff(link.stopping, RETRY_MAX_S)
        self._pace = CallSpacing(APART_S)

    def record(self, ending: FinishRequest) -> None:
        """Tell Redis; the answer comes as Recorded."""
        self._line.put(ending)

    def check_fence(self, ticket: JobLease) -> None:
        """Ask whether the job is still ours; the answer comes as Stands."""
        self._line.put(ticket)

    def request_host_slot(self, wish: HostSlotRequest) -> None:
        """Ask for a slot of a host; the answer comes as Placed."""
        self._line.put(wish)

    def hold_host(self, hold: HostHeld) -> None:
        """Tell the fleet that a host does not want to be asked."""
        self._line.put(hold)

    def serve(self) -> None:
        """Until all stop; what is in line then is spooled."""
        pending: list[Told] = []
        while self._link.keep_running():
            pending += self._take(wait=not pending)
            try:
                self._tell(pending)
                self._backoff.reset()
            except QueueError as error:
                self._link.report_failure(error)
                self._keep(pending)
                self._backoff.wait()
        self._keep([*pending, *self._take(wait=False)])

    def _take(self, *, wait: bool) -> list[Told]:
        taken: list[Told] = []
        try:
            if wait:
                taken.append(self._line.get(timeout=LOOK_S))
                self._pace.wait()
            while True:
                taken.append(self._line.get_nowait())
        except queue.Empty:
            pass
        return taken

    def _tell(self, pending: list[Told]) -> None:
        """Empty ``pending``, as far as Redis answers. Questions first: they hold a
        finished file back."""
        pending.sort(key=lambda one: isinstance(one, FinishRequest))
        while pending:
            told = pending[:AT_ONCE]
            self._tell_some(told)
            self._link.liveness.mark_alive()
            del pending[: len(told)]

    def _tell_some(self, pending: Sequence[Told]) -> None:
        for one in pending:
            if isinstance(one, HostSlotRequest):
                place = self._slots.acquire(
                    one.limit,
                    one.lease.job_id,
                    lease_s=self._lease_s,
                    is_start_reserved=one.has_start_token,
                )
                self._post(HostSlotDecided(str(one.lease), place))
            elif isinstance(one, HostHeld):
                self._transitions.hold_host(one.host, one.duration_s)
        tickets = [one for one in pending if isinstance(one, JobLease)]
        if tickets:
            beat = self._transitions.heartbeat(
                self._sid, [(ticket, "") for ticket in tickets], lease_s=self._lease_s
            )
            for ticket, verdict in zip(tickets, beat.replies, strict=True):
                self._post(FenceChecked(str(ticket), verdict != "LOST"))
        endings = [one for one in pending if isinstance(one, FinishRequest)]
        if not endings:
            return
        for ending in endings:
            if (
                ending.host and ending.disposition != "park"
            ):  # before the end, which lets the next one go on
                self._slots.release(ending.host, ending.lease.job_id)
        for ending, reply in zip(
            endings,
            finish_jobs(self._transitions, self._sid, endings, self._log),
            strict=True,
        ):
            self._spool.remove(ending.lease)
            self._post(ResultRecorded(ending, reply))

    def _keep(self, pending: Sequence[Told]) -> None:
        for ending in pending:
            if not isinstance(ending, FinishRequest):
                continue
            self._link.liveness.mark_alive()
            try:
                self._spool.store(self._sid, ending)
            except LocalFault as error:
                self._log.error(
                    "outcome_not_spooled",
                    job_id=ending.lease.job_id,
                    trace_id=ending.trace_id,
                    error=error,
                )


def finish_jobs(
    transitions: Transitions, sid: str, endings: Sequence[FinishRequest], logger: Logger
) -> list[str]:
    """What Redis answers to these endings, once clients can see their records. Raises
    QueueAway, QueueRefused.

    A record that Redis does not take (its key holds another type) does not keep the
    others waiting; in a Cluster also one whose node is away does not, it is in the
    outbox.
    """
    try:
        replies = transitions.finish(sid, endings)
    except (QueueAway, QueueRefused):
        raise
    except QueueError:
        replies = [
            _finished_alone(transitions, sid, ending, logger) for ending in endings
        ]
    if transitions.outbox is not None:
        log_refused_records(
            transitions.outbox.deliver(
                [str(ending.lease) for ending in endings if ending.record]
            ),
            logger,
        )
    return replies


def log_refused_records(delivery: Delivery, logger: Logger) -> None:
    """A line for each record of an outbox that Redis will never take."""
    for ticket, reason in delivery.refused:
        logger.error("record_refused", job_id=ticket.rpartition(".")[0], error=reason)


def _finished_alone(
    transitions: Transitions, sid: str, ending: FinishRequest, logger: Logger
) -> str:
    try:
        return transitions.finish(sid, [ending])[0]
    except (QueueAway, QueueRefused):
        raise
    except QueueError as error:
        logger.error(  # noqa: TRY400 - the stack trace does not help
            "record_refused",
            job_id=ending.lease.job_id,
            trace_id=ending.trace_id,
            error=error,
        )
        note = ending.note | {"record_refused": str(error)}
        return transitions.finish(sid, [replace(ending, record=None, note=note)])[0]
