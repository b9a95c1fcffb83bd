"""The duties of process 1 of a container.

Process 1 inherits every process whose parent has exited, and must call wait(2) for it:
otherwise the inherited processes remain as zombies when they exit. The program itself
cannot wait for every child: it would take exit codes that other parts of the program
need. Therefore process 1 forks. The child runs the program, and process 1 reaps all
exited processes; see tini(1), wait(2).
"""

from __future__ import annotations

import os
import signal

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# si_code of a signal from the terminal, sent to the process group: the child has
# received it, too.
SI_KERNEL = 0x80
SIGNAL_STATUS = 128  # plus the signal number: the exit code of a shell


def fork_if_init() -> None:
    """Fork if this is process 1, and return in the child; otherwise return at once.

    Process 1 forwards signals, reaps processes, and exits with the exit code of the
    child. Call this function before threads start.
    """
    if os.getpid() != 1:
        return
    awaited = {signal.SIGCHLD, *FORWARDED}
    # Blocked, as otherwise a signal that arrives before sigwaitinfo would be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_serve(child, awaited))


def _serve(child: int, awaited: set[signal.Signals]) -> int:
    """Forward signals and reap processes until the child exits.

    Returns the exit code of the child, or 128 plus the number of the signal that has
    killed the child.
    """
    while True:
        received = signal.sigwaitinfo(awaited)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != SI_KERNEL:
                os.kill(child, received.si_signo)
            continue
        status = _reaped(child)
        if status is not None:
            return status if status >= 0 else SIGNAL_STATUS - status


def _reaped(child: int) -> int | None:
    """Reap exited processes, and return the exit code of ``child``.

    Returns the negative signal number if a signal has killed the child, and None while
    the child is running.
    """
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None
