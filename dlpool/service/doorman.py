"""Lets jobs begin that their hosts have room for; the others are parked, and give their places to others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dlpool.jobs.hostslots import Place
from dlpool.jobs.pushed import PushedJob
from dlpool.jobs.transitions import Finish
from dlpool.observe.log import Logger
from dlpool.service.hostjobs import HostJobs
from dlpool.service.hosts import Hosts
from dlpool.service.ledger import Held
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.messages import Hold, Wish
from dlpool.service.queue.recording import Recorder
from dlpool.service.wire.frames import HoldFrame

PATIENCE_S = 1.0  # a host that may be asked so soon is waited for
FULL_S = 5.0  # until a parked job tries again by itself: a slot may have become free with nobody to say so


class Doorman:
    """Used by the main thread only."""

    def __init__(self, hosts: Hosts, of_hosts: HostJobs, recorder: Recorder, pool: WorkerPool, log: Logger) -> None:
        self.hosts = hosts
        self.of_hosts = of_hosts
        self._recorder = recorder
        self._pool = pool
        self._log = log

    def turned_away(self, held: Held, job: PushedJob, all_held: Callable[[], Iterable[Held]]) -> Finish | None:
        """What becomes of a new job whose host does not want to be asked; else it may have to wait for a slot."""
        wait_s, host = self.hosts.held_s(job.url), held.authority
        if wait_s > PATIENCE_S:
            return parked(held, host, wait_s, is_paid=held.claimed.is_paid)
        if not self.of_hosts.has_room(host, lambda: _at(host, all_held()) - 1):
            return parked(held, host, FULL_S, is_paid=held.claimed.is_paid, is_for_slot=True)
        limit = self.hosts.limit(job.url)
        if limit is not None:
            held.host, held.is_at_door = limit.host, True
            self._recorder.wish(Wish(held.ticket, limit, held.claimed.is_paid))
        return None

    def refused(self, held: Held, all_held: Callable[[], Iterable[Held]]) -> None:
        """A host has turned a job of ours away, or could not be reached."""
        self.of_hosts.refused(held.authority, lambda: _at(held.authority, all_held()))

    def left(self, held: Held) -> str:
        """The host for which others may wait in vain no longer when this job has ended, or ''."""
        if held.host or held.job is None:
            return held.host
        return held.authority if self.of_hosts.is_limited(held.authority) else ""

    def answered(self, held: Held, place: Place) -> Finish | None:
        """Redis has said whether there is a slot: None, or what becomes of the job instead."""
        held.is_at_door = False
        if place.problem is not None:
            self._log.warning("host_slot_unknown", host=held.host, reason=place.problem)
        if place.wait_s == 0:
            return None
        host, held.host = held.host, ""
        delay_s = FULL_S if place.wait_s is None else place.wait_s
        return parked(held, host, delay_s, is_paid=place.is_paid, is_for_slot=place.wait_s is None)

    def hold(self, host: str, seconds: float, *, is_ours: bool) -> None:
        """A host does not want to be asked for a while: all workers hear of it, and if it is ours, all nodes."""
        if not self.hosts.hold(host, seconds):
            return
        self._pool.tell_all(HoldFrame(host, seconds))
        if is_ours:
            self._recorder.hold(Hold(host, seconds))
        self._log.info("host_held", host=host, seconds=seconds, is_ours=is_ours)


def _at(host: str, all_held: Iterable[Held]) -> int:
    """How many jobs of a host are held and have not ended."""
    return sum(not one.is_ending and one.job is not None and one.authority == host for one in all_held)


def parked(held: Held, host: str, delay_s: float, *, is_paid: bool, is_for_slot: bool = False) -> Finish:
    """The transition for a job that has to wait for its host."""
    note = {"label": "host_limit", "message": f"{host} has to be asked later"}
    return Finish(
        held.ticket, "park", note=note, delay_s=max(0.001, delay_s), host=host, is_paid=is_paid, is_for_slot=is_for_slot
    )
