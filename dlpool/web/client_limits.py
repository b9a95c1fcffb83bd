"""How much one client may ask for, counted for all worker processes together, and how
many bodies a process receives.

Nothing is counted that a killed process could leave wrong: places are locks, which end
with their holder.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dlpool.config import WebSettings
from dlpool.disk import make_folders
from dlpool.storage import states
from dlpool.syscalls import lock_byte
from dlpool.web.body_slots import BodySlot, BodySlots
from dlpool.web.errors import HttpError

_ROWS = 1 << 16  # of the table of rates; two clients in one row share their rate
_SPREAD = 1 << 40  # of the clients over the file of places
_HEAVY = (
    4000  # the byte in a client's row of the file of places that a heavy request locks
)
BUSY_S = 1
TURN_S = 20.0
HEAVY_S = 5.0


class ClientLimits:
    """Its files are in ``folder``; where that cannot be written each process counts for
    itself. Thread-safe.

    The lock guards a row of the table of rates within this process (between processes a
    record lock does), and the set of what is being merged.
    """

    def __init__(
        self,
        folder: Path,
        settings: WebSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        bodies = settings.threads - max(2, settings.threads // 4)
        self._bodies = BodySlots(bodies, max(1, (settings.threads - bodies) // 2))
        self._sends = threading.BoundedSemaphore(
            max(1, bodies // 2)
        )  # a client that takes a file slowly is not seen
        self._merges = threading.BoundedSemaphore(
            max(1, bodies // 2)
        )  # with those that wait for a turn
        self._turns = threading.BoundedSemaphore(
            min(len(os.sched_getaffinity(0)), max(1, bodies // 2))
        )
        self._heavy = threading.BoundedSemaphore(
            max(1, len(os.sched_getaffinity(0)) // 2)
        )
        self._merging: set[str] = set()
        self._places = folder / "places"
        self._own: dict[int, float] = {}
        self._rates = -1
        with suppress(OSError):
            make_folders(folder, sync=False)
            self._rates = os.open(
                folder / "rates", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )

    def check_rate(self, client: str) -> None:
        """One more request of ``client``. Raises Refusal (429) if it asks too often."""
        if self._settings.request_rate is None:
            return
        wait_s = self._wait_s(_number(client) % _ROWS, 1 / self._settings.request_rate)
        if wait_s > 0:
            raise _too_many("you ask too often", wait_s)

    @contextmanager
    def body_slot(self, client: str) -> Iterator[BodySlot]:
        """A place among those whose body is received. Raises Refusal (429, 503) if
        there is none in time."""
        with ExitStack() as stack:
            yield self._enter(client, stack)

    @contextmanager
    def merge_slot(self, file_id: str, *, patience_s: float = TURN_S) -> Iterator[None]:
        """A turn of those that merge, one a core. Raises Refusal: 503, 409 if this
        process is at that file already.

        Merging takes minutes, and two threads more: however many are asked for, half of
        the places are for others. Who waits for a turn, perhaps for a client that has
        gone, does so for ``patience_s`` at most.
        """
        with ExitStack() as stack:
            if not self._merges.acquire(blocking=False):
                raise _busy()
            stack.callback(self._merges.release)
            place = self._bodies.acquire("", timeout_s=0)
            if place is None:
                raise _busy()
            stack.callback(self._bodies.release, place)
            with self._lock:
                if file_id in self._merging:
                    raise states.wrong_state(states.MERGING)
                self._merging.add(file_id)
            stack.callback(self._merging.discard, file_id)
            if not self._turns.acquire(timeout=patience_s):
                raise _busy()
            stack.callback(self._turns.release)
            yield

    @contextmanager
    def heavy_slot(self, client: str) -> Iterator[None]:
        """A turn of those whose request takes much processor time: one a client, and of
        this process half of the cores.

        Raises Refusal: 429 if the client has another such request, 503 if none of the
        turns is free.
        """
        with ExitStack() as stack:
            if not self._take(client, range(_HEAVY, _HEAVY + 1), stack):
                raise _too_many(
                    "another large request of yours is being worked on", BUSY_S
                )
            if not self._heavy.acquire(timeout=HEAVY_S):
                raise _busy()
            stack.callback(self._heavy.release)
            yield

    def enter_send(self, client: str, stack: ExitStack) -> None:
        """Take a place to send a body, until ``stack`` ends; half of them at most.
        Raises Refusal (429, 503)."""
        if not self._sends.acquire(blocking=False):
            raise _busy()
        stack.callback(self._sends.release)
        self._enter(client, stack)

    def _enter(self, client: str, stack: ExitStack) -> BodySlot:
        """Take a place until ``stack`` ends. Raises Refusal (429, 503)."""
        if not self._take(
            client, range(min(self._settings.client_uploads, _HEAVY)), stack
        ):
            raise _too_many(
                f"{self._settings.client_uploads} transfers of yours are under way",
                BUSY_S,
            )
        place = self._bodies.acquire(client)
        if place is None:
            raise _busy()
        stack.callback(self._bodies.release, place)
        return place

    def _take(self, client: str, places: range, stack: ExitStack) -> bool:
        """Take one of a client's places until ``stack`` ends; where no file can be
        written there are always some."""
        with suppress(OSError):
            descriptor = os.open(
                self._places, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, descriptor)
            row = _number(client) % _SPREAD * 4096
            return any(lock_byte(descriptor, row + place) for place in places)
        return True

    def _wait_s(self, row: int, interval_s: float) -> float:
        """The generic cell rate algorithm: a row is the time at which its client has
        used up nothing."""
        with self._lock:
            if self._rates < 0:
                self._own[row], wait_s = _next(
                    self._own.get(row, 0.0), self._clock(), interval_s, self._burst_s()
                )
                return wait_s
            try:
                fcntl.lockf(self._rates, fcntl.LOCK_EX, 8, row * 8)
                try:
                    found = os.pread(self._rates, 8, row * 8)
                    due = struct.unpack("d", found)[0] if len(found) == 8 else 0.0
                    due, wait_s = _next(due, self._clock(), interval_s, self._burst_s())
                    os.pwrite(self._rates, struct.pack("d", due), row * 8)
                    return wait_s
                finally:
                    fcntl.lockf(self._rates, fcntl.LOCK_UN, 8, row * 8)
            except OSError:  # a full disk
                return 0.0

    def _burst_s(self) -> float:
        return self._settings.request_burst / (self._settings.request_rate or math.inf)


def _next(
    due: float, now: float, interval_s: float, burst_s: float
) -> tuple[float, float]:
    """The row after a request, and how long that should have waited. A row of the far
    future is of another clock."""
    due = max(due, now) if due <= now + 2 * burst_s + interval_s else now
    wait_s = due + interval_s - now - burst_s
    return (due, wait_s) if wait_s > 0 else (due + interval_s, 0.0)


def _number(client: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(client.encode(), digest_size=8).digest(), "big"
    )


def _busy() -> HttpError:
    return HttpError(
        503,
        "busy",
        "too much is going on just now, try again",
        headers={"Retry-After": str(BUSY_S)},
    )


def _too_many(text: str, wait_s: float) -> HttpError:
    return HttpError(
        429, "too_many", text, headers={"Retry-After": str(math.ceil(wait_s))}
    )
