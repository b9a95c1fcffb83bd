"""The thread that renews leases, reads the mail of this supervisor, and requeues the
jobs of dead supervisors (``recover.lua``).

The mail is a list in Redis that announces requests to this supervisor. For the jobs of
a dead worker see ``service/pool.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from dlpool import jsontext
from dlpool.errors import QueueAway, QueueError, QueueUnusable
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.history import SAMPLE_S, QueueHistory
from dlpool.jobs.host_slots import HostSlots
from dlpool.jobs.server_check import check_server
from dlpool.service.queue.claiming import JobClaimer
from dlpool.service.queue.messages import (
    HostHeld,
    JobsTakenBack,
    LeaseLost,
    ResultRecorded,
    StopRequested,
)
from dlpool.service.queue.recording import finish_jobs, log_refused_records
from dlpool.service.queue.redis_state import BACKOFF_MAX_S, Backoff, QueueContext
from dlpool.service.queue.spool import Spool
from dlpool.service.queue.sweeping import StaleFileSweeper

RECOVER_S = 5.0  # at most, between two recoveries of orphaned jobs
SAMPLE_AGAIN_S = 2.0  # after another supervisor has added the sample
SAMPLE_FAILED_S = 600.0  # after an error
MAIL_TTL_MS = 60_000


class Heartbeat:
    """Makes the periodic calls to Redis. One thread runs ``serve``; ``blocking`` is a
    Redis client that is used only to wait for mail."""

    def __init__(
        self,
        context: QueueContext,
        blocking: redis.Redis,
        spool: Spool,
        claimer: JobClaimer,
        sweeper: StaleFileSweeper,
        *,
        info: Callable[[], dict[str, Any]],
        earlier: tuple[str, ...],
    ) -> None:
        """Create a heartbeat, which ``serve`` starts.

        ``info`` returns the status of this supervisor, which heartbeats publish;
        ``earlier`` are the supervisor ids of this node's earlier starts.
        """
        self._context = context
        self._transitions = context.transitions
        self._sid = context.sid
        self._in_flight = context.in_flight
        self._redis = context.redis
        self._log = context.log
        self._post = context.post
        self._blocking = blocking
        self._spool = spool
        self._claimer = claimer
        self._sweeper = sweeper
        self._info = info
        self._earlier = earlier
        self._slots = HostSlots(context.transitions)
        # so that other supervisors do not requeue the jobs meanwhile
        max_delay_s = min(BACKOFF_MAX_S, context.grace_s / 3)
        self._backoff = Backoff(context.redis.stopping, max_delay_s)
        self._beat_at = 0.0
        self._recover_at = self._sweep_at = self._sample_at = 0.0
        self._history = QueueHistory(
            context.transitions.client, context.transitions.keys
        )
        self._is_checked = False
        self._has_started = False

    def serve(self) -> None:
        """Recover the results and jobs of earlier starts, then make the periodic calls
        until the supervisor stops."""
        while self._redis.keep_running():
            try:
                if not self._has_started:
                    self._recover_earlier_starts()
                self._turn()
                self._backoff.reset()
            except QueueError as error:
                self._redis.report_failure(error)
                self._beat_at = 0.0  # the first call when Redis is available again
                self._backoff.wait()

    def wake(self) -> None:
        """Push a message to the mail of this supervisor, which ends the heartbeat
        thread's wait.

        Called by any thread. Raises QueueError.
        """
        mail, client = self._transitions.keys.mail(self._sid), self._transitions.client
        with translated(client):
            client.rpush(mail, "wake")
            client.pexpire(mail, MAIL_TTL_MS)

    def _recover_earlier_starts(self) -> None:
        """Record in Redis the results that earlier starts spooled, then requeue the
        other jobs of these starts."""
        self._check_server()
        for sid, request in self._spool.stored():
            reply = finish_jobs(self._transitions, sid, [request], self._log)[0]
            self._spool.remove(request.lease)
            self._redis.liveness.mark_alive()
            self._log.info(
                "spooled_result_recorded",
                job_id=request.lease.job_id,
                trace_id=request.trace_id,
                disposition=request.disposition,
                reply=reply,
            )
            self._post(ResultRecorded(request, reply))
        requeued = self._transitions.requeue_jobs_of(
            self._earlier, order=self._context.order()
        )
        if requeued:
            self._log.info("jobs_taken_back", jobs=len(requeued), sids=self._earlier)
        self._has_started = True
        if self._earlier:
            self._post(JobsTakenBack(self._earlier))

    def _check_server(self) -> None:
        """Check once that this Redis server can be used, and log a warning for each of
        its settings that may cause the loss of jobs."""
        if self._is_checked:
            return
        for warning in check_server(self._transitions.client):
            self._log.warning(warning.event, reason=warning.reason)
        self._is_checked = True

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at or not self._redis.registered.is_set():
            self._beat()
            self._beat_at = now + self._context.lease_s / 3
        if now >= self._recover_at:
            self._recover()
            self._replay()
            self._recover_at = now + min(RECOVER_S, self._context.grace_s)
        if now >= self._sweep_at:
            self._sweeper.sweep()
            self._sweep_at = now + self._context.lease_s
        if now >= self._sample_at:
            self._sample_at = now + self._sample()
        self._read_mail(min(BLOCK_S, max(0.05, self._beat_at - time.monotonic())))

    def _beat(self) -> None:
        """Renew the leases of jobs and of host slots. Post a message for each job that
        is lost or must stop, and for each host that must get no requests for a time."""
        if self._redis.error is not None:
            self._transitions.check_keys()
        lease_s = self._context.lease_s
        held = [one for one in self._in_flight.all() if not one.is_fenced_off]
        jobs = [
            (one.lease, jsontext.dumps(one.progress).decode() if one.progress else "")
            for one in held
        ]
        result = self._transitions.heartbeat(
            self._sid, jobs, lease_s=lease_s, info=self._info()
        )
        slots = [
            (one.slot_host, one.lease.job_id) for one in held if one.holds_host_slot
        ]
        self._slots.renew(slots, lease_s=lease_s)
        self._redis.report_heartbeat()
        for host, duration_s in result.held_hosts:
            self._post(HostHeld(host, duration_s))
        for one, reply in zip(held, result.replies, strict=True):
            if one.is_recording or reply == "OK":
                continue
            self._post(
                LeaseLost(str(one.lease))
                if reply == "LOST"
                else StopRequested(str(one.lease), reply)
            )
        if result.orphans > 0:
            self._claimer.request_reconcile()

    def _recover(self) -> None:
        """Mark expired leases. Requeue each job whose lease was marked at least
        ``grace_s`` seconds ago."""
        found = self._transitions.recover(
            grace_s=self._context.grace_s, order=self._context.order()
        )
        if found.expired:
            self._log.warning("leases_expired", jobs=found.expired)
        if found.requeued:
            self._log.warning(
                "jobs_recovered",
                jobs=len(found.requeued),
                job_ids=list(found.requeued)[:20],
            )

    def _sample(self) -> float:
        """Add a sample for the charts of the queue if that is due, and return the
        seconds until the next attempt.

        Errors are not raised, because nothing else needs the samples.
        """
        try:
            return SAMPLE_S if self._history.record_sample() else SAMPLE_AGAIN_S
        except Exception as error:  # noqa: BLE001 - charts must not stop the service
            if isinstance(error, QueueAway) and not isinstance(error, QueueUnusable):
                # The next heartbeat reports an outage. It would not notice a key that
                # another program has written.
                return SAMPLE_AGAIN_S
            self._log.warning("history_sample_failed", error=error)
            return SAMPLE_FAILED_S

    def _replay(self) -> None:
        """Write the client records that are left in the outbox, which is used only with
        a Redis Cluster."""
        if self._transitions.outbox is not None:
            delivery = self._transitions.outbox.replay()
            log_refused_records(delivery, self._log)
            if delivery.waiting:
                self._log.warning(
                    "records_pending", records=delivery.waiting, reason=delivery.reason
                )
            if delivery.written:
                self._log.info("records_replayed", records=delivery.written)

    def _read_mail(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for mail.

        After mail to this supervisor the next heartbeat is sent at once: the reply to
        the heartbeat contains the request that the mail announces.
        """
        keys = self._transitions.keys
        with translated(self._blocking):
            mail = self._blocking.blpop(
                [keys.mail(self._sid), keys.wake], timeout=timeout_s
            )
            if mail is not None and mail[0] == keys.mail(self._sid).encode():
                self._blocking.delete(keys.mail(self._sid))
                self._beat_at = 0.0
        if mail is not None:
            self._claimer.wake()
