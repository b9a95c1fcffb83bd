"""Which job of a hung worker holds the interpreter's lock: that whose threads use the
processor while all others wait.

Each thread of a job has a name of the job in the kernel (comm, proc(5)), so that the
supervisor can tell them apart from outside, when the worker itself can answer nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dlpool import threads

LEAST_TICKS = 10  # of processor time (100 a second) that say anything
_IDLE = "slot"

ThreadTicks = Mapping[str, int]  # ticks of processor time, by the names of threads


def name_thread(ticket: str) -> None:
    """Name the calling thread after a job, and so the threads that it starts."""
    threads.set_kernel_name(_name(ticket))


def unname_thread() -> None:
    """Take the job's name from the calling thread."""
    threads.set_kernel_name(_IDLE)


def thread_ticks(pid: int) -> ThreadTicks:
    """Return the processor time of a process's threads so far, in ticks; empty if it
    cannot be read."""
    found: dict[str, int] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, ValueError, IndexError):  # a thread has ended meanwhile
            head, _, tail = path.read_text(
                encoding="utf-8", errors="replace"
            ).rpartition(")")
            fields = tail.split()
            name = head.partition("(")[2]
            found[name] = found.get(name, 0) + int(fields[11]) + int(fields[12])
    return found


def find_hung_job(
    before: ThreadTicks, after: ThreadTicks, tickets: Iterable[str]
) -> str | None:
    """Return the ticket of the job that has used most of the processor time between two
    looks, None if none has."""
    spent = {name: ticks - before.get(name, 0) for name, ticks in after.items()}
    total = sum(spent.values())
    by_name = {_name(ticket): ticket for ticket in tickets}
    for name, ticks in spent.items():
        if name in by_name and ticks >= LEAST_TICKS and 2 * ticks > total:
            return by_name[name]
    return None


def _name(ticket: str) -> str:
    """At most 15 bytes, which is what the kernel keeps."""
    return "job-" + hashlib.blake2b(ticket.encode(), digest_size=5).hexdigest()
