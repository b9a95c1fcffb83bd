"""The folder of one task: its chunks, its metadata and its locks."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.storage import states
from dlpool.storage.disk.chunk_file import chunk_path, list_chunks
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import is_locked, lock_shared, release, try_lock
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.task_record import (
    IDENTITY,
    TaskIdentity,
    TaskRecord,
    load_identity,
    load_record,
    save_record,
)
from dlpool.storage.errors import UploadError, no_such_task, task_removed
from dlpool.storage.values import (
    StoredChunk,
    UploadEvent,
    UploadEventListener,
    ignore_event,
)

_MERGE_LOCK, _APPEND_LOCK = "merge.lock", "patch.lock"


def check_access(
    identity: TaskIdentity, owner: str | None, protocol: str | None = None
) -> None:
    """Raise UploadError unless ``owner`` may access the task.

    Raises UploadError as well if the task uses another protocol than ``protocol``. The
    ``protocol`` None allows any.
    """
    if not identity.is_visible_to(owner):
        raise no_such_task()
    if protocol not in (None, identity.protocol):
        text = "the task is uploaded by another protocol: choose another file_id"
        raise UploadError("other_protocol", text)


class SharedTaskLock:
    """A shared lock on a task, held while a chunk is received.

    While it is held, the task does not expire, but it may be deleted. After a deletion,
    ``is_stale`` returns True, and the receiver of the chunk does not create the task
    again. The locked file is ``identity.json``, which exists exactly as long as the
    task.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: the open, locked file; ``release`` closes it."""
        self._descriptor = descriptor

    def is_stale(self, folder: Path) -> bool:
        """Return whether the locked task has been removed or replaced. Raises OSError.

        The caller holds the exclusive lock of the task.
        """
        locked = os.fstat(self._descriptor)
        try:
            current = os.stat(folder / IDENTITY)
        except FileNotFoundError:
            return True
        return (current.st_dev, current.st_ino) != (locked.st_dev, locked.st_ino)

    def release(self) -> None:
        """Release the lock."""
        release(self._descriptor)


@dataclass(frozen=True)
class TaskFolder:
    """The folder of a task; the folder need not exist. Methods raise OSError.

    Methods that change something need the exclusive lock of the task (see
    ``StoreLayout``).
    """

    folder: Path
    durability: Durability
    listener: UploadEventListener = ignore_event

    def emit_event(
        self,
        name: str,
        record: TaskRecord,
        identity: TaskIdentity | None = None,
        **details: Any,
    ) -> None:
        """Pass a change of the task to the listener.

        ``identity``: None to read it from the folder. Nothing happens if there is none.
        An OSError is ignored, because the change has been made.
        """
        with suppress(OSError):
            known = identity or self.identity()
            if known is not None:
                self.listener(
                    UploadEvent(
                        name,
                        known.file_id,
                        known.protocol,
                        known.owner,
                        record.filename,
                        record.file_size,
                        details,
                    )
                )

    def identity(self) -> TaskIdentity | None:
        """Return the identity; None if it is missing or damaged."""
        return load_identity(self.folder)

    def owned_identity(
        self, owner: str | None, protocol: str | None = None
    ) -> TaskIdentity:
        """Return the identity if ``owner`` may access the task.

        Raises UploadError if the task does not exist, and the errors of
        ``check_access``.
        """
        identity = self.identity()
        if identity is None:
            raise no_such_task()
        check_access(identity, owner, protocol)
        return identity

    def chunks(self) -> dict[int, StoredChunk]:
        """Return the complete chunks by index.

        For a completed task, return the chunks that were merged.
        """
        return self.chunks_of(load_record(self.folder))

    def chunks_of(self, record: TaskRecord | None) -> dict[int, StoredChunk]:
        """Return the same chunks as ``chunks``, without loading the record.

        ``record``: the loaded record, None if it is missing.
        """
        if record is not None and record.status == states.COMPLETED:
            return {entry[0]: StoredChunk(*entry) for entry in record.chunks}
        return list_chunks(self.folder)

    def record(self) -> TaskRecord:
        """Return the record with its effective state (see ``states.effective_state``).

        A lost record is rebuilt from the chunks.
        """
        return self.effective(load_record(self.folder))

    def effective(self, loaded: TaskRecord | None) -> TaskRecord:
        """Return the loaded record with its effective state.

        ``loaded``: None if the record is missing; it is then rebuilt from the chunks.
        """
        record = loaded or self._rebuilt_record()
        has_chunks = record.status in (states.PENDING, states.MERGING) and bool(
            list_chunks(self.folder)
        )
        is_merging = record.status == states.MERGING and self.is_merging()
        status = states.effective_state(
            record.status, has_chunks=has_chunks, is_merging=is_merging
        )
        return replace(record, status=status)

    def save(
        self,
        record: TaskRecord,
        *,
        durability: Durability | None = None,
        **changes: Any,
    ) -> TaskRecord:
        """Write the record with the changes and the current time, and return it.

        ``durability`` overrides the durability of the task.
        """
        record = replace(record, **changes, updated_at=time.time())
        save_record(
            self.folder,
            record,
            durability=self.durability if durability is None else durability,
        )
        return record

    def sync(self) -> None:
        """Make the names in the folder durable. Raises UploadError."""
        with translate_os_errors("store the chunk"):
            try:
                self.durability.sync_folder(self.folder)
            except FileNotFoundError as error:
                raise task_removed() from error

    def chunk_path(self, index: int) -> Path:
        """Return the path of a chunk."""
        return chunk_path(self.folder, index)

    def try_lock_merge(self) -> int | None:
        """Take the merge lock and return the descriptor that holds it.

        None if another descriptor holds the lock.
        """
        return try_lock(self.folder / _MERGE_LOCK)

    def is_merging(self) -> bool:
        """Return whether a running process merges the task."""
        return is_locked(self.folder / _MERGE_LOCK)

    def try_lock_append(self) -> int | None:
        """Take the append lock and return the descriptor that holds it.

        None if another descriptor holds the lock.
        """
        return try_lock(self.folder / _APPEND_LOCK)

    def request_unlock(self) -> None:
        """Ask the holder of the append lock to release it.

        Changes the modification time of the lock file, which needs no disk space.
        """
        now = time.time_ns()
        with suppress(FileNotFoundError):
            os.utime(self.folder / _APPEND_LOCK, ns=(now, now))

    def lock_shared(self) -> SharedTaskLock | None:
        """Take and return a shared lock; None if the task does not exist."""
        descriptor = lock_shared(self.folder / IDENTITY)
        return None if descriptor is None else SharedTaskLock(descriptor)

    def is_receiving(self) -> bool:
        """Return whether a running process receives bytes for the task."""
        return is_locked(self.folder / IDENTITY) or is_locked(
            self.folder / _APPEND_LOCK
        )

    def _rebuilt_record(self) -> TaskRecord:
        chunks = list_chunks(self.folder).values()
        updated_at = max(
            (chunk.stored_at for chunk in chunks), default=self.folder.stat().st_mtime
        )
        return TaskRecord(
            updated_at=updated_at, received=sum(chunk.size for chunk in chunks)
        )
