"""The number of processes and threads of dlpool-web: fewer than the settings say if a
limit of the system is low."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass, replace

from dlpool.config import Settings
from dlpool.errors import LocalFault

LEAST_THREADS = 4  # of a process: the lower bound of the setting
# threads of a process besides those for requests: keeper, lingering, events, log, two
# for probes
HELPERS = 6
BASE_FILES = 32  # open in a process that does nothing
FILES_A_THREAD = 12  # open at once: the connection, a chunk, locks, the log, Redis
LEAST_FILES_A_THREAD = 6  # enough for most requests


@dataclass(frozen=True)
class ServerCapacity:
    """The allowed numbers. ``notes``: a sentence for each reason why they are lower
    than the settings."""

    processes: int
    threads: int
    notes: tuple[str, ...] = ()


def fit_to_limits(settings: Settings) -> tuple[Settings, ServerCapacity]:
    """Return the settings with the number of threads that this machine allows, and the
    capacity found.

    The limit is measured by starting the threads: Linux refuses a thread beyond
    RLIMIT_NPROC, ``pids.max`` of a cgroup, or ``threads-max`` (pthread_create(3)), and
    none of these can be read reliably.

    Raises LocalFault if the limits do not allow one process with ``LEAST_THREADS``.
    """
    processes = settings.web.processes or max(2, min(4, len(os.sched_getaffinity(0))))
    wanted = processes * (1 + HELPERS + settings.web.threads)
    found = by_threads(processes, settings.web.threads, spare_threads(wanted))
    files = by_files(found.threads, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    found = ServerCapacity(found.processes, files.threads, found.notes + files.notes)
    return replace(settings, web=replace(settings.web, threads=found.threads)), found


def by_threads(processes: int, threads: int, spare: int) -> ServerCapacity:
    """Divide ``spare`` threads, main threads included, among the processes. Pure.
    Raises LocalFault."""
    own = 1 + HELPERS
    if spare >= processes * (own + threads):
        return ServerCapacity(processes, threads)
    least = own + LEAST_THREADS
    if spare < least:
        raise LocalFault(
            f"cannot start dlpool-web: only {spare} more threads are allowed, and it "
            f"needs {least}: raise the limit of "
            "processes (ulimit -u, TasksMax of the unit, pids.max of the container)"
        )
    fewer = max(1, min(processes, spare // (own + min(threads, 2 * LEAST_THREADS))))
    left = min(threads, spare // fewer - own)
    note = (
        f"only {spare} more threads are allowed (ulimit -u, TasksMax, pids.max): "
        f"{fewer} of {processes} processes start, with {left} of {threads} threads each"
    )
    return ServerCapacity(fewer, left, (note,))


def by_files(threads: int, limit: int) -> ServerCapacity:
    """Return the number of threads for a process that may open ``limit`` files. Pure.
    Raises LocalFault."""
    if (
        limit == resource.RLIM_INFINITY
        or limit >= BASE_FILES + FILES_A_THREAD * threads
    ):
        return ServerCapacity(1, threads)
    least = BASE_FILES + LEAST_FILES_A_THREAD * LEAST_THREADS
    if limit < least:
        raise LocalFault(
            f"cannot start dlpool-web: a process may open only {limit} files, and it "
            f"needs {least}: raise the limit "
            "(ulimit -n, LimitNOFILE of the unit)"
        )
    fewer = max(LEAST_THREADS, (limit - BASE_FILES) // FILES_A_THREAD)
    if fewer >= threads:
        return ServerCapacity(1, threads)
    note = (
        f"a process may open only {limit} files (ulimit -n, LimitNOFILE): {fewer} "
        f"threads each instead of {threads}"
    )
    return ServerCapacity(1, fewer, (note,))


def spare_threads(wanted: int) -> int:
    """Return how many of ``wanted`` threads this process can start now, by starting and
    joining them."""
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
