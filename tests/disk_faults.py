"""File system calls that fail at a chosen place: the library ``disk_faults.c``, for a process started with it.

``start`` builds the library and starts a Python module of the tests under it; in that process ``DiskFaults`` says which
call fails, how, and tells which calls there were.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("disk_faults.c")
ROOT = SOURCE.parent.parent
FAIL, DONE, PRETEND, SHORT = 1, 2, 3, 4
"""What becomes of a call: not done and failed; done, but reported as failed; not done, but reported as done (of
statvfs(2): without numbers); a write(2) of half of its bytes."""
ALWAYS = 2**31 - 1


@dataclass(frozen=True)
class Fault:
    """What happens to the calls ``nth`` (from 1) to ``last`` of a ``kind``; of those with a path that ends so.

    ``ending`` "/" means calls for a folder. ``number`` is an errno.
    """

    kind: str
    nth: int
    action: int = FAIL
    number: int = errno.EIO
    last: int = 0
    ending: str = ""

    def __str__(self) -> str:
        did = ("", "", "done, but ", "pretended, ", "short, ")[self.action]
        return f"{self.kind}:{self.nth} {did}{errno.errorcode[self.number]}"


class Call(NamedTuple):
    """A call that was made: its kind, its path, and the second one of a rename or link ("" where there is none)."""

    kind: str
    path: str
    second: str = ""


class DiskFaults:
    """Controls the library in this process, which is started by ``start``. One thread uses it."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        for name in ("faults_kind", "faults_log"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self.kinds: list[str] = []
        while name := self._library.faults_kind(len(self.kinds)):
            self.kinds.append(name.decode())

    def watch(self, folder: Path | str) -> None:
        """Begin to count and log the calls below ``folder``, an absolute path; earlier faults are forgotten."""
        self._library.faults_watch(os.fsencode(folder))

    def stop(self) -> None:
        """Let all calls be again what they are."""
        self._library.faults_watch(None)

    def add(self, fault: Fault) -> int:
        """Let this happen too; returns the number of the fault, for ``fired``."""
        last = fault.last or fault.nth
        kind = self.kinds.index(fault.kind)
        return int(self._library.faults_add(kind, fault.nth, last, fault.action, fault.number, fault.ending.encode()))

    def fired(self, number: int) -> int:
        """How often a fault has happened."""
        return int(self._library.faults_fired(number))

    def counts(self) -> dict[str, int]:
        """The calls since ``watch``, by kind; none that was not made."""
        found = {kind: self._library.faults_count(number) for number, kind in enumerate(self.kinds)}
        return {kind: count for kind, count in found.items() if count}

    def calls(self) -> list[Call]:
        """The calls since ``watch``, in their order."""
        lines = os.fsdecode(self._library.faults_log()).splitlines()
        return [Call(*line.split("\t")) for line in lines]


def build(folder: Path) -> Path:
    """Compile the library into ``folder`` and return its path."""
    library = folder / "disk_faults.so"
    command = ["cc", "-std=gnu17", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def start(library: Path, module: str, *arguments: str, timeout_s: float = 240.0) -> str:
    """Run ``python -m module`` under the library; returns its standard output. Raises AssertionError if it fails."""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
