"""Which items of a list are done: a file that a batch of any length can go on with.

A line an item, in hex: the first 64 bits of a hash of URL and target. What a kill has
cut off is done again.
"""

from __future__ import annotations

import os
import threading
from hashlib import blake2b
from pathlib import Path

from dlpool import disk
from dlpool.disk import translated
from dlpool.errors import LocalFault
from dlpool.filelock import FileLock, LockForeign, LockHeld
from dlpool.transfer.job import Job

HEAD = b"dlpool batch 1\n"
ENGINE_HEAD = b'{"begin": '  # how the session of an engine begins
DIGITS = 16


class BatchSession:
    """One batch's file; it holds LOCK_EX on it. Thread-safe: a line is one write, the
    lock guards the descriptor."""

    def __init__(self, path: Path) -> None:
        """Raises LocalFault, also for a file that another batch has, or that is
        something else."""
        self._path = path
        self._lock = threading.Lock()
        self._held: FileLock | None = None
        with translated(f"use the session {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        try:
            with translated(f"use the session {path}"):
                self._held = FileLock(self._descriptor, path)
                self._done = self._read()
        except (LockHeld, LockForeign):
            self.close()
            raise LocalFault(f"the session {path} is another batch's") from None
        except LocalFault:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<BatchSession {self._path}: {len(self._done)}>"

    def is_done(self, job: Job) -> bool:
        """Whether an earlier run has done it."""
        return _key(job) in self._done

    def mark_done(self, job: Job) -> None:
        """It is done. Raises LocalFault."""
        with self._lock, translated(f"write the session {self._path}"):
            if self._descriptor >= 0:
                disk.write_all(self._descriptor, b"%016x\n" % _key(job))

    def close(self) -> None:
        """Let another batch have it."""
        with self._lock:
            if self._descriptor >= 0:
                self._descriptor, descriptor = -1, self._descriptor
                disk.close_quietly(descriptor)
            if self._held is not None:
                self._held.release()

    def _read(self) -> set[int]:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            head = file.readline()
            if not head:
                os.write(self._descriptor, HEAD)
                return set()
            if head.startswith(ENGINE_HEAD):
                raise LocalFault(
                    f"{self._path} is the session of an engine, not of download_many "
                    f"or a list: name another"
                )
            if head != HEAD:
                raise LocalFault(f"{self._path} is no session of a batch")
            done = {
                int(line, 16)
                for line in file
                if len(line) == DIGITS + 1 and line.endswith(b"\n")
            }
            if file.tell() and not _ends_line(self._descriptor):
                os.write(self._descriptor, b"\n")
            return done


def _ends_line(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"


def _key(job: Job) -> int:
    text = f"{job.url}\0{job.target}".encode(errors="surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=DIGITS // 2).digest(), "big")
