"""Threads and descriptors: how many this process may still have.

Linux refuses a thread beyond RLIMIT_NPROC, the limit of a cgroup (``pids.max``) or ``threads-max`` (pthread_create(3):
EAGAIN), and a descriptor beyond RLIMIT_NOFILE or ``fs.file-max`` (open(2): EMFILE, ENFILE). Neither is a reason to
fail while there is at least one: callers do with fewer. All functions are thread-safe.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable

from dlpool.errors import NoThread

_OUT = (errno.EMFILE, errno.ENFILE)


class Thread(threading.Thread):
    """A daemon thread whose ``start`` raises NoThread where this process may not have another one."""

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)

    def start(self) -> None:
        """Start it. Raises NoThread."""
        try:
            super().start()
        except (RuntimeError, MemoryError) as error:
            raise NoThread("cannot start a thread: raise the limit of processes (ulimit -u, pids.max)") from error


def start(work: Callable[[], object], name: str) -> Thread:
    """Return a daemon thread that does ``work``. Raises NoThread."""
    thread = Thread(work, name)
    thread.start()
    return thread


def has_room(descriptors: int) -> bool:
    """Return whether about ``descriptors`` more files can be opened.

    The kernel gives out the lowest free number (open(2)), so that the number of a new one tells how many are open.
    """
    try:
        lowest = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno not in _OUT
    os.close(lowest)
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or lowest + descriptors <= limit


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error says that no further file can be opened."""
    return isinstance(error, OSError) and error.errno in _OUT
