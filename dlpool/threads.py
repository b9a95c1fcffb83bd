"""Threads and descriptors: how many more this process may have.

Linux refuses a thread beyond RLIMIT_NPROC, the limit of a cgroup (``pids.max``) or ``threads-max`` (pthread_create(3):
EAGAIN), and a descriptor beyond RLIMIT_NOFILE or ``fs.file-max`` (open(2): EMFILE, ENFILE). Callers
continue with fewer, as long as they have at least one. All functions are thread-safe.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable

from dlpool.disk import fault_of
from dlpool.errors import NoThread, OutOfFiles


class Thread(threading.Thread):
    """A daemon thread whose ``start`` raises NoThread if a limit allows no further thread."""

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Raises NoThread."""
        try:
            super().start()
        except (RuntimeError, MemoryError) as error:
            raise NoThread("cannot start a thread: raise the limit of processes (ulimit -u, pids.max)") from error


def start(work: Callable[[], object], name: str) -> Thread:
    """Start a daemon thread that calls ``work``, and return it. Raises NoThread."""
    thread = Thread(work, name)
    thread.start()
    return thread


def has_room(descriptors: int) -> bool:
    """Return whether about ``descriptors`` more files can be opened.

    open(2) returns the lowest free number, so the number of a new descriptor is about the number of open ones.
    """
    try:
        lowest = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return not is_out_of_descriptors(error)
    os.close(lowest)
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or lowest + descriptors <= limit


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error says that no further file can be opened."""
    return isinstance(error, OSError) and fault_of(error).raised is OutOfFiles
