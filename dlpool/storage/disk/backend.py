"""The upload backend on a file system.

It assembles the modules of this package behind the interfaces of ``storage``.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from dlpool.config import UploadSettings
from dlpool.disk import OnUnsynced
from dlpool.storage import states
from dlpool.storage.disk.append_lock import DiskLocker
from dlpool.storage.disk.capacity import list_volumes
from dlpool.storage.disk.catalog import read_cursor
from dlpool.storage.disk.chunk_receiver import DiskChunkReceiver
from dlpool.storage.disk.concatenation import DiskConcatenator
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import release_on_error
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merger import Merger
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.ownership import OwnershipStore
from dlpool.storage.disk.quota import OwnerQuota
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.removal import DAY_S, SWEEP_TIMEOUT_S, TaskRemover
from dlpool.storage.disk.safe_open import open_file_below
from dlpool.storage.disk.scanning import NO_SCANNER, UploadScanner
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.disk.task_summary import describe
from dlpool.storage.disk.tus_uploads import DiskTusUploads
from dlpool.storage.errors import UploadError
from dlpool.storage.names import file_not_found, split_folders
from dlpool.storage.upload_requests import MergeRequest
from dlpool.storage.values import (
    MAX_PAGE,
    PAUSED_EVENT,
    RESUMED_EVENT,
    MergeResult,
    SweepResult,
    TaskCounts,
    TaskDetail,
    TaskPage,
    UploadEventListener,
    Volume,
    ignore_event,
)


class DiskBackend:
    """Implements ``UploadBackend`` in ``upload_dir`` and ``merged_dir``.

    Methods raise only UploadError. The folders are authoritative, and everything that
    is kept in memory is compared with them. So several processes may each open a
    backend in the same folders, and threads may share one backend.
    """

    def __init__(
        self,
        settings: UploadSettings,
        listener: UploadEventListener = ignore_event,
        on_unsynced: OnUnsynced | None = None,
        scanner: UploadScanner = NO_SCANNER,
    ) -> None:
        """Create a backend. For the arguments see ``open_backend``."""
        self.settings = settings
        durability = Durability(settings.enable_atomic_operations, on_unsynced)
        self.layout = StoreLayout(
            settings.upload_dir, durability=durability, listener=listener
        )
        self.index = TaskIndex(self.layout)
        self._ownerships = OwnershipStore(self.layout.root, durability)
        self._merger = Merger(self.layout, settings, scanner)
        self._quota = OwnerQuota(self.layout, settings, self.index)
        self._remover = TaskRemover(self.layout, settings, self.index)
        self.chunks = DiskChunkReceiver(self.layout, settings, self._quota)
        self.locker = DiskLocker(self.layout, settings)
        self.tus = DiskTusUploads(self.layout, settings, self._merger, self._quota)
        self.concatenator = DiskConcatenator(
            self.layout, settings, self.tus, self._remover
        )

    def __repr__(self) -> str:
        return f"<DiskBackend {self.layout.root} -> {self.settings.merged_dir}>"

    def merge(self, request: MergeRequest) -> MergeResult:
        """Publish the file of a task. A repeated request returns the first result."""
        return self._merger.merge(request)

    def find_task(self, file_id: str, owner: str | None) -> TaskDetail | None:
        """Return a task, None if it does not exist or has another owner."""
        with self.layout.read_owned(file_id, owner) as task:
            identity = task.identity()
            if identity is None or not identity.is_visible_to(owner):
                return None
            return describe(identity, task.record(), task.chunks())

    def task(self, file_id: str, owner: str | None) -> TaskDetail:
        """Return a task. Raises UploadError: no_such_task."""
        with self.layout.read_owned(file_id, owner) as task:
            return describe(task.owned_identity(owner), task.record(), task.chunks())

    def tasks(
        self,
        owner: str | None,
        *,
        limit: int = MAX_PAGE,
        cursor: str = "",
        status: Iterable[str] = (),
    ) -> TaskPage:
        """Return at most ``limit`` tasks, sorted by id.

        ``cursor``: ``next_cursor`` of the previous page, empty for the first page.
        ``status``: the states of the returned tasks, empty for all states. A task that
        exists and keeps its state while all pages are requested is on exactly one page.
        """
        wanted = frozenset(status) or frozenset(states.STATES)
        if not wanted <= set(states.STATES):
            raise UploadError(
                "bad_field", f"status must be one of {', '.join(states.STATES)}"
            )
        if not 1 <= limit <= MAX_PAGE:
            raise UploadError("bad_field", f"limit must be 1 to {MAX_PAGE}")
        after = read_cursor(cursor)
        return self.index.current().page(owner, wanted, after, limit)

    def counts_by_state(self) -> Mapping[str, TaskCounts]:
        """Return the number, bytes and files of the tasks of all owners, by state."""
        return self.index.current().counts()

    def pause(self, file_id: str, owner: str | None) -> TaskDetail:
        """Refuse chunks of the task until it is resumed."""
        return self._change_state(file_id, owner, states.PAUSED)

    def resume(self, file_id: str, owner: str | None) -> TaskDetail:
        """Accept chunks of a paused task again."""
        return self._change_state(file_id, owner, states.UPLOADING)

    def _change_state(self, file_id: str, owner: str | None, wanted: str) -> TaskDetail:
        with self.layout.lock_owned(file_id, owner) as task:
            identity = task.owned_identity(owner)
            record = recover(self.settings, task)
            was_paused = record.status == states.PAUSED
            record = task.save(
                record, status=states.check_transition(record.status, wanted)
            )
            if was_paused != (record.status == states.PAUSED):
                task.emit_event(
                    RESUMED_EVENT if was_paused else PAUSED_EVENT, record, identity
                )
            return describe(identity, record, task.chunks())

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks, not the published file."""
        self._remover.delete(file_id, owner)

    def cleanup(
        self,
        owner: str | None,
        status: Sequence[str] = (states.FAILED, states.PAUSED),
        older_than_days: float = 7,
    ) -> int:
        """Remove tasks that have not changed for ``older_than_days``.

        ``status``: only tasks in these states. Returns the number of removed tasks.
        """
        unknown = set(status) - set(states.STATES)
        if unknown or not (math.isfinite(older_than_days) and older_than_days >= 0):
            text = (
                f"status must be one of {', '.join(states.STATES)}, older_than a "
                "number of days"
            )
            raise UploadError("bad_cleanup", text)
        return self._remover.remove_old(
            owner, frozenset(status), older_than_days * DAY_S
        )

    def sweep(self) -> SweepResult:
        """Remove expired tasks and leftovers of killed processes.

        Completes interrupted merges and tus uploads.
        """
        self.layout.create_folders()
        swept = self._remover.sweep()
        self._ownerships.sweep(self.settings.merged_dir, time.time() - DAY_S)
        removed = swept.removed
        for summary in self.index.rescan(timeout_s=SWEEP_TIMEOUT_S).summaries.values():
            if summary is not None and summary.needs_recovery:
                # A task of the other protocol is refused; after another error a later
                # sweep tries again.
                with suppress(UploadError):
                    removed += self.concatenator.recover(summary.file_id)
                    self.tus.recover_idle(summary.file_id)
        return swept._replace(removed=removed)

    def open_merged(self, path: str, reader: str | None) -> DiskMergedFile:
        """Open a published file.

        Raises UploadError, for example not_found if the file does not exist or
        ``reader`` has no access to it.
        """
        with translate_os_errors("read the file"):
            descriptor = self._open_merged(path, reader)
            with release_on_error(descriptor):
                ownership = (
                    None if reader is None else self._ownerships.read(descriptor, path)
                )
                if ownership is None or ownership.is_readable(
                    reader, self.settings.shared_files
                ):
                    return DiskMergedFile(descriptor)
                raise file_not_found(path)

    def _open_merged(self, path: str, reader: str | None) -> int:
        try:
            return open_file_below(self.settings.merged_dir, path)
        except UploadError:
            # Report an unsafe path to all readers.
            split_folders(path.rpartition("/")[0])
            if reader is None:
                raise
            # Another reason would reveal that a file or folder exists.
            raise file_not_found(path) from None

    def volumes(self) -> Sequence[Volume]:
        """Return the current state of ``upload_dir`` and ``merged_dir``."""
        return list_volumes(self.settings)


class DiskMergedFile:
    """Implements ``MergedFile``: an open file below merged_dir. Used by one thread."""

    def __init__(self, descriptor: int) -> None:
        """Take over the open file ``descriptor``, which ``close`` closes. Raises
        OSError."""
        status = os.fstat(descriptor)
        self.size = status.st_size
        self.modified_at = status.st_mtime
        self.etag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        self._descriptor = descriptor

    def read_range(
        self, start: int, size: int, on_close: Callable[[], None]
    ) -> io.RawIOBase:
        """Return a stream of ``size`` bytes from ``start``.

        ``on_close`` is called when the stream is closed.
        """
        os.lseek(self._descriptor, start, os.SEEK_SET)
        return _RangeReader(self._descriptor, size, on_close)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class _RangeReader(io.FileIO):
    """Reads the next ``size`` bytes of a descriptor, which it does not close."""

    def __init__(
        self, descriptor: int, size: int, on_close: Callable[[], None]
    ) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self._left = size
        self._on_close = on_close

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes; empty at the end of the range."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = super().read(wanted) or b""
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the stream and call ``on_close``."""
        super().close()
        self._on_close()
