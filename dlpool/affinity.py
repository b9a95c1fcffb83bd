"""CPU affinity of the threads that fetch small files.

Threads of one interpreter take turns holding the GIL. On several CPUs each turn wakes
another CPU. For small files these wake-ups cost as much as the fetches themselves.
Therefore the threads of small files run on one CPU. Threads of large files use all
CPUs: TLS, hashing and copying run without the GIL. See sched_setaffinity(2).
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections import Counter
from collections.abc import Collection
from contextlib import suppress


class Affinity:
    """Selects the CPUs on which the calling thread runs.

    Threads that the calling thread starts afterwards inherit its CPUs. CPUs that the
    user has selected for a thread (taskset(1)) are not changed.
    """

    def __init__(self, cpu: int | None) -> None:
        """Use ``cpu`` for small files. If it is None, the kernel chooses the CPU."""
        self._all = usable_cpus()
        self._small_files = self._all if cpu is None else {cpu}

    def pin(self) -> None:
        """Move the calling thread to the CPU for small files."""
        self._change(self._all, self._small_files)

    def unpin(self) -> None:
        """Let the calling thread run on all CPUs that the process may use."""
        self._change(self._small_files, self._all)

    @staticmethod
    def _change(before: set[int], after: set[int]) -> None:
        """Replace the CPUs ``before`` of the calling thread by the CPUs ``after``.

        Does nothing if the thread has other CPUs than ``before``.
        """
        if before == after:
            return
        # OSError: the CPU was taken from the process; the kernel has chosen another
        with suppress(OSError):
            if os.sched_getaffinity(0) == before:
                os.sched_setaffinity(0, after)


class CpuReservation:
    """The reservation of one CPU for small files.

    Other processes cannot reserve the same CPU. The reservation is an abstract Unix
    socket (unix(7)). Its name is ``prefix`` and the number of the CPU. The kernel
    removes the socket when the process exits.
    """

    def __init__(self, prefix: str = "dlpool-cpu-") -> None:
        """Reserve the CPU of the calling thread, or another one.

        ``cpu`` is the number of the reserved CPU, or None if none could be reserved. A
        single CPU is never reserved.
        """
        self._prefix = prefix
        self.cpu: int | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        cpus = usable_cpus()
        current = _current_cpu()
        for cpu in sorted(cpus, key=lambda cpu: (cpu != current, cpu)):
            if len(cpus) > 1 and self._bind(cpu):
                self.cpu = cpu
                return

    def close(self) -> None:
        """Release the CPU."""
        self._socket.close()

    def _bind(self, cpu: int) -> bool:
        try:
            self._socket.bind(f"\0{self._prefix}{cpu}")
        except OSError:
            return False
        return True


def usable_cpus() -> set[int]:
    """Return the CPUs that the calling thread may use; an empty set if unknown."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _current_cpu() -> int:
    """Return the CPU on which the calling thread runs; -1 if it is unknown."""
    get_cpu = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return -1 if get_cpu is None else int(get_cpu())


def choose_cpu(workers: int, taken: Collection[int | None]) -> int | None:
    """Return the CPU on which a new worker process fetches small files.

    ``workers`` is the number of workers; ``taken`` holds the CPUs of the other workers.
    Returns None if there are fewer workers than CPUs: the kernel itself keeps these
    workers on different CPUs. Returns None if only one CPU, or none, is known.
    """
    cpus = usable_cpus()
    if not 1 < len(cpus) <= workers:
        return None
    count = Counter(taken)
    return min(sorted(cpus), key=lambda cpu: count[cpu])
