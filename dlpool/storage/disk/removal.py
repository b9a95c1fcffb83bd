"""Removes tasks that are deleted, old or expired, and leftovers of killed processes.

Several processes may remove tasks at the same time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage import states
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.layout import StoreLayout, remove_abandoned
from dlpool.storage.disk.part_claims import claimant_of, claimed_parts, without_parts
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.values import DELETED_EVENT, EXPIRED_EVENT, SweepResult

DAY_S = 86400.0
SWEEP_TIMEOUT_S = 300.0  # to wait for a slot to scan all folders


@dataclass(frozen=True)
class TaskRemover:
    """Removes tasks, never a merged file. Methods raise UploadError."""

    layout: StoreLayout
    settings: UploadSettings
    index: TaskIndex

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks.

        Raises UploadError, for example no_such_task or task_merging.
        """
        while not self._has_deleted(file_id, owner):
            self.remove_parts(file_id)

    def _has_deleted(self, file_id: str, owner: str | None) -> bool:
        """Remove a task and return True.

        Returns False and removes nothing if the task is a completed final upload with
        parts: the caller has to remove the parts first.
        """
        with self.layout.lock_owned(file_id, owner) as task:
            task.owned_identity(owner)
            record = recover(self.settings, task)
            if record.status == states.MERGING:
                raise states.wrong_state(states.MERGING)
            if _has_parts(record):
                return False
            path = self._trash(task, record, DELETED_EVENT)
        remove_abandoned(path)
        return True

    def remove_parts(self, file_id: str) -> int:
        """Remove the parts of a completed final upload and return their number.

        Releases the lock of the final upload before it removes a part. Tasks share lock
        files, so this thread could otherwise wait for its own lock.
        """
        with self.layout.lock_id(file_id) as task:
            if task.identity() is None:
                return 0
            record = recover(self.settings, task)
        if not _has_parts(record):
            return 0
        count = sum(self._remove_part(part, file_id) for part in claimed_parts(record))
        with self.layout.lock_id(file_id) as task:
            if task.identity() is not None:
                task.save(without_parts(task.record()), durability=NO_SYNC)
        return count

    def _remove_part(self, part: str, final: str) -> bool:
        with self.layout.lock_id(part) as task:
            if (
                task.identity() is None
                or claimant_of(self.layout, task.record()) != final
            ):
                return False
            path = self._trash(task, task.record(), DELETED_EVENT)
        return remove_abandoned(path)

    def remove_old(
        self, owner: str | None, wanted: frozenset[str], age_s: float
    ) -> int:
        """Remove old tasks of ``owner``, or of all owners if ``owner`` is None.

        A task is old if it is in a ``wanted`` state, is not in use and has not changed
        for ``age_s`` seconds. Returns the number of removed tasks.
        """
        known, latest = self.index.current().summaries.items(), time.time() - age_s
        old = [
            name
            for name, one in known
            if one is not None and one.is_visible_to(owner) and one.used_at <= latest
        ]
        return sum(self._remove_if_old(name, owner, wanted, age_s) for name in old)

    def _remove_if_old(
        self, name: str, owner: str | None, wanted: frozenset[str], age_s: float
    ) -> bool:
        try:
            with self.layout.lock_folder(name) as task:
                identity = task.identity()
                if (
                    identity is None
                    or not identity.is_visible_to(owner)
                    or not self._is_old(task, wanted, age_s)
                ):
                    return False
                path = self._trash(task, recover(self.settings, task), DELETED_EVENT)
        except UploadError:  # an unreadable task does not keep others from removal
            return False
        return remove_abandoned(path)

    def sweep(self) -> SweepResult:
        """Remove abandoned files and expired tasks, and recover merges."""
        count, failures = self.layout.sweep(), []
        latest = time.time() - self.settings.task_expiry
        for name, summary in self.index.rescan(
            timeout_s=SWEEP_TIMEOUT_S
        ).summaries.items():
            if (
                summary is not None
                and not summary.needs_recovery
                and summary.used_at > latest
            ):
                continue
            try:
                count += self._sweep_task(name)
            except UploadError as error:
                failures.append(f"{self.layout.tasks_path() / name}: {error.text}")
        return SweepResult(count, tuple(failures))

    def _sweep_task(self, name: str) -> bool:
        with self.layout.lock_folder(name) as task:
            if not os.path.lexists(task.folder):  # it was removed meanwhile
                return False
            if task.identity() is None:  # the folder belongs to no task
                is_expired = (
                    time.time() - task.folder.stat().st_mtime
                    >= self.settings.task_expiry
                )
            else:
                recover(self.settings, task)
                is_expired = self._is_old(
                    task, frozenset(states.STATES), self.settings.task_expiry
                )
            if not is_expired:
                return False
            path = self._trash(task, task.record(), EXPIRED_EVENT)
        return remove_abandoned(path)

    def _trash(self, task: TaskFolder, record: TaskRecord, event: str) -> Path:
        """Remove a task by one rename; emit ``event`` if the task has an identity.

        Returns the new path of its folder. Raises OSError.
        """
        identity = task.identity()
        path = self.layout.trash(task)
        if identity is not None:
            task.emit_event(event, record, identity, status=record.status)
        return path

    def _is_old(self, task: TaskFolder, wanted: frozenset[str], age_s: float) -> bool:
        record = task.record()
        is_busy = (
            record.status == states.MERGING or task.is_receiving() or _has_parts(record)
        )
        changed_at = max(record.updated_at, task.folder.stat().st_mtime)
        return (
            record.status in wanted
            and not is_busy
            and time.time() - changed_at >= age_s
        )


def _has_parts(record: TaskRecord) -> bool:
    """Return whether a completed final upload may still have parts.

    False for any other task. ``record``: the record of the task.
    """
    return record.status == states.COMPLETED and bool(claimed_parts(record))
