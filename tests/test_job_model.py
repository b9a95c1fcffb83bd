"""A model of the queue: whatever clients, supervisors and the network do, each push ends once; nothing is left over.

Supervisors reserve, claim, lose replies, call again, fall silent, are taken over and go on as if nothing were, restart.
After each step all of Redis is read and compared with what the contract says of each key.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from dlpool.errors import UsageError
from dlpool.jobs.client_records import ClientRecord, failure_record, success_record
from dlpool.jobs.job_admin import COMMANDS, JobAdmin
from dlpool.jobs.keys import PRIORITIES, READY, QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease, Transitions
from tests.redis_server import RedisServer

RUNS = 24
STEPS = 150
WEIGHTS = {
    "drop_in": 4,
    "push": 4,
    "reserve": 2,
    "claim": 6,
    "beat": 2,
    "finish": 6,
    "follow": 2,
    "fall_silent": 1,
    "look": 1,
    "be_taken_over": 1,
    "restart": 1,
    "haunt": 3,
    "let_delays_pass": 1,
    "control": 4,
}
NAMES = ["ann", "bob", "cid"]
OUTCOMES = ["success", "failed", "cancelled", "retry", "release", "yield", "pause", "throttle", "crash"]
ENDED = {"succeeded": "done", "failed": "dead", "cancelled": "cancelled"}
OPEN = {"queued", "delayed", "running", "paused"}
ORDER = "fifo"
WHY = {"failed": "it broke", "cancelled": "the job was cancelled"}
LATER = 4_000_000_000  # seconds since 1970
HOSTS = ["", "h1", "h2"]
MAX_THROTTLED = 3


@dataclass
class Supervisor:
    """What a supervisor remembers."""

    sid: str
    held: dict[str, JobLease] = field(default_factory=dict)
    is_unsure: bool = True  # whether it may hold more: it has not asked yet, or a reply was lost


@dataclass
class Seen:
    """All of Redis that is the queue's own: the jobs, and every structure as a list of members."""

    jobs: dict[str, dict[str, str]]
    lists: dict[str, list[str]]

    def members(self, kind: str) -> list[str]:
        """The members of all structures whose name begins so."""
        return [one for name, members in self.lists.items() if name.startswith(kind) for one in members]

    def in_state(self, *states: str) -> list[str]:
        return sorted(job_id for job_id, job in self.jobs.items() if job["state"] in states)

    def following(self) -> set[str]:
        """Those that wait for the end of another job."""
        lists = {name: members for name, members in self.lists.items() if name.startswith("followers:")}
        return {
            one
            for name, members in lists.items()
            for one in members
            if self.jobs[one]["state"] == "queued" and self.jobs[one].get("leader") == name.removeprefix("followers:")
        }

    def ready(self) -> set[str]:
        """Those that a claim would take from the lists; what was moved or stopped is passed by there."""
        return {
            one
            for place in (*PRIORITIES, "limited")
            for one in self.lists.get(f"ready:{place}", ())
            if self.jobs[one]["state"] == "queued" and self.jobs[one]["list"] == place
        }


def url_of(raw: bytes) -> str | None:
    try:
        return PushedJob.parse(raw).url
    except UsageError:
        return None


class Fleet:
    """Clients and three supervisors on one queue; what they do, ``random`` decides."""

    def __init__(self, client: Any, rng: random.Random) -> None:
        self.random = rng
        self.client = client
        self.keys = QueueKeys()
        self.queue = Transitions(client, self.keys)
        self.admin = JobAdmin(client, self.keys)
        self.pushes: Counter[bytes] = Counter()
        self.raws: dict[str, bytes] = {}
        self.serial = 0
        self.fences: dict[str, int] = {}
        self.ends: dict[str, str] = {}
        self.retried: Counter[tuple[str, str]] = Counter()  # ends that were not the last
        self.spent: set[JobLease] = set()  # they must never have an effect again
        self.old: list[tuple[str, JobLease]] = []  # of any supervisor, as a zombie would use them
        self.fleet = {name: Supervisor(f"{name}-0") for name in NAMES}
        self.sids = [one.sid for one in self.fleet.values()]
        for one in self.fleet.values():
            self.beat_of(one)

    def step(self) -> None:
        """Do anything, and look whether all is well."""
        (name,) = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        print(name)  # pytest shows it when the run fails
        getattr(self, name)()
        self.everything_is_where_it_belongs()

    def one(self) -> Supervisor:
        return self.fleet[self.random.choice(NAMES)]

    def happens(self) -> bool:
        """Something that is not the rule, as a reply that is lost."""
        return self.random.random() < 0.3

    # --- what clients do ----------------------------------------------------------------------------------------------

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def drop_in(self) -> None:
        kind = self.random.choice(["plain", "with an id", "same id", "malformed", "same job"])
        number = self.next_serial()
        if kind == "same job":
            self.drop(self.same(1, number))
            return
        ids = {"with an id": f"given-{number}", "same id": "given"}
        raw = compose_job(f"http://h/{number}", f"/{number}", id=ids.get(kind))
        self.drop(b"malformed %d" % number if kind == "malformed" else raw)

    def drop(self, raw: bytes) -> None:
        self.pushes[raw] += 1
        self.client.lpush(self.keys.intake, raw)

    def same(self, which: int, number: int, **own: Any) -> bytes:
        """A job that others are to be deduplicated with."""
        return compose_job(f"http://h/same-{which}", f"/same-{which}", dedupe=True, user_id=str(number), **own)

    def push(self) -> None:
        number = self.next_serial()
        same = self.random.choice([None, None, 1, 2])
        own = {"priority": self.random.choice(PRIORITIES), "not_before": LATER if self.happens() else None}
        raw = self.same(same, number, **own) if same else compose_job(f"http://h/{number}", f"/{number}", **own)
        job = PushedJob.parse(raw)
        self.pushes[job.raw] += 1
        assert self.queue.push([(job, f"id-{number}")])[0] in ("OK", "FOLLOWS")
        if self.happens():
            assert self.queue.push([(job, f"id-{number}")]) == ["DUP"]

    # --- what supervisors do ------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        self.client.lmove(self.keys.intake, self.keys.inbox(self.one().sid), "RIGHT", "LEFT")

    def claim(self) -> None:
        one, slots = self.one(), self.random.randrange(5)
        known = list(one.held.values()) if one.is_unsure or self.happens() else None
        claim = self.queue.claim(one.sid, known, slots, lease_s=30, order=ORDER, max_throttled=MAX_THROTTLED)
        if claim is None:
            one.is_unsure = True
            assert one.sid not in self.see().members("supervisors")
            self.beat_of(one)
            return
        one.is_unsure = self.happens()
        if one.is_unsure:
            return  # the reply is lost
        self.take(one, list(claim.jobs))
        seen = self.see()
        if known is not None:
            assert set(seen.members(f"held:{one.sid}")) <= set(one.held), "a claim tells of all that we hold"
        if len(claim.jobs) < slots:
            waiting = [*seen.members("intake"), *seen.ready(), *seen.members(f"inbox:{one.sid}")]
            assert claim.is_throttle_full or not waiting, "nothing waits while a slot is free"
            assert not seen.members("ready:limited"), "whose turn had come before does not wait"
        assert claim.is_throttle_full or len(seen.lists.get("throttled", ())) < MAX_THROTTLED

    def take(self, one: Supervisor, jobs: list[ClaimedJob]) -> None:
        for job in jobs:
            assert job.lease not in self.spent
            assert one.held.get(job.lease.job_id) != job.lease, "what is known is not handed over again"
            one.held[job.lease.job_id] = job.lease
            self.raws[job.lease.job_id] = job.raw
            self.old.append((one.sid, job.lease))

    def beat(self) -> None:
        self.beat_of(self.one(), is_lost=self.happens())

    def beat_of(self, one: Supervisor, *, is_lost: bool = False) -> None:
        leases = list(one.held.values())
        beat = self.queue.heartbeat(one.sid, [(lease, "{}") for lease in leases], lease_s=30, info={})
        lost = [lease for lease, reply in zip(leases, beat.replies, strict=True) if reply == "LOST"]
        self.spent.update(lost)
        own = set(self.see().members(f"held:{one.sid}"))
        assert beat.orphans == len(own) - len(leases) + len(lost)
        for lease in [] if is_lost else lost:
            del one.held[lease.job_id]

    def finish(self) -> None:
        one = self.one()
        if not one.held:
            return
        lease, outcome = self.random.choice(list(one.held.values())), self.random.choice(OUTCOMES)
        delay_s, priority = (60.0 if self.happens() else 0), ("low" if self.happens() else "")
        ending = FinishRequest(
            lease,
            Disposition(outcome),
            self.record(lease, outcome),
            delay_s=delay_s,
            priority=priority,
            host=self.random.choice(HOSTS[1:] if outcome == "throttle" else HOSTS),
        )
        ending = replace(ending, waits_for_slot=outcome == "throttle" and self.happens())
        waited = self.see().lists.get(f"throttled:{ending.host}")
        if self.end(one.sid, ending) == "OK" and waited and outcome != "throttle":
            assert waited[0] not in self.see().lists.get(f"throttled:{ending.host}", ()), "the oldest one goes on"
        if not self.happens():
            del one.held[lease.job_id]

    def end(self, sid: str, ending: FinishRequest) -> str:
        """Call it; a lease that was spent must change nothing."""
        before = self.see().jobs.get(ending.lease.job_id)
        (reply,) = self.queue.finish(sid, [ending])
        if ending.lease in self.spent:
            assert reply in ("DUP", "FENCED", "GONE")
        if reply in ("DUP", "FENCED", "GONE"):
            assert self.see().jobs.get(ending.lease.job_id) == before
        else:
            assert before is not None
            assert (before["state"], before["owner"], before["fence"]) == ("running", sid, str(ending.lease.fence))
        if reply != "LEADS":
            self.spent.add(ending.lease)
        return reply

    def record(self, lease: JobLease, outcome: str) -> ClientRecord | None:
        raw = self.raws[lease.job_id]
        url = url_of(raw)
        if url is None or outcome not in ("success", "failed", "cancelled"):
            return None
        if outcome != "success":
            return failure_record(self.keys, url, raw, WHY[outcome], 0)
        return success_record(self.keys, PushedJob.parse(raw), 1, 1.0, 0)

    def follow(self) -> None:
        """What a supervisor does with jobs that are to be deduplicated, before it runs them."""
        one = self.one()
        for lease in list(one.held.values()):
            raw = self.raws[lease.job_id]
            if b'"dedupe": true' not in raw:
                continue
            reply = self.end(one.sid, FinishRequest(lease, Disposition.FOLLOW, digest=PushedJob.parse(raw).digest))
            if reply != "LEADS" and not self.happens():
                del one.held[lease.job_id]

    # --- what operators do --------------------------------------------------------------------------------------------

    def control(self) -> None:
        before = self.see().jobs
        if not before:
            return
        job_id, verb = self.random.choice(sorted(before)), self.random.choice(COMMANDS)
        state, priority = before[job_id]["state"], self.random.choice(PRIORITIES)
        reply = self.admin.execute(verb, job_id, priority=priority, message=WHY["cancelled"])
        after = self.see().jobs[job_id]
        if reply == "ASKED":
            flag = "cancel" if before[job_id].get("flag") == "cancel" else verb
            assert (state, after["flag"]) == ("running", flag)
        elif reply != "OK":
            assert reply in (state, "following") and after == before[job_id]
        elif verb == "retry" and state in ENDED:
            self.retried[job_id, f"job_{self.ends.pop(job_id)}"] += 1

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def fall_silent(self) -> None:
        self.let_pass(self.one().sid)

    def let_pass(self, sid: str) -> None:
        """Its leases and its registration pass; it may go on as if nothing were."""
        leases = dict.fromkeys(self.see().members(f"held:{sid}"), 1)
        if leases:
            self.client.zadd(self.keys.leases, leases)
        self.client.zadd(self.keys.supervisors, {sid: 1}, xx=True)

    def look(self) -> None:
        """Recover, as the one whose turn it is."""
        self.client.delete(f"{self.keys.prefix}recovery_turn")
        before = self.see().jobs
        for job_id in self.queue.recover(grace_s=15, order=ORDER).requeued:
            assert "lease_expired" in before[job_id]
            self.spent.add(JobLease(job_id, int(before[job_id]["fence"])))

    def be_taken_over(self) -> None:
        one = self.one()
        for _ in range(2):
            self.let_pass(one.sid)
            self.look()

    def restart(self) -> None:
        name = self.random.choice(NAMES)
        gone = self.fleet[name].sid
        one = self.fleet[name] = Supervisor(f"{name}-{self.next_serial()}")
        self.sids.append(one.sid)
        held = set(self.see().members(f"held:{gone}"))
        requeued = self.queue.requeue_jobs_of([gone], order=ORDER)
        assert set(requeued) == held
        if self.happens():
            assert self.queue.requeue_jobs_of([gone], order=ORDER) == []
        self.spent.update(lease for sid, lease in self.old if sid == gone)
        self.beat_of(one)

    def haunt(self) -> None:
        """Use a lease of long ago."""
        if not self.old:
            return
        sid, lease = self.random.choice(self.old[-50:])
        outcome = self.random.choice(OUTCOMES)
        if self.happens():
            (reply,) = self.queue.heartbeat(sid, [(lease, "")], lease_s=30).replies
            assert reply == "LOST" or lease not in self.spent
        else:
            host = "h1" if outcome == "throttle" else ""
            self.end(sid, FinishRequest(lease, Disposition(outcome), self.record(lease, outcome), host=host))

    def let_delays_pass(self) -> None:
        for job_id in self.see().members("delayed"):
            self.client.zadd(self.keys.delayed, {job_id: 1})
        for job_id in self.see().lists.get("throttled", ()):
            self.client.zadd(self.keys.throttled, {job_id: 1})

    # --- what must hold -----------------------------------------------------------------------------------------------

    def see(self) -> Seen:
        names = sorted(name.decode() for name in self.client.keys(f"{self.keys.prefix}*"))
        names = [name.removeprefix(self.keys.prefix) for name in names]
        jobs = [name for name in names if name.startswith("job:")]
        zsets = [
            name
            for name in names
            if name in ("leases", "delayed", "paused", "done", "dead", "cancelled", "supervisors")
            or name.startswith("throttled")
        ]
        sets = [name for name in names if name.startswith("held:")]
        lists = [name for name in names if name.startswith(("inbox:", "ready:", "followers:"))]
        strings = [name for name in names if name.startswith("dedupe:")]
        pipeline = self.client.pipeline(transaction=False)
        for read, group in (
            (pipeline.hgetall, jobs),
            (partial(pipeline.zrange, start=0, end=-1), zsets),
            (pipeline.smembers, sets),
            (partial(pipeline.lrange, start=0, end=-1), lists),
            (pipeline.get, strings),
        ):
            for name in group:
                read(self.keys.prefix + name)
        pipeline.lrange(self.keys.intake, 0, -1)
        *replies, intake = pipeline.execute()
        hashes, rest = replies[: len(jobs)], replies[len(jobs) :]
        texts = [[reply] if isinstance(reply, bytes) else reply for reply in (*rest, intake)]
        return Seen(
            {
                name[4:]: {key.decode(): value.decode() for key, value in reply.items()}
                for name, reply in zip(jobs, hashes, strict=True)
            },
            {
                name: [one.decode() for one in reply]
                for name, reply in zip((*zsets, *sets, *lists, *strings, "intake"), texts, strict=True)
            },
        )

    def everything_is_where_it_belongs(self) -> None:
        seen = self.see()
        self.each_push_is_somewhere(seen)
        self.each_state_has_its_structures(seen)
        self.followers_wait_for_who_works(seen)
        self.fences_grow_and_ends_stay(seen)

    def each_push_is_somewhere(self, seen: Seen) -> None:
        raws = [*seen.members("intake"), *seen.members("inbox:"), *(job["raw"] for job in seen.jobs.values())]
        assert Counter(raw.encode() for raw in raws) == self.pushes

    def each_state_has_its_structures(self, seen: Seen) -> None:
        running = seen.in_state("running")
        assert sorted(seen.members("leases")) == running
        owned = [(name[5:], one) for name, members in seen.lists.items() if name.startswith("held:") for one in members]
        assert sorted(owned) == sorted((seen.jobs[one]["owner"], one) for one in running)
        throttled = seen.lists.get("throttled", [])
        assert sorted([*seen.members("delayed"), *throttled]) == seen.in_state("delayed")
        assert set(seen.members("throttled:")) <= set(throttled)
        assert sorted(seen.members("paused")) == seen.in_state("paused")
        assert seen.ready() | seen.following() == set(seen.in_state("queued"))
        assert not seen.ready() & seen.following()
        stale = {name.decode(): int(count) for name, count in self.client.hgetall(self.keys.stale).items()}
        for priority in READY:
            places = len(seen.lists.get(f"ready:{priority}", ()))
            waiting = sum(job["state"] == "queued" and job.get("list") == priority for job in seen.jobs.values())
            assert places - waiting == stale.get(priority, 0), "each place that does not count is known"
        for name in set(ENDED.values()):
            assert sorted(seen.members(name)) == seen.in_state(*(state for state, at in ENDED.items() if at == name))
        assert {job["state"] for job in seen.jobs.values()} <= {*OPEN, *ENDED}
        for job_id, job in seen.jobs.items():
            assert ("owner" in job) == (job["state"] == "running")
            assert ("host" in job) == (job_id in throttled)
            assert "lease_expired" not in job or job["state"] == "running"
            assert "flag" not in job or job["state"] not in (*ENDED, "paused")

    def followers_wait_for_who_works(self, seen: Seen) -> None:
        for name, followers in seen.lists.items():
            if name.startswith("followers:"):
                leader = name.removeprefix("followers:")
                assert seen.jobs[leader]["state"] not in ENDED
            elif name.startswith("dedupe:"):
                leader = followers[0]
                assert seen.jobs[leader]["state"] not in ENDED
                assert seen.jobs[leader]["dedupe"] == name.removeprefix("dedupe:")

    def fences_grow_and_ends_stay(self, seen: Seen) -> None:
        for job_id, job in seen.jobs.items():
            fence = int(job.get("fence", 0))
            assert fence >= self.fences.get(job_id, 0)
            self.fences[job_id] = fence
            assert job_id not in self.ends or job["state"] == self.ends[job_id]
            if job["state"] in ENDED:
                self.ends[job_id] = job["state"]
        given = [fence for fence in self.fences.values() if fence]
        assert len(set(given)) == len(given), "no two jobs have the same fence"

    # --- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let one supervisor do all that is left; then nothing is left over."""
        last = Supervisor("last")
        self.queue.requeue_jobs_of(self.sids, order=ORDER)
        for job_id in self.see().in_state("paused"):
            assert self.admin.execute("resume", job_id) == "OK"
        self.let_delays_pass()
        self.beat_of(last)
        while claim := self.queue.claim(last.sid, [], 10, lease_s=30, order=ORDER):
            if not claim.jobs:
                break
            self.take(last, list(claim.jobs))
            for job in claim.jobs:
                assert (
                    self.end(last.sid, FinishRequest(job.lease, Disposition.SUCCEED, self.record(job.lease, "success")))
                    == "OK"
                )
        self.everything_is_where_it_belongs()
        self.nothing_is_left_over()
        self.each_push_ended_once()

    def nothing_is_left_over(self) -> None:
        seen = self.see()
        assert set(seen.lists) <= {"done", "dead", "cancelled", "supervisors", "intake"}
        assert seen.lists["intake"] == []
        assert len(seen.jobs) == sum(self.pushes.values())
        assert all(job["state"] in ENDED for job in seen.jobs.values())

    def each_push_ended_once(self) -> None:
        told = [
            (fields[b"id"].decode(), fields[b"event"].decode())
            for _, fields in self.client.xrange(self.keys.events)
            if fields[b"event"] in (b"job_succeeded", b"job_failed", b"job_cancelled")
        ]
        assert Counter(told) == self.retried + Counter((job_id, f"job_{state}") for job_id, state in self.ends.items())
        failed = self.client.hgetall(self.keys.failed)
        shared = Counter(url_of(raw) for raw in self.pushes.elements())
        for job_id, job in self.see().jobs.items():
            raw = job["raw"].encode()
            url = url_of(raw)
            if url is None:
                continue
            if self.ends[job_id] == "succeeded":
                assert json.loads(self.client.get(self.keys.success(url)))["url"] == url
            elif shared[url] == 1:
                assert json.loads(failed[url.encode()])["error_message"] == WHY[self.ends[job_id]]


@pytest.mark.parametrize("seed", range(RUNS))
def test_each_push_ends_once_whatever_happens(seed: int, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        fleet = Fleet(client, random.Random(seed))
        for _ in range(STEPS):
            fleet.step()
        fleet.drain()
