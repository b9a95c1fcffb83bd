"""The board under many threads: each byte is written once, by its owner, and a snapshot claims only what is written."""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise

import pytest

from dlpool.errors import Cancelled
from dlpool.transfer.answer import Span
from dlpool.transfer.board import Board, Snapshot
from dlpool.transfer.chunks import plan

KIB = 1024
SIZE = 3 * 512 * KIB + 7
OWNERS = 6
ONCE, RATES = b"\x01", (0.0, 1.0, 4096.0, 1e6, 1e9)


class Work:
    """Threads that take chunks, write parts of them, and give them back, done or not, as a random number says."""

    def __init__(self, seed: int, piece: int | None) -> None:
        self.board = Board(time.monotonic)
        self.counts = bytearray(SIZE)  # how often each byte was written
        self.faults: list[str] = []
        self._seed = seed
        self.board.start(plan([Span(0, SIZE)], SIZE, OWNERS, 64 * KIB, piece), "nobody")
        self.board.give_back(self.board._map.chunks[0])

    def run(self) -> None:
        owners = [threading.Thread(target=self._own, args=(number,), daemon=True) for number in range(OWNERS)]
        for thread in owners:
            thread.start()
        while not self.board.is_over:
            self.check(self.board.snapshot())
        for thread in owners:
            thread.join(20.0)
        self.check(self.board.snapshot())

    def check(self, snapshot: Snapshot) -> None:
        """The snapshot tiles the file, and what it claims has been written once."""
        chunks = snapshot.chunks
        edges = [chunks[0].start == 0, chunks[-1].end == SIZE]
        edges += [one.end == other.start for one, other in pairwise(chunks)]
        written = all(
            self.counts[chunk.start : chunk.position] == ONCE * (chunk.position - chunk.start) for chunk in chunks
        )
        if not all(edges) or not written:
            self.faults.append(repr(snapshot))
            self.board.stop(Cancelled("wrong"))

    def _own(self, number: int) -> None:
        chance = random.Random(self._seed * 100 + number)
        while (chunk := self.board.take(number)) is not None:
            while not chunk.is_done and chance.random() > 0.1:
                begin = chunk.position
                size = self.board.claim(chunk, chance.randrange(1, 40 * KIB))
                fails = chance.random() < 0.1
                if not fails:
                    part = self.counts[begin : begin + size]
                    self.counts[begin : begin + size] = part.translate(bytes(range(1, 256)) + ONCE)
                self.board.advance(chunk, 0 if fails else size)
                if chunk.position < begin:
                    self.faults.append("a position went back")
                self.board.set_rate(chunk, chance.choice(RATES))
            self.board.give_back(chunk)


@pytest.mark.parametrize("piece", [None, 100 * KIB])
@pytest.mark.parametrize("seed", range(3))
def test_each_byte_is_written_once_and_no_snapshot_claims_more(seed: int, piece: int | None) -> None:
    work = Work(seed, piece)
    work.run()
    assert work.faults == []
    assert work.counts == ONCE * SIZE
    assert work.board.written() == work.board.front() == SIZE
