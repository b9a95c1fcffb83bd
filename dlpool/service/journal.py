"""The clean-up journal: jobs whose part files may exist on this node.

With the journal, the supervisor can remove the part files of ended jobs in two more
cases. It was killed after Redis had recorded a result, but before the files were
removed. Or another node has finished the job.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from dlpool import disk, jsontext
from dlpool.disk_errors import translated
from dlpool.service.wire.frames import CleanupEntry

# the file is rewritten when it has this many lines, and four more for each entry
COMPACT_LINES = 1000


class CleanupJournal:
    """The file ``STATE_DIR/journal``: one line for each entry. If a job has several
    lines, the last line counts.

    Thread-safe; the lock guards the file and the table. The file is not synced: after a
    power failure part files may remain. Methods raise LocalFault.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "journal"
        self._lock = threading.Lock()
        self._descriptor = -1
        with translated(f"read {self._path}"):
            text = self._path.read_bytes() if self._path.exists() else b""
        self._entries = {
            entry.job_id: entry
            for entry in map(_parse, text.splitlines())
            if entry is not None
        }
        self._rewrite()

    def __repr__(self) -> str:
        return f"<CleanupJournal {self._path}: {len(self._entries)} jobs>"

    def add(self, *entries: CleanupEntry) -> None:
        """Append entries in one write. Each entry replaces the earlier entry of its
        job."""
        with self._lock, translated(f"write {self._path}"):
            self._entries |= {entry.job_id: entry for entry in entries}
            self._lines += len(entries)
            disk.write_all(self._descriptor, b"".join(map(_line, entries)))

    def remove(self, entries: Iterable[CleanupEntry]) -> None:
        """Remove entries. An entry of a later attempt of the same job stays."""
        with self._lock:
            for entry in entries:
                known = self._entries.get(entry.job_id)
                if known is not None and known.fence <= entry.fence:
                    del self._entries[entry.job_id]
            if self._lines > COMPACT_LINES + 4 * len(self._entries):
                self._rewrite()

    def entries(self) -> dict[str, CleanupEntry]:
        """Return the entries by job id."""
        with self._lock:
            return dict(self._entries)

    def compact(self) -> None:
        """Rewrite the file without removed and superseded entries."""
        with self._lock:
            self._rewrite()

    def _rewrite(self) -> None:
        temporary = self._path.with_name("journal.tmp")
        with translated(f"write {self._path}"):
            descriptor = disk.create_exclusive(temporary, 0o600, flags=os.O_APPEND)
            try:
                disk.write_all(descriptor, b"".join(map(_line, self._entries.values())))
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
            self._descriptor, self._lines = descriptor, len(self._entries)


def _line(entry: CleanupEntry) -> bytes:
    return jsontext.dumps(list(entry)) + b"\n"


def _parse(line: bytes) -> CleanupEntry | None:
    """Return the entry of a line; None if the line is damaged, for example cut off by a
    kill."""
    try:
        job_id, digest, save_path, path, has_failed, fence, trace_id = jsontext.loads(
            line
        )
        where = path if path is None else str(path)
        return CleanupEntry(
            str(job_id),
            str(digest),
            str(save_path),
            where,
            bool(has_failed),
            int(fence),
            str(trace_id),
        )
    except (ValueError, TypeError):
        return None
