"""The places of a process for bodies: who waits for one gets that of a body that comes
slowly.

A body holds a thread for as long as it takes. While places are free, nobody minds. When
there is none, those who come wait for a moment, a few at once, the others are sent away
with 503 and ``Retry-After``; and for each of them a body that comes far slower than the
others yields: its request ends in the same way. A quarter of the places stays with the
oldest of the slow ones, so that these get through, too.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

FLOOR = (
    64 * 1024
)  # bytes a second: what is faster yields to nobody who is not much faster
CEILING = 1024 * 1024  # bytes a second: what is faster yields to nobody
PROBATION_S = 1.0  # of a body, until it may be asked to yield
SHORT_S = 0.25  # the same, of a client that was asked before
MEMORY_S = 60.0  # for which a client counts as slow that was asked to yield
PATIENCE_S = 3.0  # for which one waits
MISSED_S = 2.0  # for which those count as waiting that were sent away
_TURN_S = 0.1
_WINDOW_S = 1.0  # over which a rate is taken, at least
_MOST_CLIENTS = 10_000  # that are remembered


@dataclass(eq=False)
class BodySlot:
    """One of the places. ``receiving`` and ``done`` by its holder, ``must_yield`` is
    read by it."""

    client: str
    started_at: float
    is_revoked: bool = False
    was_fast: bool = False
    _received: Callable[[], int] | None = None
    _mark: tuple[float, int] = (0.0, 0)
    _last: tuple[float, int] = (0.0, 0)

    def start_receiving(self, received: Callable[[], int], now: float) -> None:
        """A body comes, of which so many bytes are here."""
        self.started_at = now
        self._mark = self._last = (now, received())
        self._received = received

    def finish_receiving(self, now: float) -> None:
        """It is here: what is left to do is not the client's fault."""
        if self._received is not None:
            self.was_fast = self._received() - self._mark[1] >= FLOOR * (
                now - self._mark[0]
            )
        self._received = None

    def rate(self, now: float) -> float | None:
        """Bytes a second of late; None if no body comes."""
        received = self._received
        if received is None:
            return None
        got = received()
        if now - self._last[0] >= _WINDOW_S:
            self._mark, self._last = self._last, (now, got)
        since, had = self._mark
        return (got - had) / max(now - since, 0.001)


@dataclass(eq=False)
class _Waiter:
    client: str
    is_slow: bool
    place: BodySlot | None = None
    wake: threading.Event = field(default_factory=threading.Event)


class BodySlots:
    """Thread-safe: the lock guards everything, and is held for a moment only.

    ``most`` places, of which ``waiting`` requests may wait for one, each in its thread.
    """

    def __init__(
        self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free = slots
        self._kept = max(1, slots // 4)  # for slow ones
        self._most_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._held: set[BodySlot] = set()
        self._waiters: list[_Waiter] = []
        self._missed: deque[float] = deque(maxlen=slots)  # when others were sent away
        self._slow: dict[
            str, float
        ] = {}  # clients that were asked to yield, and until when that counts

    def acquire(self, client: str, *, timeout_s: float = PATIENCE_S) -> BodySlot | None:
        """A place, None if there is none in time. It is to be given back by
        ``release``."""
        with self._lock:
            if self._free and self._may_have(client):
                return self._give(client)
            waiter = self._queue(client) if timeout_s else None
        if waiter is None:
            return None
        until = self._clock() + timeout_s
        while not waiter.wake.wait(_TURN_S) and self._clock() < until:
            self.revoke_slow()
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            return waiter.place

    def release(self, place: BodySlot) -> None:
        """It is free: the next one is of the client that has the fewest."""
        with self._lock:
            self._held.discard(place)
            self._free += 1
            if place.was_fast:
                self._slow.pop(place.client, None)
            self._deal()

    def revoke_slow(self) -> None:
        """Ask as many slow bodies to yield as others wait, and were sent away of
        late."""
        with self._lock:
            self._deal()
            now = self._clock()
            asked = sum(place.is_revoked for place in self._held)
            for place in self._slowest(now)[
                : max(0, self._wanted(now) - asked - self._free)
            ]:
                place.is_revoked = True
                self._remember(place.client, now)

    def _deal(self) -> None:
        """Give what is free to those that wait."""
        while self._free and (
            able := [one for one in self._waiters if self._may_have(one.client)]
        ):
            held = self._count()
            waiter = min(able, key=lambda one: (one.is_slow, held[one.client]))
            self._waiters.remove(waiter)
            waiter.place = self._give(waiter.client)
            waiter.wake.set()

    def _wanted(self, now: float) -> int:
        """How many of those that are not slow want a place."""
        while self._missed and now - self._missed[0] > MISSED_S:
            self._missed.popleft()
        return sum(not waiter.is_slow for waiter in self._waiters) + len(self._missed)

    def _may_have(self, client: str) -> bool:
        """Whether it may have a place that is free; a slow one has some of a quarter of
        them while others want one."""
        if not self._is_slow(client) or not self._wanted(self._clock()):
            return True
        return sum(self._is_slow(place.client) for place in self._held) < self._kept

    def _give(self, client: str) -> BodySlot:
        self._free -= 1
        place = BodySlot(client, self._clock())
        self._held.add(place)
        return place

    def _queue(self, client: str) -> _Waiter | None:
        """Wait; if too many do, instead of one that was slow, or whose client has more
        places."""
        waiter = _Waiter(client, self._is_slow(client))
        if len(self._waiters) >= self._most_waiting:
            held = self._count()
            worst = max(self._waiters, key=lambda one: (one.is_slow, held[one.client]))
            if (worst.is_slow, held[worst.client]) <= (waiter.is_slow, held[client]):
                if not waiter.is_slow:
                    self._missed.append(self._clock())
                return None
            self._waiters.remove(worst)
            worst.wake.set()
            if not worst.is_slow:
                self._missed.append(self._clock())
        self._waiters.append(waiter)
        return waiter

    def _is_slow(self, client: str) -> bool:
        """Whether it was asked to yield of late."""
        return self._slow.get(client, 0.0) > self._clock()

    def _slowest(self, now: float) -> list[BodySlot]:
        """Those that may be asked, in that order: of the client that has the most of
        them, the youngest first."""
        rates = {
            place: rate
            for place in self._held
            if (rate := place.rate(now)) is not None and not place.is_revoked
        }
        floor = _floor(rates.values())
        slow = [
            place
            for place, rate in rates.items()
            if rate < floor
            and now - place.started_at
            >= (SHORT_S if self._is_slow(place.client) else PROBATION_S)
        ]
        count = Counter(place.client for place in slow)
        slow.sort(key=lambda place: (-count[place.client], -place.started_at))
        return slow[: max(0, len(slow) - self._kept)]

    def _remember(self, client: str, now: float) -> None:
        if len(self._slow) >= _MOST_CLIENTS:
            self._slow = {
                name: until for name, until in self._slow.items() if until > now
            }
        if len(self._slow) < _MOST_CLIENTS:
            self._slow[client] = now + MEMORY_S

    def _count(self) -> Counter[str]:
        return Counter(place.client for place in self._held)


def _floor(rates: Iterable[float]) -> float:
    """The rate below which a body yields: a quarter of the median, within bounds."""
    found = list(rates)
    median = statistics.median(found) if found else 0.0
    return max(FLOOR, min(median / 4, CEILING))
