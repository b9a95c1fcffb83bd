"""The clock of Redis is set back, or forward and back: what was due soon stays due soon, and nobody loses a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.history import QueueHistory
from dlpool.jobs.host_slots import HostLimit, HostSlots
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.outbox import Outbox, encode_entry
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.queue_clock import QueueTime, queue_time
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.scripts import SCRIPTS
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease, Transitions
from tests.clocks import ShiftedRedis
from tests.conftest import wait_until
from tests.desk import InTurn, answer
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin

A, B = "node-00000001", "node-00000002"
SOON_S = 0.5
HOURS = 3600
NEVER_S = 1000.0
SHIFTS = {
    "two hours back": (-2 * HOURS,),
    "a year back": (-365 * 24 * HOURS,),
    "a minute back": (-60,),
    "three seconds back": (-3,),
    "back in two steps": (-HOURS, -3 * HOURS),
    "forward and back": (2 * HOURS, 0),
    "back and forward": (-2 * HOURS, 0),
}


class Queue:
    """A queue on a server whose clock is set."""

    def __init__(self, server: ShiftedRedis) -> None:
        self.server = server
        self.client: Any = server.client()
        self.keys = QueueKeys()
        self.does = Transitions(self.client, self.keys)
        self.views = QueueViews(self.client, self.keys)
        self.slots = HostSlots(self.does)
        self.register(A)

    def register(self, sid: str, lease_s: float = 30.0) -> None:
        self.does.heartbeat(sid, [], lease_s=lease_s, info={"lease": lease_s})

    def shift(self, *steps: int) -> None:
        """Set the clock, once after the other; each is seen by somebody."""
        for seconds in steps:
            self.server.set_clock(seconds)
            self.register(B)

    def push(self, name: str, **own: Any) -> None:
        self.does.push([(PushedJob.parse(compose_job(f"http://host/{name}", f"/data/{name}", **own)), name)])

    def claim(self, sid: str = A, slots: int = 1, lease_s: float = 30.0) -> list[ClaimedJob]:
        claim = self.does.claim(sid, None, slots, lease_s=lease_s, order="fifo")
        assert claim is not None
        return list(claim.jobs)

    def claim_one(self, lease_s: float = 30.0) -> JobLease:
        [claimed] = self.claim(lease_s=lease_s)
        return claimed.lease

    def finish(self, lease: JobLease, outcome: str, **how: Any) -> None:
        assert self.does.finish(A, [FinishRequest(lease, Disposition(outcome), **how)]) == ["OK"]

    def control(self, verb: str, job_id: str) -> str:
        arguments = [self.keys.prefix, job_id, verb, "", "", "", ""]
        return str(self.does.run_script("admin", [([self.keys.intake, self.keys.failed], arguments)])[0].decode())

    def clock_s(self) -> float:
        seconds, micros = self.client.time()
        return float(seconds + micros / 1_000_000)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with ShiftedRedis(tmp_path / "redis") as server:
        yield Queue(server)


# --- what is due, or passes, soon: each prepares it, and returns how one sees that it has come ---

Prepare = Callable[[Queue], Callable[[], object]]


def a_retry(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.finish(queue.claim_one(), "retry", delay_s=SOON_S)
    return queue.claim


def a_release(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.finish(queue.claim_one(), "release", delay_s=SOON_S)
    return queue.claim


def not_before(queue: Queue) -> Callable[[], object]:
    queue.push("a", not_before=queue.clock_s() + SOON_S)
    assert queue.claim() == []
    return queue.claim


def a_paused_retry_that_is_resumed_later(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.finish(queue.claim_one(), "retry", delay_s=SOON_S)
    assert queue.control("pause", "a") == "OK"

    def claimed() -> object:
        queue.control("resume", "a")
        return queue.claim()

    return claimed


def throttled_until_its_start(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.finish(queue.claim_one(), "throttle", delay_s=SOON_S, host="h")
    return queue.claim


def throttled_for_a_slot_that_was_never_released(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.finish(queue.claim_one(), "throttle", delay_s=SOON_S, host="h", waits_for_slot=True)
    return queue.claim


def a_lease(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.claim_one(lease_s=SOON_S)
    return lambda: queue.does.recover(grace_s=SOON_S, order="fifo").requeued


def a_suspect_lease(queue: Queue) -> Callable[[], object]:
    queue.push("a")
    queue.claim_one(lease_s=0)
    wait_until(lambda: queue.does.recover(grace_s=SOON_S, order="fifo").expired == 1)
    return lambda: queue.does.recover(grace_s=SOON_S, order="fifo").requeued


def what_a_gone_supervisor_had_reserved(queue: Queue) -> Callable[[], object]:
    queue.register("gone-00000000", lease_s=SOON_S)
    queue.client.lpush(queue.keys.inbox("gone-00000000"), "{}")

    def is_back() -> bool:
        queue.does.recover(grace_s=SOON_S, order="fifo")
        return bool(queue.client.llen(queue.keys.intake))

    return is_back


def a_registration(queue: Queue) -> Callable[[], object]:
    queue.register("gone-00000000", lease_s=SOON_S)
    return lambda: "gone-00000000" in {one.sid for one in queue.views.stats().lost}


def a_hold(queue: Queue) -> Callable[[], object]:
    queue.does.hold_host("h", SOON_S)
    assert [host for host, _ in queue.does.heartbeat(A, [], lease_s=30, info={}).held_hosts] == ["h"]
    return lambda: (
        not queue.does.heartbeat(A, [], lease_s=30, info={}).held_hosts and not queue.views.stats().held_hosts
    )


def a_slot_of_a_host(queue: Queue) -> Callable[[], object]:
    limit = HostLimit("h", most=1)
    assert queue.slots.acquire(limit, "dead", lease_s=SOON_S, is_start_reserved=False).wait_s == 0
    return lambda: queue.slots.acquire(limit, "a", lease_s=30, is_start_reserved=False).wait_s == 0


def the_next_start_at_a_host(queue: Queue) -> Callable[[], object]:
    limit = HostLimit("h", rate=1 / SOON_S)
    assert queue.slots.acquire(limit, "first", lease_s=30, is_start_reserved=False).wait_s == 0
    return lambda: (queue.slots.acquire(limit, "a", lease_s=30, is_start_reserved=False).wait_s or 0) < 60


def a_record_in_the_outbox(queue: Queue) -> Callable[[], object]:
    class OneNode:
        def client_for(self, _key: str) -> Any:
            return queue.client

        def invalidate(self) -> None:
            pass

    late_ms = queue_time(queue.client, queue.keys).now_ms - 9_000
    entry = b"%d %s" % (late_ms, encode_entry(ClientRecord("success:u", b"{}")))
    queue.client.hset(queue.keys.outbox, "a.1", entry)
    outbox = Outbox(queue.client, queue.keys, OneNode())  # type: ignore[arg-type]
    return lambda: outbox.replay().written == 1


def the_turn_of_the_next_sample(queue: Queue) -> Callable[[], object]:
    assert queue.does.take_turn(queue.keys.sample_turn, SOON_S)
    return lambda: queue.does.take_turn(queue.keys.sample_turn, SOON_S)


def the_turn_of_the_next_who_looks(queue: Queue) -> Callable[[], object]:
    queue.does.recover(grace_s=SOON_S, order="fifo")
    turn = queue.keys.prefix + "recovery_turn"
    before = queue.client.get(turn)

    def has_looked() -> bool:
        queue.does.recover(grace_s=SOON_S, order="fifo")
        return bool(queue.client.get(turn) != before)

    return has_looked


DUE: dict[str, Prepare] = {
    one.__name__: one
    for one in (
        a_retry,
        a_release,
        not_before,
        a_paused_retry_that_is_resumed_later,
        throttled_until_its_start,
        throttled_for_a_slot_that_was_never_released,
        a_lease,
        a_suspect_lease,
        what_a_gone_supervisor_had_reserved,
        a_registration,
        a_hold,
        a_slot_of_a_host,
        the_next_start_at_a_host,
        a_record_in_the_outbox,
        the_turn_of_the_next_sample,
        the_turn_of_the_next_who_looks,
    )
}


@pytest.mark.parametrize("prepare", DUE.values(), ids=DUE)
def test_what_was_due_soon_comes_soon_although_the_clock_was_set_back(queue: Queue, prepare: Prepare) -> None:
    has_come = prepare(queue)
    queue.shift(-2 * HOURS)
    wait_until(lambda: bool(has_come()), 50)


@pytest.mark.parametrize("steps", SHIFTS.values(), ids=SHIFTS)
def test_a_retry_is_lost_by_no_change_of_the_clock(queue: Queue, steps: tuple[int, ...]) -> None:
    has_come = a_retry(queue)
    queue.shift(*steps)
    wait_until(lambda: bool(has_come()), 50)


@pytest.mark.parametrize("steps", [steps for steps in SHIFTS.values() if max(steps) <= 0 and steps[-1] < 0])
def test_what_is_due_late_does_not_come_early_because_the_clock_was_set_back(
    queue: Queue, steps: tuple[int, ...]
) -> None:
    queue.push("retried")
    queue.finish(queue.claim_one(), "retry", delay_s=NEVER_S)
    queue.push("later", not_before=queue.clock_s() + NEVER_S)
    queue.does.hold_host("h", NEVER_S)
    queue.shift(*steps)
    assert queue.claim(slots=5) == []
    [(host, seconds)] = queue.does.heartbeat(A, [], lease_s=30, info={}).held_hosts
    assert host == "h" and abs(seconds - NEVER_S) < 60
    assert queue.client.zcard(queue.keys.delayed) == 2


@pytest.mark.parametrize("steps", SHIFTS.values(), ids=SHIFTS)
def test_no_job_is_lost_because_the_clock_was_changed(queue: Queue, steps: tuple[int, ...]) -> None:
    for number in range(20):
        queue.push(f"{number}")
    leases = [one.lease for one in queue.claim(slots=20)]
    queue.does.recover(grace_s=15, order="fifo")
    for seconds in steps:
        queue.server.set_clock(seconds)
        queue.client.delete(f"{queue.keys.prefix}recovery_turn")  # it is time again
        assert queue.does.recover(grace_s=15, order="fifo").requeued == ()
        beat = queue.does.heartbeat(A, [(lease, "") for lease in leases], lease_s=30, info={})
        assert beat.replies == ("OK",) * 20
        queue.client.delete(f"{queue.keys.prefix}recovery_turn")
        assert queue.does.recover(grace_s=15, order="fifo").expired == 0
    assert queue.does.finish(A, [FinishRequest(lease, Disposition.SUCCEED) for lease in leases]) == ["OK"] * 20


@pytest.mark.parametrize("steps", SHIFTS.values(), ids=SHIFTS)
def test_people_are_told_times_by_the_clock_as_it_is_now(queue: Queue, steps: tuple[int, ...]) -> None:
    queue.push("before", not_before=queue.clock_s() + NEVER_S)
    queue.shift(*steps)
    queue.push("after", not_before=queue.clock_s() + 2 * NEVER_S)
    queue.push("ended")
    ended = queue.claim(slots=5)
    queue.does.finish(A, [FinishRequest(one.lease, Disposition.FAIL) for one in ended])
    assert QueueAdmin(queue.client, queue.keys).pause()
    now_s = queue.clock_s()
    stats = queue.views.stats()
    assert abs(stats.now - now_s) < 60
    assert stats.halted_at is not None and abs(stats.halted_at - now_s) < 60
    assert stats.failed == len(ended) and stats.days[0].counters["failed"] == len(ended)
    assert {one.sid for one in stats.supervisors} >= {B}
    after, done = queue.views.job("after"), queue.views.job("ended")
    for at in (after.created_at, done.created_at, done.started_at, done.ended_at):
        assert at is not None and abs(at - now_s) < 60
    assert after.due_at is not None and abs(after.due_at - now_s - 2 * NEVER_S) < 60
    listed = {view.id: view for view in queue.views.jobs()}
    assert listed["after"].due_at == after.due_at
    if max(steps) <= 0 and steps[-1] < 0:
        before = listed["before"]
        assert before.due_at is not None and abs(before.due_at - now_s - NEVER_S) < 60


def test_the_history_continues_with_distinct_times(queue: Queue) -> None:
    history = QueueHistory(queue.client, queue.keys)
    for seconds in (0, -2 * HOURS, -4 * HOURS, 0):
        queue.shift(seconds)
        queue.client.delete(queue.keys.sample_turn)  # ten seconds later
        assert history.record_sample()
    moments = [sample[0] for sample in history.since()]
    assert len(set(moments)) == 4 and moments == sorted(moments)
    assert history.since(moments[2]) == history.since()[2:]
    ahead_ms = queue_time(queue.client, queue.keys).ahead_ms
    assert abs(moments[-1] - queue.clock_s() * 1000) < 60_000 and ahead_ms == pytest.approx(4 * HOURS * 1000, abs=9000)


def test_a_clock_that_is_right_is_not_corrected(queue: Queue) -> None:
    queue.shift(0, 2 * HOURS, 3 * HOURS)
    time = queue_time(queue.client, queue.keys)
    assert time.ahead_ms == 0 and abs(time.clock_ms / 1000 - queue.clock_s()) < 60


@pytest.mark.parametrize(
    ("noted", "time"),
    [
        ((None, None), QueueTime(100_500, 0)),
        ((b"100499", b"0"), QueueTime(100_500, 0)),
        ((b"100499", b"70"), QueueTime(100_570, 70)),
        ((b"900000", b"0"), QueueTime(900_000, 799_500)),
        ((b"broken", b""), QueueTime(100_500, 0)),
    ],
)
def test_the_time_is_told_from_the_clock_and_what_was_noted(
    noted: tuple[bytes | None, bytes | None], time: QueueTime
) -> None:
    assert QueueTime.of((100, 500_999), noted) == time
    assert time.clock_ms == 100_500


def test_every_script_has_the_time_from_one_place() -> None:
    folder = Path(__file__).parent.parent / "dlpool" / "jobs" / "lua"
    assert {path.stem for path in folder.glob("*.lua")} == {*SCRIPTS, "shared"}
    texts = {path.stem: path.read_text() for path in folder.glob("*.lua")}
    assert [name for name, text in texts.items() if "'TIME'" in text] == ["shared"]
    assert texts["shared"].count("'TIME'") == 1
    assert not [name for name, text in texts.items() if "EXPIREAT" in text or "'NX', 'PX'" in text]


# --- a service ---


def test_a_service_retries_and_takes_new_jobs_after_its_redis_was_set_back(tmp_path: Path) -> None:
    with ShiftedRedis(tmp_path / "redis") as server:
        client = Client(server.client())
        settings = {"transfer": {"retries": 0}}
        handler = InTurn(answer(503, Retry_After="4"), File(b"x" * 1000))
        with Supervisor(tmp_path / "node", server.url, settings), Origin(handler) as origin:
            client.push(f"{origin.url}/a", "a")
            wait_until(lambda: client.redis.zcard(client.keys.delayed) + client.redis.zcard(client.keys.throttled) == 1)
            server.set_clock(-2 * HOURS)
            client.wait_for(f"{origin.url}/a", timeout_s=60)
            client.push(f"{origin.url}/b", "b")
            client.wait_for(f"{origin.url}/b", timeout_s=60)
            assert len(origin.requests) == 3
