"""Read-only views of the queue, for people and programs. Nothing here scans: every look
is bounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import redis

from dlpool.jobs.client_records import rfc3339
from dlpool.jobs.connection import translated
from dlpool.jobs.job_admin import records_client
from dlpool.jobs.job_listing import AT_ONCE, MAX_SUPERVISORS, JobListing, JobPage
from dlpool.jobs.job_view import JobView, json_object, number, time_text
from dlpool.jobs.keys import READY, QueueKeys, node_of
from dlpool.jobs.queue_clock import QueueTime, parse_ahead_ms, queue_time
from dlpool.jobs.redis_values import to_int, to_ms, to_text
from dlpool.jobs.replies import unknown_job_error

DAYS = 7
DAY_S = 86_400
DONE_KEPT_S, DEAD_KEPT_S, LOST_S = (
    DAY_S,
    7 * DAY_S,
    DAY_S,
)  # as in shared.lua: what is older is forgotten
MAX_PARKED = 1000  # that are counted by host


@dataclass(frozen=True)
class SupervisorView:
    """A supervisor; ``info`` is what it says of itself: node, host, pid, version,
    slots, busy.

    ``seen_at``: of one that has fallen silent, when it was heard of last (seconds since
    1970).
    """

    sid: str
    info: Mapping[str, Any]
    seen_at: float | None = None

    @property
    def node(self) -> str | None:
        """The id of its node, if that can be told."""
        said = self.info.get("node")
        return said if isinstance(said, str) else node_of(self.sid)

    def as_json(self) -> dict[str, Any]:
        return {**self.info, "sid": self.sid}


@dataclass(frozen=True)
class DayView:
    """What was counted on a day (``2026-11-22``, UTC)."""

    day: str
    counters: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {"day": self.day, **self.counters}


@dataclass(frozen=True)
class QueueStats:
    """The queue in figures.

    ``now``: by the clock of Redis, seconds since 1970. ``backlog``: in the list that
    clients push to. ``reserved``: in supervisors' hands, not yet begun. ``ready`` by
    priority. ``succeeded``, ``failed``, ``cancelled``: that are remembered.
    ``failure_records``: that clients see. ``supervisors``: that live; ``lost`` ones
    have fallen silent within a day. ``days``: today first. ``is_halted``: nobody gets
    new jobs, since ``halted_at``. ``parked``: that wait until their hosts may be asked
    (``waiting_hosts`` counts the first ones of them by host); ``held_hosts``: for how
    many seconds nobody asks them.
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
        """How many jobs begin as soon as there is a slot for them."""
        return self.backlog + self.reserved + sum(self.ready.values())

    @property
    def rate(self) -> int:
        """Bytes a second that all nodes receive, as far as they have said."""
        rates = (one.info.get("rate") for one in self.supervisors)
        return sum(rate for rate in rates if isinstance(rate, int))

    def counts(self) -> dict[str, int]:
        """All that is one number, by its name."""
        ready = {f"ready_{name}": count for name, count in self.ready.items()}
        return {
            "waiting": self.waiting,
            "backlog": self.backlog,
            "reserved": self.reserved,
            **ready,
            "delayed": self.delayed,
            "parked": self.throttled,
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


MAX_EMPTY = 8  # pages of places that jobs have left, after which a look gives up


class QueueViews:
    """Looks at the queue of one group. Thread-safe, as the client is. Each method
    raises QueueError."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self.listing = JobListing(client, keys)

    def __repr__(self) -> str:
        return f"<Views of {self._keys.intake}>"

    def jobs(self, state: str | None = None, limit: int = 50) -> list[JobView]:
        """The first ``limit`` jobs of a state, or of all, running ones first; see
        Listing for their order."""
        found: list[JobView] = []
        page, rounds = JobPage((), None), 0
        while len(found) < limit and rounds < MAX_EMPTY + len(found):
            page = self.listing.page(
                state, min(limit - len(found), AT_ONCE), page.after
            )
            found += page.jobs
            rounds += 1
            if page.after is None:
                break
        return found

    def job(self, job_id: str) -> JobView:
        """One job. Raises NoSuchJob for one that is not known, or not any more."""
        fields, ahead = {}, None
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", job_id):
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
        """The figures of now, by the clock of Redis, and the counters of the last
        days.

        ``is_whole``: also the number of failure records, for which another node of a
        Cluster may be asked.
        """
        keys = self._keys
        with translated(self._client):
            time = queue_time(self._client, keys)
            days = [time.clock_ms // (DAY_S * 1000) - back for back in range(DAYS)]
            pipeline = self._client.pipeline(transaction=False)
            pipeline.llen(keys.intake).zcard(keys.delayed).zcard(keys.paused).zcard(
                keys.leases
            )
            for key, kept_s in (
                (keys.done, DONE_KEPT_S),
                (keys.dead, DEAD_KEPT_S),
                (keys.cancelled, DEAD_KEPT_S),
            ):
                pipeline.zcount(key, time.now_ms - kept_s * 1000, "+inf")
            pipeline.get(keys.halted).hmget(keys.stale, READY)
            for priority in READY:
                pipeline.llen(keys.ready(priority))
            for day in days:
                pipeline.hgetall(keys.stats(day))
            (
                backlog,
                delayed,
                paused,
                running,
                succeeded,
                failed,
                cancelled,
                halted,
                stale,
                *rest,
            ) = pipeline.execute()
            records = (
                records_client(self._client, keys).hlen(keys.failed)
                if with_failure_records
                else 0
            )
            reserved, supervisors, lost = self._supervisors(time)
            parked, waiting_hosts, held_hosts = self._hosts(time.now_ms)
        ready, counted = rest[: len(READY)], rest[len(READY) :]
        places = zip(READY, ready, stale, strict=True)
        return QueueStats(
            time.clock_ms / 1000,
            backlog,
            reserved,
            {name: max(0, length - to_int(old)) for name, length, old in places},
            delayed,
            paused,
            running,
            succeeded,
            failed,
            cancelled,
            records,
            supervisors,
            lost,
            tuple(
                _day(day, counters) for day, counters in zip(days, counted, strict=True)
            ),
            is_halted=halted is not None,
            halted_at=_since(halted, time),
            throttled=parked,
            waiting_hosts=waiting_hosts,
            held_hosts=held_hosts,
        )

    def _hosts(self, now_ms: int) -> tuple[int, dict[str, int], dict[str, float]]:
        """How many jobs are parked, for which hosts, and which hosts are held for how
        long."""
        keys = self._keys
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(keys.throttled).zrange(keys.throttled, 0, MAX_PARKED - 1)
        pipeline.zrange(keys.holds, now_ms, "+inf", byscore=True, withscores=True)
        parked, ids, holds = pipeline.execute()
        for job_id in ids:
            pipeline.hget(keys.job(to_text(job_id)), "host")
        waiting = Counter(
            to_text(host) for host in (pipeline.execute() if ids else ()) if host
        )
        held = {
            to_text(host): round((to_ms(until) - now_ms) / 1000, 3)
            for host, until in holds
        }
        return parked, dict(waiting.most_common()), held

    def _supervisors(
        self, time: QueueTime
    ) -> tuple[int, tuple[SupervisorView, ...], tuple[SupervisorView, ...]]:
        """How many jobs they have reserved, those that live, and those that have fallen
        silent within a day."""
        rows = self._client.zrange(
            self._keys.supervisors, 0, MAX_SUPERVISORS - 1, desc=True, withscores=True
        )
        sids = [
            (to_text(sid), (to_ms(passes_ms) - time.ahead_ms) / 1000)
            for sid, passes_ms in rows
        ]
        pipeline = self._client.pipeline(transaction=False)
        for sid, _ in sids:
            pipeline.llen(self._keys.inbox(sid)).get(self._keys.supervisor(sid))
        replies = pipeline.execute() if sids else []
        living, lost, now_s = [], [], time.clock_ms / 1000
        for (sid, passes_at), said in zip(sids, replies[1::2], strict=True):
            info = json_object(to_text(said))
            if passes_at > now_s:
                living.append(SupervisorView(sid, info))
            elif passes_at > now_s - LOST_S:
                lost.append(
                    SupervisorView(
                        sid, info, passes_at - (number(str(info.get("lease"))) or 0)
                    )
                )
        return (
            sum(replies[::2]),
            tuple(sorted(living, key=attrgetter("sid"))),
            tuple(lost),
        )


def _since(halted: bytes | None, time: QueueTime) -> float | None:
    """Since when the queue is paused, if that was noted."""
    at = number(to_text(halted))
    return (at - time.ahead_ms) / 1000 if at and at > 1 else None


def _day(day: int, counters: Mapping[bytes, bytes]) -> DayView:
    counted = {to_text(name): to_int(count) for name, count in counters.items()}
    return DayView(rfc3339(day * DAY_S)[:10], counted)
