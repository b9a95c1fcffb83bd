"""A scanner that is a command of the operator; its last argument is the file's path.

Exit codes are those of clamscan(1): 0 for a clean file, 1 for an infected one; any
other code means that the file could not be scanned.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
from contextlib import suppress

from dlpool.dataclass import dataclass
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
_READ_SIZE, _MAX_OUTPUT = 64 * 1024, 16 * 1024
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
    """A scanner that runs ``command`` for each file.

    Thread-safe: each scan is a process in its own session.
    """

    command: str

    def scan(self, file: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Run the command and return its result.

        Raises what ``deadline.check_abort`` raises.
        """
        try:
            process = self._start(file)
        except (OSError, ValueError) as error:
            return ScanResult(
                UNAVAILABLE,
                f"it cannot be started: {getattr(error, 'strerror', None) or error}",
            )
        try:
            output = _output(process, deadline)
            code = _exit_code(process, deadline)
        except ScanTimedOut:
            return ScanResult(
                UNAVAILABLE, f"it did not end within {deadline.timeout_s:g} s"
            )
        finally:
            _kill(process)
        return result_of(code, output.decode("utf-8", "replace"))

    def _start(self, file: ScannedFile) -> subprocess.Popen[bytes]:
        """Start the command in ``/``, without environment variables that may be secret.

        Raises OSError, ValueError.
        """
        return subprocess.Popen(
            [*shlex.split(self.command), file.absolute_path()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )


def result_of(code: int, output: str) -> ScanResult:
    """Return the result for an exit code and the output of the command. Pure."""
    lines = [line for line in output.splitlines() if line.strip()]
    if code == 0:
        return ScanResult(CLEAN)
    if code == 1:
        named = [line.strip() for line in lines if line.rstrip().endswith(_FOUND)]
        line = named[0] if named else (lines or [""])[0]
        return infected_result(line.removesuffix(_FOUND).rpartition(": ")[2])
    status = f"exit code {code}" if code > 0 else f"signal {-code}"
    return ScanResult(
        UNAVAILABLE,
        f"it ended with {status}{': ' + printable_line(lines[-1]) if lines else ''}",
    )


def _output(process: subprocess.Popen[bytes], deadline: ScanDeadline) -> bytes:
    """Read the output until the command closes it, and return its first 16 KiB.

    Raises what ``ScanDeadline.left_s`` raises.
    """
    assert process.stdout is not None
    descriptor, output = process.stdout.fileno(), b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while True:
        deadline.wait(poller)
        data = os.read(descriptor, _READ_SIZE)
        if not data:
            return output
        output = (output + data)[:_MAX_OUTPUT]


def _exit_code(process: subprocess.Popen[bytes], deadline: ScanDeadline) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(deadline.left_s())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """If the command still runs, kill it and its process group."""
    if process.returncode is None:  # not reaped yet, so that the group id is not reused
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
