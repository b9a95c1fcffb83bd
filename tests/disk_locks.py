"""Uses the store's locks on a file system whose flock(2) does not lock: ``python -m tests.disk_locks FOLDER ERRNO``.

Started by ``disk_faults.start``. ERRNO 0: flock succeeds and locks nothing. Ends with a traceback if a lock does not.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from dlpool.storage.disk import file_locks
from tests.disk_faults import ALWAYS, FAIL, PRETEND, DiskFaults, Fault

THREADS, TURNS = 8, 40


def count_together(folder: Path) -> None:
    """Many threads add to a number that only a lock protects."""
    number, path = folder / "number", folder / "lock"
    number.write_text("0")

    def add() -> None:
        for _ in range(TURNS):
            with file_locks.hold_lock(path):
                found = int(number.read_text())
                os.sched_yield()
                number.write_text(str(found + 1))

    threads = [threading.Thread(target=add) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number.read_text() == str(THREADS * TURNS), number.read_text()


def hold(folder: Path) -> None:
    """A lock that is held keeps all others out, one that is shared only those that want it alone."""
    path = folder / "held"
    alone = file_locks.try_lock(path)
    assert alone is not None
    assert file_locks.try_lock(path) is None
    assert file_locks.is_locked(path)
    file_locks.release(alone)
    assert not file_locks.is_locked(path)
    both = [file_locks.lock_shared(path), file_locks.lock_shared(path)]
    assert None not in both
    assert file_locks.is_locked(path)
    assert file_locks.try_lock(path) is None
    for one in both:
        assert one is not None
        assert file_locks.is_locked(path)
        file_locks.release(one)
    assert not file_locks.is_locked(path)


def hold_others(folder: Path) -> None:
    """Locks of other files, and of a folder, are others; a lock follows its file when that is renamed."""
    first = file_locks.try_lock(folder / "first")
    assert first is not None
    second = file_locks.try_lock(folder / "second")
    assert second is not None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    assert file_locks.try_lock_descriptor(descriptor, folder)
    (folder / "first").rename(folder / "moved")
    assert file_locks.is_locked(folder / "moved")
    for one in (first, second, descriptor):
        file_locks.release(one)


def main() -> None:
    """Use all of them."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    faults = DiskFaults()
    faults.watch(folder)
    flock = faults.add(Fault("flock", 1, FAIL if number else PRETEND, number, last=ALWAYS))
    count_together(folder)
    hold(folder)
    hold_others(folder)
    assert faults.fired(flock)
    left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    assert left == [], left


if __name__ == "__main__":
    main()
