"""Counters of all worker processes, which survive the end of a process.

Each process has its own file, called its row. The process writes the row about once a
second, and before it returns totals. A new process takes over the row of a dead
process, so that totals never decrease and the number of rows is bounded. A killed
process loses the counts of its last second.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from dlpool import jsontext
from dlpool.disk import atomic_write, make_folders
from dlpool.filelock import FileLock
from dlpool.lock_files import LockForeign, LockHeld

MAX_ROWS = 256
# Upper bounds of durations in seconds.
BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)


class SharedCounters:
    """Counters of this process, and the totals of all processes. If ``folder`` is not
    writable, the totals cover only this process.

    Thread-safe: ``_lock`` guards the counts, ``_writing`` serialises writes of the row.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._row: Path | None = None
        self._row_descriptor = -1
        self._row_lock: FileLock | None = None  # held until the process exits
        self._is_changed = False
        with suppress(OSError):
            make_folders(folder, sync=False)
            self._lock_row()
        self._counts: dict[str, float] = (
            _read(self._row) if self._row is not None else {}
        )

    def add(self, key: str, amount: float = 1) -> None:
        """Add ``amount`` to a counter, such as ``chunks``, ``bytes`` or ``error
        LABEL``."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount
            self._is_changed = True

    def count_request(self, seconds: float, label: str) -> None:
        """Count a response and its duration; ``label``: the error code of the response,
        empty after a success."""
        bucket = next((str(bound) for bound in BUCKETS if seconds <= bound), "+Inf")
        self.add(f"took {bucket}")
        self.add("seconds", seconds)
        if label:
            self.add(f"error {label}")

    def flush(self) -> bool:
        """Write the row if it has changed; return whether the file is up to date."""
        with self._writing:
            with self._lock:
                if self._row is None or not self._is_changed:
                    return self._row is not None
                data = jsontext.dumps(self._counts)
                self._is_changed = False
            try:
                atomic_write(self._row, data, sync=False)
            except OSError:
                self._is_changed = True
                return False
            return True

    def totals(self) -> dict[str, float]:
        """Return the sums over all rows, so that each process returns the same
        totals."""
        is_written = self.flush()
        with self._lock:
            found = {} if is_written else dict(self._counts)
        for row in self._folder.glob("*.json"):
            for key, value in (
                _read(row).items() if is_written or row != self._row else ()
            ):
                found[key] = found.get(key, 0) + value
        return found

    def _lock_row(self) -> None:
        """Lock the first free row until this process exits. Raises OSError."""
        for number in range(MAX_ROWS):
            guard = os.open(
                self._folder / f"{number}.lock",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
            try:
                self._row_lock = FileLock(guard, self._folder / f"{number}.lock")
            except (LockHeld, LockForeign):
                os.close(guard)
                continue
            self._row_descriptor, self._row = guard, self._folder / f"{number}.json"
            return


def _read(row: Path) -> dict[str, float]:
    try:
        found = jsontext.loads(row.read_bytes())
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in found.items() if isinstance(value, int | float)}
        if isinstance(found, dict)
        else {}
    )
