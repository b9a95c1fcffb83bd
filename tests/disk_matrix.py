"""Lets each file system call of a workload fail in each way, and says where that ended wrongly.

``python -m tests.disk_matrix WORKLOAD FOLDER [SHARE OF]``, started by ``disk_faults.start``, prints JSON: how many
combinations ran, of all or one share of them, in how many the fault happened, and a line for each that ended wrongly.
With ``calls`` in place of the share it prints the calls of one run without a fault.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from tests.disk_faults import DONE, FAIL, SHORT, Call, DiskFaults, Fault

NUMBERS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.EROFS,
    errno.EACCES,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINTR,
)
REPEATED = {
    "rename": errno.ENOENT,
    "renameat2": errno.ENOENT,
    "link": errno.EEXIST,
    "unlink": errno.ENOENT,
    "mkdir": errno.EEXIST,
    "rmdir": errno.ENOENT,
}
"""What a second try of a call reports whose first answer was lost, as NFS sends one again."""
FEW = 3  # errnos of a call that comes again
_ANY = re.compile(r"[0-9a-f]{8,}|\d+")  # what differs between the paths of calls of one place in the code
LOOKS = {"stat", "statvfs", "getxattr", "read", "opendir", "close"}
"""Calls of which "done, but reported as failed" is no case of its own."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: ``label`` is that of its error, "" for success."""

    label: str
    text: str = ""


class Workload(ABC):
    """Something that writes files below a folder, again and again; used by one thread."""

    always: tuple[Fault, ...] = ()  # what the file system is like in all runs
    since = ""  # the kind of call from whose first one on calls fail; "": all do
    is_repeatable = True  # whether a run after a successful one is to succeed

    def spares(self, fault: Fault, path: str) -> bool:
        """Whether a fault at a path is left out."""
        return False

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Put into the empty folder what a run finds there."""

    @abstractmethod
    def run(self, folder: Path) -> Ended:
        """Do it. Whatever it raises is a defect."""

    @abstractmethod
    def wrong(self, folder: Path, ended: Ended) -> str:
        """What is wrong with the files after a run that ended so; "" if nothing is."""

    @abstractmethod
    def labels(self, number: int) -> set[str]:
        """The labels that an error of that errno may have."""


class Matrix:
    """The combinations of one workload, in folders below ``folder``."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._workload = workload
        self._root = folder
        self._faults = DiskFaults()
        self.runs = self.fired = 0
        self.failures: list[str] = []

    def calls(self) -> list[Call]:
        """The calls of a run without a fault; paths are relative to its folder."""
        folder = self._fresh()
        self._watch(folder)
        ended = self._workload.run(folder)
        calls = self._faults.calls()
        self._faults.stop()
        wrong = self._workload.wrong(folder, ended)
        assert not (ended.label or wrong), f"the workload fails without a fault: {ended} {wrong}"
        return [Call(kind, *(path.removeprefix(f"{folder}/") for path in paths)) for kind, *paths in calls]

    def run(self, share: int, of: int) -> None:
        """Run the combinations of one share, from 0, of so many."""
        number = 0
        counts, since, alike = Counter[str](), self._workload.since, Counter[tuple[str, ...]]()
        for call in self.calls():
            counts[call.kind] += 1
            if not since or counts[since]:
                place = call.kind, *(_ANY.sub("*", path) for path in (call.path, call.second))
                alike[place] += 1
                for fault in _ways(call.kind, counts[call.kind], alike[place]):
                    number += 1
                    if number % of == share and not self._workload.spares(fault, call.path):
                        self._one(fault, call.path)

    def _one(self, fault: Fault, place: str) -> None:
        folder, workload = self._fresh(), self._workload
        self._watch(folder)
        number = self._faults.add(fault)
        problems = []
        try:
            ended = workload.run(folder)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            ended = Ended("traceback", f"{type(error).__name__}: {error}")
        has_fired = bool(self._faults.fired(number))
        self._faults.stop()
        self.runs += 1
        self.fired += has_fired
        if ended.label and ended.label not in (workload.labels(fault.number) if has_fired else ()):
            problems.append(f"ended as {ended.label}: {ended.text}")
        problems.append(workload.wrong(folder, ended))
        problems.append(_leaked(folder))
        try:
            again = workload.run(folder) if ended.label or workload.is_repeatable else ended
        except Exception as error:  # noqa: BLE001
            again = Ended("traceback", f"{type(error).__name__}: {error}")
        if again.label:
            problems.append(f"the next run ended as {again.label}: {again.text}")
        else:
            wrong = workload.wrong(folder, again)
            problems.append(wrong and f"the next run: {wrong}")
        found = "; ".join(filter(None, problems)).replace(str(folder), "")
        if found:
            self.failures.append(f"{fault} at {place}: {found}")

    def _fresh(self) -> Path:
        folder = self._root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._workload.prepare(folder)
        return folder

    def _watch(self, folder: Path) -> None:
        self._faults.watch(folder)
        for fault in self._workload.always:
            self._faults.add(fault)


def _leaked(folder: Path) -> str:
    """The descriptors that are still open below the folder; they are closed."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            if path.startswith(f"{folder}/"):
                os.close(int(name))
                found.append(path)
    return f"descriptors stay open: {found}" if found else ""


def _ways(kind: str, nth: int, repeated: int) -> Iterator[Fault]:
    """In which ways that call fails: the ``repeated``th of its kind at such a path.

    The first one fails with each errno, the others with a few, which are others each time.
    """
    first = 0 if repeated == 1 else FEW * repeated
    for number in NUMBERS if repeated == 1 else islice(cycle(NUMBERS), first, first + FEW):
        yield Fault(kind, nth, FAIL, number)
    if kind not in LOOKS:
        yield Fault(kind, nth, DONE, errno.EIO)
    if kind in REPEATED:
        yield Fault(kind, nth, DONE, REPEATED[kind])
    if kind in ("write", "splice"):
        yield Fault(kind, nth, SHORT, errno.ENOSPC)


def main() -> None:
    """Run the matrix of one workload, or it once, and print what was found."""
    from tests.disk_downloads import DOWNLOADS
    from tests.disk_uploads import UPLOADS

    name, folder, *rest = sys.argv[1:]
    os.umask(0o022)
    matrix = Matrix({**DOWNLOADS, **UPLOADS}[name](Path(folder)), Path(folder))
    if rest == ["calls"]:
        print(json.dumps([list(call) for call in matrix.calls()]))
    else:
        matrix.run(*map(int, rest or ["0", "1"]))
        print(json.dumps({"runs": matrix.runs, "fired": matrix.fired, "failures": matrix.failures}))
    sys.stdout.flush()
    os._exit(0)  # whatever threads there are


if __name__ == "__main__":
    main()
