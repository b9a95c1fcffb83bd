"""The session file of a batch: it records which items are done.

The file has one line per completed item: the first 64 bits, in hexadecimal, of a hash
of URL and target. If a crash truncates the line of an item, the next run downloads the
item again.
"""

from __future__ import annotations

import os
import threading
from hashlib import blake2b
from pathlib import Path

from dlpool import disk
from dlpool.disk_errors import translated
from dlpool.errors import LocalFault
from dlpool.filelock import FileLock
from dlpool.lock_files import LockForeign, LockHeld
from dlpool.transfer.job import Job

HEAD = b"dlpool batch 1\n"
ENGINE_HEAD = b'{"begin": '  # the first bytes of an engine session
DIGITS = 16  # of one line


class BatchSession:
    """The locked session file of one batch. Thread-safe.

    Each line is one write. The lock guards the descriptor.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock the file.

        Raises LocalFault if the file cannot be used, if another batch has locked the
        file, or if the file is not a batch session.
        """
        self._path = path
        self._lock = threading.Lock()
        self._file_lock: FileLock | None = None
        with translated(f"use the session {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        try:
            with translated(f"use the session {path}"):
                self._file_lock = FileLock(self._descriptor, path)
                self._done = self._read()
        except (LockHeld, LockForeign):
            self.close()
            raise LocalFault(f"the session {path} is used by another batch") from None
        except LocalFault:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<BatchSession {self._path}: {len(self._done)}>"

    def is_done(self, job: Job) -> bool:
        """Return whether an earlier run completed this job."""
        return _key(job) in self._done

    def mark_done(self, job: Job) -> None:
        """Record a completed job. Raises LocalFault."""
        with self._lock, translated(f"write the session {self._path}"):
            if self._descriptor >= 0:
                disk.write_all(self._descriptor, b"%016x\n" % _key(job))

    def close(self) -> None:
        """Release the lock and close the file."""
        with self._lock:
            if self._descriptor >= 0:
                self._descriptor, descriptor = -1, self._descriptor
                disk.close_quietly(descriptor)
            if self._file_lock is not None:
                self._file_lock.release()

    def _read(self) -> set[int]:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            head = file.readline()
            if not head:
                disk.write_all(self._descriptor, HEAD)
                return set()
            if head.startswith(ENGINE_HEAD):
                raise LocalFault(
                    f"{self._path} is the session of an engine, not of download_many "
                    f"or a list: name another"
                )
            if head != HEAD:
                raise LocalFault(f"{self._path} is not the session of a batch")
            done = {
                int(line, 16)
                for line in file
                if len(line) == DIGITS + 1 and line.endswith(b"\n")
            }
            if file.tell() and not _ends_with_newline(self._descriptor):
                disk.write_all(self._descriptor, b"\n")
            return done


def _ends_with_newline(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"


def _key(job: Job) -> int:
    text = f"{job.url}\0{job.target}".encode(errors="surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=DIGITS // 2).digest(), "big")
