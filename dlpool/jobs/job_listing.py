"""Lists of jobs, one page per call. No method scans all keys: the work for a page is
bounded, however many jobs Redis contains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.errors import UsageError
from dlpool.jobs.connection import translated
from dlpool.jobs.job_view import JobView
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_clock import parse_ahead_ms
from dlpool.jobs.redis_values import is_job_id, to_int, to_ms, to_text
from dlpool.jobs.states import JobState

STATES = (  # in the order of the complete list
    JobState.RUNNING,
    JobState.QUEUED,
    JobState.DELAYED,
    JobState.PAUSED,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
)
MAX_SUPERVISORS = 1000
MAX_RUNNING = 10_000  # running jobs that are sorted
MAX_READS = 12  # reads for one page, if many entries are not listed
BATCH = 1000  # entries of one read

# Positions in cursors: SCORE-ID in a sorted set; a number of passed jobs (queued); p or
# d for throttled or other delayed jobs, and SCORE-ID (delayed).
_FORM = r"[0-9]{1,17}-[A-Za-z0-9_.-]{1,64}"
_PLACE = re.compile(f"({_FORM})?")
_PLACES = {
    "queued": re.compile("[0-9]{0,15}"),
    "delayed": re.compile(f"([pd]({_FORM})?)?"),
}

_FIRST, _LAST = "-", "z" * 64  # before and after all ids

Rows = list[JobView | None]
Place = tuple[int, str]  # score of a job in its sorted set, and its id


@dataclass(frozen=True)
class JobPage:
    """A part of a list. ``after``: the cursor of the next part; None for the last
    part."""

    jobs: tuple[JobView, ...]
    after: str | None


class JobListing:
    """The lists of one queue. Thread-safe, because ``redis.Redis`` is.

    Order: running jobs by their start; queued jobs in the order in which supervisors
    take them; jobs that wait for their host, then all other delayed jobs, by the time
    at which they are due; paused jobs by the time of the pause; ended jobs newest
    first. A job that waits for the end of an equal job is not listed.

    A cursor names a job, so it stays valid when the list changes. A cursor of queued
    jobs is a position instead: a job that moves past it may be listed twice or not at
    all.
    """

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        ended = {
            JobState.FAILED: keys.dead,
            JobState.CANCELLED: keys.cancelled,
            JobState.SUCCEEDED: keys.done,
        }
        self._readers: dict[
            str, Callable[[int, str], tuple[list[JobView], str | None]]
        ] = {
            JobState.RUNNING: self._running,
            JobState.QUEUED: self._queued,
            JobState.DELAYED: self._delayed,
            JobState.PAUSED: lambda limit, place: self._timed(
                keys.paused, JobState.PAUSED, limit, place
            ),
            **{state: self._newest(key, state) for state, key in ended.items()},
        }

    def page(
        self, state: str | None = None, limit: int = 50, after: str | None = None
    ) -> JobPage:
        """Return at most ``limit`` jobs of a state, or of all states, after a cursor.

        A page may have fewer jobs, even none, although more jobs follow. Raises
        UsageError for an invalid cursor, QueueError.
        """
        states = STATES if state is None else (state,)
        begin, place = _read(after, states)
        found: list[JobView] = []
        shown: set[str] = set()  # a job may move to the next list between two reads
        with translated(self._client):
            for name in states[states.index(begin) :]:
                if len(found) >= limit:
                    return JobPage(tuple(found), f"{name}.")
                rows, left = self._readers[name](limit - len(found), place)
                found += [
                    view
                    for view in rows
                    if view.id is None or _is_first(view.id, shown)
                ]
                if left is not None:
                    return JobPage(tuple(found), f"{name}.{left}")
                place = ""
        return JobPage(tuple(found), None)

    def _newest(
        self, key: str, state: str
    ) -> Callable[[int, str], tuple[list[JobView], str | None]]:
        return lambda limit, place: self._timed(key, state, limit, place, desc=True)

    def _timed(
        self, key: str, state: str, limit: int, place: str, *, desc: bool = False
    ) -> tuple[list[JobView], str | None]:
        """Return at most ``limit`` jobs of a sorted set that are still in ``state``,
        and the cursor position behind them. The position is None if no members
        follow."""
        found: list[JobView] = []
        last = _place(place)
        for _ in range(MAX_READS):
            count = limit - len(found)
            members = self._behind(key, last, count + 1, desc=desc)
            rows = self._rows([job_id for _, job_id in members[:count]], state)
            found += [view for view in rows if view is not None]
            if len(members) <= count:
                return found, None
            last = members[count - 1]
            if len(found) >= limit:
                break
        return found, _text(last, desc=desc)

    def _behind(
        self, key: str, last: Place | None, count: int, *, desc: bool
    ) -> list[Place]:
        """Return the next ``count`` members of a sorted set behind ``last``. Members
        with equal scores are ordered by id."""
        if last is None:
            return _members(
                self._client.zrange(key, 0, count - 1, desc=desc, withscores=True)
            )
        found: list[Place] = []
        offset = 0
        while len(found) < count:
            rows = self._client.zrange(
                key,
                last[0],
                "-inf" if desc else "+inf",
                desc=desc,
                byscore=True,
                withscores=True,
                offset=offset,
                num=count + BATCH,
            )
            found += [
                one for one in _members(rows) if (one < last if desc else one > last)
            ]
            offset += len(rows)
            if len(rows) < count + BATCH:
                break
        return found[:count]

    def _delayed(self, limit: int, place: str) -> tuple[list[JobView], str | None]:
        """Return the throttled jobs, then all other delayed jobs, at most ``limit``
        together, and the cursor position behind them. The position is None if no jobs
        follow."""
        found: list[JobView] = []
        if not place.startswith("d"):
            found, left = self._timed(
                self._keys.throttled, JobState.DELAYED, limit, place[1:]
            )
            if left is not None:
                return found, f"p{left}"
            if len(found) >= limit:
                return found, "d"
        more, left = self._timed(
            self._keys.delayed,
            JobState.DELAYED,
            limit - len(found),
            place[1:] if place[:1] == "d" else "",
        )
        return found + more, None if left is None else f"d{left}"

    def _running(self, limit: int, place: str) -> tuple[list[JobView], str | None]:
        names = map(to_text, self._client.zrange(self._keys.leases, 0, MAX_RUNNING - 1))
        ids = [name for name in names if is_job_id(name)]
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hget(self._keys.job(job_id), "started")
        began = [to_ms(to_int(one)) for one in (pipeline.execute() if ids else ())]
        last = _place(place)
        order = [
            one
            for one in sorted(zip(began, ids, strict=True))
            if last is None or one > last
        ]
        rows = self._rows([job_id for _, job_id in order[:limit]], JobState.RUNNING)
        left = _text(order[limit - 1]) if len(order) > limit else None
        return [view for view in rows if view is not None], left

    def _rows(self, ids: Sequence[str], state: str, in_list: str | None = None) -> Rows:
        """Return one entry per id: the job, or None. None means that the job is
        deleted, is not in ``state``, or belongs to a ready list other than ``in_list``.
        If ``in_list`` is None, the job may belong to any list."""
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(self._keys.job(job_id))
        pipeline.hget(self._keys.clock, "ahead")
        *hashes, ahead = pipeline.execute() if ids else (None,)
        found: Rows = []
        for job_id, fields in zip(ids, hashes, strict=True):
            is_there = fields and (
                in_list is None
                or fields.get(b"list", in_list.encode()) == in_list.encode()
            )
            view = (
                JobView.from_hash(job_id, fields, parse_ahead_ms(ahead))
                if is_there
                else None
            )
            found.append(view if view is not None and view.state == state else None)
        return found

    def _queued(self, limit: int, place: str) -> tuple[list[JobView], str | None]:
        """Return at most ``limit`` waiting jobs, list after list, and the position
        behind them. The position is None if no entries follow. ``place``: the position
        to begin at, counted across all lists; empty for the first."""
        lists = self._lists()
        passed, total = int(place or 0), sum(length for _, length in lists)
        found: list[JobView] = []
        step = limit
        for _ in range(MAX_READS):
            for view in self._at_places(lists, passed, step):
                if len(found) >= limit:
                    break
                passed += 1
                found += [] if view is None else [view]
            if passed >= total or len(found) >= limit:
                break
            step = min(BATCH, 4 * step)
        return found, str(passed) if passed < total else None

    def _lists(self) -> list[tuple[str, int]]:
        """Return the lists of waiting jobs, in the order in which supervisors take jobs
        from them, with their lengths.

        The inboxes of supervisors come first. The inbox of a supervisor that has died
        is included until recovery empties it.
        """
        keys = self._keys
        sids = self._client.zrange(keys.supervisors, 0, MAX_SUPERVISORS - 1, desc=True)
        names = [
            *(keys.inbox(to_text(sid)) for sid in sids),
            keys.ready("limited"),
            keys.ready("high"),
            keys.ready("normal"),
            keys.intake,
            keys.ready("low"),
        ]
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.llen(name)
        return list(zip(names, pipeline.execute(), strict=True))

    def _at_places(
        self, lists: Sequence[tuple[str, int]], passed: int, count: int
    ) -> Rows:
        """Return the jobs at up to ``count`` positions across ``lists``, after skipping
        ``passed`` positions. The result has None for an entry whose job no longer
        waits."""
        found: Rows = []
        for name, length in lists:
            here = min(count - len(found), length - passed)
            if here > 0:
                members = self._client.lrange(name, -passed - here, -passed - 1)[::-1]
                views = self._waiting(name, members)
                # entries that were taken meanwhile
                found += views + [None] * (here - len(views))
            passed = max(0, passed - length)
        return found

    def _waiting(self, name: str, members: Sequence[bytes]) -> Rows:
        prefix = self._keys.ready("")
        if not name.startswith(prefix):
            return [JobView.from_raw(raw) for raw in members]
        return self._rows(
            [to_text(member) for member in members],
            JobState.QUEUED,
            name.removeprefix(prefix),
        )


def _read(cursor: str | None, states: Sequence[str]) -> tuple[str, str]:
    """Return the state and the position of a cursor. Raises UsageError."""
    if cursor is None:
        return states[0], ""
    state, _, place = cursor.partition(".")
    if state not in states or not _PLACES.get(state, _PLACE).fullmatch(place):
        raise UsageError("the cursor does not belong to this list")
    return state, place


def _place(text: str) -> Place | None:
    score, _, job_id = text.partition("-")
    return (int(score), job_id) if job_id else None


def _text(place: Place | None, *, desc: bool = False) -> str | None:
    """Return the cursor position behind ``place``; None if ``place`` is None or no
    position follows. If the member is not a job id, the position is behind all members
    with the same score."""
    if place is None or is_job_id(place[1]):
        return None if place is None else f"{place[0]}-{place[1]}"
    if not desc:
        return f"{place[0] + 1}-{_FIRST}"
    return f"{place[0] - 1}-{_LAST}" if place[0] > 0 else None


def _members(rows: Sequence[tuple[bytes, float]]) -> list[Place]:
    return [(to_ms(score), to_text(member)) for member, score in rows]


def _is_first(job_id: str, shown: set[str]) -> bool:
    """Add an id to ``shown``. Return whether the id was new."""
    is_first = job_id not in shown
    shown.add(job_id)
    return is_first
