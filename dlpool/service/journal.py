"""The jobs that this node has begun, on disk, until what they kept beside their targets
is removed.

A kill at any moment must not leave the part file or the record of a finished job behind
for good: neither between the record in Redis and the removal, nor where another node
has finished the job meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from dlpool import disk, jsontext
from dlpool.disk import translated
from dlpool.service.wire.frames import CleanupEntry
from dlpool.transfer.target.state import url_digest

TIDY_LINES = 1000  # more than that, most of them of no use any more, are written anew


class CleanupJournal:
    """The file ``STATE_DIR/trail``: a line a job, the last one counts. Thread-safe; the
    lock guards file and table.

    Nothing is synced: after a power failure at worst a file is left over. Its methods
    raise LocalFault.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "trail"
        self._lock = threading.Lock()
        self._descriptor = -1
        with translated(f"read {self._path}"):
            text = self._path.read_bytes() if self._path.exists() else b""
        self._open = {
            ended.job_id: ended
            for ended in map(_parsed, text.splitlines())
            if ended is not None
        }
        self._rewrite()

    def __repr__(self) -> str:
        return f"<Trail {self._path}: {len(self._open)} jobs>"

    def add(self, ended: CleanupEntry) -> None:
        """Note what is to be removed when the job has ended."""
        with self._lock, translated(f"write {self._path}"):
            self._open[ended.job_id] = ended
            self._lines += 1
            disk.write_all(self._descriptor, _line(ended))

    def remove(self, ended: Iterable[CleanupEntry]) -> None:
        """Nothing of them is left. One that was retried and has begun again meanwhile
        stays."""
        with self._lock:
            for one in ended:
                known = self._open.get(one.job_id)
                if known is not None and known.fence <= one.fence:
                    del self._open[one.job_id]
            if self._lines > TIDY_LINES + 4 * len(self._open):
                self._rewrite()

    def entries(self) -> dict[str, CleanupEntry]:
        """What is noted, by job."""
        with self._lock:
            return dict(self._open)

    def compact(self) -> None:
        """Keep only what is still of use."""
        with self._lock:
            self._rewrite()

    def _rewrite(self) -> None:
        temporary = self._path.with_name("trail.tmp")
        with translated(f"write {self._path}"):
            descriptor = disk.create_exclusive(temporary, 0o600, flags=os.O_APPEND)
            try:
                disk.write_all(descriptor, b"".join(map(_line, self._open.values())))
                disk.replace(
                    temporary,
                    self._path,
                    identity=disk.identity_of(os.fstat(descriptor)),
                )
            except OSError:
                disk.close_quietly(descriptor)
                raise
            if self._descriptor >= 0:
                disk.close_quietly(self._descriptor)
            self._descriptor, self._lines = descriptor, len(self._open)


def _line(ended: CleanupEntry) -> bytes:
    return jsontext.dumps(list(ended)) + b"\n"


def _parsed(line: bytes) -> CleanupEntry | None:
    """The job of a line; None for one that a kill has cut off. Earlier versions wrote
    the URL itself."""
    try:
        fields = [*jsontext.loads(line), 0, ""]  # older lines have fewer
        job_id, url, save_path, path, has_failed, fence, trace_id = fields[:7]
        digest = url_digest(url) if "://" in url else str(url)
        where = path if path is None else str(path)
        return CleanupEntry(
            str(job_id),
            digest,
            str(save_path),
            where,
            bool(has_failed),
            int(fence),
            str(trace_id),
        )
    except (ValueError, TypeError):
        return None
