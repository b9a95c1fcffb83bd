"""A scanner that is a command of the operator's: it gets the path of the file as its
last argument.

Exit codes are those of clamscan(1): 0 for a clean file, 1 for an infected one; all
others mean that it could not tell.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from dlpool.scan.deadline import ScanDeadline, ScanTimedOut
from dlpool.scan.result import (
    CLEAN,
    UNAVAILABLE,
    ScanResult,
    infected_result,
    printable_line,
)
from dlpool.scan.scannedfile import ScannedFile

_FOUND = " FOUND"
_READ, _KEPT = 64 * 1024, 16 * 1024
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
)


@dataclass(frozen=True)
class CommandScanner:
    """Thread-safe: each scan is a process of its own, in a session of its own."""

    command: str

    def scan(self, suspect: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Run the command and return what it found. Raises what ends the scan."""
        try:
            process = self._start(suspect)
        except (OSError, ValueError) as error:
            return ScanResult(
                UNAVAILABLE,
                f"it cannot be started: {getattr(error, 'strerror', None) or error}",
            )
        try:
            said = _output(process, deadline)
            code = _code(process, deadline)
        except ScanTimedOut:
            return ScanResult(
                UNAVAILABLE, f"it did not end within {deadline.timeout_s:g} s"
            )
        finally:
            _end(process)
        return result_of(code, said.decode("utf-8", "replace"))

    def _start(self, suspect: ScannedFile) -> subprocess.Popen[bytes]:
        """Start it in ``/``, with nothing of our environment that may be secret. Raises
        OSError, ValueError."""
        return subprocess.Popen(
            [*shlex.split(self.command), suspect.absolute_path()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )


def result_of(code: int, said: str) -> ScanResult:
    """Return what an exit code and the output mean. Pure."""
    lines = [line for line in said.splitlines() if line.strip()]
    if code == 0:
        return ScanResult(CLEAN)
    if code == 1:
        named = [line.strip() for line in lines if line.rstrip().endswith(_FOUND)]
        line = named[0] if named else (lines or [""])[0]
        return infected_result(line.removesuffix(_FOUND).rpartition(": ")[2])
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return ScanResult(
        UNAVAILABLE,
        f"it ended with {how}{': ' + printable_line(lines[-1]) if lines else ''}",
    )


def _output(process: subprocess.Popen[bytes], deadline: ScanDeadline) -> bytes:
    """Return the beginning of what it writes, once it has closed its output. Raises
    TooSlow, what ends the scan."""
    assert process.stdout is not None
    descriptor, said = process.stdout.fileno(), b""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    while True:
        deadline.wait(waiting)
        data = os.read(descriptor, _READ)
        if not data:
            return said
        said = (said + data)[:_KEPT]


def _code(process: subprocess.Popen[bytes], deadline: ScanDeadline) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(deadline.left_s())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command, and what it has started as far as that stayed in its session."""
    if process.returncode is None:  # not reaped, so that the group is still its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
