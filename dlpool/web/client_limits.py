"""Limits of each client across all worker processes, and of the concurrent transfers of
a process.

The concurrent transfers of a client are counted by record locks. The kernel releases
these locks when a process is killed.
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

_ROWS = 1 << 16  # in the table of rates; clients in the same row share a rate
_SPREAD = 1 << 40  # rows in the file of transfers, one for each client
_HEAVY = 4000  # the byte of a client's row that a heavy request locks
BUSY_S = 1  # value of Retry-After
MERGE_WAIT_S = 20.0  # to wait for a slot for a merge
HEAVY_WAIT_S = 5.0  # to wait for a slot for a heavy request


class ClientLimits:
    """Rate and concurrency limits. Thread-safe.

    Processes share the limits through files in ``folder``. If ``folder`` is not
    writable, each process counts requests alone, and the transfers of a client are not
    limited. ``_lock`` guards the set of running merges. A thread that uses the table of
    rates holds ``_lock`` against other threads, and a record lock against other
    processes.
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
        slots = settings.threads - max(2, settings.threads // 4)
        self._body_slots = BodySlots(slots, max(1, (settings.threads - slots) // 2))
        # Slow readers of files cannot be detected, so they get half of the slots.
        self._file_slots = threading.BoundedSemaphore(max(1, slots // 2))
        # Running and waiting merges.
        self._accepted_merges = threading.BoundedSemaphore(max(1, slots // 2))
        self._running_merges = threading.BoundedSemaphore(
            min(len(os.sched_getaffinity(0)), max(1, slots // 2))
        )
        self._heavy_slots = threading.BoundedSemaphore(
            max(1, len(os.sched_getaffinity(0)) // 2)
        )
        self._merging: set[str] = set()
        self._transfers_path = folder / "transfers"
        self._rows_of_process: dict[int, float] = {}
        self._rates = -1
        with suppress(OSError):
            make_folders(folder, sync=False)
            self._rates = os.open(
                folder / "rates", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )

    def check_rate(self, client: str) -> None:
        """Count a request of ``client``. Raises HttpError (429) if the client
        exceeds the request rate."""
        if self._settings.request_rate is None:
            return
        wait_s = self._wait_s(_hash(client) % _ROWS, 1 / self._settings.request_rate)
        if wait_s > 0:
            raise _too_many("too many requests", wait_s)

    @contextmanager
    def body_slot(self, client: str) -> Iterator[BodySlot]:
        """Hold a slot for receiving a body.

        Raises HttpError: 429 if the client has too many transfers, 503 if no slot
        becomes free in time.
        """
        with ExitStack() as stack:
            yield self._enter_transfer(client, stack)

    @contextmanager
    def merge_slot(
        self, file_id: str, *, timeout_s: float = MERGE_WAIT_S
    ) -> Iterator[None]:
        """Hold a slot for a merge. A process runs at most one merge per core.

        Merges may take minutes, so they use at most half of the body slots. A request
        waits at most ``timeout_s`` seconds for a slot, because its client may have
        disconnected. Raises HttpError (503) if the request gets no slot, UploadError
        (task_merging) while this process merges ``file_id``.
        """
        with ExitStack() as stack:
            if not self._accepted_merges.acquire(blocking=False):
                raise _busy()
            stack.callback(self._accepted_merges.release)
            slot = self._body_slots.acquire("", timeout_s=0)
            if slot is None:
                raise _busy()
            stack.callback(self._body_slots.release, slot)
            with self._lock:
                if file_id in self._merging:
                    raise states.wrong_state(states.MERGING)
                self._merging.add(file_id)
            stack.callback(self._merging.discard, file_id)
            if not self._running_merges.acquire(timeout=timeout_s):
                raise _busy()
            stack.callback(self._running_merges.release)
            yield

    @contextmanager
    def heavy_slot(self, client: str) -> Iterator[None]:
        """Hold a slot for a request that needs much processor time.

        A client may hold one slot in all processes together. A process has half as many
        slots as cores, but at least one. Raises HttpError: 429 if the client
        already holds a slot, 503 if no slot becomes free in time.
        """
        with ExitStack() as stack:
            if not self._lock_offset(client, range(_HEAVY, _HEAVY + 1), stack):
                raise _too_many(
                    "another large request of this client is in progress", BUSY_S
                )
            if not self._heavy_slots.acquire(timeout=HEAVY_WAIT_S):
                raise _busy()
            stack.callback(self._heavy_slots.release)
            yield

    def enter_send(self, client: str, stack: ExitStack) -> None:
        """Take a slot for sending a file until ``stack`` is closed. Sending files takes
        at most half of the body slots. Raises HttpError (429, 503)."""
        if not self._file_slots.acquire(blocking=False):
            raise _busy()
        stack.callback(self._file_slots.release)
        self._enter_transfer(client, stack)

    def _enter_transfer(self, client: str, stack: ExitStack) -> BodySlot:
        """Take a body slot until ``stack`` is closed. Raises HttpError (429, 503)."""
        if not self._lock_offset(
            client, range(min(self._settings.client_uploads, _HEAVY)), stack
        ):
            raise _too_many(
                f"this client has {self._settings.client_uploads} transfers in "
                f"progress",
                BUSY_S,
            )
        slot = self._body_slots.acquire(client)
        if slot is None:
            raise _busy()
        stack.callback(self._body_slots.release, slot)
        return slot

    def _lock_offset(self, client: str, offsets: range, stack: ExitStack) -> bool:
        """Lock a byte of the client's row until ``stack`` is closed; return whether
        that succeeded.

        Locks the first free byte at one of ``offsets`` in the row. Returns False if all
        these bytes are locked, and True without a lock if the file is not writable.
        """
        with suppress(OSError):
            descriptor = os.open(
                self._transfers_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, descriptor)
            row = _hash(client) % _SPREAD * 4096
            return any(lock_byte(descriptor, row + slot) for slot in offsets)
        return True

    def _wait_s(self, row: int, interval_s: float) -> float:
        """Apply the generic cell rate algorithm to a request; return the seconds to
        wait, 0 if the request is allowed.

        ``interval_s``: seconds per request. ``row``: the number of the client's row in
        the table of rates. The row stores the theoretical arrival time.
        """
        with self._lock:
            if self._rates < 0:
                self._rows_of_process[row], wait_s = _apply_rate(
                    self._rows_of_process.get(row, 0.0),
                    self._clock(),
                    interval_s,
                    self._burst_s(),
                )
                return wait_s
            try:
                fcntl.lockf(self._rates, fcntl.LOCK_EX, 8, row * 8)
                try:
                    found = os.pread(self._rates, 8, row * 8)
                    due = struct.unpack("d", found)[0] if len(found) == 8 else 0.0
                    due, wait_s = _apply_rate(
                        due, self._clock(), interval_s, self._burst_s()
                    )
                    os.pwrite(self._rates, struct.pack("d", due), row * 8)
                    return wait_s
                finally:
                    fcntl.lockf(self._rates, fcntl.LOCK_UN, 8, row * 8)
            except OSError:  # the disk is full
                return 0.0

    def _burst_s(self) -> float:
        return self._settings.request_burst / (self._settings.request_rate or math.inf)


def _apply_rate(
    due: float, now: float, interval_s: float, burst_s: float
) -> tuple[float, float]:
    """Return the new value of a row, and the seconds to wait (0: the request is
    allowed).

    ``due``: the present value of the row; ``interval_s``: seconds per request;
    ``burst_s``: how many seconds early a request may arrive. A ``due`` far in the
    future was written before the clock was set back, and is ignored.
    """
    due = max(due, now) if due <= now + 2 * burst_s + interval_s else now
    wait_s = due + interval_s - now - burst_s
    return (due, wait_s) if wait_s > 0 else (due + interval_s, 0.0)


def _hash(client: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(client.encode(), digest_size=8).digest(), "big"
    )


def _busy() -> HttpError:
    return HttpError(
        503,
        "busy",
        "the server is busy: try again",
        headers={"Retry-After": str(BUSY_S)},
    )


def _too_many(text: str, wait_s: float) -> HttpError:
    return HttpError(
        429, "too_many", text, headers={"Retry-After": str(math.ceil(wait_s))}
    )
