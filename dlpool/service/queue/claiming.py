"""The fetch thread: claims jobs for free slots, and waits for work where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis

from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.transitions import Transitions
from dlpool.service.ledger import Ledger
from dlpool.service.queue.link import Backoff, Link, Pace
from dlpool.service.queue.messages import Claims, Message, Waiting
from dlpool.service.wire.frames import lease_clock

APART_S = 0.002  # two claims, so that one brings jobs for all slots that have become free
PAUSE_S = 0.5  # between looks where nothing may be claimed
LOOK_S = 0.00005  # of rest for each job that a claim passed over: Redis looks at one in a fifth of that
ALONE_S = 1.0  # for so long no job of another host is looked for, after none was found


class Fetcher:
    """``serve`` is the thread; ``look`` and ``reconcile`` by any.

    ``blocking`` is a client of its own: it waits in Redis, and others end that wait.
    """

    def __init__(
        self,
        transitions: Transitions,
        blocking: redis.Redis,
        sid: str,
        ledger: Ledger,
        link: Link,
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
        self._pace = Pace(APART_S)

    def serve(self) -> None:
        """Until all stop."""
        while self._link.goes_on():
            if not self._link.registered.wait(PAUSE_S) or not self._handed_over.wait(PAUSE_S):
                continue
            has_work = self._has_strays.is_set() or self._ledger.has_room.wait(PAUSE_S)
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
                self._link.lost(error)
                self._backoff.wait()

    def reconcile(self) -> None:
        """Redis holds jobs for us that we do not know: the next claim hands them over."""
        self._has_strays.set()

    def ask_who_waits(self) -> None:
        """Find out which jobs wait as long as there is no room for them; the answer comes as Waiting."""
        self._is_asked = True

    def handed_over(self) -> None:
        """The main thread has taken in what was claimed last: the next claim may name it."""
        self._handed_over.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._is_stopped = True

    def look(self) -> None:
        """A job became ready elsewhere than in the intake: end the wait there. Any thread; raises QueueError."""
        self._looked.set()
        waiting = self._waiting_id
        if waiting is not None:
            with translated(self._transitions.client):
                self._transitions.client.client_unblock(waiting)

    def _turn(self) -> None:
        self._pace.wait()
        known = None
        if self._has_strays.is_set():
            self._has_strays.clear()  # first: what is set from now on is for the next turn
            known = self._ledger.tickets()
        room = 0 if self._is_stopped else self._ledger.room()
        leased_until = lease_clock() + self._lease_s  # from before the call: Redis counts from later on
        claim = self._transitions.claim(
            self._sid,
            known,
            room,
            lease_s=self._lease_s,
            order=self._order(),
            most_parked=self._most_parked,
            parts=self._ledger.parts() if time.monotonic() >= self._alone_until else None,
        )
        if claim is not None and claim.is_alone:
            self._alone_until = time.monotonic() + ALONE_S
        if claim is not None and claim.passed:
            self._link.stopping.wait(LOOK_S * claim.passed)
        if claim is None:
            self._has_strays.set()
            self._link.registered.clear()
        elif claim.jobs:
            self._handed_over.clear()
            self._post(Claims(claim.jobs, leased_until))
        elif room:
            wait_s = BLOCK_S if claim.next_due_s is None else min(BLOCK_S, claim.next_due_s + 0.001)
            if claim.is_paused or claim.is_full:
                self._looked.wait(wait_s)
                self._looked.clear()
            else:
                self._wait(wait_s)

    def _look_who_waits(self) -> None:
        self._is_asked = False
        self._post(Waiting(self._transitions.waiting(self._sid, order=self._order())))

    def _wait(self, seconds: float) -> None:
        """Until the intake has a job: it moves to our inbox, where the next claim finds it, reply or not."""
        keys = self._transitions.keys
        source = "LEFT" if self._order() == "lifo" else "RIGHT"
        try:
            with translated(self._blocking):
                self._waiting_id = self._blocking.client_id()
                self._blocking.execute_command(  # type: ignore[no-untyped-call]
                    "BLMOVE", keys.intake, keys.inbox(self._sid), source, "LEFT", seconds
                )
        except (QueueAway, QueueRefused):
            raise
        except QueueError as error:
            self._transitions.check_keys(error)  # which says so if the list is another program's
            raise
        finally:
            self._waiting_id = None  # after a restart of Redis that id is somebody else's
