"""The preparation of a process at its start: it exits with its parent, and Python's
garbage collector is tuned for a long-running service.

As a script, ``python launch.py PARENT_PID PROGRAM ARGUMENTS...`` makes its process exit
with the parent, and then replaces itself with PROGRAM. The script is necessary because
the child must call prctl(2) before ``exec``, and ``preexec_fn`` may deadlock in a
process with threads. The script imports no module of dlpool: it starts in a few
milliseconds and imports nothing from the working directory.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# objects; with the default of 700 the collector runs every few small jobs
GC_THRESHOLD = 5000


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel send this process SIGTERM when its parent exits. Raises OSError.

    For the kernel, the parent is the *thread* that started this process. Therefore
    start processes from the main thread, which lives as long as its process. If the
    parent has exited already, this function sends SIGTERM at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(
            PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), *[ctypes.c_ulong(0)] * 3
        )
        != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:  # it exited before the call
        signal.raise_signal(signal.SIGTERM)


def tune_garbage_collector() -> None:
    """Collect garbage once, exempt all present objects (modules, classes, settings)
    from collection, and then collect rarely.

    For processes that run long and make many small objects with short lives.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def main() -> None:
    """Replace this process with the program that the command line names. The program
    exits with its parent, and SIGTERM has its default effect."""
    parent_pid, program, *arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        die_with_parent(int(parent_pid))
        os.execv(program, [program, *arguments])
    except OSError as error:
        sys.exit(f"cannot run {program}: {error.strerror}")


if __name__ == "__main__":
    main()
