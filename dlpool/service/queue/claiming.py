"""The thread that claims jobs for free slots, and waits in Redis while the queue is
empty.

Each claim gives the job a new fence, a number. ``claim.lua`` sets the fence;
``heartbeat.lua`` and ``finish.lua`` accept only the job's present fence. So two
supervisors cannot both complete a job. If a lease has expired, ``JobDispatcher``
requests a check of the fence before it lets the worker publish the file.
"""

from __future__ import annotations

import threading
import time

import redis

from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.transitions import ClaimResult
from dlpool.service.queue.messages import JobsClaimed, WaitingHosts
from dlpool.service.queue.redis_state import Backoff, CallSpacing, QueueContext
from dlpool.service.wire.frames import lease_clock

# between two claims: one claim then fills all slots that became free
CLAIM_INTERVAL_S = 0.002
PAUSE_S = 0.5  # between checks while nothing may be claimed
# pause for each job that a claim skipped: five times as long as Redis takes for it
SKIP_DELAY_S = 0.00005
# until jobs of other hosts are looked for again, after a claim found none
SHARE_RETRY_S = 1.0
# until jobs are claimed ahead again, after a claim found too few
AHEAD_RETRY_S = 0.05


class JobClaimer:
    """Claims jobs. One thread runs ``serve``; any thread may call the other methods.

    ``blocking`` is a Redis client that nothing else uses, because its calls wait in
    Redis; ``wake`` ends such a wait.
    """

    def __init__(
        self, context: QueueContext, blocking: redis.Redis, max_throttled: int
    ) -> None:
        """Create a claimer, which ``serve`` starts.

        While at least ``max_throttled`` jobs in the queue are throttled, the claimer
        claims only throttled jobs that may start now.
        """
        self._transitions = context.transitions
        self._blocking = blocking
        self._sid = context.sid
        self._in_flight = context.in_flight
        self._redis = context.redis
        self._lease_s = context.lease_s
        self._order = context.order
        self._post = context.post
        self._max_throttled = max_throttled
        self._must_reconcile = threading.Event()
        # the first claim returns the jobs that this supervisor holds already
        self._must_reconcile.set()
        self._may_claim = threading.Event()
        self._may_claim.set()
        self._woken = threading.Event()
        self._is_stopped = False
        self._wants_waiting_hosts = False
        self._no_shares_until = 0.0  # by the monotonic clock
        self._no_ahead_until = 0.0  # by the monotonic clock
        self._waiting_id: int | None = None
        self._backoff = Backoff(context.redis.stopping)
        self._spacing = CallSpacing(CLAIM_INTERVAL_S)

    def serve(self) -> None:
        """Claim jobs until the supervisor stops."""
        while self._redis.keep_running():
            if not self._redis.registered.wait(PAUSE_S) or not self._may_claim.wait(
                PAUSE_S
            ):
                continue
            has_work = (
                self._must_reconcile.is_set()
                or self._in_flight.has_free_slot.wait(PAUSE_S)
            )
            try:
                if has_work:
                    self._turn()
                elif self._wants_waiting_hosts:
                    self._count_waiting_hosts()
                else:
                    continue
                self._backoff.reset()
            except QueueError as error:
                self._must_reconcile.set()  # the lost reply may have held jobs
                self._redis.report_failure(error)
                self._backoff.wait()

    def request_reconcile(self) -> None:
        """Have the next claim return jobs that are missing from the in-flight table
        although, according to Redis, this supervisor holds them."""
        self._must_reconcile.set()

    def request_waiting_hosts(self) -> None:
        """Request the number of waiting jobs by host. The claim thread posts the answer
        as WaitingHosts."""
        self._wants_waiting_hosts = True

    def resume(self) -> None:
        """Allow the next claim. The main thread calls this method after it has taken
        over the jobs of the last claim."""
        self._may_claim.set()

    @property
    def finds_jobs_ahead(self) -> bool:
        """Return whether the claimer may claim jobs before a slot is free.

        The result is usually False for a while after a claim that found too few jobs.
        """
        return time.monotonic() >= self._no_ahead_until

    def stop(self) -> None:
        """Claim no more jobs."""
        self._is_stopped = True

    def wake(self) -> None:
        """End the claim thread's wait for the intake list, because a job may be ready
        in another list. Raises QueueError."""
        self._woken.set()
        waiting = self._waiting_id
        if waiting is not None:
            with translated(self._transitions.client):
                self._transitions.client.client_unblock(waiting)

    def _turn(self) -> None:
        self._spacing.wait()
        known = None
        if self._must_reconcile.is_set():
            # before the call: what is set during it is for the next turn
            self._must_reconcile.clear()
            known = self._in_flight.leases()
        free_slots, ahead = self._wanted_jobs()
        if not free_slots and not ahead and known is None:
            return
        shares = None
        if time.monotonic() >= self._no_shares_until:
            shares = self._in_flight.host_shares(free_slots, ahead)
        # from before the call: in Redis the lease starts later
        leased_until = lease_clock() + self._lease_s
        claim = self._transitions.claim(
            self._sid,
            known,
            free_slots + ahead,
            lease_s=self._lease_s,
            order=self._order(),
            max_throttled=self._max_throttled,
            shares=shares,
        )
        if claim is None:
            self._must_reconcile.set()
            self._redis.registered.clear()
            return
        if claim.jobs:
            self._may_claim.clear()
            self._post(JobsClaimed(claim.jobs, leased_until))
        self._slow_down(claim, free_slots, ahead)
        if not claim.jobs and free_slots:
            self._wait_for_jobs(claim)

    def _wanted_jobs(self) -> tuple[int, int]:
        """Return how many jobs to claim for free slots, and how many to claim before a
        slot is free."""
        if self._is_stopped:
            return 0, 0
        ahead = self._in_flight.free_ahead() if self.finds_jobs_ahead else 0
        return self._in_flight.free_slots(), ahead

    def _slow_down(self, claim: ClaimResult, free_slots: int, ahead: int) -> None:
        """Delay further claims after a claim that found too few jobs or made Redis
        search long."""
        now = time.monotonic()
        if claim.is_share_exceeded:
            # the search is not repeated until then
            self._no_shares_until, self._no_ahead_until = now + SHARE_RETRY_S, 0.0
            return
        if len(claim.jobs) < free_slots + ahead:
            self._no_ahead_until = now + (
                SHARE_RETRY_S if claim.skipped else AHEAD_RETRY_S
            )
            self._in_flight.set_ahead_limit(0)
        if claim.skipped and free_slots:
            self._redis.stopping.wait(SKIP_DELAY_S * claim.skipped)

    def _wait_for_jobs(self, claim: ClaimResult) -> None:
        """Wait for a job after a claim that returned none, at most ``BLOCK_S``
        seconds."""
        wait_s = (
            BLOCK_S
            if claim.next_due_s is None
            else min(BLOCK_S, claim.next_due_s + 0.001)
        )
        if claim.is_paused or claim.is_throttle_full:
            self._woken.wait(wait_s)
            self._woken.clear()
        else:
            self._wait_for_intake(wait_s)

    def _count_waiting_hosts(self) -> None:
        self._wants_waiting_hosts = False
        self._post(
            WaitingHosts(
                self._transitions.waiting_hosts(self._sid, order=self._order())
            )
        )

    def _wait_for_intake(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for a job in the intake list.

        Redis moves the job to this supervisor's inbox, even if the reply is lost. The
        next claim takes the job from the inbox.
        """
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
                    timeout_s,
                )
        except (QueueAway, QueueRefused):
            raise
        except QueueError as error:
            # raises a clear error if another program uses the key
            self._transitions.check_keys(error)
            raise
        finally:
            # after a restart of Redis the id belongs to another client
            self._waiting_id = None
