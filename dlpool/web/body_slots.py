"""Slots of a process for receiving request bodies.

A body occupies a thread while it is received, so the number of slots is limited. If no
slot is free, a few requests wait up to ``WAIT_S`` seconds for a slot. All further
requests are rejected with 503 and ``Retry-After``.

For each waiting or recently rejected request, one body that is much slower than the
median loses its slot; the request with that body is rejected with 503 and
``Retry-After``. Some slow bodies keep a quarter of the slots, so that slow clients can
finish.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import field

from dlpool.dataclass import dataclass

FLOOR = 64 * 1024  # bytes per second: a body below it is slow
CEILING = 1024 * 1024  # bytes per second: a body above it is never slow
PROBATION_S = 1.0  # before the slot of a body may be revoked
SHORT_S = 0.25  # PROBATION_S of a client that counts as slow
MEMORY_S = 60.0  # for which a client counts as slow after a revoked slot
WAIT_S = 3.0  # to wait for a slot
REJECTED_S = 2.0  # for which a rejected request counts as waiting
_POLL_S = 0.1
_WINDOW_S = 1.0  # minimum time over which a rate is measured
_MAX_SLOW_CLIENTS = 10_000  # further slow clients are not remembered


@dataclass(eq=False)
class BodySlot:
    """A slot for one body. Its holder calls ``start_receiving`` and
    ``finish_receiving``, and reads ``is_revoked``.

    ``was_fast``: the end of the body was received at ``FLOOR`` bytes per second or
    more.
    """

    client: str
    started_at: float
    is_revoked: bool = False
    was_fast: bool = False
    _received: Callable[[], int] | None = None
    # time and received bytes: where the measured window starts, and the latest sample
    _mark: tuple[float, int] = (0.0, 0)
    _last: tuple[float, int] = (0.0, 0)

    def start_receiving(self, received: Callable[[], int], now: float) -> None:
        """Start measuring the rate of a body; ``received`` returns the number of bytes
        received so far."""
        self.started_at = now
        self._mark = self._last = (now, received())
        self._received = received

    def finish_receiving(self, now: float) -> None:
        """Stop measuring the rate: the body has been received."""
        if self._received is not None:
            self.was_fast = self._received() - self._mark[1] >= FLOOR * (
                now - self._mark[0]
            )
        self._received = None

    def rate(self, now: float) -> float | None:
        """Return the recent rate in bytes per second, None while no body is being
        received."""
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
    slot: BodySlot | None = None
    wake: threading.Event = field(default_factory=threading.Event)


class BodySlots:
    """All slots of a process. Thread-safe: one lock guards all state, and is held only
    briefly.

    ``slots``: the number of slots. ``max_waiting``: how many requests may wait for a
    slot, each in its own thread.
    """

    def __init__(
        self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free = slots
        self._slow_slots = max(1, slots // 4)  # slots for slow clients
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._assigned: set[BodySlot] = set()
        self._waiters: list[_Waiter] = []
        self._rejected: deque[float] = deque(maxlen=slots)  # times of rejected requests
        # Slow clients, and when they stop counting as slow.
        self._slow: dict[str, float] = {}

    def acquire(self, client: str, *, timeout_s: float = WAIT_S) -> BodySlot | None:
        """Return a slot, which the caller must ``release``.

        Returns None if no slot becomes free within ``timeout_s`` seconds, or if too
        many requests wait.
        """
        with self._lock:
            if self._free and self._may_take(client):
                return self._take(client)
            waiter = self._queue(client) if timeout_s else None
        if waiter is None:
            return None
        deadline = self._clock() + timeout_s
        while not waiter.wake.wait(_POLL_S) and self._clock() < deadline:
            self.revoke_slow()
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            return waiter.slot

    def release(self, slot: BodySlot) -> None:
        """Free a slot, and assign free slots to waiting requests."""
        with self._lock:
            self._assigned.discard(slot)
            self._free += 1
            if slot.was_fast:
                self._slow.pop(slot.client, None)
            self._assign()

    def revoke_slow(self) -> None:
        """Revoke slots of slow bodies, at most one slot for each waiting or recently
        rejected request."""
        with self._lock:
            self._assign()
            now = self._clock()
            revoked = sum(slot.is_revoked for slot in self._assigned)
            for slot in self._slowest(now)[
                : max(0, self._demand(now) - revoked - self._free)
            ]:
                slot.is_revoked = True
                self._mark_slow(slot.client, now)

    def _assign(self) -> None:
        """Assign free slots to waiting requests.

        Clients that are not slow come first; among them, clients with the fewest slots.
        """
        while self._free and (
            eligible := [one for one in self._waiters if self._may_take(one.client)]
        ):
            counts = self._slots_by_client()
            waiter = min(eligible, key=lambda one: (one.is_slow, counts[one.client]))
            self._waiters.remove(waiter)
            waiter.slot = self._take(waiter.client)
            waiter.wake.set()

    def _demand(self, now: float) -> int:
        """Return the number of waiting and recently rejected requests of clients that
        are not slow."""
        while self._rejected and now - self._rejected[0] > REJECTED_S:
            self._rejected.popleft()
        return sum(not waiter.is_slow for waiter in self._waiters) + len(self._rejected)

    def _may_take(self, client: str) -> bool:
        """Return whether a client may have a free slot. While clients that are not
        slow need slots, slow clients share a quarter of the slots."""
        if not self._is_slow(client) or not self._demand(self._clock()):
            return True
        return (
            sum(self._is_slow(slot.client) for slot in self._assigned)
            < self._slow_slots
        )

    def _take(self, client: str) -> BodySlot:
        self._free -= 1
        slot = BodySlot(client, self._clock())
        self._assigned.add(slot)
        return slot

    def _queue(self, client: str) -> _Waiter | None:
        """Queue a request; return None if this request is rejected instead.

        If the queue is full, either the new request or a queued one is rejected:
        preferably one of a slow client; among these, one of the client with most slots.
        """
        waiter = _Waiter(client, self._is_slow(client))
        if len(self._waiters) >= self._max_waiting:
            counts = self._slots_by_client()
            worst = max(
                self._waiters, key=lambda one: (one.is_slow, counts[one.client])
            )
            if (worst.is_slow, counts[worst.client]) <= (
                waiter.is_slow,
                counts[client],
            ):
                if not waiter.is_slow:
                    self._rejected.append(self._clock())
                return None
            self._waiters.remove(worst)
            worst.wake.set()
            if not worst.is_slow:
                self._rejected.append(self._clock())
        self._waiters.append(waiter)
        return waiter

    def _is_slow(self, client: str) -> bool:
        """Return whether the client counts as slow after a revoked slot."""
        return self._slow.get(client, 0.0) > self._clock()

    def _slowest(self, now: float) -> list[BodySlot]:
        """Return the slots of slow bodies in the order in which they may be revoked.

        The client with the most slow bodies comes first, and its newest slot before its
        older slots. The last ``_slow_slots`` slots in this order are left out, because
        slow clients keep them.
        """
        rates = {
            slot: rate
            for slot in self._assigned
            if (rate := slot.rate(now)) is not None and not slot.is_revoked
        }
        floor = _floor(rates.values())
        slow = [
            slot
            for slot, rate in rates.items()
            if rate < floor
            and now - slot.started_at
            >= (SHORT_S if self._is_slow(slot.client) else PROBATION_S)
        ]
        count = Counter(slot.client for slot in slow)
        slow.sort(key=lambda slot: (-count[slot.client], -slot.started_at))
        return slow[: max(0, len(slow) - self._slow_slots)]

    def _mark_slow(self, client: str, now: float) -> None:
        if len(self._slow) >= _MAX_SLOW_CLIENTS:
            self._slow = {
                name: deadline
                for name, deadline in self._slow.items()
                if deadline > now
            }
        if len(self._slow) < _MAX_SLOW_CLIENTS:
            self._slow[client] = now + MEMORY_S

    def _slots_by_client(self) -> Counter[str]:
        return Counter(slot.client for slot in self._assigned)


def _floor(rates: Iterable[float]) -> float:
    """Return the rate below which a body is slow: a quarter of the median rate, between
    ``FLOOR`` and ``CEILING``."""
    found = list(rates)
    median = statistics.median(found) if found else 0.0
    return max(FLOOR, min(median / 4, CEILING))
