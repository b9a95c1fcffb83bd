"""The append lock of a tus upload, and the request to release it.

A request holds the lock while its body is received. To ask for the lock, another
request changes the modification time of the lock file. The holder sees the new time
when it checks its lock, stops receiving, and releases the lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage import states
from dlpool.storage.disk.file_locks import release, release_on_error
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.part_claims import is_consumed
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.errors import (
    AlreadyComplete,
    UnlockRequested,
    UploadError,
    no_such_task,
    task_removed,
    upload_locked,
)
from dlpool.storage.upload_requests import TUS

LOCK_TIMEOUT_S = 3.0  # within which the lock holder has to release the lock
_POLL_S = 0.02


@dataclass(frozen=True)
class AppendLock:
    """A held append lock.

    ``locked_at_ns``: the modification time of the lock file when it was locked. A
    different modification time is a request to unlock.
    """

    descriptor: int
    locked_at_ns: int

    def check(self) -> None:
        """Raise UnlockRequested if another request waits for the lock.

        Raises UploadError if the upload was removed.
        """
        with translate_os_errors("receive the bytes"):
            status = os.fstat(self.descriptor)
        if status.st_nlink == 0:
            raise task_removed()
        if status.st_mtime_ns != self.locked_at_ns:
            raise UnlockRequested


@dataclass(frozen=True)
class DiskLocker:
    """Implements ``Locker``. May be used by several threads and processes."""

    layout: StoreLayout
    settings: UploadSettings

    @contextmanager
    def lock(self, file_id: str, owner: str | None) -> Iterator[AppendLock]:
        """Hold the append lock of an upload that accepts bytes.

        Asks the current lock holder to release the lock.
        """
        lock = self._acquire(file_id, owner)
        try:
            yield lock
        finally:
            release(lock.descriptor)

    def _acquire(self, file_id: str, owner: str | None) -> AppendLock:
        deadline, has_requested = time.monotonic() + LOCK_TIMEOUT_S, False
        while True:
            with self.layout.lock_id(file_id) as task:
                appendable_record(self.layout, self.settings, task, owner)
                descriptor = task.try_lock_append()
                if descriptor is not None:
                    return _held_lock(descriptor)
                if not has_requested:
                    task.request_unlock()
                    has_requested = True
            if time.monotonic() > deadline:
                raise upload_locked()
            time.sleep(_POLL_S)


def _held_lock(descriptor: int) -> AppendLock:
    """Return the lock that a descriptor holds.

    Raises OSError, after releasing the lock.
    """
    with release_on_error(descriptor):
        return AppendLock(descriptor, os.fstat(descriptor).st_mtime_ns)


def unexpired_record(
    layout: StoreLayout, settings: UploadSettings, task: TaskFolder, owner: str | None
) -> TaskRecord:
    """Return the record of a tus upload; the caller holds the lock of the task.

    Raises OSError, and UploadError, for example ``no_such_task`` or ``expired``. A part
    whose final upload is completed counts as removed.
    """
    task.owned_identity(owner, TUS)
    record = task.record()
    if is_consumed(layout, record):
        raise no_such_task()
    is_late = time.time() > record.updated_at + settings.task_expiry
    if is_late and record.status != states.COMPLETED and not task.is_receiving():
        raise UploadError("expired", "the upload has expired: start it again")
    return record


def appendable_record(
    layout: StoreLayout, settings: UploadSettings, task: TaskFolder, owner: str | None
) -> TaskRecord:
    """Return the record of a tus upload that accepts bytes.

    Raises AlreadyComplete, and the errors of ``unexpired_record``. Raises UploadError
    if the upload is final (concatenated from parts), paused, or being merged.
    """
    record = unexpired_record(layout, settings, task, owner)
    if record.is_final:
        raise UploadError(
            "final",
            "the upload is concatenated from parts: nothing can be appended to it",
        )
    if record.status == states.COMPLETED:
        raise AlreadyComplete(record.file_size)
    if record.status == states.MERGING:
        raise upload_locked()
    states.state_after_chunk(record.status)
    return record


def expires_at(record: TaskRecord, settings: UploadSettings) -> float | None:
    """Return when a tus upload expires, in seconds since the epoch.

    None for a completed upload.
    """
    return (
        None
        if record.status == states.COMPLETED
        else record.updated_at + settings.task_expiry
    )
