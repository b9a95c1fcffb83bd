"""The duties of the first process of a container, for a program that is started as that.

Process 1 inherits every process whose parent has ended, and must wait for it: what hooks leave running would stay a
zombie. A program with children of its own cannot wait for "any" child without taking their exit codes from those who
wait for them. So the first process forks, waits for all, and leaves the work to its child; see tini(1), wait(2).
"""

from __future__ import annotations

import os
import signal

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
SI_KERNEL = 0x80  # the terminal sent it: to the whole group, so that the child has it already
SIGNAL_STATUS = 128  # plus the number: the exit code that a shell gives for a death by a signal


def work_in_a_child() -> None:
    """Return at once, unless this is process 1: then return in a child of it.

    Process 1 itself passes signals on, reaps, and exits as the child does. Call it before there are threads.
    """
    if os.getpid() != 1:
        return
    awaited = {signal.SIGCHLD, *PASSED_ON}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # else one that comes now would be lost
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_serve(child, awaited))


def _serve(child: int, awaited: set[signal.Signals]) -> int:
    """Pass signals on to the child and reap all others, until the child ends. Return its exit code."""
    while True:
        told = signal.sigwaitinfo(awaited)
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != SI_KERNEL:
                os.kill(child, told.si_signo)
            continue
        status = _reaped(child)
        if status is not None:
            return status if status >= 0 else SIGNAL_STATUS - status


def _reaped(child: int) -> int | None:
    """Reap what has ended. Return the exit code of ``child``, or minus its signal; None while it lives."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None
