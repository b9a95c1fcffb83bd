"""The record thread: tells Redis how jobs ended, asks whether fences stand, and for slots of hosts. Nothing is lost.

While Redis is away final outcomes are spooled; what cannot be told stays in line, in order.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import replace

from dlpool.errors import LocalFault, QueueAway, QueueError, QueueRefused
from dlpool.jobs.hostslots import HostSlots
from dlpool.jobs.outbox import Delivery
from dlpool.jobs.transitions import Finish, Ticket, Transitions
from dlpool.observe.log import Logger
from dlpool.service.queue.link import Backoff, Link, Pace
from dlpool.service.queue.messages import Hold, Message, Placed, Recorded, Stands, Wish
from dlpool.service.queue.spool import Spool

AT_ONCE = 64  # in one round trip
APART_S = 0.02  # two round trips, so that one tells of several jobs
LOOK_S = 0.5
RETRY_MAX_S = 1.0  # what comes meanwhile is not on disk yet


Told = Finish | Ticket | Wish | Hold


class Recorder:
    """``end``, ``ask``, ``wish`` and ``hold`` from the main thread, ``serve`` is the thread."""

    def __init__(
        self,
        transitions: Transitions,
        sid: str,
        lease_s: float,
        spool: Spool,
        link: Link,
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
        self._pace = Pace(APART_S)

    def end(self, ending: Finish) -> None:
        """Tell Redis; the answer comes as Recorded."""
        self._line.put(ending)

    def ask(self, ticket: Ticket) -> None:
        """Ask whether the job is still ours; the answer comes as Stands."""
        self._line.put(ticket)

    def wish(self, wish: Wish) -> None:
        """Ask for a slot of a host; the answer comes as Placed."""
        self._line.put(wish)

    def hold(self, hold: Hold) -> None:
        """Tell the fleet that a host does not want to be asked."""
        self._line.put(hold)

    def serve(self) -> None:
        """Until all stop; what is in line then is spooled."""
        pending: list[Told] = []
        while self._link.goes_on():
            pending += self._take(wait=not pending)
            try:
                self._tell(pending)
                self._backoff.reset()
            except QueueError as error:
                self._link.lost(error)
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
        """Empty ``pending``, as far as Redis answers. Questions first: they hold a finished file back."""
        pending.sort(key=lambda one: isinstance(one, Finish))
        while pending:
            told = pending[:AT_ONCE]
            self._tell_some(told)
            self._link.pulse.sign()
            del pending[: len(told)]

    def _tell_some(self, pending: Sequence[Told]) -> None:
        for one in pending:
            if isinstance(one, Wish):
                place = self._slots.take(one.limit, one.ticket.id, lease_s=self._lease_s, is_paid=one.is_paid)
                self._post(Placed(str(one.ticket), place))
            elif isinstance(one, Hold):
                self._transitions.hold(one.host, one.seconds)
        tickets = [one for one in pending if isinstance(one, Ticket)]
        if tickets:
            beat = self._transitions.beat(self._sid, [(ticket, "") for ticket in tickets], lease_s=self._lease_s)
            for ticket, verdict in zip(tickets, beat.verdicts, strict=True):
                self._post(Stands(str(ticket), verdict != "LOST"))
        endings = [one for one in pending if isinstance(one, Finish)]
        if not endings:
            return
        for ending in endings:
            if ending.host and ending.outcome != "park":  # before the end, which lets the next one go on
                self._slots.free(ending.host, ending.ticket.id)
        for ending, reply in zip(endings, finished(self._transitions, self._sid, endings, self._log), strict=True):
            self._spool.forget(ending.ticket)
            self._post(Recorded(ending, reply))

    def _keep(self, pending: Sequence[Told]) -> None:
        for ending in pending:
            if not isinstance(ending, Finish):
                continue
            self._link.pulse.sign()
            try:
                self._spool.keep(self._sid, ending)
            except LocalFault as error:
                self._log.error("outcome_not_spooled", job_id=ending.ticket.id, trace_id=ending.trace_id, error=error)


def finished(transitions: Transitions, sid: str, endings: Sequence[Finish], logger: Logger) -> list[str]:
    """What Redis answers to these endings, once clients can see their records. Raises QueueAway, QueueRefused.

    A record that Redis does not take (its key holds another type) does not keep the others waiting; in a Cluster also
    one whose node is away does not, it is in the outbox.
    """
    try:
        replies = transitions.finish(sid, endings)
    except (QueueAway, QueueRefused):
        raise
    except QueueError:
        replies = [_finished_alone(transitions, sid, ending, logger) for ending in endings]
    if transitions.outbox is not None:
        log_refused(transitions.outbox.deliver([str(ending.ticket) for ending in endings if ending.record]), logger)
    return replies


def log_refused(delivery: Delivery, logger: Logger) -> None:
    """A line for each record of an outbox that Redis will never take."""
    for ticket, reason in delivery.refused:
        logger.error("record_refused", job_id=ticket.rpartition(".")[0], error=reason)


def _finished_alone(transitions: Transitions, sid: str, ending: Finish, logger: Logger) -> str:
    try:
        return transitions.finish(sid, [ending])[0]
    except (QueueAway, QueueRefused):
        raise
    except QueueError as error:
        logger.error("record_refused", job_id=ending.ticket.id, trace_id=ending.trace_id, error=error)  # noqa: TRY400 - its stack says nothing
        note = ending.note | {"record_refused": str(error)}
        return transitions.finish(sid, [replace(ending, record=None, note=note)])[0]
