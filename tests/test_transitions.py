"""The transitions of a job on a real Redis, each as before and after. Time passes by setting scores back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from dlpool.errors import QueueError
from dlpool.jobs.client_records import ClientRecord, failure_record, success_record
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import PRIORITIES, QueueKeys
from dlpool.jobs.nodes import deregister
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, PushedJob, compose_job
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, HeartbeatResult, JobLease, Transitions
from tests.redis_server import RedisServer

LEASE_S = 30.0
GRACE_S = 15.0
A, B, C = "a", "b", "c"
DAY_MS = 86_400_000


def job(name: str, **own: Any) -> PushedJob:
    return PushedJob.parse(compose_job(f"http://host/{name}", f"/data/{name}", **own))


class Queue:
    """A queue, what it holds, and the passing of time."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.keys = QueueKeys()
        self.does = Transitions(client, self.keys)
        self.admin = JobAdmin(client, self.keys)
        self.register(A)

    def register(self, *sids: str) -> None:
        for sid in sids:
            self.does.heartbeat(sid, [], lease_s=LEASE_S, info={"sid": sid})

    def push(self, *names: str, **own: Any) -> list[str]:
        return self.does.push([(job(name, **own), name) for name in names])

    def drop_in(self, *raws: bytes) -> None:
        """Push as clients do."""
        self.client.lpush(self.keys.intake, *raws)

    def claim(
        self, slots: int = 1, sid: str = A, known: Sequence[JobLease] = (), order: str = "fifo"
    ) -> list[ClaimedJob]:
        claim = self.does.claim(sid, known, slots, lease_s=LEASE_S, order=order)
        assert claim is not None
        return list(claim.jobs)

    def claim_one(self, sid: str = A, known: Sequence[JobLease] = ()) -> JobLease:
        (claimed,) = self.claim(1, sid, known)
        return claimed.lease

    def names(self, slots: int, **options: Any) -> list[str]:
        """What is claimed, by the last part of the URL."""
        return [json.loads(one.raw)["url"].rpartition("/")[2] for one in self.claim(slots, **options)]

    def ids(self, slots: int, **options: Any) -> list[str]:
        return [one.lease.job_id for one in self.claim(slots, **options)]

    def beat(self, *leases: JobLease, sid: str = A) -> HeartbeatResult:
        return self.does.heartbeat(sid, [(lease, "") for lease in leases], lease_s=LEASE_S, info={})

    def finish(self, lease: JobLease, outcome: str, sid: str = A, **options: Any) -> str:
        return self.does.finish(sid, [FinishRequest(lease, Disposition(outcome), **options)])[0]

    def recover(self, sid: str = B) -> tuple[int, tuple[str, ...]]:
        """Look, as one whose turn it is."""
        self.client.delete(f"{self.keys.prefix}recovery_turn")
        recovery = self.does.recover(grace_s=GRACE_S, order="fifo")
        return recovery.expired, recovery.requeued

    def pass_leases(self) -> None:
        """Let every lease pass."""
        for key in (self.keys.leases, self.keys.supervisors):
            for member in self.client.zrange(key, 0, -1):
                self.client.zadd(key, {member: 1})

    def pass_delays(self) -> None:
        """Let every delay pass."""
        for number, member in enumerate(self.client.zrange(self.keys.delayed, 0, -1)):
            self.client.zadd(self.keys.delayed, {member: number})

    def job(self, job_id: str) -> dict[str, str]:
        found = self.client.hgetall(self.keys.job(job_id))
        return {name.decode(): value.decode() for name, value in found.items()}

    def state(self, job_id: str) -> str | None:
        return self.job(job_id).get("state")

    def ready(self, priority: str = "normal") -> list[str]:
        """Ids in the order in which they will be taken."""
        return [one.decode() for one in reversed(self.client.lrange(self.keys.ready(priority), 0, -1))]

    def own(self, sid: str = A) -> set[str]:
        return {one.decode() for one in self.client.smembers(self.keys.held_by(sid))}

    def zset(self, key: str) -> set[str]:
        return {one.decode() for one in self.client.zrange(key, 0, -1)}

    def followers(self, leader: str) -> list[bytes]:
        found: list[bytes] = self.client.lrange(f"{self.keys.prefix}followers:{leader}", 0, -1)
        return found

    def counted(self) -> dict[str, int]:
        (key,) = self.client.keys(f"{self.keys.prefix}stats:*")
        return {name.decode(): int(value) for name, value in self.client.hgetall(key).items()}

    def events(self, name: str) -> list[dict[bytes, bytes]]:
        entries = self.client.xrange(self.keys.events)
        return [fields for _, fields in entries if fields[b"event"] == name.encode()]

    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server.client())


# --- push ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_push_waits_in_the_list_of_its_priority(queue: Queue, priority: str) -> None:
    assert queue.push("1", "2", priority=priority) == ["OK", "OK"]
    assert {name: queue.ready(name) for name in PRIORITIES} == {
        name: ["1", "2"] if name == priority else [] for name in PRIORITIES
    }
    found = queue.job("1")
    assert (found["state"], found["priority"]) == ("queued", priority)
    assert found["raw"].encode() == job("1", priority=priority).raw
    assert int(found["size"]) == len(job("1", priority=priority).raw)


def test_a_push_is_repeated_without_effect(queue: Queue) -> None:
    queue.push("1")
    before = queue.job("1")
    assert queue.push("1", priority="high") == ["DUP"]
    assert (queue.job("1"), queue.ready(), queue.ready("high")) == (before, ["1"], [])
    assert queue.counted()["pushed"] == 1


def test_a_push_under_the_id_of_an_ended_job_does_nothing(queue: Queue) -> None:
    queue.push("1")
    queue.finish(queue.claim_one(), "success")
    assert queue.push("1") == ["DUP"]
    assert queue.state("1") == "succeeded"


def test_a_push_of_later_is_delayed(queue: Queue) -> None:
    due = queue.now_ms() // 1000 + 60
    queue.push("1", not_before=due, priority="high")
    assert (queue.state("1"), queue.ready("high")) == ("delayed", [])
    assert queue.client.zscore(queue.keys.delayed, "1") == due * 1000
    assert queue.claim() == []


@pytest.mark.parametrize("moment", [0, 1, "1960-01-01T00:00:00Z"])
def test_a_push_of_the_past_waits_like_others(queue: Queue, moment: object) -> None:
    queue.push("1", not_before=moment)
    assert queue.ready() == ["1"]


def test_a_push_of_what_waits_already_follows_it(queue: Queue) -> None:
    assert queue.does.push([(job("x", dedupe=True), name) for name in "123"]) == ["OK", "FOLLOWS", "FOLLOWS"]
    assert queue.ready() == ["1"]
    assert queue.followers("1") == [b"2", b"3"]
    assert queue.job("2")["leader"] == "1"


def test_a_push_that_follows_is_repeated_without_effect(queue: Queue) -> None:
    twice = [(job("x", dedupe=True), name) for name in "122"]
    assert queue.does.push(twice) == ["OK", "FOLLOWS", "DUP"]
    assert queue.followers("1") == [b"2"]


def test_a_push_without_dedupe_does_not_follow(queue: Queue) -> None:
    assert queue.does.push([(job("x", dedupe=True), "1"), (job("x"), "2")]) == ["OK", "OK"]
    assert queue.ready() == ["1", "2"]


def test_the_same_url_to_another_path_does_not_follow(queue: Queue) -> None:
    other = PushedJob.parse(compose_job("http://host/x", "/elsewhere", dedupe=True))
    assert queue.does.push([(job("x", dedupe=True), "1"), (other, "2")]) == ["OK", "OK"]


def test_a_push_equal_to_an_ended_job_does_not_follow(queue: Queue) -> None:
    queue.does.push([(job("x", dedupe=True), "1")])
    queue.finish(queue.claim_one(), "success")
    assert queue.does.push([(job("x", dedupe=True), "2")]) == ["OK"]
    assert queue.ready() == ["2"]


def test_a_push_of_an_equal_job_that_was_deleted_does_not_follow(queue: Queue) -> None:
    queue.does.push([(job("x", dedupe=True), "1")])
    queue.client.delete(queue.keys.job("1"))
    assert queue.does.push([(job("x", dedupe=True), "2")]) == ["OK"]


def test_a_push_wakes_and_the_wake_list_stays_short(queue: Queue) -> None:
    queue.push(*"12345")
    assert queue.client.lrange(queue.keys.wake, 0, -1) == [b"1"]


# --- claim --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "names"), [("fifo", ["1", "2", "3"]), ("lifo", ["3", "2", "1"])])
def test_the_intake_is_claimed_in_its_order(queue: Queue, order: str, names: list[str]) -> None:
    queue.drop_in(job("1").raw, job("2").raw, job("3").raw)
    assert queue.names(5, order=order) == names
    assert queue.client.llen(queue.keys.intake) == 0


def test_a_claim_takes_no_more_than_its_slots(queue: Queue) -> None:
    queue.drop_in(job("1").raw, job("2").raw, job("3").raw)
    assert queue.names(2) == ["1", "2"]
    assert queue.client.lrange(queue.keys.intake, 0, -1) == [job("3").raw]


def test_a_claimed_job_is_running_under_a_lease(queue: Queue) -> None:
    queue.drop_in(job("1").raw)
    before = queue.now_ms()
    (claimed,) = queue.claim()
    found = queue.job(claimed.lease.job_id)
    assert (found["state"], found["owner"], found["fence"]) == ("running", A, str(claimed.lease.fence))
    assert queue.own() == {claimed.lease.job_id}
    expiry = queue.client.zscore(queue.keys.leases, claimed.lease.job_id)
    assert before + 30_000 <= expiry <= queue.now_ms() + 30_000
    raw = job("1").raw
    made = int(found["created"])
    assert claimed == ClaimedJob(claimed.lease, raw, len(raw), 1, 0, 0, made, "normal", claim_id=found["claim_id"])
    assert [event[b"owner"] for event in queue.events("job_started")] == [A.encode()]


@pytest.mark.parametrize("is_pushed", [True, False])
def test_a_job_keeps_its_claim_id_and_another_one_of_that_name_has_another(is_pushed: bool, queue: Queue) -> None:
    def claimed() -> ClaimedJob:
        return next(one for one in queue.claim())

    def put_in() -> None:
        if is_pushed:
            queue.push("x")
        else:
            queue.drop_in(job("x", id="x").raw)

    put_in()
    kept = [claimed().claim_id, claimed().claim_id]  # the second one is handed over, as the reply of the first was lost
    for outcome in ("release", "crash", "failed"):
        one = claimed()
        kept.append(one.claim_id)
        queue.finish(one.lease, outcome)
    assert set(kept) == {queue.job("x")["claim_id"]} and len(kept[0]) == 32
    queue.admin.execute("retry", "x")
    others = [claimed().claim_id]
    queue.client.delete(queue.keys.job("x"), queue.keys.held_by(A))
    put_in()
    others.append(claimed().claim_id)
    assert len({kept[0], *others}) == 3 and all(len(other) == 32 for other in others)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_no_two_jobs_of_one_call_have_the_same_claim_id(most: int, queue: Queue) -> None:
    queue.push("1", "2", "3")
    queue.drop_in(*(job(str(number), id=str(number)).raw for number in (4, 5, 6)), job("7").raw)
    claims = [one.claim_id for _ in range(7) for one in queue.claim(most, known=queue_tickets(queue))]
    assert len(set(claims)) == len(claims) == 7 and all(len(claim) == 32 for claim in claims)


def queue_tickets(queue: Queue) -> list[JobLease]:
    """What the supervisor holds."""
    return [JobLease(job_id, int(queue.job(job_id)["fence"])) for job_id in queue.own()]


def test_the_inbox_comes_first(queue: Queue) -> None:
    queue.push("high", priority="high")
    queue.client.lpush(queue.keys.inbox(A), job("1").raw, job("2").raw)
    assert queue.names(3) == ["1", "2", "high"]


def test_an_inbox_is_its_supervisors(queue: Queue) -> None:
    queue.client.lpush(queue.keys.inbox(B), job("1").raw)
    assert queue.claim() == []


def test_high_and_normal_come_before_the_intake_and_low_after_it(queue: Queue) -> None:
    queue.push("low", priority="low")
    queue.drop_in(job("intake").raw)
    queue.push("normal")
    queue.push("high", priority="high")
    assert queue.names(9) == ["high", "normal", "intake", "low"]


@pytest.mark.parametrize(("waiting", "share"), [("normal", 1), ("low", 1), ("intake", 2)])
def test_those_that_are_not_high_have_their_share(queue: Queue, waiting: str, share: int) -> None:
    queue.push(*(f"h{number}" for number in range(40)), priority="high")
    if waiting == "intake":
        queue.drop_in(*(job(f"o{number}").raw for number in range(40)))
    else:
        queue.push(*(f"o{number}" for number in range(40)), priority=waiting)
    taken = queue.names(20)
    others = [name for name in taken if name.startswith("o")]
    # The intake has a turn of its own, and that of normal when nothing normal waits.
    assert others == [f"o{number}" for number in range(share)]


def test_an_empty_queue_gives_nothing(queue: Queue) -> None:
    claim = queue.does.claim(A, [], 5, lease_s=LEASE_S, order="fifo")
    assert claim is not None
    assert (claim.jobs, claim.next_due_s) == ((), None)


def test_no_free_slot_takes_nothing(queue: Queue) -> None:
    queue.push("1")
    assert queue.claim(0) == []
    assert queue.ready() == ["1"]


def test_a_claim_of_one_who_is_not_registered_takes_nothing(queue: Queue) -> None:
    queue.push("1")
    assert queue.does.claim("stranger", [], 1, lease_s=LEASE_S, order="fifo") is None
    assert queue.ready() == ["1"]


def test_a_delayed_job_becomes_ready_when_it_is_due(queue: Queue) -> None:
    due = queue.now_ms() // 1000 + 60
    queue.push("1", "2", not_before=due)
    queue.client.zadd(queue.keys.delayed, {"2": queue.now_ms() - 1})
    assert queue.ids(2) == ["2"]
    assert queue.zset(queue.keys.delayed) == {"1"}


def test_a_claim_says_when_the_next_delayed_job_is_due(queue: Queue) -> None:
    queue.push("1", not_before=queue.now_ms() // 1000 + 60)
    claim = queue.does.claim(A, [], 1, lease_s=LEASE_S, order="fifo")
    assert claim is not None
    assert claim.next_due_s is not None
    assert 50 < claim.next_due_s <= 60


def test_due_jobs_are_taken_in_the_order_of_their_time(queue: Queue) -> None:
    queue.push(*"321", not_before=queue.now_ms() // 1000 + 60)
    queue.client.zadd(queue.keys.delayed, {"1": 1, "2": 2, "3": 3})
    assert queue.ids(3) == ["1", "2", "3"]


def test_a_delayed_job_that_is_forgotten_is_passed_over(queue: Queue) -> None:
    queue.push("1", "2", not_before=queue.now_ms() // 1000 + 60)
    queue.pass_delays()
    queue.client.delete(queue.keys.job("1"))
    assert queue.ids(2) == ["2"]
    assert queue.zset(queue.keys.delayed) == set()


def test_a_given_id_is_taken(queue: Queue) -> None:
    queue.drop_in(job("1", id="my.id-1").raw)
    assert queue.ids(1) == ["my.id-1"]


@pytest.mark.parametrize(
    "own",
    [{"id": ""}, {"id": "a b"}, {"id": "x" * 65}, {"id": 7}, {"id": None}, {"id": "a\x00b"}, {"id": "é"}, [], None, 7],
    ids=str,
)
def test_an_id_that_cannot_be_one_is_replaced(queue: Queue, own: object) -> None:
    queue.drop_in(json.dumps({"url": "http://h/1", "save_path": "1", "dlpool": own}).encode())
    (job_id,) = queue.ids(1)
    assert len(job_id) == 32


def test_an_id_that_is_taken_already_is_replaced(queue: Queue) -> None:
    queue.push("1")
    queue.drop_in(job("2", id="1").raw, job("3", id="new").raw, job("4", id="new").raw)
    first, second, third, fourth = queue.ids(4)
    assert (first, third) == ("1", "new")
    assert len(second) == len(fourth) == 32


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff",
        b"null",
        b'{"dlpool"',
        b'"dlpool"',
        b'{"dlpool":{"id":' + b"[" * 100_000,
        b'{"dlpool":{"id":1e999}}',
        b"x" * 100_000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_whatever_was_pushed_is_claimed_as_it_is(queue: Queue, raw: bytes) -> None:
    queue.drop_in(raw)
    (claimed,) = queue.claim()
    assert (claimed.raw, claimed.size) == (raw, len(raw))


def test_a_job_that_is_too_long_is_cut(queue: Queue) -> None:
    raw = b'{"dlpool":{"id":"x"},"n":"' + b"n" * 10_000_000 + b'"}'
    queue.drop_in(raw)
    (claimed,) = queue.claim()
    assert (claimed.raw, claimed.size) == (raw[:4096], len(raw))
    assert claimed.size > MAX_JOB_BYTES
    assert claimed.lease.job_id != "x"


def test_a_claim_whose_reply_was_lost_returns_the_same_jobs(queue: Queue) -> None:
    queue.drop_in(*(job(name).raw for name in "12345"))
    lost = queue.claim(2)
    again = queue.claim(2)
    assert sorted(again, key=str) == sorted(lost, key=str)
    assert queue.client.llen(queue.keys.intake) == 3


def test_a_claim_does_not_return_what_is_known(queue: Queue) -> None:
    queue.push(*"12")
    first = queue.claim_one()
    assert queue.ids(1, known=[first]) == ["2"]


def test_a_job_that_is_ours_under_another_fence_is_handed_over(queue: Queue) -> None:
    queue.push("1")
    old = queue.claim_one()
    queue.finish(old, "release")
    new = queue.claim_one()
    assert [one.lease for one in queue.claim(0, known=[old])] == [new]


def test_a_job_of_ours_that_is_forgotten_is_not_handed_over(queue: Queue) -> None:
    queue.push("1")
    queue.client.delete(queue.keys.job(queue.claim_one().job_id))
    assert queue.claim() == []
    assert queue.own() == set()


def test_a_job_that_another_runs_is_not_handed_over(queue: Queue) -> None:
    queue.register(B)
    queue.push("1")
    lease = queue.claim_one(B)
    queue.client.sadd(queue.keys.held_by(A), "1")
    assert queue.claim() == []
    assert (queue.own(A), queue.own(B)) == (set(), {"1"})
    assert queue.beat(lease, sid=B).replies == ("OK",)


def test_ids_that_are_cancelled_or_forgotten_are_passed_over(queue: Queue) -> None:
    queue.push(*"1234")
    queue.client.hset(queue.keys.job("1"), "state", "cancelled")
    queue.client.delete(queue.keys.job("3"))
    assert queue.ids(4) == ["2", "4"]
    assert queue.ready() == []


def test_many_cancelled_ids_do_not_hide_the_rest(queue: Queue) -> None:
    queue.push(*(str(number) for number in range(420)), "last")
    for number in range(420):
        queue.client.delete(queue.keys.job(str(number)))
    claim = queue.does.claim(A, [], 1, lease_s=LEASE_S, order="fifo")
    assert claim is not None
    assert (claim.jobs, claim.next_due_s) == ((), 0)
    assert [queue.ids(1) for _ in range(2)] == [[], ["last"]]


def test_fences_only_grow(queue: Queue) -> None:
    queue.push(*"12")
    fences = []
    for _ in range(5):
        lease = queue.claim_one()
        fences.append(lease.fence)
        queue.finish(lease, "release")
    assert fences == sorted(set(fences))


# --- beat ---------------------------------------------------------------------------------------------------------


def test_a_beat_registers_and_shows_the_supervisor(queue: Queue) -> None:
    queue.does.heartbeat(B, [], lease_s=LEASE_S, info={"host": "h"})
    assert queue.zset(queue.keys.supervisors) == {A, B}
    assert json.loads(queue.client.get(queue.keys.supervisor(B))) == {"host": "h"}
    assert DAY_MS < queue.client.pttl(queue.keys.supervisor(B)) <= DAY_MS + 30_000


def test_a_heartbeat_without_info_does_not_register(queue: Queue) -> None:
    queue.does.heartbeat(B, [], lease_s=LEASE_S)
    assert queue.zset(queue.keys.supervisors) == {A}


def test_a_beat_renews_leases_and_notes_progress(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.pass_leases()
    queue.does.heartbeat(A, [(lease, '{"done":1}')], lease_s=LEASE_S, info={})
    assert queue.client.zscore(queue.keys.leases, "1") > queue.now_ms()
    assert queue.job("1")["progress"] == '{"done":1}'


def test_a_heartbeat_restores_an_evicted_lease(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.client.delete(queue.keys.leases, queue.keys.held_by(A))
    assert queue.beat(lease) == HeartbeatResult(0, ("OK",))
    assert (queue.zset(queue.keys.leases), queue.own()) == ({"1"}, {"1"})


@pytest.mark.parametrize("outcome", ["success", "failed", "retry", "release", "crash"])
def test_a_beat_for_what_is_not_ours_any_more_is_lost(queue: Queue, outcome: str) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.finish(lease, outcome)
    assert queue.beat(lease).replies == ("LOST",)
    assert (queue.zset(queue.keys.leases), queue.own()) == (set(), set())


def test_a_beat_with_the_fence_of_an_earlier_claim_is_lost(queue: Queue) -> None:
    queue.push("1")
    old = queue.claim_one()
    queue.finish(old, "release")
    new = queue.claim_one()
    assert queue.beat(old, new).replies == ("LOST", "OK")


def test_a_beat_for_a_job_that_is_forgotten_is_lost(queue: Queue) -> None:
    assert queue.beat(JobLease("none", 1)).replies == ("LOST",)
    assert queue.state("none") is None


def test_a_beat_answers_for_each_job_in_turn(queue: Queue) -> None:
    queue.push(*"123")
    one, two, three = (claimed.lease for claimed in queue.claim(3))
    queue.client.hset(queue.keys.job("1"), "flag", "cancel")
    queue.finish(two, "success")
    assert queue.beat(one, two, three).replies == ("cancel", "LOST", "OK")


def test_a_beat_names_how_many_jobs_are_ours_unknown_to_us(queue: Queue) -> None:
    queue.push(*"123")
    one, *_ = queue.claim(3)
    assert queue.beat(one.lease).orphans == 2


def test_a_beat_clears_suspicion(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.pass_leases()
    assert queue.recover() == (1, ())
    assert queue.beat(lease).replies == ("OK",)
    queue.pass_leases()
    assert queue.recover() == (1, ())


# --- finish -------------------------------------------------------------------------------------------------------


def success(name: str) -> ClientRecord:
    return success_record(QueueKeys(), job(name), 10, 1.0, 0)


def failure(name: str) -> ClientRecord:
    return failure_record(QueueKeys(), job(name).url, job(name).raw, "it broke", 0)


def test_a_success_leaves_its_record_and_is_done(queue: Queue) -> None:
    queue.push("1")
    assert queue.finish(queue.claim_one(), "success", record=success("1"), note={"size": 10}) == "OK"
    assert queue.client.get("success:http://host/1") == success("1").value
    assert 86_300 < queue.client.ttl("success:http://host/1") <= 86_400
    assert (queue.state("1"), queue.zset(queue.keys.done), queue.zset(queue.keys.dead)) == ("succeeded", {"1"}, set())
    assert (queue.zset(queue.keys.leases), queue.own()) == (set(), set())
    assert json.loads(queue.job("1")["note"]) == {"size": 10}
    assert 0 < queue.client.ttl(queue.keys.job("1")) <= 86_400


def test_a_failure_leaves_its_record_and_is_dead(queue: Queue) -> None:
    queue.push("1")
    assert queue.finish(queue.claim_one(), "failed", record=failure("1")) == "OK"
    assert queue.client.hgetall("go_download_failed_tasks") == {b"http://host/1": failure("1").value}
    assert (queue.state("1"), queue.zset(queue.keys.done), queue.zset(queue.keys.dead)) == ("failed", set(), {"1"})
    assert 86_400 < queue.client.ttl(queue.keys.job("1")) <= 7 * 86_400


def test_a_job_without_a_record_ends_unseen_by_clients(queue: Queue) -> None:
    queue.drop_in(b"not a job")
    lease = queue.claim_one()
    assert queue.finish(lease, "failed") == "OK"
    assert not queue.client.exists("go_download_failed_tasks")
    assert queue.client.llen(queue.keys.intake) == 0
    assert queue.zset(queue.keys.dead) == {lease.job_id}


def test_a_retry_waits_for_its_delay(queue: Queue) -> None:
    queue.push("1")
    before = queue.now_ms()
    assert queue.finish(queue.claim_one(), "retry", delay_s=60, note={"why": "503"}) == "OK"
    assert (queue.state("1"), queue.ready(), queue.own()) == ("delayed", [], set())
    assert before + 60_000 <= queue.client.zscore(queue.keys.delayed, "1") <= queue.now_ms() + 60_000
    queue.pass_delays()
    (again,) = queue.claim()
    assert (again.lease.job_id, again.attempts) == ("1", 2)
    assert not queue.client.exists("go_download_failed_tasks")


def test_a_release_gives_the_attempt_back_and_goes_to_the_front(queue: Queue) -> None:
    queue.push(*"12")
    assert queue.finish(queue.claim_one(), "release") == "OK"
    assert queue.ready() == ["1", "2"]
    assert queue.claim()[0].attempts == 1


def test_a_release_may_wait(queue: Queue) -> None:
    queue.push("1")
    queue.finish(queue.claim_one(), "release", delay_s=60)
    assert queue.state("1") == "delayed"


def test_a_crash_is_counted_and_goes_to_the_front(queue: Queue) -> None:
    queue.push(*"12")
    assert queue.finish(queue.claim_one(), "crash") == "OK"
    assert queue.ready() == ["1", "2"]
    (again,) = queue.claim()
    assert (again.crashes, again.attempts, again.takeovers) == (1, 2, 0)


def test_a_job_can_be_queued_at_the_back_of_another_priority(queue: Queue) -> None:
    queue.push("low", priority="low")
    queue.drop_in(job("1", id="1").raw)
    queue.finish(queue.claim_one(), "release", priority="low")
    assert (queue.ready("normal"), queue.ready("low")) == ([], ["low", "1"])
    assert [one.priority for one in queue.claim(2)] == ["low", "low"]


@pytest.mark.parametrize("outcome", ["success", "failed", "retry", "release", "crash"])
def test_an_ending_is_repeated_without_effect(queue: Queue, outcome: str) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.finish(lease, outcome, delay_s=60)
    before = (queue.job("1"), queue.counted(), queue.client.xlen(queue.keys.events))
    assert queue.finish(lease, outcome, record=failure("1"), delay_s=60) == "DUP"
    assert (queue.job("1"), queue.counted(), queue.client.xlen(queue.keys.events)) == before
    assert not queue.client.exists("go_download_failed_tasks")


@pytest.mark.parametrize("outcome", ["success", "failed", "retry", "release", "crash", "follow"])
def test_an_old_fence_ends_nothing(queue: Queue, outcome: str) -> None:
    queue.register(B)
    queue.push("1")
    old = queue.claim_one()
    queue.does.requeue_jobs_of([A], order="fifo")
    queue.claim_one(B)
    before = queue.job("1")
    assert queue.finish(old, outcome, record=success("1"), digest="d") == "FENCED"
    assert queue.job("1") == before
    assert not queue.client.exists("success:http://host/1")


def test_a_fence_is_invalid_as_soon_as_the_job_is_requeued(queue: Queue) -> None:
    queue.push("1")
    old = queue.claim_one()
    queue.does.requeue_jobs_of([A], order="fifo")
    assert queue.finish(old, "success", record=success("1")) == "FENCED"
    assert (queue.state("1"), queue.ready()) == ("queued", ["1"])


def test_a_job_that_is_forgotten_is_gone(queue: Queue) -> None:
    assert queue.finish(JobLease("none", 1), "success", record=success("1")) == "GONE"
    assert not queue.client.exists("success:http://host/1")


def test_many_endings_are_answered_in_turn(queue: Queue) -> None:
    queue.push(*"12")
    one, two = (claimed.lease for claimed in queue.claim(2))
    endings = [
        FinishRequest(one, Disposition.SUCCEED),
        FinishRequest(JobLease("none", 1), Disposition.SUCCEED),
        FinishRequest(two, Disposition.CRASH),
        FinishRequest(one, Disposition.SUCCEED),
    ]
    assert queue.does.finish(A, endings) == ["OK", "GONE", "OK", "DUP"]


def test_a_record_that_cannot_be_written_leaves_the_job_running(queue: Queue) -> None:
    queue.client.set("go_download_failed_tasks", "not a hash")
    queue.push("1")
    lease = queue.claim_one()
    before = queue.job("1")
    with pytest.raises(QueueError, match="go_download_failed_tasks is not a hash"):
        queue.finish(lease, "failed", record=failure("1"))
    assert queue.job("1") == before
    assert queue.beat(lease).replies == ("OK",)
    queue.client.delete("go_download_failed_tasks")
    assert queue.finish(lease, "failed", record=failure("1")) == "OK"


def test_followers_end_with_their_leader(queue: Queue) -> None:
    queue.does.push([(job("x", dedupe=True), name) for name in "123"])
    queue.finish(queue.claim_one(), "success", record=success("x"))
    assert [queue.state(name) for name in "123"] == ["succeeded"] * 3
    assert queue.zset(queue.keys.done) == {"1", "2", "3"}
    assert queue.counted()["succeeded"] == 3
    assert queue.followers("1") == []
    assert not queue.client.keys(f"{queue.keys.prefix}dedupe:*")


def test_followers_wait_while_their_leader_is_tried_again(queue: Queue) -> None:
    queue.does.push([(job("x", dedupe=True), name) for name in "12"])
    queue.finish(queue.claim_one(), "retry")
    queue.finish(queue.claim_one(), "failed", record=failure("x"))
    assert [queue.state(name) for name in "12"] == ["failed"] * 2


def test_a_follower_that_was_ended_otherwise_stays_so(queue: Queue) -> None:
    queue.does.push([(job("x", dedupe=True), name) for name in "123"])
    queue.client.hset(queue.keys.job("2"), "state", "cancelled")
    queue.client.delete(queue.keys.job("3"))
    queue.finish(queue.claim_one(), "success")
    assert (queue.state("2"), queue.state("3")) == ("cancelled", None)


def test_a_running_job_may_lead_and_another_follow_it(queue: Queue) -> None:
    queue.drop_in(job("x", id="1").raw, job("x", id="2").raw)
    one, two = (claimed.lease for claimed in queue.claim(2))
    assert queue.finish(one, "follow", digest="d") == "LEADS"
    assert queue.finish(two, "follow", digest="d") == "FOLLOWS"
    assert (queue.own(), queue.zset(queue.keys.leases)) == ({"1"}, {"1"})
    assert queue.finish(one, "success", record=success("x")) == "OK"
    assert (queue.state("1"), queue.state("2")) == ("succeeded", "succeeded")


def test_to_lead_is_repeated_without_effect(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    assert [queue.finish(lease, "follow", digest="d") for _ in range(2)] == ["LEADS", "LEADS"]
    queue.finish(lease, "release")
    assert queue.finish(queue.claim_one(), "follow", digest="d") == "LEADS"


def test_to_follow_is_repeated_without_effect(queue: Queue) -> None:
    queue.push(*"12")
    one, two = (claimed.lease for claimed in queue.claim(2))
    queue.finish(one, "follow", digest="d")
    assert [queue.finish(two, "follow", digest="d") for _ in range(2)] == ["FOLLOWS", "DUP"]
    assert queue.followers("1") == [b"2"]


def test_a_leader_has_a_thousand_followers_and_then_another_leads(queue: Queue) -> None:
    same = job("x", dedupe=True)
    replies = queue.does.push([(same, f"{number}") for number in range(1003)])
    assert replies == ["OK", *["FOLLOWS"] * 1000, "OK", "FOLLOWS"]
    first, second = (claimed.lease for claimed in queue.claim(2))
    queue.finish(first, "success")
    assert queue.client.zcard(queue.keys.done) == 1001
    assert queue.state("1002") == "queued"
    queue.finish(second, "success")
    assert queue.client.zcard(queue.keys.done) == 1003


@pytest.mark.parametrize(("outcome", "name"), [("success", "done"), ("failed", "dead")])
def test_the_sets_of_ended_jobs_are_bounded(queue: Queue, outcome: str, name: str) -> None:
    key = f"{queue.keys.prefix}{name}"
    queue.client.zadd(key, {f"old{number}": number for number in range(10_005)})
    queue.client.hset(queue.keys.job("old0"), "state", "failed")
    queue.client.hset(queue.keys.job("old1"), "state", "running")  # it was tried again
    queue.push("1")
    queue.finish(queue.claim_one(), outcome)
    assert queue.client.zcard(key) == 10_000
    assert "1" in queue.zset(key)
    assert (queue.state("old0"), queue.state("old1")) == (None, "running")


@pytest.mark.parametrize("verb", ["retry", "remove"])
def test_an_end_is_forgotten_wherever_it_is_remembered(queue: Queue, verb: str) -> None:
    """Earlier versions had cancelled jobs among the dead."""
    queue.push("1")
    assert queue.admin.execute("cancel", "1", message="cancelled", at=0.0) == "OK"
    queue.client.zrem(queue.keys.cancelled, "1")
    queue.client.zadd(queue.keys.dead, {"1": 1})
    assert queue.admin.execute(verb, "1") == "OK"
    assert (queue.zset(queue.keys.dead), queue.zset(queue.keys.cancelled)) == (set(), set())


def test_what_runs_again_is_not_purged(queue: Queue) -> None:
    queue.push("1", "2")
    for lease in [claimed.lease for claimed in queue.claim(2)]:
        queue.finish(lease, "failed")
    assert queue.admin.execute("retry", "1") == "OK"
    queue.client.zadd(queue.keys.dead, {"1": 1})  # as a purge has read it before
    assert QueueAdmin(queue.client, queue.keys).forget_ended(queue.keys.dead) == 1
    assert (queue.state("1"), queue.state("2"), queue.zset(queue.keys.dead)) == ("queued", None, set())


def test_who_beats_meanwhile_is_not_struck_off(queue: Queue) -> None:
    """Whoever believed that it was gone had looked before."""
    queue.register(B)
    queue.push("1")
    lease = queue.claim_one(B)
    assert deregister(queue.does, [B], grace_s=0) is False
    assert queue.state("1") == "running"
    queue.client.zadd(queue.keys.supervisors, {B: queue.now_ms() - 1000})
    assert deregister(queue.does, [B], grace_s=5) is False
    assert queue.beat(lease, sid=B) and queue.state("1") == "running"
    queue.client.zadd(queue.keys.supervisors, {B: queue.now_ms() - 6000})
    assert deregister(queue.does, [B], grace_s=5) is True
    assert queue.state("1") == "queued"


# --- recover ------------------------------------------------------------------------------------------------------


def test_a_valid_lease_is_not_examined(queue: Queue) -> None:
    queue.push("1")
    queue.claim()
    assert queue.recover() == (0, ())


def test_an_expired_lease_is_marked_and_its_job_taken_after_the_grace(queue: Queue) -> None:
    queue.push(*"12")
    old = queue.claim_one()
    queue.pass_leases()
    assert queue.recover() == (1, ())
    assert queue.state("1") == "running"
    assert queue.client.zscore(queue.keys.leases, "1") > queue.now_ms() + 10_000
    assert queue.recover() == (0, ()), "before the grace nothing is taken"
    queue.pass_leases()
    assert queue.recover() == (0, ("1",))
    assert (queue.state("1"), queue.ready(), queue.own()) == ("queued", ["1", "2"], set())
    queue.register(B)
    (taken,) = queue.claim(sid=B)
    assert (taken.lease.job_id, taken.takeovers, taken.crashes, taken.attempts) == ("1", 1, 0, 2)
    assert taken.lease.fence > old.fence
    assert queue.beat(old).replies == ("LOST",)


def test_marks_from_before_an_outage_do_not_count(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.pass_leases()
    assert queue.recover() == (1, ())
    queue.pass_leases()
    queue.client.set(f"{queue.keys.prefix}last_recovery", queue.now_ms() - 60_000)  # Redis was away
    assert queue.recover() == (1, ())
    assert queue.beat(lease).replies == ("OK",)


def test_who_does_not_come_back_after_a_silence_loses_its_jobs(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    queue.client.set(f"{queue.keys.prefix}last_recovery", 1)
    found = []
    for _ in range(2):
        queue.pass_leases()
        found.append(queue.recover())
    assert found == [(1, ()), (0, ("1",))]


def test_one_supervisor_at_a_time_looks(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    queue.pass_leases()
    assert queue.does.recover(grace_s=GRACE_S, order="fifo").expired == 1
    queue.pass_leases()
    assert queue.does.recover(grace_s=GRACE_S, order="fifo").requeued == ()
    assert 0 < queue.client.pttl(f"{queue.keys.prefix}recovery_turn") <= 4000


def test_a_lease_of_a_job_that_does_not_run_is_removed(queue: Queue) -> None:
    queue.client.zadd(queue.keys.leases, {"none": 1})
    assert queue.recover() == (0, ())
    assert queue.zset(queue.keys.leases) == set()
    assert queue.state("none") is None


def test_an_evicted_lease_of_a_supervisor_that_is_gone_is_found(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    queue.pass_leases()
    queue.client.delete(queue.keys.leases)
    found = []
    for _ in range(3):
        found.append(queue.recover())
        queue.pass_leases()
    assert found == [(0, ()), (1, ()), (0, ("1",))]


def test_more_than_a_thousand_leases_are_examined_in_turns(queue: Queue) -> None:
    queue.client.zadd(queue.keys.leases, {f"none{number}": 1 for number in range(1500)})
    queue.recover()
    assert queue.client.zcard(queue.keys.leases) == 500


def test_a_registration_that_passed_long_ago_is_forgotten(queue: Queue) -> None:
    queue.register(B)
    queue.client.zadd(queue.keys.supervisors, {A: queue.now_ms() - DAY_MS - 1, B: queue.now_ms() - 1})
    queue.recover()
    assert queue.zset(queue.keys.supervisors) == {B}


@pytest.mark.parametrize(("order", "end"), [("fifo", ("RIGHT", "LEFT")), ("lifo", ("LEFT", "LEFT"))])
@pytest.mark.parametrize("is_known", [True, False], ids=["known to be gone", "silent"])
def test_an_inbox_goes_back_to_where_it_came_from(
    queue: Queue, order: str, end: tuple[str, str], is_known: bool
) -> None:
    queue.drop_in(*(job(name).raw for name in "12345"))
    before = queue.client.lrange(queue.keys.intake, 0, -1)
    for _ in range(3):
        queue.client.lmove(queue.keys.intake, queue.keys.inbox(A), *end)
    if is_known:
        queue.does.requeue_jobs_of([A], order=order)
    else:
        queue.pass_leases()
        queue.does.recover(grace_s=GRACE_S, order=order)
    assert queue.client.lrange(queue.keys.intake, 0, -1) == before
    assert not queue.client.exists(queue.keys.inbox(A))


def test_an_inbox_of_one_who_lives_stays(queue: Queue) -> None:
    queue.client.lpush(queue.keys.inbox(A), job("1").raw)
    queue.recover()
    assert queue.client.llen(queue.keys.inbox(A)) == 1


def test_requeue_jobs_requeues_at_once_and_deregisters_the_supervisor(queue: Queue) -> None:
    queue.register(B, C)
    queue.push(*"1234")
    queue.claim(2, A)
    queue.claim(1, B)
    kept = queue.claim_one(C)
    assert sorted(queue.does.requeue_jobs_of([A, B], order="fifo")) == ["1", "2", "3"]
    assert queue.zset(queue.keys.supervisors) == {C}
    assert queue.zset(queue.keys.leases) == {kept.job_id}
    assert not queue.client.exists(queue.keys.supervisor(A), queue.keys.mail(A), queue.keys.held_by(A))
    assert sorted(queue.ready()) == ["1", "2", "3"]


def test_requeue_jobs_is_repeated_without_effect(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    assert queue.does.requeue_jobs_of([A], order="fifo") == ["1"]
    assert queue.does.requeue_jobs_of([A], order="fifo") == []
    assert queue.job("1")["takeovers"] == "1"


def test_requeue_jobs_of_no_supervisor_takes_nothing(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    assert queue.does.requeue_jobs_of([], order="fifo") == []
    assert queue.state("1") == "running"


def test_requeue_jobs_leaves_nothing_for_any_number_of_jobs(queue: Queue) -> None:
    queue.drop_in(*(job(str(number)).raw for number in range(900)))
    before = queue.client.lrange(queue.keys.intake, 0, -1)[:500]
    claimed = queue.ids(400)
    for _ in range(500):
        queue.client.lmove(queue.keys.intake, queue.keys.inbox(A), "RIGHT", "LEFT")
    queue.client.sadd(queue.keys.held_by(A), *(f"stale{number}" for number in range(500)))
    assert sorted(queue.does.requeue_jobs_of([A], order="fifo")) == sorted(claimed)
    assert queue.client.lrange(queue.keys.intake, 0, -1) == before
    assert not queue.client.exists(queue.keys.inbox(A), queue.keys.held_by(A))


# --- all of them --------------------------------------------------------------------------------------------------


def test_scripts_that_the_server_forgot_are_loaded_again(queue: Queue) -> None:
    def forget() -> None:
        queue.client.script_flush()

    forget()
    assert queue.push(*"12") == ["OK", "OK"]
    forget()
    one, two = (claimed.lease for claimed in queue.claim(2))
    forget()
    assert queue.beat(one, two).replies == ("OK", "OK")
    forget()
    assert queue.does.finish(A, [FinishRequest(one, Disposition.SUCCEED), FinishRequest(two, Disposition.FAIL)]) == [
        "OK",
        "OK",
    ]
    forget()
    assert queue.recover() == (0, ())


def test_what_happens_is_counted_by_the_day(queue: Queue) -> None:
    queue.push(*"12345")
    for outcome in ("success", "failed", "retry", "release", "crash"):
        queue.finish(queue.claim_one(), outcome, delay_s=60)
    queue.push("6")
    queue.claim_one()
    queue.does.requeue_jobs_of([A], order="fifo")
    assert queue.counted() == {
        "pushed": 6,
        "succeeded": 1,
        "failed": 1,
        "retry": 1,
        "release": 1,
        "crash": 1,
        "recovered": 1,
    }
    (key,) = queue.client.keys(f"{queue.keys.prefix}stats:*")
    assert key.decode() == queue.keys.stats(queue.now_ms() // 86_400_000)
    assert 34 * 86_400 < queue.client.ttl(key) <= 35 * 86_400


def test_what_happens_is_told(queue: Queue) -> None:
    queue.push("1")
    queue.finish(queue.claim_one(), "retry")
    queue.claim_one()
    queue.does.requeue_jobs_of([A], order="fifo")
    queue.register(A)
    queue.finish(queue.claim_one(), "failed", note={"error": "x"})
    told = [fields[b"event"].decode() for _, fields in queue.client.xrange(queue.keys.events)]
    assert told == [
        "job_queued",
        "job_started",
        "job_requeued",
        "job_started",
        "job_recovered",
        "job_started",
        "job_failed",
    ]
    assert queue.events("job_failed") == [{b"event": b"job_failed", b"id": b"1", b"note": b'{"error":"x"}'}]


def test_a_push_is_told_once_with_what_it_waits_for(queue: Queue) -> None:
    later = queue.now_ms() // 1000 + 3600
    jobs = [job("now", priority="low"), job("later", not_before=later), job("x", dedupe=True), job("x", dedupe=True)]
    ids = ["now", "later", "leader", "follower"]
    pushes = list(zip(jobs, ids, strict=True))
    assert queue.does.push([*pushes, pushes[0]]) == ["OK", "OK", "OK", "FOLLOWS", "DUP"]
    told = {b"event": b"job_queued"}
    assert queue.events("job_queued") == [
        {**told, b"id": b"now", b"priority": b"low"},
        {**told, b"id": b"later", b"priority": b"normal", b"due": b"%d000" % later},
        {**told, b"id": b"leader", b"priority": b"normal"},
        {**told, b"id": b"follower", b"priority": b"normal", b"leader": b"leader"},
    ]


def test_the_stream_of_events_is_capped(queue: Queue) -> None:
    pipeline = queue.client.pipeline(transaction=False)
    for _ in range(11_000):
        pipeline.xadd(queue.keys.events, {"event": "old"})
    pipeline.execute()
    queue.push("1")
    queue.claim_one()
    assert queue.client.xlen(queue.keys.events) <= 10_200
    assert len(queue.events("job_started")) == 1


def test_groups_do_not_meet(queue: Queue) -> None:
    other = Transitions(queue.client, QueueKeys("eu"))
    other.push([(job("1"), "1")])
    assert queue.claim() == []
    assert queue.push("1") == ["OK"]
    assert {key.decode().partition("}")[0] for key in queue.client.keys("*")} == {
        "dlpool:{eu:go_download_urls",
        "dlpool:{go_download_urls",
    }


# --- what operators do ------------------------------------------------------------------------------------------------


def flag(queue: Queue, job_id: str) -> str | None:
    return queue.job(job_id).get("flag")


def test_an_unknown_job_is_none(queue: Queue) -> None:
    assert queue.admin.execute("cancel", "none") == "NONE"


@pytest.mark.parametrize("before", ["queued", "delayed", "paused"])
def test_a_waiting_job_is_cancelled_at_once_with_its_record(before: str, queue: Queue) -> None:
    queue.push("1")
    if before == "delayed":
        queue.finish(queue.claim_one(), "retry", delay_s=60)
    elif before == "paused":
        assert queue.admin.execute("pause", "1") == "OK"
    assert queue.state("1") == before
    assert queue.admin.execute("cancel", "1", message="the job was cancelled", at=0) == "OK"
    record = json.loads(queue.client.hget(queue.keys.failed, "http://host/1"))
    assert (record["error_message"], record["task_data"]) == ("the job was cancelled", json.loads(job("1").raw))
    assert (queue.state("1"), queue.zset(queue.keys.cancelled), queue.zset(queue.keys.dead)) == (
        "cancelled",
        {"1"},
        set(),
    )
    assert queue.zset(queue.keys.delayed) == queue.zset(queue.keys.paused) == set()
    assert queue.ids(1) == []
    assert queue.admin.execute("cancel", "1") == "cancelled"


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_running_job_is_flagged_its_owner_gets_mail_and_its_beat_says_so(verb: str, queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    assert queue.admin.execute(verb, "1") == "ASKED"
    assert queue.client.lrange(queue.keys.mail(A), 0, -1) == [f"{verb} 1".encode()]
    assert queue.beat(lease).replies == (verb,)
    assert queue.finish(lease, {"cancel": "cancelled"}.get(verb, verb)) == "OK"
    assert (queue.state("1"), flag(queue, "1")) == ({"cancel": "cancelled", "pause": "paused"}[verb], None)


def test_a_paused_job_has_its_attempt_back_and_continues_when_resumed(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.admin.execute("pause", "1")
    queue.finish(lease, "pause")
    assert (queue.job("1")["attempts"], queue.ids(1), queue.own()) == ("0", [], set())
    assert queue.admin.execute("resume", "1") == "OK"
    assert queue.ids(1) == ["1"]


def test_resumed_before_its_supervisor_was_notified_it_continues(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.admin.execute("pause", "1")
    assert queue.admin.execute("resume", "1") == "OK"
    assert queue.beat(lease).replies == ("OK",)
    queue.finish(lease, "pause")  # it had heard
    assert queue.state("1") == "queued"


def test_a_job_that_is_to_be_paused_does_not_wait_for_a_retry(queue: Queue) -> None:
    queue.push("1")
    lease = queue.claim_one()
    queue.admin.execute("pause", "1")
    queue.finish(lease, "retry", delay_s=60)
    assert (queue.state("1"), queue.zset(queue.keys.delayed)) == ("paused", set())


def test_a_cancel_outlives_the_death_of_its_supervisor(queue: Queue) -> None:
    queue.push("1")
    queue.claim_one()
    queue.admin.execute("cancel", "1")
    assert queue.admin.execute("pause", "1") == "ASKED"
    assert flag(queue, "1") == "cancel"
    queue.register(B)
    queue.does.requeue_jobs_of([A], order="fifo")
    (claimed,) = queue.claim(1, B)
    assert claimed.flag == "cancel"


def test_a_resumed_job_keeps_its_time(queue: Queue) -> None:
    queue.push("1", not_before=4_000_000_000)
    queue.admin.execute("pause", "1")
    assert queue.admin.execute("resume", "1") == "OK"
    assert (queue.state("1"), queue.zset(queue.keys.delayed)) == ("delayed", {"1"})


def test_a_failed_job_is_retried_from_the_beginning_and_its_record_goes(queue: Queue) -> None:
    queue.push("1")
    record = failure_record(queue.keys, "http://host/1", job("1").raw, "it broke", 0)
    queue.finish(queue.claim_one(), "failed", record=record, note={"label": "x"})
    assert queue.admin.execute("retry", "1") == "OK"
    known = queue.job("1")
    assert (known["state"], known["attempts"], "ended" in known, "note" in known) == ("queued", "0", False, False)
    assert queue.client.hlen(queue.keys.failed) == 0
    assert queue.client.ttl(queue.keys.job("1")) == -1
    assert queue.zset(queue.keys.dead) == set()
    assert queue.ids(1) == ["1"]
    assert queue.admin.execute("retry", "1") == "running"


def test_a_retry_leaves_the_record_of_another_job_with_that_url(queue: Queue) -> None:
    queue.push("1")
    queue.finish(queue.claim_one(), "failed", note={})
    queue.client.hset(queue.keys.failed, "http://host/1", '{"task_data":{"url":"http://host/1","save_path":"other"}}')
    assert queue.admin.execute("retry", "1") == "OK"
    assert queue.client.hlen(queue.keys.failed) == 1


def test_a_promoted_job_is_the_next_and_keeps_its_priority(queue: Queue) -> None:
    queue.push("high", priority="high")
    queue.push("1", "2", "3")
    assert queue.admin.execute("promote", "3") == "OK"
    assert queue.ids(4) == ["3", "high", "1", "2"]
    assert queue.job("3")["priority"] == "normal"
    assert queue.admin.execute("promote", "3") == "running"


def test_another_priority_moves_a_job_also_downwards(queue: Queue) -> None:
    queue.push("1", "2", priority="high")
    queue.push("3")
    assert queue.admin.execute("priority", "1", priority="low") == "OK"
    assert queue.ids(3) == ["2", "3", "1"]


def test_a_paused_job_that_was_moved_is_taken_once(queue: Queue) -> None:
    queue.push("1")
    for verb in ("pause", "resume", "promote", "pause", "resume"):
        assert queue.admin.execute(verb, "1") == "OK"
    assert queue.ids(5) == ["1"]
    assert queue.ready("normal") == []
    assert queue.ids(5, known=[JobLease("1", 1)]) == []


def test_when_a_leader_is_cancelled_its_followers_run_on_their_own(queue: Queue) -> None:
    for job_id in ("1", "2"):
        assert queue.does.push([(job("same", dedupe=True), job_id)])[0] == ("OK" if job_id == "1" else "FOLLOWS")
    assert queue.admin.execute("cancel", "1") == "OK"
    assert queue.ids(2) == ["2"]
    assert queue.followers("1") == []


def test_a_follower_is_cancelled_alone_and_not_promoted(queue: Queue) -> None:
    for job_id in ("1", "2"):
        queue.does.push([(job("same", dedupe=True), job_id)])
    assert queue.admin.execute("promote", "2") == "following"
    assert queue.admin.execute("cancel", "2") == "OK"
    assert queue.finish(queue.claim_one(), "success") == "OK"
    assert (queue.state("1"), queue.state("2")) == ("succeeded", "cancelled")


def test_a_paused_queue_gives_no_new_jobs(queue: Queue) -> None:
    queue.push("1", "2")
    lease = queue.claim_one()
    queue.client.set(queue.keys.halted, 1)
    claim = queue.does.claim(A, [], 5, lease_s=LEASE_S, order="fifo")
    assert claim is not None
    assert ([one.lease for one in claim.jobs], claim.is_paused) == ([lease], True)
    queue.client.delete(queue.keys.halted)
    assert queue.ids(5, known=[lease]) == ["2"]


def test_a_paused_queue_has_back_what_was_reserved(queue: Queue) -> None:
    queue.drop_in(job("1").raw, job("2").raw)
    queue.client.lmove(queue.keys.intake, queue.keys.inbox(A), "RIGHT", "LEFT")
    queue.client.set(queue.keys.halted, 1)
    assert queue.ids(5) == []
    assert queue.client.lrange(queue.keys.intake, 0, -1) == [job("2").raw, job("1").raw]


def test_a_drained_node_gets_no_new_jobs_and_others_do(queue: Queue) -> None:
    queue.push("1")
    queue.register("node-a-00000000", "node-b-00000000")
    queue.client.sadd(queue.keys.drained, "node-a")
    assert queue.ids(1, sid="node-a-00000000") == []
    assert queue.ids(1, sid="node-b-00000000") == ["1"]


def test_what_is_paused_already_is_said_to_be(queue: Queue) -> None:
    queue.push("1")
    assert [queue.admin.execute("pause", "1") for _ in range(2)] == ["OK", "paused"]


@pytest.mark.parametrize(("outcome", "key"), [("success", "done"), ("failed", "dead"), ("cancelled", "cancelled")])
def test_an_ended_job_is_removed_and_its_record_stays(outcome: str, key: str, queue: Queue) -> None:
    queue.push("1")
    assert queue.admin.execute("remove", "1") == "queued"
    lease = queue.claim_one()
    assert queue.admin.execute("remove", "1") == "running"
    record = success("1") if outcome == "success" else failure("1")
    queue.finish(lease, outcome, record=record)
    assert queue.zset(getattr(queue.keys, key)) == {"1"}
    assert queue.admin.execute("remove", "1") == "OK"
    assert (queue.state("1"), queue.zset(getattr(queue.keys, key))) == (None, set())
    assert queue.client.exists(queue.keys.success("http://host/1"), queue.keys.failed) == 1
    assert queue.admin.execute("remove", "1") == "NONE"


def test_of_many_silent_supervisors_the_last_hundred_are_remembered_and_all_that_hold_something(queue: Queue) -> None:
    now = queue.now_ms()
    queue.client.zadd(queue.keys.supervisors, {f"gone-{number:03d}": now - 10_000 + number for number in range(150)})
    queue.client.sadd(queue.keys.held_by("gone-000"), "x")
    queue.client.hset(queue.keys.job("x"), mapping={"owner": "gone-000", "state": "running"})
    queue.register(B)
    queue.does.recover(grace_s=GRACE_S, order="fifo")
    left = {sid for sid in queue.zset(queue.keys.supervisors) if sid.startswith("gone")}
    assert left == {"gone-000", *(f"gone-{number:03d}" for number in range(50, 150))}
