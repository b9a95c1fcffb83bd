"""The operations on the jobs of a queue, one Lua script each in ``lua/``. The head of a
script documents its keys, arguments and results.

Each script is one atomic step in Redis, and uses the clock of Redis. If the reply of
push, claim, heartbeat or finish was lost, it is safe to repeat the call.

Two supervisors cannot both complete a job: ``claim.lua`` gives each claim a new fencing
token (``fence``), and ``heartbeat.lua`` and ``finish.lua`` accept only the newest one.
``recover.lua`` requeues jobs whose leases have expired, with a new token.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.keys import SUCCESS_TTL_S
from dlpool.jobs.outbox import encode_entry
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, PushedJob
from dlpool.jobs.redis_values import to_int, to_ms, to_text
from dlpool.jobs.scripts import LuaScripts
from dlpool.jobs.states import Disposition


@dataclass(frozen=True)
class JobLease:
    """The right to work on a job: the id of the job, and the fencing token of the
    claim. ``str()`` returns ``ID.FENCE``."""

    job_id: str
    fence: int

    def __str__(self) -> str:
        return f"{self.job_id}.{self.fence}"


@dataclass(frozen=True)
class ClaimedJob:
    """A job that a supervisor holds.

    ``raw``: the pushed text, cut if it is longer than allowed; ``size``: its length in
    bytes before the cut. ``flag``: "cancel" or "pause" if an operator has requested
    this, else None. ``is_start_reserved``: the rate limit of the host has already
    counted the start of the job. ``claim_id``: random id of the job's first claim; a
    later job with the same job id has another ``claim_id``. ``yields``: how often the
    job has yielded its slot.
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
    """The jobs of a claim.

    ``next_due_s``: seconds until a later claim may find more jobs, None if unknown.
    ``is_paused``: the queue is paused or the node is drained. ``is_throttle_full``: the
    queue has the maximum of throttled jobs. ``is_share_exceeded``: a host got more than
    its share, and no host is slow. ``skipped``: number of entries of the lists that
    were skipped, usually because a host has its share.
    """

    jobs: tuple[ClaimedJob, ...]
    next_due_s: float | None
    is_paused: bool = False
    is_throttle_full: bool = False
    is_share_exceeded: bool = False
    skipped: int = 0


@dataclass(frozen=True)
class HostSlotShares:
    """Bounds on the slots of a host while jobs of other hosts wait.

    ``limit``: slots for each host. ``held``: slots that each host has. It leaves out
    hosts that one claim cannot bring to ``limit``. The ``slow`` hosts together have
    ``slow_held`` slots and get at most ``slow_limit``. The last ``ahead`` jobs of the
    claim never exceed these bounds. A host is written as host and port of the URL, in
    lower case.
    """

    limit: int
    held: Mapping[str, int]
    slow: tuple[str, ...] = ()
    slow_limit: int = 0
    slow_held: int = 0
    ahead: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields other than ``limit`` as ``claim.lua`` reads them."""
        return {
            "held": self.held,
            "ahead": self.ahead,
            "slow": self.slow,
            "slow_limit": self.slow_limit,
            "slow_held": self.slow_held,
        }


@dataclass(frozen=True)
class HeartbeatResult:
    """The reply to a heartbeat.

    ``orphans``: number of jobs that Redis assigns to the caller but that the caller did
    not name. ``replies``: for each named job OK, LOST (the caller no longer holds it),
    or what an operator has requested (cancel, pause). ``held_hosts``: hosts that must
    not be contacted, with the remaining seconds.
    """

    orphans: int
    replies: tuple[str, ...]
    held_hosts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FinishRequest:
    """How a job leaves its supervisor.

    ``note``: reason or figures, for people. ``delay_s``: for RETRY, RELEASE, YIELD and
    THROTTLE, seconds until the job may run again. ``priority``: a new priority, which
    puts the job at the end of its ready list; '' keeps the present one. ``digest``: for
    FOLLOW, the digest that equal jobs share. ``host``: for THROTTLE, the host that
    throttles the job; otherwise the host whose slot the job had, '' if none. Only for
    THROTTLE: ``is_start_reserved``: as in ``ClaimedJob``; ``waits_for_slot``: a free
    slot of the host ends the delay early.
    """

    lease: JobLease
    disposition: Disposition
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
    """The result of a recovery. ``expired``: number of leases that have expired and
    whose grace begins now; ``requeued``: ids of the requeued jobs."""

    expired: int
    requeued: tuple[str, ...]


@dataclass(frozen=True)
class OldestWaiting:
    """The oldest waiting jobs.

    ``backlog``: length of the intake list. ``fingerprint``: digest of the oldest job in
    the intake list, '' if the list is empty. ``ready_age_s``: longest wait among the
    next jobs of the ready lists, in seconds; 0 if these lists are empty.
    """

    backlog: int
    fingerprint: str
    ready_age_s: float


def new_id() -> str:
    """Return a job id of 128 random bits."""
    return uuid.uuid4().hex


class Transitions(LuaScripts):
    """The operations of one queue.

    Thread-safe, because ``redis.Redis`` is. All methods raise QueueError.
    """

    def push(self, jobs: Sequence[tuple[PushedJob, str]]) -> list[str]:
        """Queue jobs under the given ids in one round trip. Return a reply for each
        job: OK, DUP (the id is known) or FOLLOWS (the job waits for an equal job)."""
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
        """Claim jobs for ``slots`` free slots of the supervisor ``sid``. Return None if
        ``sid`` is not registered; ``heartbeat`` registers it.

        The result begins with jobs that ``sid`` holds but ``known`` does not name: the
        reply to their claim was lost. If ``known`` is None, the result has only new
        jobs.

        ``lease_s``: seconds. ``order``: order of the intake list, fifo or lifo. While
        ``max_throttled`` or more jobs are throttled, all other jobs stay in the queue.
        With ``shares``, jobs of hosts that have their share are skipped if other jobs
        are found.
        """
        unused = new_id()
        ids = [f"{unused[:-4]}{number:04x}" for number in range(slots)]
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
                *ids,
            ],
        )
        return None if reply is None else _claim_result(reply)

    def heartbeat(
        self,
        sid: str,
        jobs: Sequence[tuple[JobLease, str]],
        *,
        lease_s: float,
        info: dict[str, Any] | None = None,
    ) -> HeartbeatResult:
        """Renew the leases of ``jobs``, and store the progress of each job (JSON; ''
        keeps the stored progress).

        ``info``: the status of the supervisor; with ``info``, the call renews the
        registration of the supervisor as well. Without ``info`` the result has no
        orphans and no held hosts.
        """
        arguments: list[Any] = [
            self.keys.prefix,
            sid,
            _ms(lease_s),
            jsontext.dumps(info) if info is not None else "",
        ]
        for lease, progress in jobs:
            arguments += [lease.job_id, lease.fence, progress]
        orphans, holds, *replies = self._run("heartbeat", arguments)
        hosts = zip(holds[::2], holds[1::2], strict=True)
        held_hosts = tuple(
            (to_text(host), to_ms(to_int(ms)) / 1000) for host, ms in hosts
        )
        return HeartbeatResult(int(orphans), tuple(map(to_text, replies)), held_hosts)

    def finish(self, sid: str, requests: Sequence[FinishRequest]) -> list[str]:
        """End or requeue jobs in one round trip, and return a reply for each request.

        Replies: OK; DUP (an earlier call finished the job); FENCED (the job has a newer
        fencing token); GONE (the job has been deleted). For FOLLOW: FOLLOWS (the job
        waits for an equal job), or LEADS (this job continues).
        """
        return [
            to_text(reply)
            for reply in self.run_script(
                "finish", [self._finish_call(sid, one) for one in requests]
            )
        ]

    def recover(self, *, grace_s: float, order: str) -> RecoveryResult:
        """Requeue jobs whose leases have expired and whose grace of ``grace_s`` seconds
        is over. Do nothing if any supervisor made this call less than 4 s ago."""
        expired, *ids = self._run("recover", [self.keys.prefix, _ms(grace_s), order])
        return RecoveryResult(int(expired), tuple(map(to_text, ids)))

    def requeue_jobs_of(self, gone: Sequence[str], *, order: str) -> list[str]:
        """Requeue at once all jobs of supervisors that have exited. Return the ids of
        the jobs."""
        requeued: list[str] = []
        while gone:
            left, *found = self._run(
                "requeue_jobs", [self.keys.prefix, "", order, *gone]
            )
            requeued += map(to_text, found)
            if not left:
                break
        return requeued

    def hold_host(self, host: str, seconds: float) -> None:
        """Let no supervisor send requests to ``host`` for ``seconds``, and notify all
        supervisors."""
        self._run("hold_host", [self.keys.prefix, host, _ms(seconds)])

    def oldest_waiting(self) -> OldestWaiting:
        """Return the backlog and how long jobs have waited, for metrics."""
        length, fingerprint, waited_ms = self._run("oldest_waiting", [self.keys.prefix])
        return OldestWaiting(
            int(length), to_text(fingerprint), max(0, int(waited_ms)) / 1000
        )

    def waiting_hosts(self, sid: str, *, order: str, most: int = 500) -> dict[str, int]:
        """Return the number of waiting jobs by host; a sample if lists are long.

        Reads at most ``most`` jobs at each end of the intake list and of each priority.
        Hosts are written as in ``HostSlotShares``; '' stands for jobs whose host is not
        found. The result is empty while the queue is paused or the node drained.
        """
        found = self._run("waiting_hosts", [self.keys.prefix, sid, order, most])
        return {
            to_text(host): int(count)
            for host, count in zip(found[::2], found[1::2], strict=True)
        }

    def take_turn(self, key: str, seconds: float) -> bool:
        """Return whether the caller must do a task that only one caller does every
        ``seconds``. ``key``: the Redis key that records the turn."""
        reply = self._run(
            "take_turn",
            [self.keys.prefix, key.removeprefix(self.keys.prefix), _ms(seconds)],
        )
        return reply is not None

    def add_sample(self, figures: Mapping[str, int], *, kept: int, ttl_ms: int) -> None:
        """Add a sample to the history, which keeps about ``kept`` samples. The history
        expires ``ttl_ms`` milliseconds after the last sample."""
        pairs = [text for pair in figures.items() for text in pair]
        self._run("add_sample", [self.keys.prefix, kept, ttl_ms, *pairs])

    def _finish_call(
        self, sid: str, request: FinishRequest
    ) -> tuple[list[str], list[Any]]:
        """Return keys and arguments of ``finish.lua``."""
        key, *visible = self._record_arguments(request)
        note = jsontext.dumps(request.note) if request.note else ""
        return [self.keys.intake, key], [
            self.keys.prefix,
            sid,
            request.lease.job_id,
            request.lease.fence,
            str(request.disposition),
            _ms(request.delay_s),
            note,
            request.priority,
            request.digest,
            *visible,
            request.host,
            int(request.is_start_reserved),
            int(request.waits_for_slot),
        ]

    def _record_arguments(self, request: FinishRequest) -> list[Any]:
        """Return the arguments of ``finish.lua`` for the job's record: key, kind,
        seconds to live, field and value."""
        record = request.record
        if record is None:
            return [self.keys.intake, "", 0, "", ""]
        if self.outbox is not None:
            return [
                self.keys.outbox,
                "outbox",
                0,
                str(request.lease),
                encode_entry(record),
            ]
        kind = "string" if record.field is None else "hash"
        return [record.key, kind, SUCCESS_TTL_S, record.field or "", record.value]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _claim_result(reply: Sequence[Any]) -> ClaimResult:
    due_ms, gate, exceeded, skipped, *rows = reply
    return ClaimResult(
        tuple(_claimed(row) for row in rows),
        None if due_ms < 0 else due_ms / 1000,
        gate == b"paused",
        gate == b"full",
        bool(exceeded),
        skipped,
    )


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
        reserved,
        claim_id,
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
        bool(reserved),
        to_text(claim_id),
        _count(yields),
    )


def _count(value: bytes | int | None) -> int:
    """Return a count from Redis; 0 for an invalid value."""
    return max(0, to_int(value))
