"""Threads and descriptors: how many more this process may have.

Linux refuses a thread beyond RLIMIT_NPROC, the limit of a cgroup (``pids.max``) or
``threads-max`` (pthread_create(3): EAGAIN), and a descriptor beyond RLIMIT_NOFILE or
``fs.file-max`` (open(2): EMFILE, ENFILE). Callers continue with fewer, as long as they
have at least one. All functions are thread-safe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from dlpool.disk import fault_of
from dlpool.errors import NoThread, OutOfFiles

_PR_SET_NAME = 15  # prctl(2)
_libc = ctypes.PyDLL(
    None
)  # which keeps the interpreter's lock: the call takes less time than to release it
_INHERITS = sys.version_info < (
    3,
    14,
)  # later ones give a thread the name that it has in Python
_named = threading.local()


class DaemonThread(threading.Thread):
    """A daemon thread whose ``start`` raises NoThread if a limit allows no further
    thread.

    The kernel has the same name for it as for the thread that made it.
    """

    def __init__(self, work: Callable[[], object], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._kernel_name: str | None = (
            None if _INHERITS else getattr(_named, "name", None)
        )

    def run(self) -> None:
        """Do the work."""
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
    """Set the name that the kernel has for the calling thread (comm, proc(5)), and for
    those that it starts."""
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


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Return whether an error says that no further file can be opened."""
    return isinstance(error, OSError) and fault_of(error).raised is OutOfFiles
