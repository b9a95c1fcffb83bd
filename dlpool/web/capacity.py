"""How many processes and threads dlpool-web may have here: fewer than the settings say where a limit is low."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass, replace

from dlpool.config import Settings
from dlpool.errors import LocalFault

LEAST_THREADS = 4  # of a process, as the setting demands
HELPERS = 4  # threads of a process besides those for requests: keeper, lingering, events, log
BASE_FILES = 32  # open in a process that does nothing
FILES_A_THREAD = 12  # open at once: the connection, a chunk, locks, the log, Redis
LEAST_FILES_A_THREAD = 6  # with which most requests succeed


@dataclass(frozen=True)
class Capacity:
    """What fits. ``notes``: why it is less than was wanted, a sentence each."""

    processes: int
    threads: int
    notes: tuple[str, ...] = ()


def fitted(settings: Settings) -> tuple[Settings, Capacity]:
    """Return the settings with as many threads as this machine allows, and what was found.

    It starts as many threads as would run, and ends them: Linux refuses a thread beyond RLIMIT_NPROC, ``pids.max`` of a
    cgroup, or ``threads-max`` (pthread_create(3)), and tells none of these limits reliably.

    Raises LocalFault where not even one process with its least threads fits.
    """
    processes = settings.web.processes or max(2, min(4, len(os.sched_getaffinity(0))))
    wanted = processes * (1 + HELPERS + settings.web.threads)
    found = by_threads(processes, settings.web.threads, spare_threads(wanted))
    files = by_files(found.threads, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    found = Capacity(found.processes, files.threads, found.notes + files.notes)
    return replace(settings, web=replace(settings.web, threads=found.threads)), found


def by_threads(processes: int, threads: int, spare: int) -> Capacity:
    """Deal ``spare`` threads of the system, the main ones included, to the processes. Pure. Raises LocalFault."""
    own = 1 + HELPERS
    if spare >= processes * (own + threads):
        return Capacity(processes, threads)
    least = own + LEAST_THREADS
    if spare < least:
        raise LocalFault(
            f"cannot start dlpool-web: only {spare} more threads are allowed, and it needs {least}: raise the limit of "
            "processes (ulimit -u, TasksMax of the unit, pids.max of the container)"
        )
    fewer = max(1, min(processes, spare // (own + min(threads, 2 * LEAST_THREADS))))
    left = min(threads, spare // fewer - own)
    note = (
        f"only {spare} more threads are allowed (ulimit -u, TasksMax, pids.max): "
        f"{fewer} of {processes} processes start, with {left} of {threads} threads each"
    )
    return Capacity(fewer, left, (note,))


def by_files(threads: int, limit: int) -> Capacity:
    """Return how many threads a process may have that may open ``limit`` files. Pure. Raises LocalFault."""
    if limit == resource.RLIM_INFINITY or limit >= BASE_FILES + FILES_A_THREAD * threads:
        return Capacity(1, threads)
    least = BASE_FILES + LEAST_FILES_A_THREAD * LEAST_THREADS
    if limit < least:
        raise LocalFault(
            f"cannot start dlpool-web: a process may open only {limit} files, and it needs {least}: raise the limit "
            "(ulimit -n, LimitNOFILE of the unit)"
        )
    fewer = max(LEAST_THREADS, (limit - BASE_FILES) // FILES_A_THREAD)
    if fewer >= threads:
        return Capacity(1, threads)
    note = f"a process may open only {limit} files (ulimit -n, LimitNOFILE): {fewer} threads each instead of {threads}"
    return Capacity(1, fewer, (note,))


def spare_threads(wanted: int) -> int:
    """Return how many of ``wanted`` threads this process may start now; they have ended when this returns."""
    release, started = threading.Event(), []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        release.set()
        for thread in started:
            thread.join()
    return len(started)
