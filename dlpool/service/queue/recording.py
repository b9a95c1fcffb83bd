"""The thread that records the results of jobs in Redis, checks fences, and requests
slots of hosts.

While Redis is unavailable, all requests wait in memory, and the thread stores final
results in the spool on disk.
"""

from __future__ import annotations

import queue
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dlpool.errors import LocalFault, QueueAway, QueueError, QueueRefused
from dlpool.jobs.host_slots import HostSlots
from dlpool.jobs.outbox import Delivery
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, JobLease, Transitions
from dlpool.observe.log import Logger
from dlpool.service.queue.messages import (
    FenceChecked,
    HostHeld,
    HostSlotAnswered,
    HostSlotRequest,
    ResultRecorded,
)
from dlpool.service.queue.redis_state import Backoff, CallSpacing, QueueContext
from dlpool.service.queue.spool import Spool

BATCH = 64  # requests in one round trip
BATCH_INTERVAL_S = 0.02  # between two round trips, so that one carries several results
WAIT_S = 0.5  # at most, for the first request
RETRY_MAX_S = 1.0  # short, because results that arrive meanwhile are not on disk


Request = FinishRequest | JobLease | HostSlotRequest | HostHeld


class ResultRecorder:
    """Sends requests of the main thread to Redis. One thread runs ``serve``."""

    def __init__(self, context: QueueContext, spool: Spool) -> None:
        self._transitions = context.transitions
        self._sid = context.sid
        self._lease_s = context.lease_s
        self._redis = context.redis
        self._log = context.log
        self._post = context.post
        self._spool = spool
        self._slots = HostSlots(context.transitions)
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._backoff = Backoff(context.redis.stopping, RETRY_MAX_S)
        self._spacing = CallSpacing(BATCH_INTERVAL_S)
        # called in this order
        self._handlers: dict[type, Callable[[Sequence[Any]], None]] = {
            HostSlotRequest: self._acquire_slots,
            HostHeld: self._hold_hosts,
            JobLease: self._check_fences,
            FinishRequest: self._finish,
        }

    def record(self, request: FinishRequest) -> None:
        """Record the result of a job. The record thread posts the answer as
        ResultRecorded."""
        self._requests.put(request)

    def check_fence(self, lease: JobLease) -> None:
        """Check whether this supervisor still holds a lease. The record thread posts
        the answer as FenceChecked."""
        self._requests.put(lease)

    def request_host_slot(self, request: HostSlotRequest) -> None:
        """Request a slot of a host. The record thread posts the answer as
        HostSlotAnswered."""
        self._requests.put(request)

    def hold_host(self, hold: HostHeld) -> None:
        """Tell all supervisors to send no requests to a host for ``hold.duration_s``
        seconds."""
        self._requests.put(hold)

    def serve(self) -> None:
        """Send requests until the supervisor stops; then spool the final results that
        were not sent."""
        pending: list[Request] = []
        while self._redis.keep_running():
            pending += self._take(wait=not pending)
            try:
                self._send(pending)
                self._backoff.reset()
            except QueueError as error:
                self._redis.report_failure(error)
                self._spool_results(pending)
                self._backoff.wait()
        self._spool_results([*pending, *self._take(wait=False)])

    def _take(self, *, wait: bool) -> list[Request]:
        taken: list[Request] = []
        try:
            if wait:
                taken.append(self._requests.get(timeout=WAIT_S))
                self._spacing.wait()
            while True:
                taken.append(self._requests.get_nowait())
        except queue.Empty:
            pass
        return taken

    def _send(self, pending: list[Request]) -> None:
        """Send all requests in ``pending``, and remove each from the list.

        Results are sent last, because running jobs wait for the answers to other
        requests.
        """
        pending.sort(key=lambda one: isinstance(one, FinishRequest))
        while pending:
            batch = pending[:BATCH]
            self._send_batch(batch)
            self._redis.liveness.mark_alive()
            del pending[: len(batch)]

    def _send_batch(self, batch: Sequence[Request]) -> None:
        by_type: dict[type, list[Request]] = defaultdict(list)
        for request in batch:
            by_type[type(request)].append(request)
        for kind, handle in self._handlers.items():
            if kind in by_type:
                handle(by_type[kind])

    def _acquire_slots(self, requests: Sequence[HostSlotRequest]) -> None:
        for one in requests:
            answer = self._slots.acquire(
                one.limit,
                one.lease.job_id,
                lease_s=self._lease_s,
                is_start_reserved=one.is_start_reserved,
            )
            self._post(HostSlotAnswered(str(one.lease), answer))

    def _hold_hosts(self, holds: Sequence[HostHeld]) -> None:
        for one in holds:
            self._transitions.hold_host(one.host, one.duration_s)

    def _check_fences(self, leases: Sequence[JobLease]) -> None:
        result = self._transitions.heartbeat(
            self._sid, [(lease, "") for lease in leases], lease_s=self._lease_s
        )
        for lease, reply in zip(leases, result.replies, strict=True):
            self._post(FenceChecked(str(lease), reply != "LOST"))

    def _finish(self, requests: Sequence[FinishRequest]) -> None:
        for one in requests:
            if one.host and one.disposition != Disposition.THROTTLE:
                # before the result, which lets the next job start
                self._slots.release(one.host, one.lease.job_id)
        replies = finish_jobs(self._transitions, self._sid, requests, self._log)
        for one, reply in zip(requests, replies, strict=True):
            self._spool.remove(one.lease)
            self._post(ResultRecorded(one, reply))

    def _spool_results(self, pending: Sequence[Request]) -> None:
        for request in pending:
            if not isinstance(request, FinishRequest):
                continue
            self._redis.liveness.mark_alive()
            try:
                self._spool.store(self._sid, request)
            except LocalFault as error:
                self._log.error(
                    "result_not_spooled",
                    job_id=request.lease.job_id,
                    trace_id=request.trace_id,
                    error=error,
                )


def finish_jobs(
    transitions: Transitions,
    sid: str,
    requests: Sequence[FinishRequest],
    logger: Logger,
) -> list[str]:
    """Record results in Redis, and return the reply to each. Raises QueueError.

    Afterwards clients can see the records of these results, with two exceptions. Redis
    refuses a record whose key has another type. In a Cluster a record stays in the
    outbox while the node of its key is unavailable. Such records do not delay other
    records.
    """
    try:
        replies = transitions.finish(sid, requests)
    except (QueueAway, QueueRefused):
        raise
    except QueueError:
        replies = [
            _finish_job(transitions, sid, request, logger) for request in requests
        ]
    if transitions.outbox is not None:
        log_refused_records(
            transitions.outbox.deliver(
                [str(request.lease) for request in requests if request.record]
            ),
            logger,
        )
    return replies


def log_refused_records(delivery: Delivery, logger: Logger) -> None:
    """Log each record that Redis refused permanently."""
    for lease, reason in delivery.refused:
        logger.error("record_refused", job_id=lease.rpartition(".")[0], error=reason)


def _finish_job(
    transitions: Transitions, sid: str, request: FinishRequest, logger: Logger
) -> str:
    """Write one result to Redis. If Redis cannot write the record for the client, log
    the error, and write the result without the record.

    Raises QueueError.
    """
    try:
        return transitions.finish(sid, [request])[0]
    except (QueueAway, QueueRefused):
        raise
    except QueueError as error:
        logger.error(  # noqa: TRY400 - its stack adds nothing
            "record_refused",
            job_id=request.lease.job_id,
            trace_id=request.trace_id,
            error=error,
        )
        note = request.note | {"record_refused": str(error)}
        return transitions.finish(sid, [replace(request, record=None, note=note)])[0]
