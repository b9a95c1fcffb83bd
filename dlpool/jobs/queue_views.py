"""Read-only views of the queue, for people and programs. No method scans all keys: the
work of each call is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from operator import attrgetter
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.jobs.client_records import rfc3339
from dlpool.jobs.connection import translated
from dlpool.jobs.job_admin import records_client, unknown_job_error
from dlpool.jobs.job_listing import BATCH, MAX_SUPERVISORS, JobListing, JobPage
from dlpool.jobs.job_view import JobView, time_text
from dlpool.jobs.keys import READY, QueueKeys, node_of
from dlpool.jobs.queue_clock import QueueTime, parse_ahead_ms, queue_time
from dlpool.jobs.redis_values import (
    is_job_id,
    to_int,
    to_ms,
    to_number,
    to_object,
    to_text,
)

DAYS = 7
DAY_S = 86_400
# As in shared.lua. Older entries are ignored.
DONE_KEPT_S = LOST_S = DAY_S
DEAD_KEPT_S = 7 * DAY_S
MAX_COUNTED = 1000  # throttled jobs that are counted by host
MAX_EMPTY = 8  # pages without jobs after which a listing ends


@dataclass(frozen=True)
class SupervisorView:
    """A supervisor. ``info``: its status, such as node, host, pid, version, slots,
    busy.

    ``seen_at``: time of the last heartbeat of a silent supervisor (seconds since 1970);
    None for a present supervisor.
    """

    sid: str
    info: Mapping[str, Any]
    seen_at: float | None = None

    @property
    def node(self) -> str | None:
        """The id of the supervisor's node; None if it is unknown."""
        said = self.info.get("node")
        return said if isinstance(said, str) else node_of(self.sid)

    def as_json(self) -> dict[str, Any]:
        return {**self.info, "sid": self.sid}


@dataclass(frozen=True)
class DayView:
    """The counters of a day (``2026-11-22``, UTC)."""

    day: str
    counters: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {"day": self.day, **self.counters}


@dataclass(frozen=True)
class QueueStats:
    """The figures of a queue.

    ``now``: the clock of Redis in seconds since 1970. ``backlog``: jobs in the intake
    list. ``reserved``: jobs in supervisors' inboxes. ``ready``: jobs that may run, by
    ready list. ``succeeded``, ``failed``, ``cancelled``: ended jobs that are kept.
    ``failure_records``: number of failure records that clients see. ``supervisors``:
    the present supervisors. ``lost``: supervisors that have been silent for up to a
    day. ``days``: counters by day, today first. ``is_halted``: the queue is paused;
    ``halted_at``: since when, None if unknown. ``throttled``: jobs that wait for their
    hosts. ``waiting_hosts``: number of throttled jobs by host, among the first thousand
    throttled jobs. ``held_hosts``: hosts that must not be contacted, with the remaining
    seconds.
    """

    now: float
    backlog: int
    reserved: int
    ready: Mapping[str, int]
    delayed: int
    paused: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    failure_records: int
    supervisors: tuple[SupervisorView, ...]
    lost: tuple[SupervisorView, ...]
    days: tuple[DayView, ...]
    is_halted: bool = False
    halted_at: float | None = None
    throttled: int = 0
    waiting_hosts: Mapping[str, int] = field(default_factory=dict)
    held_hosts: Mapping[str, float] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a free slot."""
        return self.backlog + self.reserved + sum(self.ready.values())

    @property
    def rate(self) -> int:
        """Bytes per second that all nodes receive, by their last heartbeats."""
        rates = (one.info.get("rate") for one in self.supervisors)
        return sum(rate for rate in rates if isinstance(rate, int))

    def counts(self) -> dict[str, int]:
        """Return all numbers of jobs and records, by name."""
        ready = {f"ready_{name}": count for name, count in self.ready.items()}
        return {
            "waiting": self.waiting,
            "backlog": self.backlog,
            "reserved": self.reserved,
            **ready,
            "delayed": self.delayed,
            "throttled": self.throttled,
            "paused": self.paused,
            "running": self.running,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "failure_records": self.failure_records,
        }

    def as_json(self) -> dict[str, Any]:
        return {
            **self.counts(),
            "is_halted": self.is_halted,
            "halted_at": time_text(self.halted_at),
            "waiting_hosts": dict(self.waiting_hosts),
            "held_hosts": dict(self.held_hosts),
            "supervisors": [one.as_json() for one in self.supervisors],
            "days": [one.as_json() for one in self.days],
        }


class QueueViews:
    """The read-only views of one queue.

    Thread-safe, because ``redis.Redis`` is. Methods raise QueueError.
    """

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self.listing = JobListing(client, keys)

    def __repr__(self) -> str:
        return f"<QueueViews of {self._keys.intake}>"

    def jobs(self, state: str | None = None, limit: int = 50) -> list[JobView]:
        """Return the first ``limit`` jobs of a state, or of all states. For the order
        see ``JobListing``."""
        found: list[JobView] = []
        page, rounds = JobPage((), None), 0
        while len(found) < limit and rounds < MAX_EMPTY + len(found):
            page = self.listing.page(state, min(limit - len(found), BATCH), page.after)
            found += page.jobs
            rounds += 1
            if page.after is None:
                break
        return found

    def job(self, job_id: str) -> JobView:
        """Return one job. Raises NoSuchJob if it is unknown or deleted."""
        fields, ahead = {}, None
        if is_job_id(job_id):
            with translated(self._client):
                pipeline = self._client.pipeline(transaction=False)
                fields, ahead = (
                    pipeline.hgetall(self._keys.job(job_id))
                    .hget(self._keys.clock, "ahead")
                    .execute()
                )
        if not fields:
            raise unknown_job_error(job_id)
        return JobView.from_hash(job_id, fields, parse_ahead_ms(ahead))

    def stats(self, *, with_failure_records: bool = True) -> QueueStats:
        """Return the present figures and the counters of the last days, with times by
        the clock of Redis.

        ``with_failure_records``: count the failure records, which may be on another
        node of a Cluster. If False, their number is 0.
        """
        keys = self._keys
        with translated(self._client):
            time = queue_time(self._client, keys)
            figures = self._figures(time)
            reserved, supervisors, lost = self._supervisors(time)
            throttled, waiting_hosts, held_hosts = self._hosts(time.now_ms)
            records = 0
            if with_failure_records:
                records = records_client(self._client, keys).hlen(keys.failed)
        return QueueStats(
            now=time.clock_ms / 1000,
            reserved=reserved,
            failure_records=records,
            supervisors=supervisors,
            lost=lost,
            throttled=throttled,
            waiting_hosts=waiting_hosts,
            held_hosts=held_hosts,
            **figures,
        )

    def _figures(self, time: QueueTime) -> dict[str, Any]:
        """Return the values of the ``QueueStats`` fields that one round trip can
        read."""
        keys = self._keys
        days = [time.clock_ms // (DAY_S * 1000) - back for back in range(DAYS)]
        pipeline = self._client.pipeline(transaction=False)
        pipeline.llen(keys.intake).zcard(keys.delayed).zcard(keys.paused)
        pipeline.zcard(keys.leases).get(keys.halted).hmget(keys.stale, READY)
        done_since, dead_since = (
            time.now_ms - kept_s * 1000 for kept_s in (DONE_KEPT_S, DEAD_KEPT_S)
        )
        pipeline.zcount(keys.done, done_since, "+inf")
        pipeline.zcount(keys.dead, dead_since, "+inf")
        pipeline.zcount(keys.cancelled, dead_since, "+inf")
        for priority in READY:
            pipeline.llen(keys.ready(priority))
        for day in days:
            pipeline.hgetall(keys.stats(day))
        backlog, delayed, paused, running, halted, stale, *rest = pipeline.execute()
        succeeded, failed, cancelled, *rest = rest
        lengths, counters = rest[: len(READY)], rest[len(READY) :]
        ready = zip(READY, lengths, stale, strict=True)
        return {
            "backlog": backlog,
            "ready": {name: max(0, all_ - to_int(old)) for name, all_, old in ready},
            "delayed": delayed,
            "paused": paused,
            "running": running,
            "succeeded": succeeded,
            "failed": failed,
            "cancelled": cancelled,
            "days": tuple(map(_day, days, counters)),
            "is_halted": halted is not None,
            "halted_at": _halted_at(halted, time),
        }

    def _hosts(self, now_ms: int) -> tuple[int, dict[str, int], dict[str, float]]:
        """Return the number of throttled jobs, their number by host, and the held hosts
        with the remaining seconds."""
        keys = self._keys
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(keys.throttled).zrange(keys.throttled, 0, MAX_COUNTED - 1)
        pipeline.zrange(keys.holds, now_ms, "+inf", byscore=True, withscores=True)
        throttled, ids, holds = pipeline.execute()
        for job_id in ids:
            pipeline.hget(keys.job(to_text(job_id)), "host")
        waiting = Counter(
            to_text(host) for host in (pipeline.execute() if ids else ()) if host
        )
        held = {
            to_text(host): round((to_ms(until) - now_ms) / 1000, 3)
            for host, until in holds
        }
        return throttled, dict(waiting.most_common()), held

    def _supervisors(
        self, time: QueueTime
    ) -> tuple[int, tuple[SupervisorView, ...], tuple[SupervisorView, ...]]:
        """Return the number of reserved jobs, the present supervisors, and the
        supervisors that have been silent for up to a day."""
        rows = self._client.zrange(
            self._keys.supervisors, 0, MAX_SUPERVISORS - 1, desc=True, withscores=True
        )
        sids = [
            (to_text(sid), (to_ms(expires_ms) - time.ahead_ms) / 1000)
            for sid, expires_ms in rows
        ]
        pipeline = self._client.pipeline(transaction=False)
        for sid, _ in sids:
            pipeline.llen(self._keys.inbox(sid)).get(self._keys.supervisor(sid))
        replies = pipeline.execute() if sids else []
        present, lost, now_s = [], [], time.clock_ms / 1000
        for (sid, expires_at), said in zip(sids, replies[1::2], strict=True):
            info = to_object(to_text(said))
            if expires_at > now_s:
                present.append(SupervisorView(sid, info))
            elif expires_at > now_s - LOST_S:
                lost.append(
                    SupervisorView(
                        sid, info, expires_at - (to_number(str(info.get("lease"))) or 0)
                    )
                )
        return (
            sum(replies[::2]),
            tuple(sorted(present, key=attrgetter("sid"))),
            tuple(lost),
        )


def _halted_at(halted: bytes | None, time: QueueTime) -> float | None:
    """Return when the queue was paused, in seconds since 1970; None if that is unknown.
    ``halted``: the value of ``keys.halted``."""
    at = to_number(to_text(halted))
    return (at - time.ahead_ms) / 1000 if at and at > 1 else None


def _day(day: int, counters: Mapping[bytes, bytes]) -> DayView:
    counted = {to_text(name): to_int(count) for name, count in counters.items()}
    return DayView(rfc3339(day * DAY_S)[:10], counted)
