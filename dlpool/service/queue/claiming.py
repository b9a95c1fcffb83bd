"""The fetch thread: claims jobs for free slots, and waits for work where there is
none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis

from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.transitions import Transitions
from dlpool.service.inflight import InFlightTable
from dlpool.service.queue.messages import JobsClaimed, Message, WaitingHosts
from dlpool.service.queue.redis_state import Backoff, CallSpacing, RedisState
from dlpool.service.wire.frames import lease_clock

APART_S = (
    0.002  # two claims, so that one brings jobs for all slots that have become free
)
PAUSE_S = 0.5  # between looks where nothing may be claimed
# of rest for each job that a claim passed over: Redis looks at one in a fifth of that
LOOK_S = 0.00005
ALONE_S = 1.0  # for so long no job of another host is looked for, after none was found


class JobClaimer:
    """``serve`` is the thread; ``look`` and ``reconcile`` by any.

    ``blocking`` is a client of its own: it waits in Redis, and others end that wait.
    """

    def __init__(
        self,
        transitions: Transitions,
        blocking: redis.Redis,
        sid: str,
        ledger: InFlightTable,
        link: RedisState,
        lease_s: float,
        order: Callable[[], str],
        post: Callable[[Message], None],
        most_parked: int,
    ) -> None:
        self._transitions = transitions
        self._blocking = blocking
        self._sid = sid
        self._ledger = ledger
        self._link = link
        self._lease_s = lease_s
        self._order = order
        self._post = post
        self._most_parked = most_parked
        self._has_strays = threading.Event()
        self._has_strays.set()  # until Redis has told what is ours
        self._handed_over = threading.Event()
        self._handed_over.set()
        self._looked = threading.Event()
        self._is_stopped = False
        self._is_asked = False  # who waits
        self._alone_until = 0.0  # by the monotonic clock
        self._waiting_id: int | None = None
        self._backoff = Backoff(link.stopping)
        self._pace = CallSpacing(APART_S)

    def serve(self) -> None:
        """Until all stop."""
        while self._link.keep_running():
            if not self._link.registered.wait(PAUSE_S) or not self._handed_over.wait(
                PAUSE_S
            ):
                continue
            has_work = self._has_strays.is_set() or self._ledger.has_free_slot.wait(
                PAUSE_S
            )
            try:
                if has_work:
                    self._turn()
                elif self._is_asked:
                    self._look_who_waits()
                else:
                    continue
                self._backoff.reset()
            except QueueError as error:
                self._has_strays.set()  # the reply may have brought jobs
                self._link.report_failure(error)
                self._backoff.wait()

    def request_reconcile(self) -> None:
        """Redis holds jobs for us that we do not know: the next claim hands them
        over."""
        self._has_strays.set()

    def request_waiting_hosts(self) -> None:
        """Find out which jobs wait as long as there is no room for them; the answer
        comes as Waiting."""
        self._is_asked = True

    def resume(self) -> None:
        """The main thread has taken in what was claimed last: the next claim may name
        it."""
        self._handed_over.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._is_stopped = True

    def wake(self) -> None:
        """A job became ready elsewhere than in the intake: end the wait there. Any
        thread; raises QueueError."""
        self._looked.set()
        waiting = self._waiting_id
        if waiting is not None:
            with translated(self._transitions.client):
                self._transitions.client.client_unblock(waiting)

    def _turn(self) -> None:
        self._pace.wait()
        known = None
        if self._has_strays.is_set():
            # first: what is set from now on is for the next turn
            self._has_strays.clear()
            known = self._ledger.leases()
        room = 0 if self._is_stopped else self._ledger.free_slots()
        leased_until = (
            lease_clock() + self._lease_s
        )  # from before the call: Redis counts from later on
        claim = self._transitions.claim(
            self._sid,
            known,
            room,
            lease_s=self._lease_s,
            order=self._order(),
            max_throttled=self._most_parked,
            shares=self._ledger.host_shares()
            if time.monotonic() >= self._alone_until
            else None,
        )
        if claim is not None and claim.is_share_exceeded:
            self._alone_until = time.monotonic() + ALONE_S
        if claim is not None and claim.skipped:
            self._link.stopping.wait(LOOK_S * claim.skipped)
        if claim is None:
            self._has_strays.set()
            self._link.registered.clear()
        elif claim.jobs:
            self._handed_over.clear()
            self._post(JobsClaimed(claim.jobs, leased_until))
        elif room:
            wait_s = (
                BLOCK_S
                if claim.next_due_s is None
                else min(BLOCK_S, claim.next_due_s + 0.001)
            )
            if claim.is_paused or claim.is_throttle_full:
                self._looked.wait(wait_s)
                self._looked.clear()
            else:
                self._wait(wait_s)

    def _look_who_waits(self) -> None:
        self._is_asked = False
        self._post(
            WaitingHosts(
                self._transitions.waiting_hosts(self._sid, order=self._order())
            )
        )

    def _wait(self, seconds: float) -> None:
        """Until the intake has a job: it moves to our inbox, where the next claim finds
        it, reply or not."""
        keys = self._transitions.keys
        source = "LEFT" if self._order() == "lifo" else "RIGHT"
        try:
            with translated(self._blocking):
                self._waiting_id = self._blocking.client_id()
                self._blocking.execute_command(  # type: ignore[no-untyped-call]
                    "BLMOVE",
                    keys.intake,
                    keys.inbox(self._sid),
                    source,
                    "LEFT",
                    seconds,
                )
        except (QueueAway, QueueRefused):
            raise
        except QueueError as error:
            self._transitions.check_keys(
                error
            )  # which says so if the list is another program's
            raise
        finally:
            self._waiting_id = (
                None  # after a restart of Redis that id is somebody else's
            )
