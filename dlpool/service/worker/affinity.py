"""CPU affinity of a worker's threads.

Threads of one interpreter take turns holding the GIL. On several CPUs each turn wakes
another CPU. For small jobs this costs as much as their work, so small jobs run on one
CPU. Large jobs use all CPUs: TLS, hashing and copying run without the GIL. See
sched_setaffinity(2), which applies to threads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from contextlib import suppress


class Affinity:
    """Selects the CPUs of the calling thread.

    Threads that the calling thread starts afterwards inherit its CPUs.
    """

    def __init__(self, cpu: int | None) -> None:
        """Use ``cpu`` for small jobs, or None to leave the choice to the kernel."""
        self._all = os.sched_getaffinity(0)
        self._small_jobs = self._all if cpu is None else {cpu}

    def pin(self) -> None:
        """Run on the CPU for small jobs."""
        self._set(self._small_jobs)

    def unpin(self) -> None:
        """Run on all CPUs that the process may use."""
        self._set(self._all)

    def _set(self, cpus: set[int]) -> None:
        if self._small_jobs != self._all:
            # OSError: the CPU was taken from the process; the kernel has chosen another
            with suppress(OSError):
                os.sched_setaffinity(0, cpus)


def choose_cpu(workers: int, taken: Collection[int | None]) -> int | None:
    """Return the CPU for small jobs of a new worker.

    ``taken``: the CPUs of the other workers. Return None if there is only one CPU, or
    if there are fewer ``workers`` than CPUs. In the second case the kernel itself keeps
    the workers on different CPUs, and away from other programs.
    """
    cpus = os.sched_getaffinity(0)
    if not 1 < len(cpus) <= workers:
        return None
    count = Counter(taken)
    return min(sorted(cpus), key=lambda cpu: count[cpu])
