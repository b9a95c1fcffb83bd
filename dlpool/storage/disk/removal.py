"""What goes: tasks that are deleted, old or expired, and what killed processes left.
Several processes may clean."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.layout import StoreLayout, remove_abandoned
from dlpool.storage.disk.part_claims import claimant_of, claimed_parts, without_parts
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.events import DELETED, EXPIRED

DAY_S = 86400.0
SWEEP_TIMEOUT_S = 300.0  # for the turn to look at all folders


class SweepResult(NamedTuple):
    """How many files and tasks went, and what could not be looked at, a sentence
    each."""

    removed: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskRemover:
    """Removes tasks, never a merged file."""

    layout: StoreLayout
    settings: UploadSettings
    listing: TaskIndex

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks. Raises Refusal: 404, 409 while it is merged."""
        while not self._deleted(file_id, owner):
            self.remove_parts(file_id)

    def _deleted(self, file_id: str, owner: str | None) -> bool:
        """Remove a task, unless it is completed and its parts are to be removed first;
        whether it did."""
        with self.layout.lock_owned(file_id, owner) as task:
            task.owned_identity(owner)
            record = recover(self.settings, task)
            if record.status == states.MERGING:
                raise states.wrong_state(states.MERGING)
            if _has_parts(record):
                return False
            place = self._removed(task, record, DELETED)
        remove_abandoned(place)
        return True

    def remove_parts(self, file_id: str) -> int:
        """Remove the parts of a final upload that is completed; how many. Raises
        Refusal.

        No lock of the final one is held meanwhile: it may be that of a part, too.
        """
        with self.layout.lock_id(file_id) as task:
            if task.identity() is None:
                return 0
            record = recover(self.settings, task)
        if not _has_parts(record):
            return 0
        count = sum(self._consume_part(part, file_id) for part in claimed_parts(record))
        with self.layout.lock_id(file_id) as task:
            if task.identity() is not None:
                task.save(without_parts(task.record()), sync=NO_SYNC)
        return count

    def _consume_part(self, part: str, final: str) -> bool:
        with self.layout.lock_id(part) as task:
            if (
                task.identity() is None
                or claimant_of(self.layout, task.record()) != final
            ):
                return False
            place = self._removed(task, task.record(), DELETED)
        return remove_abandoned(place)

    def remove_old(
        self, owner: str | None, wanted: frozenset[str], age_s: float
    ) -> int:
        """Remove tasks in one of these states that nothing happened to for so long; how
        many. Raises Refusal."""
        known, latest = self.listing.current().summaries.items(), time.time() - age_s
        old = [
            name
            for name, one in known
            if one is not None and one.is_of(owner) and one.used_at <= latest
        ]
        return sum(self._remove_if(name, owner, wanted, age_s) for name in old)

    def _remove_if(
        self, name: str, owner: str | None, wanted: frozenset[str], age_s: float
    ) -> bool:
        try:
            with self.layout.lock_folder(name) as task:
                identity = task.identity()
                if (
                    identity is None
                    or not identity.is_of(owner)
                    or not self._is_old(task, wanted, age_s)
                ):
                    return False
                place = self._removed(task, recover(self.settings, task), DELETED)
        except UploadError:  # what cannot be read hides no other
            return False
        return remove_abandoned(place)

    def sweep(self) -> SweepResult:
        """Remove temporaries of the dead and expired tasks, end what dead merges began.
        Raises Refusal."""
        count, failures = self.layout.sweep(), []
        latest = time.time() - self.settings.task_expiry
        for name, summary in self.listing.rescan(
            patience_s=SWEEP_TIMEOUT_S
        ).summaries.items():
            if (
                summary is not None
                and not summary.is_unfinished
                and summary.used_at > latest
            ):
                continue
            try:
                count += self._tend(name)
            except UploadError as refusal:
                failures.append(f"{self.layout.tasks_path() / name}: {refusal.text}")
        return SweepResult(count, tuple(failures))

    def _tend(self, name: str) -> bool:
        with self.layout.lock_folder(name) as task:
            if not os.path.lexists(task.folder):  # it was removed meanwhile
                return False
            if task.identity() is None:  # of no use to anybody: no id leads there
                is_over = (
                    time.time() - task.folder.stat().st_mtime
                    >= self.settings.task_expiry
                )
            else:
                recover(self.settings, task)
                is_over = self._is_old(
                    task, frozenset(states.STATES), self.settings.task_expiry
                )
            if not is_over:
                return False
            place = self._removed(task, task.record(), EXPIRED)
        return remove_abandoned(place)

    def _removed(self, task: TaskFolder, record: TaskRecord, event: str) -> Path:
        """Remove a task from its place, announce it, and return the new path of its
        folder. Raises OSError."""
        identity = task.identity()
        place = self.layout.trash(task)
        if identity is not None:
            task.emit_event(event, record, identity, status=record.status)
        return place

    def _is_old(self, task: TaskFolder, wanted: frozenset[str], age_s: float) -> bool:
        record = task.record()
        is_busy = (
            record.status == states.MERGING or task.is_receiving() or _has_parts(record)
        )
        last = max(record.updated_at, task.folder.stat().st_mtime)
        return record.status in wanted and not is_busy and time.time() - last >= age_s


def _has_parts(record: TaskRecord) -> bool:
    """Whether it is a completed final upload whose parts may still be there: they go
    first."""
    return record.status == states.COMPLETED and bool(claimed_parts(record))
