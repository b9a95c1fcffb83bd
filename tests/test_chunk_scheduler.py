"""The scheduler under many threads: each byte is written once by its owner, and snapshots claim only written bytes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from dlpool.errors import Cancelled, NotAdmitted, RetryRange, ServerBusy, ShortBody, TooSlow
from dlpool.transfer.chunks import Chunk, ChunkMap, plan_chunks
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.retry import RangeAttempt
from dlpool.transfer.scheduler import MAX_SHORT_ANSWERS, RECENT_S, ChunkScheduler, ChunkSnapshot
from tests.conftest import wait_until
from tests.fakes import Clock

KIB = 1024
SIZE = 3 * 512 * KIB + 7
OWNERS = 6
ONCE, RATES = b"\x01", (0.0, 1.0, 4096.0, 1e6, 1e9)


class Work:
    """Threads that take chunks, write parts of them, and give them back, done or not, as a random number says."""

    def __init__(self, seed: int, piece: int | None) -> None:
        self.scheduler = ChunkScheduler(time.monotonic)
        self.counts = bytearray(SIZE)  # how often each byte was written
        self.faults: list[str] = []
        self._seed = seed
        self.scheduler.load_plan(plan_chunks([ByteRange(0, SIZE)], SIZE, OWNERS, 64 * KIB, piece), "nobody")
        self.scheduler.release_chunk(self.scheduler._map.chunks[0])

    def run(self) -> None:
        owners = [threading.Thread(target=self._own, args=(number,), daemon=True) for number in range(OWNERS)]
        for thread in owners:
            thread.start()
        while not self.scheduler.is_over:
            self.check(self.scheduler.snapshot())
        for thread in owners:
            thread.join(20.0)
        self.check(self.scheduler.snapshot())

    def check(self, snapshot: ChunkSnapshot) -> None:
        """The snapshot tiles the file, and what it claims has been written once."""
        chunks = snapshot.chunks
        edges = [chunks[0].start == 0, chunks[-1].end == SIZE]
        edges += [one.end == other.start for one, other in pairwise(chunks)]
        written = all(
            self.counts[chunk.start : chunk.position] == ONCE * (chunk.position - chunk.start) for chunk in chunks
        )
        if not all(edges) or not written:
            self.faults.append(repr(snapshot))
            self.scheduler.scope.cancel(Cancelled("wrong"))

    def _own(self, number: int) -> None:
        chance = random.Random(self._seed * 100 + number)
        while (chunk := self.scheduler.take_chunk(number)) is not None:
            while not chunk.is_done and chance.random() > 0.1:
                begin = chunk.position
                size = self.scheduler.begin_write(chunk, chance.randrange(1, 40 * KIB))
                fails = chance.random() < 0.1
                if not fails:
                    part = self.counts[begin : begin + size]
                    self.counts[begin : begin + size] = part.translate(bytes(range(1, 256)) + ONCE)
                self.scheduler.commit_write(chunk, 0 if fails else size)
                if chunk.position < begin:
                    self.faults.append("a position went back")
                self.scheduler.set_rate(chunk, chance.choice(RATES))
            self.scheduler.release_chunk(chunk)


@pytest.mark.parametrize("piece", [None, 100 * KIB])
@pytest.mark.parametrize("seed", range(3))
def test_each_byte_is_written_once_and_no_snapshot_claims_more(seed: int, piece: int | None) -> None:
    work = Work(seed, piece)
    work.run()
    assert work.faults == []
    assert work.counts == ONCE * SIZE
    assert work.scheduler.written() == work.scheduler.contiguous_end() == SIZE


# --- one operation after the other ---


def planned(
    clock: Callable[[], float], *chunks: Chunk, least_rate: int = 0, piece: int | None = None
) -> ChunkScheduler:
    scheduler = ChunkScheduler(clock, least_rate)
    scheduler.load_plan(ChunkMap(chunks, piece=piece), "planner")
    return scheduler


def test_a_new_scheduler_has_counted_nothing(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    assert (scheduler.retries, scheduler.finished_chunks, scheduler.written(), scheduler.contiguous_end()) == (
        0,
        0,
        0,
        0,
    )
    assert (scheduler.is_crowded, scheduler.has_idle_worker, scheduler.is_over, scheduler.scope.error) == (
        False,
        False,
        False,
        None,
    )
    assert scheduler.slowest_s() == 0.0
    assert not scheduler.wait_until_over(0.0)
    scheduler.scope.raise_if_cancelled()


def test_a_complete_plan_ends_the_download(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    assert scheduler.load_plan(ChunkMap([Chunk(0, 10, 10, 10)]), "a") is None
    assert scheduler.is_over
    assert scheduler.wait_until_over(0.0)
    scheduler.sleep(60.0)  # returns at once, and raises nothing
    assert scheduler.take_chunk("a") is None


def test_a_plan_does_not_revive_a_download_that_was_stopped(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    scheduler.scope.cancel(Cancelled("cancelled"))
    scheduler.load_plan(ChunkMap([Chunk(0, 10, 0, 0)]), "a")
    assert scheduler.is_over
    assert scheduler.take_chunk("b") is None


def test_a_write_is_limited_to_the_chunk_and_counts_when_it_has_ended(clock: Clock) -> None:
    chunk = Chunk(10, 20, 10, 10)
    scheduler = planned(clock, Chunk(0, 10, 10, 10), chunk)
    assert scheduler.begin_write(chunk, 4) == 4
    assert (chunk.position, chunk.write_end) == (10, 14)
    scheduler.commit_write(chunk, 0)  # it failed
    assert (chunk.position, chunk.write_end) == (10, 10)
    assert scheduler.begin_write(chunk, 4) == 4
    scheduler.commit_write(chunk, 4)
    assert (chunk.position, chunk.write_end, scheduler.written(), scheduler.contiguous_end()) == (14, 14, 14, 14)
    assert scheduler.begin_write(chunk, 100) == 6


def test_nothing_is_written_after_the_end(clock: Clock) -> None:
    chunk = Chunk(0, 10, 0, 0)
    scheduler = planned(clock, chunk)
    scheduler.scope.cancel(Cancelled("first"))
    scheduler.scope.cancel(Cancelled("second"))
    with pytest.raises(Cancelled, match="first"):
        scheduler.begin_write(chunk, 1)
    assert chunk.write_end == 0
    with pytest.raises(Cancelled, match="first"):
        scheduler.scope.raise_if_cancelled()
    done = planned(clock, Chunk(0, 10, 10, 10))
    with pytest.raises(AssertionError):
        done.begin_write(Chunk(0, 10, 0, 0), 1)


def test_a_complete_file_cannot_be_stopped(clock: Clock) -> None:
    scheduler = planned(clock, Chunk(0, 10, 10, 10))
    scheduler.scope.seal()
    scheduler.scope.cancel(Cancelled("too late"))
    assert scheduler.scope.error is None
    scheduler.scope.raise_if_cancelled()
    stopped = planned(clock, Chunk(0, 10, 0, 0))
    stopped.scope.cancel(Cancelled("in time"))
    with pytest.raises(Cancelled, match="in time"):
        stopped.scope.seal()


def test_a_chunk_that_is_given_back_is_taken_when_its_delay_is_over(clock: Clock) -> None:
    chunk = Chunk(0, 10, 0, 0)
    scheduler = planned(clock, chunk)
    scheduler.release_chunk(chunk, 5.0)
    assert scheduler._map.next_ready_at() == 105.0
    assert (scheduler.is_over, scheduler.finished_chunks) == (False, 0)
    chunk.position = chunk.write_end = 10
    scheduler.release_chunk(chunk)
    assert (scheduler.is_over, scheduler.finished_chunks) == (True, 1)


def test_a_stream_ends_where_its_body_ended(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    chunk = scheduler.take_chunk("a")
    assert chunk is not None
    scheduler.commit_write(chunk, scheduler.begin_write(chunk, 1000))
    scheduler.end_stream(chunk)
    scheduler.release_chunk(chunk)
    assert (scheduler.is_over, chunk.end, scheduler.contiguous_end()) == (True, 1000, 1000)


def test_what_is_not_begun_is_one_range_in_a_snapshot(clock: Clock) -> None:
    scheduler = planned(
        clock,
        Chunk(0, 10, 0, 0),
        Chunk(10, 20, 10, 10),
        Chunk(20, 30, 25, 28),
        Chunk(30, 40, 30, 30),
        Chunk(40, 50, 50, 50),
        Chunk(50, 60, 50, 50),
    )
    snapshot = scheduler.snapshot()
    assert [(chunk.start, chunk.end, chunk.position, chunk.write_end) for chunk in snapshot.chunks] == [
        (0, 20, 0, 0),
        (20, 30, 25, 25),
        (30, 40, 30, 30),
        (40, 50, 50, 50),
        (50, 60, 50, 50),
    ]
    assert snapshot.written == 15
    assert scheduler._map.chunks[0].end == 10  # the snapshot has copies


def test_only_known_speeds_of_owners_tell_how_long_the_rest_takes(clock: Clock) -> None:
    scheduler = planned(
        clock,
        Chunk(0, 1000, 0, 0, owner="a", rate=100.0),
        Chunk(1000, 2000, 1800, 1900, owner="b", rate=0.5),
        Chunk(2000, 9000, 2000, 2000, owner="c"),
        Chunk(9000, 9999, 9000, 9000, rate=0.1),
    )
    scheduler._map.chunks[3].owner, scheduler._map.chunks[3].rate = None, 0.1  # it was given back by a slow owner
    assert scheduler.slowest_s() == 200.0


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        ([], 512 * KIB),
        ([1e9], 1 * KIB),
        ([1e9, 0.0], 1 * KIB),  # 0: not known yet
        ([0.5], 341 * KIB + 341),
        ([1e9, 0.75], 256 * KIB),
    ],
)
def test_a_thief_takes_as_much_as_its_last_speed_is_worth(clock: Clock, rates: list[float], kept: int) -> None:
    """The owner of the chunk brings 0.25 bytes/s."""
    victim, own = Chunk(0, 1024 * KIB, 0, 0), Chunk(1024 * KIB, 1025 * KIB, 1024 * KIB, 1024 * KIB)
    scheduler = planned(clock, victim, own)
    scheduler.set_rate(victim, 0.25)
    assert scheduler.take_chunk("thief") is own
    for rate in rates:
        scheduler.set_rate(own, rate)
        assert own.rate == rate
    own.position = own.write_end = own.end
    scheduler.release_chunk(own)
    scheduler.take_chunk("thief")
    assert victim.end == kept


@pytest.mark.parametrize(("is_forgotten", "kept"), [(False, 1 * KIB), (True, 512 * KIB)])
def test_the_speed_over_a_finished_chunk_counts_until_its_owner_is_forgotten(
    clock: Clock, is_forgotten: bool, kept: int
) -> None:
    victim = Chunk(0, 1024 * KIB, 0, 0)
    scheduler = planned(clock, victim)
    scheduler.set_rate(victim, 1.0)
    scheduler.record_rate("thief", 1e9)
    if is_forgotten:
        scheduler.remove_worker("thief")
    scheduler.take_chunk("thief")
    assert victim.end == kept


def test_a_thief_of_unknown_speed_counts_as_average(clock: Clock) -> None:
    victim = Chunk(0, 1024 * KIB, 0, 0)
    scheduler = planned(clock, victim)
    scheduler.set_rate(victim, 1.0)
    scheduler.record_rate("other", 5.0)
    scheduler.take_chunk("thief")
    assert victim.end == 256 * KIB


def test_the_speed_of_a_replaced_connection_does_not_count(clock: Clock) -> None:
    victim, slow = Chunk(10, 10 + 1024 * KIB, 10, 10), Chunk(10 + 1024 * KIB, 20 + 1024 * KIB, 10 + 1024 * KIB, 0)
    slow.write_end = slow.position
    victim.start = 0
    scheduler = planned(clock, victim, slow)
    assert scheduler.take_chunk("slow") is slow
    scheduler.set_rate(slow, 1.0)
    scheduler.set_rate(victim, 1000.0)
    error = TooSlow("far behind", is_comparison=True)
    scheduler.count_failure(slow, error, RangeAttempt(1, 1.0))
    slow.position = slow.write_end = slow.end
    scheduler.release_chunk(slow)
    scheduler.take_chunk("slow")
    assert victim.end == 10 + 512 * KIB


def test_a_forgotten_owner_was_never_dismissed_and_never_served(clock: Clock) -> None:
    scheduler = planned(clock, Chunk(0, 10, 0, 0), Chunk(10, 20, 10, 10))
    scheduler.begin_body("a")
    scheduler.end_body("a")
    scheduler.retire("a")
    assert scheduler.is_retired("a")
    assert scheduler.take_chunk("a") is None
    assert scheduler.others_received_recently("b")
    scheduler.remove_worker("a")
    assert not scheduler.is_retired("a")
    assert not scheduler.others_received_recently("b")
    assert scheduler.take_chunk("a") is not None


def test_only_a_body_that_began_can_end(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    scheduler.end_body("a")
    assert not scheduler.others_received_recently("b")
    scheduler.begin_body("a")
    assert scheduler.others_received_recently("b")
    scheduler.end_body("a")
    clock.now += RECENT_S
    scheduler.end_body("a")
    assert not scheduler.others_received_recently("b")


def test_a_scheduler_stays_crowded(clock: Clock) -> None:
    scheduler = ChunkScheduler(clock)
    scheduler.begin_body("a")
    assert (scheduler.others_receiving("a"), scheduler.is_crowded) == (0, False)
    assert (scheduler.others_receiving("b"), scheduler.is_crowded) == (1, True)
    scheduler.end_body("a")
    assert (scheduler.others_receiving("b"), scheduler.is_crowded) == (0, True)


# --- which failures count ---


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ShortBody("short"), 1),
        (ServerBusy("503"), 1),  # nothing moves
        (NotAdmitted("refused"), 0),
        (TooSlow("slow", is_comparison=True), 0),
        (TooSlow("slow"), 1),
    ],
)
def test_which_failed_attempts_count(clock: Clock, error: RetryRange, counted: int) -> None:
    chunk = Chunk(0, 10, 0, 0)
    scheduler = planned(clock, chunk)
    failure = scheduler.count_failure(chunk, error, RangeAttempt(0, 1.0))
    assert (failure.attempts, failure.progress, chunk.failures, scheduler.retries) == (counted, 0, counted, 1)
    scheduler.count_failure(chunk, error, RangeAttempt(0, 1.0))
    assert (chunk.failures, scheduler.retries) == (2 * counted, 2)


@pytest.mark.parametrize(
    ("brought", "rate", "is_brisk"),
    [(100, 0.0, True), (99, 0.0, False), (100, 100.0, True), (100, 99.9, False), (100, 0.5, False)],
)
@pytest.mark.parametrize("has_ended", [True, False])
@pytest.mark.parametrize(
    ("written_s_ago", "is_recent"), [(0.0, True), (RECENT_S - 0.5, True), (RECENT_S, False), (RECENT_S + 1, False)]
)
def test_a_busy_server_is_excused_while_another_connection_is_fast_enough(
    brought: int, rate: float, is_brisk: bool, has_ended: bool, written_s_ago: float, is_recent: bool
) -> None:
    clock = Clock()
    clock.now = 0.0  # as just after the start of the machine
    refused, other = Chunk(0, 1000, 0, 0), Chunk(1000, 2000, 1000, 1000)
    scheduler = planned(clock, refused, other, least_rate=100)
    assert scheduler.count_failure(refused, ServerBusy("503"), RangeAttempt(0, 0.0)).attempts == 1
    scheduler.take_chunk("other")
    scheduler.commit_write(other, scheduler.begin_write(other, brought))
    scheduler.set_rate(other, rate)
    if has_ended:
        scheduler.release_chunk(other)
    clock.now += written_s_ago
    scheduler.commit_write(other, scheduler.begin_write(other, 1) * 0)  # a failed write moves nothing
    expected = 1 if is_brisk and is_recent else 2
    assert scheduler.count_failure(refused, ServerBusy("503"), RangeAttempt(0, 0.0)).attempts == expected


def test_an_old_fast_connection_excuses_nothing_while_another_trickles(clock: Clock) -> None:
    refused, fast, slow = (Chunk(start, start + 1000, start, start) for start in (0, 1000, 2000))
    scheduler = planned(clock, refused, fast, slow, least_rate=100)
    for owner, chunk in (("fast", fast), ("slow", slow)):
        assert scheduler.take_chunk(owner) is chunk
    scheduler.commit_write(fast, scheduler.begin_write(fast, 500))
    scheduler.release_chunk(fast)
    for seconds, expected in ((RECENT_S - 1, 0), (1, 1)):
        clock.now += seconds
        scheduler.commit_write(slow, scheduler.begin_write(slow, 1))
        assert scheduler.count_failure(refused, ServerBusy("503"), RangeAttempt(0, 0.0)).attempts == expected


def test_without_a_minimum_one_byte_is_fast_enough_and_none_is_not(clock: Clock) -> None:
    for brought, expected in ((0, 1), (1, 0)):
        refused, other = Chunk(0, 1000, 0, 0), Chunk(1000, 2000, 1000, 1000)
        scheduler = planned(clock, refused, other)
        scheduler.take_chunk("other")
        scheduler.commit_write(other, scheduler.begin_write(other, 1))
        other.taken_position = other.position - brought
        assert scheduler.count_failure(refused, ServerBusy("503"), RangeAttempt(0, 0.0)).attempts == expected


def test_tiny_answers_are_counted_in_a_row(clock: Clock) -> None:
    chunk = Chunk(0, 10**6, 0, 0)
    scheduler = planned(clock, chunk, least_rate=1000)
    tiny = [scheduler.count_short_answer(chunk, RangeAttempt(10, 1.0)) for _ in range(MAX_SHORT_ANSWERS + 1)]
    assert tiny == [True] * MAX_SHORT_ANSWERS + [False]
    chunk.failures = chunk.slow_bytes = 5
    assert scheduler.count_short_answer(chunk, RangeAttempt(1000, 1.0))
    assert (chunk.short_answers, chunk.failures, chunk.slow_bytes) == (0, 0, 0)


# --- threads that wait ---


class Call:
    """A call on a thread of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._result: object = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> object:
        """Return what the call returned, or the error that it raised; fail if it still waits."""
        self._thread.join(20.0)
        assert not self._thread.is_alive(), "still waits"
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except Exception as error:  # noqa: BLE001 - an outcome like others
            self._result = error


def wait_for_waiters(scheduler: ChunkScheduler, number: int) -> None:
    """Wait until ``number`` threads wait for a change of the scheduler."""
    wait_until(lambda: len(getattr(scheduler._changed._condition, "_waiters", ())) == number)


def waiting_for_a_chunk(scheduler: ChunkScheduler, owner: str) -> Call:
    call = Call(lambda: scheduler.take_chunk(owner))
    wait_until(lambda: scheduler.has_idle_worker)
    return call


def test_an_idle_thread_gets_what_becomes_free(clock: Clock) -> None:
    scheduler = planned(clock, chunk := Chunk(0, 10, 0, 0))
    for owner in ("a", "b"):
        waiting = waiting_for_a_chunk(scheduler, owner)
        scheduler.release_chunk(chunk)
        assert waiting.result() is chunk
        assert chunk.owner == owner
        assert not scheduler.has_idle_worker


def test_an_idle_thread_gets_a_part_of_what_turns_out_to_be_slow(clock: Clock) -> None:
    scheduler = planned(clock, chunk := Chunk(0, 10 * KIB, 0, 0))
    waiting = waiting_for_a_chunk(scheduler, "a")
    scheduler.set_rate(chunk, 1.0)
    assert isinstance(waiting.result(), Chunk)
    assert chunk.end == 5 * KIB


def test_an_idle_thread_gets_a_chunk_of_a_new_plan(clock: Clock) -> None:
    scheduler = planned(clock, Chunk(0, 10, 0, 0))
    waiting = waiting_for_a_chunk(scheduler, "b")
    first, second = Chunk(0, 10, 0, 0), Chunk(10, 20, 10, 10)
    assert scheduler.load_plan(ChunkMap([first, second]), "a") is first
    assert waiting.result() is second


def test_an_idle_thread_gets_a_chunk_whose_delay_is_over() -> None:
    scheduler = planned(time.monotonic, chunk := Chunk(0, 10, 0, 0))
    scheduler.release_chunk(chunk, 0.05)
    assert Call(lambda: scheduler.take_chunk("a")).result() is chunk


@pytest.mark.parametrize("ending", ["dismiss", "stop", "complete"])
def test_an_idle_thread_returns_when_there_is_no_more_work_for_it(clock: Clock, ending: str) -> None:
    scheduler = planned(clock, chunk := Chunk(0, 10, 0, 0))
    waiting = waiting_for_a_chunk(scheduler, "a")
    if ending == "dismiss":
        scheduler.retire("a")
    elif ending == "stop":
        scheduler.scope.cancel(Cancelled("cancelled"))
    else:
        chunk.position = chunk.write_end = 10
        scheduler.release_chunk(chunk)
    assert waiting.result() is None


def test_a_pause_ends_with_the_download(clock: Clock) -> None:
    scheduler = planned(clock, Chunk(0, 10, 0, 0))
    pauses = [
        Call(lambda: scheduler.sleep(60.0)),
        Call(lambda: scheduler.scope.sleep(60.0)),
        Call(lambda: scheduler.wait_until_over(60.0)),
    ]
    wait_for_waiters(scheduler, 3)
    scheduler.scope.cancel(Cancelled("cancelled"))
    ended = [pause.result() for pause in pauses]
    assert [type(result) for result in ended] == [Cancelled, Cancelled, bool]
    assert ended[-1] is True
    scheduler.sleep(0.0)  # no pause, no error
    with pytest.raises(Cancelled):
        scheduler.sleep(0.001)
    assert [
        type(Call(lambda: scheduler.scope.sleep(60.0)).result()),
        type(Call(lambda: scheduler.sleep(60.0)).result()),
    ] == [
        Cancelled,
        Cancelled,
    ]


def test_a_rest_lasts_longer_than_the_last_chunk(clock: Clock) -> None:
    scheduler = planned(clock, Chunk(0, 10, 10, 10))
    resting = Call(lambda: scheduler.scope.sleep(60.0))
    wait_for_waiters(scheduler, 1)
    scheduler.scope.cancel(Cancelled("cancelled"))
    assert isinstance(resting.result(), Cancelled)
    planned(clock, Chunk(0, 10, 10, 10)).scope.sleep(0.001)


def test_the_end_waits_for_writes_in_flight(clock: Clock) -> None:
    scheduler = planned(clock, chunk := Chunk(0, 10, 0, 0))
    scheduler.begin_write(chunk, 5)
    scheduler.scope.cancel(Cancelled("cancelled"))

    def written_at_the_end() -> int:
        scheduler.wait_for_writes(60.0)
        return scheduler.written()

    waiting = Call(written_at_the_end)
    wait_for_waiters(scheduler, 1)
    scheduler.commit_write(chunk, 5)
    assert waiting.result() == 5
    assert Call(written_at_the_end).result() == 5


def test_who_follows_the_front_is_woken_by_a_finished_chunk_and_by_the_end(clock: Clock) -> None:
    scheduler = planned(clock, chunk := Chunk(0, 10, 0, 0), Chunk(10, 20, 10, 10))
    waiting = Call(lambda: scheduler.wait_for_contiguous(0, 60.0))
    wait_for_waiters(scheduler, 1)
    scheduler.commit_write(chunk, scheduler.begin_write(chunk, 10))
    scheduler.release_chunk(chunk)
    assert waiting.result() == 10
    assert Call(lambda: scheduler.wait_for_contiguous(9, 60.0)).result() == 10
    waiting = Call(lambda: scheduler.wait_for_contiguous(10, 60.0))
    wait_for_waiters(scheduler, 1)
    scheduler.scope.cancel(Cancelled("cancelled"))
    assert waiting.result() == 10
