"""The search for the job that blocks a hung worker: the threads of this job use the
processor while all other threads wait for the interpreter lock (GIL).

The kernel's name of a thread (``comm``, see proc(5)) tells which job the thread works
for. The supervisor can read these names even when the worker does not answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dlpool import threads

MIN_TICKS = 10  # of processor time (100 a second): fewer are no evidence
_IDLE = "slot"

ThreadTicks = Mapping[str, int]  # processor time by the names of threads


def stacks_file(state_dir: Path, pid: int) -> Path:
    """Return the path of the stack dump of a worker.

    The worker writes the dump when it is aborted or receives a fatal signal.
    """
    return state_dir / f"stacks-{pid}"


def name_thread(lease_id: str) -> None:
    """Name the calling thread, and the threads that it starts, after a job."""
    threads.set_kernel_name(_name(lease_id))


def unname_thread() -> None:
    """Remove the job's name from the calling thread."""
    threads.set_kernel_name(_IDLE)


def thread_ticks(pid: int) -> ThreadTicks:
    """Return the processor time that the threads of a process have used, by thread
    name. The time is in ticks (1/100 s).

    The result is empty if the process has exited.
    """
    found: dict[str, int] = {}
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, ValueError, IndexError):  # of a thread that has ended
            head, _, tail = path.read_text(
                encoding="utf-8", errors="replace"
            ).rpartition(")")
            fields = tail.split()
            name = head.partition("(")[2]
            found[name] = found.get(name, 0) + int(fields[11]) + int(fields[12])
    return found


def find_hung_job(
    before: ThreadTicks, after: ThreadTicks, lease_ids: Iterable[str]
) -> str | None:
    """Return the lease id of the job that used more than half of the process's
    processor time between two samples; None if there is no such job."""
    spent = {name: ticks - before.get(name, 0) for name, ticks in after.items()}
    total = sum(spent.values())
    by_name = {_name(lease_id): lease_id for lease_id in lease_ids}
    for name, ticks in spent.items():
        if name in by_name and ticks >= MIN_TICKS and 2 * ticks > total:
            return by_name[name]
    return None


def _name(lease_id: str) -> str:
    """Return the thread name for a job: at most 15 bytes, the limit of the kernel."""
    return "job-" + hashlib.blake2b(lease_id.encode(), digest_size=5).hexdigest()
