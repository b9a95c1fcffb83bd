"""Downloads whose file system calls are made to fail: see ``disk_matrix``."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dlpool import errors, filelock
from dlpool.errors import DlpoolError
from dlpool.transfer import attempt as rounds
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.job import Job
from dlpool.transfer.transfer import Transfer
from tests.conftest import FAST, PATIENT, make_data
from tests.disk_faults import ALWAYS, DONE, FAIL, PRETEND, Fault
from tests.disk_matrix import Ended, Workload
from tests.origin import Connection, File, Origin, Request
from tests.splicing import splice_all

NAME = "file.bin"
OLD = b"what was there before"
_NAMED = {
    errno.ENOSPC: errors.NoSpace,
    errno.EDQUOT: errors.NoSpace,
    errno.EROFS: errors.ReadOnly,
    errno.EIO: errors.DiskFailed,
    errno.ESTALE: errors.DiskFailed,
    errno.EACCES: errors.NotPermitted,
}


class Download(Workload):
    """A download into a folder, by one long-lived client, from an origin of this process."""

    size = 10_000
    is_old_there = False
    settings: ClassVar[dict[str, Any]] = {}
    job: ClassVar[dict[str, Any]] = {}
    folder_name = "made/by/it"

    def __init__(self, scratch: Path) -> None:
        rounds.CHECKPOINT_S = rounds.COALESCE_S = 0.0
        rounds.CHECKPOINT_POLL_S = 0.002
        self.data = make_data(self.size)
        self.origin = Origin(File(self.data)).__enter__()
        self.client = HttpClient(PATIENT, 16, HostHolds(time.monotonic), NetworkMonitor(time.monotonic))

    def prepare(self, folder: Path) -> None:
        filelock._flock_works.clear()  # each run tries again whether flock(2) locks
        if self.is_old_there:
            target = self.target(folder)
            target.parent.mkdir(parents=True)
            target.write_bytes(OLD)
            target.chmod(0o600)

    def target(self, folder: Path) -> Path:
        """Where the file goes."""
        return folder / self.folder_name / NAME

    def run(self, folder: Path) -> Ended:
        settings = replace(FAST, **{"sync": True, "connections": 1, **self.settings})
        job = Job(f"{self.origin.url}/{NAME}", self.target(folder), False, {}, None, None, **self.job)
        try:
            Transfer(job, settings, self.client).run()
        except DlpoolError as error:
            return Ended(error.label, str(error))
        return Ended("")

    def wrong(self, folder: Path, ended: Ended) -> str:
        target = self.target(folder)
        content = target.read_bytes() if target.exists() else None
        old = OLD if self.is_old_there else None
        if ended.label:
            if content == self.data:
                return "an error, and the complete file under its name"
            return "" if content == old else "a wrong file under its name"
        if content != self.data:
            return "success, and not the right file"
        if self.is_old_there and stat.S_IMODE(target.stat().st_mode) != 0o600:
            return "the mode is another one"
        left = sorted(set(os.listdir(target.parent)) - {NAME})
        return f"left {left}" if left and not self.job else ""

    def labels(self, number: int) -> set[str]:
        return {_NAMED.get(number, errors.LocalFault).label}


class Small(Download):
    """One request, into folders that are not there yet."""


class Exclusive(Download):
    """``if_exists = fail``: renameat2(2) gives the name."""

    settings: ClassVar[dict[str, Any]] = {"if_exists": "fail"}
    is_repeatable = False


class NoFlags(Exclusive):
    """The same on a file system without flags of renameat2(2), as in user space: a hard link gives the name."""

    always = (Fault("renameat2", 1, FAIL, errno.EINVAL, last=ALWAYS),)
    since = "renameat2"


class NoLinks(Exclusive):
    """The same without hard links either, as exFAT is."""

    always = (*NoFlags.always, Fault("link", 1, FAIL, errno.EPERM, last=ALWAYS))
    since = "renameat2"


class NoLocks(Download):
    """On a file system whose flock(2) succeeds and locks nothing: a lock file stands for it."""

    always = (Fault("flock", 1, PRETEND, last=ALWAYS),)

    def spares(self, fault: Fault, path: str) -> bool:
        """A lock file that was created, and the call reported as failed, is nobody's: it is given up after a minute."""
        return path.endswith(".lock") and fault.kind == "open" and fault.action == DONE


class Replacing(Download):
    """A target that only its owner may read is replaced."""

    is_old_there = True
    settings: ClassVar[dict[str, Any]] = {"if_exists": "overwrite"}


class OfJob(Download):
    """For a job of the queue: the file is marked before it gets its name."""

    job: ClassVar[dict[str, Any]] = {"id": "job-1", "fence": 7}


class Resumed(Download):
    """A large file in several ranges, of which an earlier run has fetched some; with checkpoints."""

    size = 1_300_000
    settings: ClassVar[dict[str, Any]] = {"min_split_size": 256 * 1024, "connections": 3}

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._earlier = scratch / "earlier"
        self._earlier.mkdir()
        file = self.origin.handler
        self.origin.handler = self._cut
        ended = self.run(self._earlier)
        self.origin.handler = file
        assert ended.label, "the first run was to be cut"
        assert (self.target(self._earlier).parent / f"{NAME}.part.meta").exists()

    def _cut(self, request: Request, connection: Connection) -> None:
        span = request.range
        if span is not None and span.start:
            connection.answer(404)
            return
        head = {
            "Content-Length": str(self.size),
            "ETag": '"v1"',
            "Accept-Ranges": "bytes",
            "Content-Range": f"bytes 0-{self.size - 1}/{self.size}",
        }
        connection.answer(206 if span else 200, head, length=False)
        connection.send(self.data[:400_000])
        connection.hang_up()

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        shutil.copytree(self._earlier, folder, dirs_exist_ok=True)


class Spliced(Download):
    """A body that is spliced into the file."""

    size = 700_000

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        splice_all(pytest.MonkeyPatch())


DOWNLOADS: dict[str, Callable[[Path], Workload]] = {
    "small": Small,
    "exclusive": Exclusive,
    "no-flags": NoFlags,
    "no-links": NoLinks,
    "no-locks": NoLocks,
    "replacing": Replacing,
    "of-job": OfJob,
    "resumed": Resumed,
    "spliced": Spliced,
}
