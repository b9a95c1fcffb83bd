"""One task's folder: what its chunks, its record and its locks say together."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlpool.storage import states
from dlpool.storage.disk.chunk_file import StoredChunk, chunk_path, list_chunks
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
from dlpool.storage.errors import UploadError
from dlpool.storage.events import UploadEvent, UploadEventListener, ignore_event


def task_removed() -> UploadError:
    """That a task is not there any more."""
    return UploadError(
        404, "no_such_task", "the task was removed meanwhile: send all of it again"
    )


def no_such_task() -> UploadError:
    """That no task has such an id, or none of who asks."""
    return UploadError(
        404, "no_such_task", "there is no such task: send its first chunk"
    )


def check_owner(
    identity: TaskIdentity, owner: str | None, protocol: str | None = None
) -> None:
    """Raise Refusal: 404 if the task is not the owner's, 409 if it is of another
    ``protocol``."""
    if not identity.is_of(owner):
        raise no_such_task()
    if protocol not in (None, identity.protocol):
        raise UploadError(
            409,
            "other_protocol",
            "the task is uploaded by another protocol: choose another file_id",
        )


def sync_task(task: TaskFolder) -> None:
    """Make the names in a task's folder durable. Raises Refusal."""
    with translate_os_errors("store the chunk"):
        try:
            task.sync.sync_folder(task.folder)
        except FileNotFoundError as error:
            raise task_removed() from error


class SharedTaskLock:
    """That somebody sends to a task: it does not expire meanwhile, and is not begun
    anew if it was removed.

    A shared lock of ``identity.json``, whose file lives exactly as long as the task.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of that file, locked; it is closed by ``end``."""
        self._descriptor = descriptor

    def is_stale(self, folder: Path) -> bool:
        """Whether the task in ``folder`` is not the one that was visited. Ask under the
        task's lock. Raises OSError."""
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(folder / IDENTITY)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        release(self._descriptor)


@dataclass(frozen=True)
class TaskFolder:
    """A folder that may be there. Methods raise OSError; who changes something holds
    the task's lock."""

    folder: Path
    sync: Durability
    announce: UploadEventListener = ignore_event

    def emit_event(
        self,
        name: str,
        record: TaskRecord,
        identity: TaskIdentity | None = None,
        **note: Any,
    ) -> None:
        """Announce a change of the task; a task without an identity is not
        announced."""
        with suppress(OSError):  # the change is made, even if it cannot be announced
            known = identity or self.identity()
            if known is not None:
                self.announce(
                    UploadEvent(
                        name,
                        known.file_id,
                        known.protocol,
                        known.owner,
                        record.filename,
                        record.file_size,
                        note,
                    )
                )

    def identity(self) -> TaskIdentity | None:
        """None if there is no such task."""
        return load_identity(self.folder)

    def owned_identity(
        self, owner: str | None, protocol: str | None = None
    ) -> TaskIdentity:
        """The identity, for its owner; ``owner`` None: nobody is asked who he is.
        Raises Refusal: 404.

        409 for a task of another ``protocol``.
        """
        identity = self.identity()
        if identity is None:
            raise no_such_task()
        check_owner(identity, owner, protocol)
        return identity

    def chunks(self) -> dict[int, StoredChunk]:
        """The whole chunks, by index; for a completed task those that it was merged
        from."""
        return self.chunks_of(load_record(self.folder))

    def chunks_of(self, record: TaskRecord | None) -> dict[int, StoredChunk]:
        """The same, of a record that was read."""
        if record is not None and record.status == states.COMPLETED:
            return {entry[0]: StoredChunk(*entry) for entry in record.chunks}
        return list_chunks(self.folder)

    def record(self) -> TaskRecord:
        """The record, with the state that chunks and locks say it has; made anew where
        it is lost."""
        return self.effective(load_record(self.folder))

    def effective(self, noted: TaskRecord | None) -> TaskRecord:
        """The same, of a record that was read."""
        record = noted or self._rebuilt()
        has_chunks = record.status in (states.PENDING, states.MERGING) and bool(
            list_chunks(self.folder)
        )
        is_merging = record.status == states.MERGING and self.is_merging()
        status = states.effective_state(
            record.status, has_chunks=has_chunks, is_merging=is_merging
        )
        return replace(record, status=status)

    def save(
        self, record: TaskRecord, *, sync: Durability | None = None, **changed: Any
    ) -> TaskRecord:
        """Write the record with the changes and the time; ``sync``: overrides the
        task's own. Raises OSError."""
        record = replace(record, **changed, updated_at=time.time())
        save_record(self.folder, record, sync=self.sync if sync is None else sync)
        return record

    def chunk_path(self, index: int) -> Path:
        return chunk_path(self.folder, index)

    def try_lock_merge(self) -> int | None:
        """A descriptor with which this process merges until it is closed; None if
        another one does."""
        return try_lock(self.folder / "merge.lock")

    def is_merging(self) -> bool:
        """Whether a living process merges it."""
        return is_locked(self.folder / "merge.lock")

    def try_lock_append(self) -> int | None:
        """A descriptor with which this process alone appends until it is closed; None
        if another one does."""
        return try_lock(self.folder / "patch.lock")

    def request_unlock(self) -> None:
        """Let who appends know that another one wants to: by the time of the lock file,
        which needs no room."""
        now = time.time_ns()
        with suppress(FileNotFoundError):
            os.utime(self.folder / "patch.lock", ns=(now, now))

    def lock_shared(self) -> SharedTaskLock | None:
        """Begin to send to it; None if there is no such task. Raises OSError."""
        descriptor = lock_shared(self.folder / IDENTITY)
        return None if descriptor is None else SharedTaskLock(descriptor)

    def is_receiving(self) -> bool:
        """Whether somebody sends to it: by ``visit``, or at its end."""
        return is_locked(self.folder / IDENTITY) or is_locked(
            self.folder / "patch.lock"
        )

    def _rebuilt(self) -> TaskRecord:
        chunks = list_chunks(self.folder).values()
        updated_at = max(
            (chunk.stored_at for chunk in chunks), default=self.folder.stat().st_mtime
        )
        return TaskRecord(
            updated_at=updated_at, received=sum(chunk.size for chunk in chunks)
        )
