"""Read-only views of the queue, for people and programs. Nothing here scans: every look is bounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from dlpool.jobs.connection import translated
from dlpool.jobs.controls import records_client
from dlpool.jobs.jobview import JobView, json_object, number
from dlpool.jobs.keys import READY, Keys
from dlpool.jobs.records import rfc3339
from dlpool.jobs.replies import unknown_job

STATES = ("running", "queued", "delayed", "paused", "failed", "succeeded")  # in the order in which they are listed
DAYS = 7
DAY_S = 86_400
DONE_KEPT_S, DEAD_KEPT_S = DAY_S, 7 * DAY_S  # as in shared.lua: what is older is forgotten
MAX_SUPERVISORS = 1000
MAX_PARKED = 1000  # that are counted by host


@dataclass(frozen=True)
class SupervisorView:
    """A supervisor that lives; ``info`` is what it says of itself: host, pid, version, slots, busy."""

    sid: str
    info: Mapping[str, Any]

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
class Stats:
    """The queue in figures.

    ``backlog``: in the list that clients push to. ``reserved``: in supervisors' hands, not yet begun. ``ready`` by
    priority; what was moved or stopped counts there until its old place is passed. ``succeeded`` and ``failed``: that
    are remembered. ``failure_records``: that clients see. ``days``: today first. ``is_halted``: nobody gets new jobs.
    ``parked``: that wait until their hosts may be asked (``waiting_hosts`` counts the first ones of them by host);
    ``held_hosts``: for how many seconds nobody asks them.
    """

    backlog: int
    reserved: int
    ready: Mapping[str, int]
    delayed: int
    paused: int
    running: int
    succeeded: int
    failed: int
    failure_records: int
    supervisors: tuple[SupervisorView, ...]
    days: tuple[DayView, ...]
    is_halted: bool = False
    parked: int = 0
    waiting_hosts: Mapping[str, int] = field(default_factory=dict)
    held_hosts: Mapping[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, int]:
        """All that is one number, by its name."""
        ready = {f"ready_{name}": count for name, count in self.ready.items()}
        return {
            "backlog": self.backlog, "reserved": self.reserved, **ready, "delayed": self.delayed,
            "parked": self.parked, "paused": self.paused,
            "running": self.running, "succeeded": self.succeeded, "failed": self.failed,
            "failure_records": self.failure_records,
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {
            **self.figures(),
            "is_halted": self.is_halted,
            "waiting_hosts": dict(self.waiting_hosts),
            "held_hosts": dict(self.held_hosts),
            "supervisors": [one.as_json() for one in self.supervisors],
            "days": [one.as_json() for one in self.days],
        }


class Views:
    """Looks at the queue of one group. Thread-safe, as the client is. Each method raises QueueError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client: Any = client
        self._keys = keys

    def __repr__(self) -> str:
        return f"<Views of {self._keys.intake}>"

    def jobs(self, state: str | None = None, limit: int = 50) -> list[JobView]:
        """At most ``limit`` jobs of a state, or of all, running ones first.

        Queued ones as they will be taken, delayed ones by when they are due, ended ones newest first (cancelled ones
        among the failed). Jobs that only wait for the end of an equal one are not listed.
        """
        found: list[JobView] = []
        shown: set[str] = set()  # one may have moved since, or have an old place in a list beside its new one
        with translated(self._client):
            for name in STATES if state is None else (state,):
                rows = self._of(name, limit - len(found)) if len(found) < limit else []
                found += [view for view in rows if view.id is None or _is_first(view.id, shown)]
        return found

    def job(self, job_id: str) -> JobView:
        """One job. Raises NoSuchJob for one that is not known, or not any more."""
        fields = {}
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", job_id):
            with translated(self._client):
                fields = self._client.hgetall(self._keys.job(job_id))
        if not fields:
            raise unknown_job(job_id)
        return JobView.from_hash(job_id, fields)

    def stats(self) -> Stats:
        """The figures of now, by the clock of Redis, and the counters of the last days."""
        keys = self._keys
        with translated(self._client):
            now_s = self._client.time()[0]
            days = [now_s // DAY_S - back for back in range(DAYS)]
            pipeline = self._client.pipeline(transaction=False)
            pipeline.llen(keys.intake).zcard(keys.delayed).zcard(keys.paused).zcard(keys.leases).exists(keys.halted)
            pipeline.zcount(keys.done, (now_s - DONE_KEPT_S) * 1000, "+inf")
            pipeline.zcount(keys.dead, (now_s - DEAD_KEPT_S) * 1000, "+inf")
            for priority in READY:
                pipeline.llen(keys.ready(priority))
            for day in days:
                pipeline.hgetall(keys.stats(day))
            backlog, delayed, paused, running, is_halted, succeeded, failed, *rest = pipeline.execute()
            records = records_client(self._client, keys).hlen(keys.failed)
            reserved, supervisors = self._supervisors(now_s)
            parked, waiting_hosts, held_hosts = self._hosts(now_s)
        ready, counted = rest[: len(READY)], rest[len(READY) :]
        return Stats(
            backlog, reserved, dict(zip(READY, ready, strict=True)), delayed, paused, running, succeeded, failed,
            records, supervisors, tuple(_day(day, counters) for day, counters in zip(days, counted, strict=True)),
            is_halted=bool(is_halted), parked=parked, waiting_hosts=waiting_hosts, held_hosts=held_hosts,
        )  # fmt: skip

    def _hosts(self, now_s: int) -> tuple[int, dict[str, int], dict[str, float]]:
        """How many jobs are parked, for which hosts, and which hosts are held for how long."""
        keys = self._keys
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(keys.parked).zrange(keys.parked, 0, MAX_PARKED - 1)
        pipeline.zrange(keys.holds, now_s * 1000, "+inf", byscore=True, withscores=True)
        parked, ids, holds = pipeline.execute()
        for job_id in ids:
            pipeline.hget(keys.job(job_id.decode()), "host")
        waiting = Counter(host.decode("utf-8", "replace") for host in (pipeline.execute() if ids else ()) if host)
        held = {host.decode("utf-8", "replace"): round(until / 1000 - now_s, 3) for host, until in holds}
        return parked, dict(waiting.most_common()), held

    def _of(self, state: str, limit: int) -> list[JobView]:
        if state == "queued":
            return self._queued(limit)
        keys = self._keys
        key = {"running": keys.leases, "delayed": keys.delayed, "paused": keys.paused, "succeeded": keys.done,
               "failed": keys.dead}[state]  # fmt: skip
        members = self._client.zrange(key, 0, limit - 1, desc=state in ("succeeded", "failed"))
        if state == "delayed":
            members = [*self._client.zrange(keys.parked, 0, limit - 1), *members][:limit]
        views = self._known([member.decode() for member in members], state)
        return sorted(views, key=lambda view: view.started_at or 0) if state == "running" else views

    def _known(self, ids: Sequence[str], state: str) -> list[JobView]:
        """The jobs of these ids that are (still) in that state; forgotten ones are left out."""
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(self._keys.job(job_id))
        rows = zip(ids, pipeline.execute() if ids else [], strict=True)
        views = [JobView.from_hash(job_id, fields) for job_id, fields in rows if fields]
        states = ("failed", "cancelled") if state == "failed" else (state,)
        return [view for view in views if view.state in states]

    def _queued(self, limit: int) -> list[JobView]:
        """Waiting jobs, as they will be taken."""
        keys = self._keys
        found = [JobView.from_raw(raw) for raw in self._reserved(limit)]
        for key in (keys.ready("limited"), keys.ready("high"), keys.ready("normal"), keys.intake, keys.ready("low")):
            left = limit - len(found)
            members = self._client.lrange(key, -left, -1)[::-1] if left > 0 else []
            if key == keys.intake:
                found += [JobView.from_raw(raw) for raw in members]
            else:
                found += self._known([member.decode() for member in members], "queued")
        return found[:limit]

    def _reserved(self, limit: int) -> list[bytes]:
        """Raw jobs that supervisors have reserved; also of those that are gone, until these jobs are given back."""
        pipeline = self._client.pipeline(transaction=False)
        sids = self._client.zrange(self._keys.supervisors, 0, MAX_SUPERVISORS - 1)
        for sid in sids:
            pipeline.lrange(self._keys.inbox(sid.decode()), -limit, -1)
        inboxes = pipeline.execute() if sids else []
        return [raw for inbox in inboxes for raw in reversed(inbox)]

    def _supervisors(self, now_s: int) -> tuple[int, tuple[SupervisorView, ...]]:
        """How many jobs they have reserved, and those that live."""
        rows = self._client.zrange(self._keys.supervisors, 0, MAX_SUPERVISORS - 1, withscores=True)
        sids = [(sid.decode(), passes_ms) for sid, passes_ms in rows]
        pipeline = self._client.pipeline(transaction=False)
        for sid, _ in sids:
            pipeline.llen(self._keys.inbox(sid)).get(self._keys.supervisor(sid))
        replies = pipeline.execute() if sids else []
        living = [
            SupervisorView(sid, json_object((said or b"").decode("utf-8", "replace")))
            for (sid, passes_ms), said in zip(sids, replies[1::2], strict=True)
            if passes_ms > now_s * 1000
        ]
        return sum(replies[::2]), tuple(living)


def _is_first(job_id: str, shown: set[str]) -> bool:
    """Whether it is not among those yet; then it is from now on."""
    is_first = job_id not in shown
    shown.add(job_id)
    return is_first


def _day(day: int, counters: Mapping[bytes, bytes]) -> DayView:
    counted = {name.decode("ascii", "replace"): int(number(count.decode()) or 0) for name, count in counters.items()}
    return DayView(rfc3339(day * DAY_S)[:10], counted)
