"""A program that ends with its parent: ``python launch.py PARENT_PID PROGRAM
ARGUMENTS...``.

Run as a file and without dlpool's imports: it starts in a few milliseconds, and
whatever lies in the working directory is not imported. It stands between because what
it does must happen in the child before ``exec``, and ``preexec_fn`` may deadlock in a
process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel send this process SIGTERM when its parent ends. Raises OSError.

    "Parent" is the *thread* that started this process: start processes from a thread
    that lives as long as its own process, the main thread. When the parent has gone
    already, SIGTERM is raised at once.
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
    if os.getppid() != parent_pid:  # it ended before the kernel knew of our wish
        signal.raise_signal(signal.SIGTERM)


def main() -> None:
    """Become the program of the command line, with SIGTERM as it is in a fresh
    process."""
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
