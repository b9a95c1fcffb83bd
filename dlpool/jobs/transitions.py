"""The transitions of a job, one Lua script each: push, claim, beat, finish, recover,
control; and hold, for a host.

States: queued -> running -> succeeded | failed | cancelled, with delayed (a retry, or
not before its time) and paused beside queued. Each transition is one atomic step in
Redis, by the clock of Redis, and safe to call again when its reply was lost.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import redis

from dlpool import jsontext
from dlpool.errors import QueueAway, QueueError, QueueRefused, QueueUnusable
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import SUCCESS_TTL_S, QueueKeys
from dlpool.jobs.outbox import Outbox, encode_entry
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, PushedJob
from dlpool.jobs.redis_values import to_int, to_ms, to_text
from dlpool.kinds import DAY_S


@dataclass(frozen=True)
class JobLease:
    """The right to work on a job: its id, and the fence that the claim raised."""

    job_id: str
    fence: int

    def __str__(self) -> str:
        return f"{self.job_id}.{self.fence}"


@dataclass(frozen=True)
class ClaimedJob:
    """A job that a supervisor holds. ``size`` of the pushed text in bytes; ``raw`` may
    be cut.

    ``flag``: cancel or pause, when an operator has asked for that. ``is_paid``: its
    start at its host is reserved. ``claim``: the random id of the job's first claim,
    which no other job ever has, whatever its id. ``yields``: how often it has given its
    slot to others.
    """

    lease: JobLease
    raw: bytes = field(repr=False)
    size: int
    attempts: int
    crashes: int
    takeovers: int
    created_ms: int
    priority: str
    flag: str | None = None
    is_start_reserved: bool = False
    claim_id: str = ""
    yields: int = 0


@dataclass(frozen=True)
class ClaimResult:
    """What a claim brought. ``next_due_s``: seconds until a delayed job may run, None
    if none waits.

    ``is_paused``: there will be no new jobs until an operator says so. ``is_full``: nor
    while so many are parked. ``is_alone``: a host got more than its part, as no job of
    another one was seen to wait. ``passed``: jobs that were looked at and passed over,
    as their hosts have their part.
    """

    jobs: tuple[ClaimedJob, ...]
    next_due_s: float | None
    is_paused: bool = False
    is_throttle_full: bool = False
    is_share_exceeded: bool = False
    skipped: int = 0


@dataclass(frozen=True)
class HostSlotShares:
    """How slots are shared out while jobs of several hosts wait: ``most`` to one host,
    which has ``held`` of them.

    ``slow`` hosts have ``slow_held`` of them, and get ``slow_most`` together. A host is
    named as in URLs: in lower case, with its port, if that is given.
    """

    limit: int
    held: Mapping[str, int]
    slow: tuple[str, ...] = ()
    slow_limit: int = 0
    slow_held: int = 0

    def as_json(self) -> dict[str, Any]:
        """What the claim is told of it."""
        if not self.slow:
            return {"held": self.held}
        return {
            "held": self.held,
            "slow": self.slow,
            "slow_most": self.slow_limit,
            "slow_held": self.slow_held,
        }


@dataclass(frozen=True)
class HeartbeatResult:
    """What a beat brought: how many jobs are ours that we did not name, and for each
    named one OK, LOST or a flag.

    ``holds``: hosts that nobody may ask, and for how many seconds.
    """

    orphans: int
    replies: tuple[str, ...]
    held_hosts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FinishRequest:
    """How a job leaves its supervisor.

    ``outcome``: success, failed, cancelled, retry, release, yield, pause, park, crash,
    follow. ``note`` says why. ``delay_s`` for retry, release, yield and park. ``host``:
    where it had a slot, or has to wait for one; ``is_paid``: its start there is
    reserved; ``is_for_slot``: parked until somebody gives one back, or ``delay_s`` has
    passed. ``priority``: to go on with, at its back. ``digest``: with follow, what
    equal jobs share. ``trace_id``: for the log.
    """

    lease: JobLease
    disposition: str
    record: ClientRecord | None = None
    note: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0
    priority: str = ""
    digest: str = ""
    host: str = ""
    is_start_reserved: bool = False
    waits_for_slot: bool = False
    trace_id: str = ""


@dataclass(frozen=True)
class RecoveryResult:
    """Jobs that became suspect, and those that were given back."""

    expired: int
    requeued: tuple[str, ...]


@dataclass(frozen=True)
class OldestWaiting:
    """What waits longest.

    ``length`` of the intake; ``mark`` tells its oldest job from others, empty if there
    is none. ``ready_s``: how long the longest waits of those that are next in the ready
    lists.
    """

    backlog: int
    fingerprint: str
    ready_age_s: float


def new_id() -> str:
    """An id for a job: 128 random bits."""
    return uuid.uuid4().hex


@cache
def _source(name: str) -> str:
    folder = resources.files("dlpool.jobs") / "lua"
    return (folder / "shared.lua").read_text("utf-8") + (
        folder / f"{name}.lua"
    ).read_text("utf-8")


SCRIPTS = (
    "push",
    "claim",
    "beat",
    "finish",
    "recover",
    "control",
    "requeue",
    "hold",
    "host_slot",
    "oldest",
    "turn",
    "sample",
    "waiting",
)


class Transitions:
    """The queue of one group. Thread-safe, as the client is. Each method raises
    QueueError.

    ``outbox``: in a Cluster, where ``finish`` puts the records of clients; None where
    it writes them itself.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: QueueKeys,
        timed: Callable[[str, float], None] = lambda _name, _seconds: None,
    ) -> None:
        """``timed`` hears how long each call took that was answered."""
        self.client = client
        self.keys = keys
        self._timed = timed
        cluster = cluster_of(client)
        self.outbox = Outbox(client, keys, cluster) if cluster else None
        self._scripts = {
            name: client.register_script(_source(name)) for name in SCRIPTS
        }

    def __repr__(self) -> str:
        return f"<Transitions of {self.keys.intake}>"

    def push(self, jobs: Sequence[tuple[PushedJob, str]]) -> list[str]:
        """Queue jobs under the given ids, with one round trip; OK, DUP (that id again)
        or FOLLOWS for each in turn."""
        calls = [
            [
                self.keys.prefix,
                job_id,
                job.raw,
                job.priority,
                int((job.not_before or 0) * 1000),
                job.digest if job.dedupe else "",
            ]
            for job, job_id in jobs
        ]
        return [
            to_text(reply)
            for reply in self.run_script(
                "push", [([self.keys.intake], call) for call in calls]
            )
        ]

    def claim(
        self,
        sid: str,
        known: Sequence[JobLease] | None,
        slots: int,
        *,
        lease_s: float,
        order: str,
        max_throttled: int = 1000,
        shares: HostSlotShares | None = None,
    ) -> ClaimResult | None:
        """Jobs for ``slots`` free slots, after those that are ours already and not
        ``known``; None: only new ones.

        What a call has claimed whose reply was lost comes with the next one that says
        what is known. Returns None: the supervisor ``sid`` is not registered, ``beat``
        comes first. With ``parts`` a job of a host that has its part is only taken
        where there is no other among the next and the last 500 of each list.
        """
        unused = new_id()
        fresh = [f"{unused[:-4]}{number:04x}" for number in range(slots)]
        reply = self._run(
            "claim",
            [
                self.keys.prefix,
                sid,
                _ms(lease_s),
                order,
                slots,
                MAX_JOB_BYTES,
                -1 if known is None else len(known),
                max_throttled,
                shares.limit if shares else 0,
                jsontext.dumps(shares.as_json() if shares else {}),
                *map(str, known or ()),
                *fresh,
            ],
        )
        if reply is None:
            return None
        due_ms, gate, alone, passed, *rows = reply
        next_due_s = None if due_ms < 0 else due_ms / 1000
        return ClaimResult(
            tuple(_claimed(row) for row in rows),
            next_due_s,
            gate == b"paused",
            gate == b"full",
            bool(alone),
            passed,
        )

    def heartbeat(
        self,
        sid: str,
        jobs: Sequence[tuple[JobLease, str]],
        *,
        lease_s: float,
        info: dict[str, Any] | None = None,
    ) -> HeartbeatResult:
        """Renew the leases of ``jobs`` (with their progress, JSON or empty); with
        ``info`` also the registration.

        Without ``info`` it is the question whether the fences still stand.
        """
        arguments: list[Any] = [
            self.keys.prefix,
            sid,
            _ms(lease_s),
            jsontext.dumps(info) if info is not None else "",
        ]
        for ticket, progress in jobs:
            arguments += [ticket.job_id, ticket.fence, progress]
        strays, held, *verdicts = self._run("beat", arguments)
        holds = tuple(
            (to_text(host), to_ms(to_int(ms)) / 1000)
            for host, ms in zip(held[::2], held[1::2], strict=True)
        )
        return HeartbeatResult(int(strays), tuple(map(to_text, verdicts)), holds)

    def hold_host(self, host: str, seconds: float) -> None:
        """Have no supervisor ask ``host`` for that long; all hear of it at once."""
        self._run("hold", [self.keys.prefix, host, _ms(seconds)])

    def take_turn(self, key: str, seconds: float) -> bool:
        """Return whether it is this caller's turn: ``key`` records that no other had
        one within ``seconds``."""
        reply = self._run(
            "turn", [self.keys.prefix, key.removeprefix(self.keys.prefix), _ms(seconds)]
        )
        return reply is not None

    def add_sample(self, figures: Mapping[str, int], *, kept: int, ttl_ms: int) -> None:
        """Add a sample to the history, which keeps the last ``kept`` samples, for
        ``ttl_ms`` after the last one."""
        pairs = [text for pair in figures.items() for text in pair]
        self._run("sample", [self.keys.prefix, kept, ttl_ms, *pairs])

    def oldest_waiting(self) -> OldestWaiting:
        """What waits longest, for figures."""
        length, mark, waited_ms = self._run("oldest", [self.keys.prefix])
        return OldestWaiting(int(length), to_text(mark), max(0, int(waited_ms)) / 1000)

    def waiting_hosts(self, sid: str, *, order: str, most: int = 500) -> dict[str, int]:
        """How many jobs of which hosts wait for a slot; of each list the next and the
        last ``most`` are looked at.

        Hosts as in ``HostSlotShares``; '' is that of jobs whose text does not tell it.
        Empty while ``sid`` is to take none.
        """
        found = self._run("waiting", [self.keys.prefix, sid, order, most])
        return {
            to_text(host): int(count)
            for host, count in zip(found[::2], found[1::2], strict=True)
        }

    def finish(self, sid: str, requests: Sequence[FinishRequest]) -> list[str]:
        """End or give back jobs with one round trip; OK, DUP, FENCED, GONE, FOLLOWS or
        LEADS for each in turn."""
        return [
            to_text(reply)
            for reply in self.run_script(
                "finish", [self._ending(sid, one) for one in requests]
            )
        ]

    def recover(self, sid: str, *, grace_s: float, order: str) -> RecoveryResult:
        """Look for leases that have passed; by one supervisor at a time, another's call
        does nothing."""
        return _recovery(
            self._run("recover", [self.keys.prefix, sid, _ms(grace_s), order])
        )

    def requeue_jobs_of(
        self, sid: str, gone: Sequence[str], *, order: str
    ) -> list[str]:
        """Give back at once all jobs of supervisors that are known to be gone; their
        ids."""
        given_back: list[str] = []
        while gone:
            left, *found = self._run(
                "recover", [self.keys.prefix, sid, 0, order, *gone]
            )
            given_back += map(to_text, found)
            if not left:
                break
        return given_back

    def check_keys(self, cause: QueueError | None = None) -> None:
        """Raise QueueUnusable if a key of the queue is of another type, as another
        program left it."""
        kinds = self.keys.key_types(int(time.time() // DAY_S))
        with translated(self.client):
            pipeline = self.client.pipeline(transaction=False)
            for key in kinds:
                pipeline.type(key)
            found = [to_text(kind) for kind in pipeline.execute()]
        for (key, wanted), kind in zip(kinds.items(), found, strict=True):
            if kind not in (wanted, "none"):
                raise unusable_error(
                    f"its key {key} is a {kind}, not a {wanted}"
                ) from cause

    def _ending(self, sid: str, ending: FinishRequest) -> tuple[list[str], list[Any]]:
        key, *visible = self._visible(ending)
        note = jsontext.dumps(ending.note) if ending.note else ""
        return [self.keys.intake, key], [
            self.keys.prefix,
            sid,
            ending.lease.job_id,
            ending.lease.fence,
            ending.disposition,
            _ms(ending.delay_s),
            note,
            ending.priority,
            ending.digest,
            *visible,
            ending.host,
            int(ending.is_start_reserved),
            int(ending.waits_for_slot),
        ]

    def _visible(self, ending: FinishRequest) -> list[Any]:
        """Where the record goes: key, kind, time to live, field, value."""
        record = ending.record
        if record is None:
            return [self.keys.intake, "", 0, "", ""]
        if self.outbox is not None:
            return [
                self.keys.outbox,
                "outbox",
                0,
                str(ending.lease),
                encode_entry(record),
            ]
        kind = "string" if record.field is None else "hash"
        return [record.key, kind, SUCCESS_TTL_S, record.field or "", record.value]

    def _run(self, name: str, arguments: Sequence[Any]) -> Any:
        return self.run_script(name, [([self.keys.intake], arguments)])[0]

    def run_script(
        self,
        name: str,
        calls: Sequence[tuple[list[str], Sequence[Any]]],
        client: Any = None,
    ) -> list[Any]:
        """The script once for each of ``calls`` (keys and arguments), in one round
        trip; loaded if need be.

        ``client``: of the node of a Cluster that has these keys, if they are not the
        queue's.
        """
        script, client = self._scripts[name], client or self.client
        began = time.monotonic()
        try:
            with translated(client):
                try:
                    replies = _evaluate(client, script.sha, calls)
                except redis.exceptions.NoScriptError:
                    client.script_load(script.script)
                    replies = _evaluate(client, script.sha, calls)
        except (QueueAway, QueueRefused):
            raise
        except QueueError as error:
            self.check_keys(error)
            raise
        self._timed(name, time.monotonic() - began)
        return replies


def unusable_error(reason: str) -> QueueUnusable:
    """Return the error that a key with foreign content is."""
    return QueueUnusable(
        f"Redis cannot be used: {reason}: another program wrote it; rename or delete it"
    )


def _evaluate(
    client: Any, sha: str, calls: Sequence[tuple[list[str], Sequence[Any]]]
) -> list[Any]:
    if len(calls) == 1:
        keys, arguments = calls[0]
        return [client.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)]
    pipeline = client.pipeline(transaction=False)
    for keys, arguments in calls:
        pipeline.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)
    return list(pipeline.execute())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _claimed(row: Sequence[Any]) -> ClaimedJob:
    (
        job_id,
        fence,
        raw,
        size,
        attempts,
        crashes,
        takeovers,
        created,
        priority,
        flag,
        paid,
        claim,
        yields,
    ) = row
    return ClaimedJob(
        JobLease(to_text(job_id), _count(fence)),
        raw or b"",
        _count(size),
        _count(attempts),
        _count(crashes),
        _count(takeovers),
        _count(created),
        to_text(priority or b"normal"),
        to_text(flag) if flag else None,
        bool(paid),
        to_text(claim),
        _count(yields),
    )


def _count(value: bytes | int | None) -> int:
    """Return a count from Redis; 0 for what is none."""
    return max(0, to_int(value))


def _recovery(reply: Sequence[Any]) -> RecoveryResult:
    suspects, *ids = reply
    return RecoveryResult(int(suspects), tuple(map(to_text, ids)))
