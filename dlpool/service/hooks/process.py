"""One run of a hook: a process in a session of its own, which is never waited for
longer than it may take."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

MAX_SAID = 2000  # bytes of its standard error that are kept, from the end
READ = 64 * 1024  # what a pipe holds
FIRST_NAP_S, NAP_S = 0.001, 0.05
END_S = 2.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class CommandResult:
    """``failure`` says why it failed, empty if it did not; ``said`` is the end of its
    standard error."""

    failure: str
    stderr: str = ""


class _Tail:
    """The end of what a process writes. Of much, it reads a pipe's worth at a time, so
    that nobody is kept busy."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._descriptor = pipe.fileno()
        self._end = b""
        os.set_blocking(self._descriptor, False)

    def read(self) -> None:
        """Take what is there."""
        with suppress(BlockingIOError):
            self._end = (self._end + os.read(self._descriptor, READ))[-MAX_SAID:]

    def text(self) -> str:
        """What is kept."""
        return self._end.decode("utf-8", "replace").strip()


def run_command(
    command: Sequence[str],
    given: bytes,
    environment: Mapping[str, str],
    must_end: Callable[[], str],
) -> CommandResult:
    """Run ``command`` in ``/`` with ``given`` on its standard input. Blocks until it
    has ended.

    ``must_end`` is asked again and again: a reason, or empty while it may go on. Then
    its process group gets SIGTERM, and SIGKILL after ``END_S``. Its input is a file in
    memory: it is all there at once, whether it is read or not.
    """
    try:
        process = _start(command, given, environment)
    except OSError as error:
        return CommandResult(f"it cannot be started: {error.strerror}")
    assert process.stderr is not None
    with process.stderr:
        tail = _Tail(process.stderr)
        reason = _wait(process, tail, must_end)
        if reason:
            _end(process, tail)
        tail.read()
        code = process.wait()
    return CommandResult(reason or _failure(code), tail.text())


def _start(
    command: Sequence[str], given: bytes, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with open(os.memfd_create("hook"), "w+b", buffering=0) as file:
        file.write(given)
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
    process: subprocess.Popen[bytes], tail: _Tail, must_end: Callable[[], str]
) -> str:
    """Until it has ended by itself (empty), or must end."""
    nap_s = FIRST_NAP_S
    while not _has_ended(process):
        if reason := must_end():
            return reason
        time.sleep(nap_s)
        nap_s = min(NAP_S, nap_s * 2)
        tail.read()
    return ""


def _end(process: subprocess.Popen[bytes], tail: _Tail) -> None:
    """End it and what it has started, as far as that stayed in its process group."""
    killed_at = time.monotonic() + END_S
    _signal(process, signal.SIGTERM)
    _wait(process, tail, lambda: "kill" if time.monotonic() >= killed_at else "")
    _signal(
        process, signal.SIGKILL
    )  # not reaped yet, so that its group is still its own


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, without reaping it."""
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
