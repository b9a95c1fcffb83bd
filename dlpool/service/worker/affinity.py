"""On which CPU the threads of a worker run.

Threads of one interpreter take turns. Spread over CPUs, each turn wakes another CPU,
and for small jobs that costs as much as the work itself; so they stay on one. Large
ones may use all: TLS, hashing and copying need no turn. See sched_setaffinity(2), which
works on threads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from contextlib import suppress


class Affinity:
    """The CPUs of a process. Its methods are for the calling thread, and for those that
    it starts from then on."""

    def __init__(self, cpu: int | None) -> None:
        """``cpu``: where small jobs stay, None for no such place."""
        self._all = os.sched_getaffinity(0)
        self._home = self._all if cpu is None else {cpu}

    def pin(self) -> None:
        """Stay on the CPU for small jobs."""
        self._go(self._home)

    def unpin(self) -> None:
        """Use all CPUs that the process may use."""
        self._go(self._all)

    def _go(self, cpus: set[int]) -> None:
        if self._home != self._all:
            with suppress(
                OSError
            ):  # the CPU was taken from us meanwhile: the kernel has chosen another one
                os.sched_setaffinity(0, cpus)


def choose_cpu(workers: int, taken: Collection[int | None]) -> int | None:
    """The CPU for one more of ``workers``, with the ``taken`` ones of the others.

    None where there are fewer workers than CPUs: a kernel that may choose keeps them
    apart, from other programs too.
    """
    cpus = os.sched_getaffinity(0)
    if not 1 < len(cpus) <= workers:
        return None
    count = Counter(taken)
    return min(sorted(cpus), key=lambda cpu: count[cpu])
