"""Determines the number of processes and threads of dlpool-web within the limits of the
system."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import replace

from dlpool.config import Settings
from dlpool.dataclass import dataclass
from dlpool.errors import LocalFault

MIN_THREADS = 4  # per process; the lower bound of the setting
# other threads of a process: janitor, lingering close, events, log, two for probes
OTHER_THREADS = 6
BASE_FILES = 32  # open in an idle process
FILES_A_THREAD = 12  # open per thread: connection, chunk, locks, log, Redis
MIN_FILES_A_THREAD = 6  # enough for most requests


@dataclass(frozen=True)
class ServerCapacity:
    """The allowed number of processes, and of threads in each process.

    ``notes``: sentences about the numbers that were reduced.
    """

    processes: int
    threads: int
    notes: tuple[str, ...] = ()


def fit_to_limits(settings: Settings) -> tuple[Settings, ServerCapacity]:
    """Return the settings with the allowed number of threads, and the capacity.

    The limit of threads is measured by starting threads, because RLIMIT_NPROC,
    ``pids.max`` of a cgroup and ``threads-max`` (pthread_create(3)) cannot be read
    reliably.

    Raises LocalFault if the limits do not allow one process with ``MIN_THREADS``
    threads.
    """
    processes = settings.web.processes or max(2, min(4, len(os.sched_getaffinity(0))))
    wanted = processes * (1 + OTHER_THREADS + settings.web.threads)
    found = by_threads(processes, settings.web.threads, spare_threads(wanted))
    files = by_files(found.threads, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    found = ServerCapacity(found.processes, files.threads, found.notes + files.notes)
    return replace(settings, web=replace(settings.web, threads=found.threads)), found


def by_threads(processes: int, threads: int, spare: int) -> ServerCapacity:
    """Return the capacity if only ``spare`` threads can be started. Pure.

    ``processes`` and ``threads`` (for each process) are the wanted numbers. Each
    process also needs a main thread and ``OTHER_THREADS`` further threads. Raises
    LocalFault if ``spare`` is too small for one process.
    """
    own = 1 + OTHER_THREADS
    if spare >= processes * (own + threads):
        return ServerCapacity(processes, threads)
    minimum = own + MIN_THREADS
    if spare < minimum:
        raise LocalFault(
            f"cannot start dlpool-web: only {spare} more threads are allowed, and it "
            f"needs {minimum}: raise the limit of "
            "processes (ulimit -u, TasksMax of the unit, pids.max of the container)"
        )
    reduced = max(1, min(processes, spare // (own + min(threads, 2 * MIN_THREADS))))
    left = min(threads, spare // reduced - own)
    note = (
        f"only {spare} more threads are allowed (ulimit -u, TasksMax, pids.max): "
        f"{reduced} of {processes} processes start, with {left} of {threads} threads "
        f"each"
    )
    return ServerCapacity(reduced, left, (note,))


def by_files(threads: int, limit: int) -> ServerCapacity:
    """Return the capacity of one process that may open only ``limit`` files. Pure.

    ``threads`` is the wanted number. Raises LocalFault if the limit is too low for
    ``MIN_THREADS`` threads.
    """
    if (
        limit == resource.RLIM_INFINITY
        or limit >= BASE_FILES + FILES_A_THREAD * threads
    ):
        return ServerCapacity(1, threads)
    minimum = BASE_FILES + MIN_FILES_A_THREAD * MIN_THREADS
    if limit < minimum:
        raise LocalFault(
            f"cannot start dlpool-web: a process may open only {limit} files, and it "
            f"needs {minimum}: raise the limit "
            "(ulimit -n, LimitNOFILE of the unit)"
        )
    reduced = max(MIN_THREADS, (limit - BASE_FILES) // FILES_A_THREAD)
    if reduced >= threads:
        return ServerCapacity(1, threads)
    note = (
        f"a process may open only {limit} files (ulimit -n, LimitNOFILE): {reduced} "
        f"threads each instead of {threads}"
    )
    return ServerCapacity(1, reduced, (note,))


def spare_threads(wanted: int) -> int:
    """Start and join up to ``wanted`` threads; return how many could be started."""
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
