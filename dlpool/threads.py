"""Threads and file descriptors of this process, and their limits.

Linux refuses a thread beyond RLIMIT_NPROC, the limit of a cgroup (``pids.max``) or
``threads-max`` (pthread_create(3): EAGAIN), and a descriptor beyond RLIMIT_NOFILE or
``fs.file-max`` (open(2): EMFILE, ENFILE). After such a refusal, a caller continues with
the threads and descriptors that it has. All functions are thread-safe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from dlpool.disk_errors import is_out_of_descriptors
from dlpool.errors import NoThread

_PR_SET_NAME = 15  # prctl(2)
# PyDLL keeps the interpreter's lock: the call takes less time than releasing it.
_libc = ctypes.PyDLL(None)
# From 3.14 on, Python sets the kernel name of a thread to its Python name.
_INHERITS_NAME = sys.version_info < (3, 14)
_named = threading.local()  # its attribute name: the kernel name set for the thread


class DaemonThread(threading.Thread):
    """A daemon thread whose ``start`` raises NoThread if no thread can be started.

    The new thread gets the kernel name (comm, proc(5)) of the thread that created it.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._kernel_name: str | None = (
            None if _INHERITS_NAME else getattr(_named, "name", None)
        )

    def run(self) -> None:
        """Set the kernel name of the thread, and call ``work``."""
        if self._kernel_name is not None:
            set_kernel_name(self._kernel_name)
        super().run()

    def start(self) -> None:
        """Start the thread. Raises NoThread."""
        try:
            super().start()
        except (RuntimeError, MemoryError) as error:
            raise NoThread(
                "cannot start a thread: raise the limit of processes (ulimit -u, "
                "pids.max)"
            ) from error


def set_kernel_name(name: str) -> None:
    """Set the kernel name (comm, proc(5)) of the calling thread.

    Each DaemonThread that the calling thread creates later gets the same name.
    """
    _named.name = name
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def start_thread(work: Callable[[], object], name: str) -> DaemonThread:
    """Start a daemon thread that calls ``work``, and return it. Raises NoThread."""
    thread = DaemonThread(work, name)
    thread.start()
    return thread


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))


def has_free_descriptors(descriptors: int) -> bool:
    """Return whether about ``descriptors`` more files can be opened.

    open(2) returns the lowest free number, so the number of a new descriptor is about
    the number of open ones.
    """
    try:
        lowest = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return not is_out_of_descriptors(error)
    os.close(lowest)
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit == resource.RLIM_INFINITY or lowest + descriptors <= limit
