"""One run of a command: a process in a session of its own, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from dlpool.dataclass import dataclass

MAX_STDERR = 2000  # bytes of standard error that are kept, from the end
READ_SIZE = 64 * 1024  # bytes: the size of a pipe
FIRST_POLL_S, POLL_S = 0.001, 0.05
TERMINATE_S = 2.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class CommandResult:
    """The result of a command. ``failure``: why it failed, '' on success. ``stderr``:
    the end of its standard error."""

    failure: str
    stderr: str = ""


class _OutputTail:
    """The end of the output of a process. Each read takes at most one full pipe, so
    that a process that writes without end cannot occupy the reader."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._descriptor = pipe.fileno()
        self._end = b""
        os.set_blocking(self._descriptor, False)

    def read(self) -> None:
        """Read the output that is available."""
        with suppress(BlockingIOError):
            self._end = (self._end + os.read(self._descriptor, READ_SIZE))[-MAX_STDERR:]

    def text(self) -> str:
        """Return the kept end of the output."""
        return self._end.decode("utf-8", "replace").strip()


def run_command(
    command: Sequence[str],
    stdin: bytes,
    environment: Mapping[str, str],
    stop_reason: Callable[[], str],
) -> CommandResult:
    """Run ``command`` in ``/`` with ``stdin`` as its standard input, and wait until it
    exits.

    ``stop_reason`` is called repeatedly and returns an empty text while the command may
    continue. When it returns a reason, the process group gets SIGTERM, and SIGKILL at
    most ``TERMINATE_S`` seconds later. Standard input is a file in memory, so a command
    that does not read it cannot block the caller.
    """
    try:
        process = _start(command, stdin, environment)
    except OSError as error:
        return CommandResult(f"it cannot be started: {error.strerror}")
    assert process.stderr is not None
    with process.stderr:
        tail = _OutputTail(process.stderr)
        reason = _wait(process, tail, stop_reason)
        if reason:
            _terminate(process, tail)
        tail.read()
        code = process.wait()
    return CommandResult(reason or _failure(code), tail.text())


def _start(
    command: Sequence[str], stdin: bytes, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with open(os.memfd_create("hook"), "w+b", buffering=0) as file:
        file.write(stdin)
        file.seek(0)
        return subprocess.Popen(
            command,
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        )


def _wait(
    process: subprocess.Popen[bytes], tail: _OutputTail, stop_reason: Callable[[], str]
) -> str:
    """Wait until the process exits or must be stopped. Return the reason why it must be
    stopped, '' if it has exited."""
    poll_s = FIRST_POLL_S
    while not _has_exited(process):
        if reason := stop_reason():
            return reason
        time.sleep(poll_s)
        poll_s = min(POLL_S, poll_s * 2)
        tail.read()
    return ""


def _terminate(process: subprocess.Popen[bytes], tail: _OutputTail) -> None:
    """Stop the process, and all its children that have stayed in its process
    group."""
    killed_at = time.monotonic() + TERMINATE_S
    _signal(process, signal.SIGTERM)
    _wait(process, tail, lambda: "kill" if time.monotonic() >= killed_at else "")
    # before it is reaped, while its id cannot be reused
    _signal(process, signal.SIGKILL)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process has exited, without reaping it."""
    return (
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        is not None
    )


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _failure(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"
