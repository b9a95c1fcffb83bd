"""Counters that outlive a worker process and are the same whichever worker is asked.

Each process has a row, a file that it alone writes, about once a second and before it
tells the sums. A new process goes on with the row of a dead one, so that sums never
fall and rows do not pile up; a killed one loses the counts of its last second.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from dlpool import jsontext
from dlpool.disk import atomic_write, make_folders
from dlpool.filelock import FileLock, LockForeign, LockHeld

MAX_ROWS = 256
BUCKETS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)  # seconds


class SharedCounters:
    """Where ``folder`` cannot be written the counts are the process's own.
    Thread-safe.

    ``_lock`` guards the counts; ``_writing`` is held by the one thread that writes the
    row.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._row: Path | None = None
        self._guard = -1
        self._held: FileLock | None = None  # as long as this process
        self._is_changed = False
        with suppress(OSError):
            make_folders(folder, sync=False)
            self._claim()
        self._counts: dict[str, float] = (
            _read(self._row) if self._row is not None else {}
        )

    def add(self, key: str, amount: float = 1) -> None:
        """Count. ``key``: ``chunks``, ``bytes``, ``error LABEL``, ..."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount
            self._is_changed = True

    def count_request(self, seconds: float, label: str) -> None:
        """A request was answered, after so long; ``label``: its error, if it was
        one."""
        bucket = next((str(bound) for bound in BUCKETS if seconds <= bound), "+Inf")
        self.add(f"took {bucket}")
        self.add("seconds", seconds)
        if label:
            self.add(f"error {label}")

    def flush(self) -> bool:
        """Let the other processes know; whether they can. Never raises."""
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
        """The counts of all processes, as their rows say: what one of them has told, no
        other one takes back."""
        is_told = self.flush()
        with self._lock:
            found = {} if is_told else dict(self._counts)
        for row in self._folder.glob("*.json"):
            for key, value in _read(row).items() if is_told or row != self._row else ():
                found[key] = found.get(key, 0) + value
        return found

    def _claim(self) -> None:
        """Take the first row that nobody has; it is ours until this process ends.
        Raises OSError."""
        for number in range(MAX_ROWS):
            guard = os.open(
                self._folder / f"{number}.lock",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
                0o600,
            )
            try:
                self._held = FileLock(guard, self._folder / f"{number}.lock")
            except (LockHeld, LockForeign):
                os.close(guard)
                continue
            self._guard, self._row = guard, self._folder / f"{number}.json"
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
