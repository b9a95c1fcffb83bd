"""The beat thread: leases and registration, what is mailed to this supervisor, and the
jobs of those that are gone."""

from __future__ import annotations

import threading
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
from dlpool.jobs.transitions import Transitions
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightTable
from dlpool.service.queue.claiming import JobClaimer
from dlpool.service.queue.messages import (
    HostHeld,
    JobsTakenBack,
    LeaseLost,
    Message,
    ResultRecorded,
    StopRequested,
)
from dlpool.service.queue.recording import finish_jobs, log_refused_records
from dlpool.service.queue.redis_state import BACKOFF_MAX_S, Backoff, RedisState
from dlpool.service.queue.spool import Spool
from dlpool.service.queue.sweeping import StaleFileSweeper

RECOVER_S = 5.0
SAMPLE_AGAIN_S = 2.0  # another one was first
SAMPLE_FAILED_S = 600.0
MAIL_TTL_MS = 60_000


class Heartbeat:
    """``serve`` is the thread. ``blocking`` is a client of its own that waits for
    mail."""

    def __init__(
        self,
        transitions: Transitions,
        blocking: redis.Redis,
        sid: str,
        ledger: InFlightTable,
        link: RedisState,
        spool: Spool,
        fetcher: JobClaimer,
        log: Logger,
        *,
        lease_s: float,
        grace_s: float,
        order: Callable[[], str],
        info: Callable[[], dict[str, Any]],
        post: Callable[[Message], None],
        earlier: tuple[str, ...],
        sweeper: StaleFileSweeper,
    ) -> None:
        self._transitions = transitions
        self._slots = HostSlots(transitions)
        self._blocking = blocking
        self._sid = sid
        self._ledger = ledger
        self._link = link
        self._spool = spool
        self._fetcher = fetcher
        self._log = log
        self._lease_s = lease_s
        self._grace_s = grace_s
        self._order = order
        self._info = info
        self._post = post
        self._earlier = earlier
        self._sweeper = sweeper
        self._backoff = Backoff(
            link.stopping, min(BACKOFF_MAX_S, grace_s / 3)
        )  # back before others take our jobs
        self._beat_at = 0.0
        self._recover_at = self._sweep_at = self._sample_at = 0.0
        self._history = QueueHistory(transitions.client, transitions.keys)
        self._is_checked = False
        self._has_begun = threading.Event()

    def serve(self) -> None:
        """Until all stop; first what an earlier start left."""
        while self._link.keep_running():
            try:
                if not self._has_begun.is_set():
                    self._begin()
                self._turn()
                self._backoff.reset()
            except QueueError as error:
                self._link.report_failure(error)
                self._beat_at = 0.0  # the first thing to do when Redis is back
                self._backoff.wait()

    def wake(self) -> None:
        """End the wait for mail, by mail. Any thread; raises QueueError."""
        mail, client = self._transitions.keys.mail(self._sid), self._transitions.client
        with translated(client):
            client.rpush(mail, "look")
            client.pexpire(mail, MAIL_TTL_MS)

    def _begin(self) -> None:
        """Record what an earlier start spooled, then give back the jobs that it
        held."""
        self._check()
        for sid, ending in self._spool.stored():
            reply = finish_jobs(self._transitions, sid, [ending], self._log)[0]
            self._spool.remove(ending.lease)
            self._link.liveness.mark_alive()
            self._log.info(
                "spooled_outcome_recorded",
                job_id=ending.lease.job_id,
                trace_id=ending.trace_id,
                result=ending.disposition,
                reply=reply,
            )
            self._post(ResultRecorded(ending, reply))
        given_back = self._transitions.requeue_jobs_of(
            self._sid, self._earlier, order=self._order()
        )
        if given_back:
            self._log.info("jobs_taken_back", jobs=len(given_back), sids=self._earlier)
        self._has_begun.set()
        if self._earlier:
            self._post(JobsTakenBack(self._earlier))

    def _check(self) -> None:
        """Look once whether this is a server to work with, and warn of what may cost
        jobs there."""
        if self._is_checked:
            return
        for warned in check_server(self._transitions.client):
            self._log.warning(warned.event, reason=warned.reason)
        self._is_checked = True

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at or not self._link.registered.is_set():
            self._beat()
            self._beat_at = now + self._lease_s / 3
        if now >= self._recover_at:
            self._recover()
            self._replay()
            self._recover_at = now + min(RECOVER_S, self._grace_s)
        if now >= self._sweep_at:
            self._sweeper.sweep()
            self._sweep_at = now + self._lease_s
        if now >= self._sample_at:
            self._sample_at = now + self._sample()
        self._read_mail(min(BLOCK_S, max(0.05, self._beat_at - time.monotonic())))

    def _beat(self) -> None:
        if self._link.error is not None:
            self._transitions.check_keys()
        held = [one for one in self._ledger.all() if not one.is_lost]
        jobs = [
            (one.lease, jsontext.dumps(one.progress).decode() if one.progress else "")
            for one in held
        ]
        beat = self._transitions.heartbeat(
            self._sid, jobs, lease_s=self._lease_s, info=self._info()
        )
        slots = [
            (one.slot_host, one.lease.job_id)
            for one in held
            if one.slot_host and not (one.is_at_door or one.is_ending)
        ]
        self._slots.renew(slots, lease_s=self._lease_s)
        self._link.report_heartbeat()
        for host, seconds in beat.held_hosts:
            self._post(HostHeld(host, seconds))
        for one, verdict in zip(held, beat.replies, strict=True):
            if one.is_ending or verdict == "OK":
                continue
            self._post(
                LeaseLost(str(one.lease))
                if verdict == "LOST"
                else StopRequested(str(one.lease), verdict)
            )
        if beat.orphans > 0:
            self._fetcher.request_reconcile()

    def _recover(self) -> None:
        found = self._transitions.recover(
            self._sid, grace_s=self._grace_s, order=self._order()
        )
        if found.expired:
            self._log.warning("leases_passed", jobs=found.expired)
        if found.requeued:
            self._log.warning(
                "jobs_recovered",
                jobs=len(found.requeued),
                job_ids=list(found.requeued)[:20],
            )

    def _sample(self) -> float:
        """Note figures for charts, if it is time; seconds until the next try. They are
        worth no trouble."""
        try:
            return SAMPLE_S if self._history.record_sample() else SAMPLE_AGAIN_S
        except Exception as error:  # noqa: BLE001 - the service can do without
            if isinstance(error, QueueAway) and not isinstance(error, QueueUnusable):
                # the next beat says so, but not of a foreign key: beats do not use this
                # one
                return SAMPLE_AGAIN_S
            self._log.warning("sample_failed", error=error)
            return SAMPLE_FAILED_S

    def _replay(self) -> None:
        """Show clients what was left in the outbox of a Cluster, by whomever."""
        if self._transitions.outbox is not None:
            delivery = self._transitions.outbox.replay()
            log_refused_records(delivery, self._log)
            if delivery.waiting:
                self._log.warning(
                    "records_wait", records=delivery.waiting, reason=delivery.reason
                )
            if delivery.written:
                self._log.info("records_replayed", records=delivery.written)

    def _read_mail(self, seconds: float) -> None:
        keys = self._transitions.keys
        with translated(self._blocking):
            mail = self._blocking.blpop(
                [keys.mail(self._sid), keys.wake], timeout=seconds
            )
            if mail is not None and mail[0] == keys.mail(self._sid).encode():
                self._blocking.delete(keys.mail(self._sid))
                # whose answer says what is wanted: it cannot be lost, nor come too late
                self._beat_at = 0.0
        if mail is not None:
            self._fetcher.wake()
