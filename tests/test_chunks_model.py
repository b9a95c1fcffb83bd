"""A model of a download by several owners: whatever they do, and in whatever order, each byte is fetched once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dlpool.transfer.chunks import Chunk, ThiefSpeed, plan_chunks
from dlpool.transfer.http.answer import ByteRange

KIB = 1024
MIB = 1024 * KIB
MAX_SIZE = 16 * MIB

OWNERS = st.sampled_from(["ann", "bob", "cid", "dan", "eve"])
RATES = st.sampled_from([0.0, 1.0, 1.0 * KIB, 1.0 * MIB, 100.0 * MIB])
ANSWERS = st.sampled_from([0.0, 0.1, 5.0])
SIZES = st.sampled_from([1, 2 * KIB, 64 * KIB, 200 * KIB, MIB, MAX_SIZE])


class Download(RuleBasedStateMachine):
    """The map under test, next to a plain account of who holds which chunk and which bytes were fetched."""

    @initialize(
        cuts=st.sets(st.integers(0, MAX_SIZE // KIB), max_size=8),
        connections=st.integers(1, 5),
        piece=st.sampled_from([None, 100 * KIB, MIB]),
        max_delay=st.sampled_from([0, 2]),
    )
    def begin(self, cuts: set[int], connections: int, piece: int | None, max_delay: int) -> None:
        edges = [KIB * cut for cut in sorted(cuts)]
        self.missing = [ByteRange(low, high) for low, high in list(pairwise(edges))[::2]] or [ByteRange(0, 3 * MIB)]
        self.size = self.missing[-1].end + len(cuts) % 3
        self.piece = piece
        self.max_delay = max_delay
        self.map = plan_chunks(self.missing, self.size, connections, 128 * KIB, piece)
        self.planned = sum(not chunk.is_done for chunk in self.map.chunks)
        self.now = 0.0
        self.held: dict[str, Chunk] = {}
        self.fetched: list[ByteRange] = []
        self.least_written = self.map.written()

    # --- what owners do ---

    @rule(owner=OWNERS, rate=RATES, answer_s=ANSWERS)
    def find_work(self, owner: str, rate: float = 0.0, answer_s: float = 0.0) -> None:
        if owner in self.held:
            return
        chunk = self.map.take(owner, self.now, rate)
        if chunk is not None:
            assert chunk.ready_at <= self.now
            assert self.piece is None or chunk.end - chunk.position <= self.piece
        else:
            chunk = self.map.steal(owner, ThiefSpeed(rate, answer_s))
        if chunk is not None:
            assert not any(chunk is other for other in self.held.values())
            assert not chunk.is_done
            self.held[owner] = chunk

    @rule(owner=OWNERS, size=SIZES)
    def claim(self, owner: str, size: int) -> None:
        chunk = self.held.get(owner)
        if chunk is not None and chunk.write_end == chunk.position:
            chunk.write_end = chunk.position + min(size, chunk.end - chunk.position)

    @rule(owner=OWNERS, fails=st.booleans())
    def write(self, owner: str, fails: bool) -> None:
        """A claimed write ends: all of it is in the file, or nothing."""
        chunk = self.held.get(owner)
        if chunk is not None and chunk.write_end > chunk.position:
            if not fails:
                self.fetched.append(ByteRange(chunk.position, chunk.write_end))
                chunk.position = chunk.write_end
            chunk.write_end = chunk.position

    @rule(owner=OWNERS, delay=st.integers(0, 2))
    def let_go(self, owner: str, delay: int) -> None:
        chunk = self.held.pop(owner, None)
        if chunk is not None:
            self.map.release(chunk, self.now + min(delay, self.max_delay))

    @rule(owner=OWNERS)
    def finish(self, owner: str) -> None:
        chunk = self.held.get(owner)
        if chunk is None:
            return
        if chunk.position < chunk.end:
            self.fetched.append(ByteRange(chunk.position, chunk.end))
        chunk.position = chunk.write_end = chunk.end
        self.map.release(self.held.pop(owner), self.now)

    @rule(owner=OWNERS, rate=RATES)
    def measure(self, owner: str, rate: float) -> None:
        if owner in self.held:
            self.held[owner].rate = rate

    @rule()
    def tick(self) -> None:
        self.now += 1

    # --- what must hold after each step ---

    @invariant()
    def the_chunks_tile_the_file(self) -> None:
        edges = [0, *(chunk.end for chunk in self.map.chunks)]
        assert [chunk.start for chunk in self.map.chunks] == edges[:-1]
        assert edges[-1] == self.size

    @invariant()
    def each_chunk_is_in_order(self) -> None:
        for chunk in self.map.chunks:
            assert chunk.start <= chunk.position <= chunk.write_end <= chunk.end
            assert chunk.start < chunk.end

    @invariant()
    def each_owner_has_one_chunk_and_each_chunk_one_owner(self) -> None:
        owned = [(chunk.owner, id(chunk)) for chunk in self.map.chunks if chunk.owner is not None]
        assert sorted(owned, key=str) == sorted(((owner, id(chunk)) for owner, chunk in self.held.items()), key=str)

    @invariant()
    def what_is_written_is_what_was_fetched(self) -> None:
        written = self.map.written()
        assert written == self.size - self._missing() + sum(span.end - span.start for span in self.fetched)
        assert written >= self.least_written
        self.least_written = written

    @invariant()
    def no_byte_was_fetched_twice(self) -> None:
        assert all(one.end <= next_one.start for one, next_one in pairwise(sorted(self.fetched)))

    @invariant()
    def the_front_is_where_the_first_gap_begins(self) -> None:
        front = 0
        for span in sorted([*self.fetched, *self._there_before()]):
            if span.start > front:
                break
            front = span.end
        assert self.map.contiguous_end() == front
        first = self.map.first_missing()
        assert front == (self.size if first is None else first.start)

    @invariant()
    def the_map_is_as_long_as_its_owners_need(self) -> None:
        chunks = self.map.chunks
        assert not any(one.is_finished and next_one.is_finished for one, next_one in pairwise(chunks))
        unfinished = sum(not chunk.is_finished for chunk in chunks)
        assert len(chunks) <= 2 * unfinished + 1
        if self.max_delay == 0:
            assert unfinished <= self.planned + 5

    @invariant()
    def the_next_moment_is_that_of_a_free_chunk(self) -> None:
        free = [chunk.ready_at for chunk in self.map.chunks if chunk.owner is None and not chunk.is_done]
        assert self.map.next_ready_at() == (min(free) if free else None)

    def teardown(self) -> None:
        """In the end, whoever is left fetches the rest."""
        if not hasattr(self, "map"):
            return
        for owner in list(self.held):
            self.finish(owner)
        self.now += 10
        for _ in range(1000):
            self.find_work("ann")
            self.finish("ann")
        assert self.map.is_done()
        assert self.map.written() == self.map.contiguous_end() == self.size
        assert len(self.map.chunks) == 1
        self._check_each_byte_came_once()

    def _check_each_byte_came_once(self) -> None:
        joined: list[ByteRange] = []
        for span in sorted(self.fetched):
            if joined and joined[-1].end == span.start and span.start not in {gap.start for gap in self.missing}:
                joined[-1] = ByteRange(joined[-1].start, span.end)
            else:
                joined.append(span)
        assert joined == self.missing

    def _missing(self) -> int:
        return sum(span.end - span.start for span in self.missing)

    def _there_before(self) -> list[ByteRange]:
        edges = [0, *(edge for span in self.missing for edge in span), self.size]
        return [ByteRange(low, high) for low, high in list(pairwise(edges))[::2] if low < high]


Download.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDownload = Download.TestCase
