"""What goes: tasks that are deleted, old or expired, and what killed processes left. Several processes may clean."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal
from dlpool.web.store import states
from dlpool.web.store.claims import claimant_of, parts_of, without_parts
from dlpool.web.store.events import DELETED, EXPIRED
from dlpool.web.store.layout import Layout, remove_dead
from dlpool.web.store.listing import Listing
from dlpool.web.store.record import Record
from dlpool.web.store.settling import settle
from dlpool.web.store.syncing import UNSYNCED
from dlpool.web.store.task import Task

DAY_S = 86400.0
SWEEP_PATIENCE_S = 300.0  # for the turn to look at all folders


class Swept(NamedTuple):
    """How many files and tasks went, and what could not be looked at, a sentence each."""

    removed: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cleaner:
    """Removes tasks, never a merged file."""

    layout: Layout
    settings: UploadSettings
    listing: Listing

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks. Raises Refusal: 404, 409 while it is merged."""
        while not self._deleted(file_id, owner):
            self.consume(file_id)

    def _deleted(self, file_id: str, owner: str | None) -> bool:
        """Remove a task, unless it is completed and its parts are to be removed first; whether it did."""
        with self.layout.task_of(file_id, owner) as task:
            task.owned(owner)
            record = settle(self.settings, task)
            if record.status == states.MERGING:
                raise states.wrong_state(states.MERGING)
            if _has_parts(record):
                return False
            place = self._removed(task, record, DELETED)
        remove_dead(place)
        return True

    def consume(self, file_id: str) -> int:
        """Remove the parts of a final upload that is completed; how many. Raises Refusal.

        No lock of the final one is held meanwhile: it may be that of a part, too.
        """
        with self.layout.task(file_id) as task:
            if task.identity() is None:
                return 0
            record = settle(self.settings, task)
        if not _has_parts(record):
            return 0
        count = sum(self._consume_part(part, file_id) for part in parts_of(record))
        with self.layout.task(file_id) as task:
            if task.identity() is not None:
                task.save(without_parts(task.record()), sync=UNSYNCED)
        return count

    def _consume_part(self, part: str, final: str) -> bool:
        with self.layout.task(part) as task:
            if task.identity() is None or claimant_of(self.layout, task.record()) != final:
                return False
            place = self._removed(task, task.record(), DELETED)
        return remove_dead(place)

    def remove_old(self, owner: str | None, wanted: frozenset[str], age_s: float) -> int:
        """Remove tasks in one of these states that nothing happened to for so long; how many. Raises Refusal."""
        known, latest = self.listing.current().summaries.items(), time.time() - age_s
        old = [name for name, one in known if one is not None and one.is_of(owner) and one.used_at <= latest]
        return sum(self._remove_if(name, owner, wanted, age_s) for name in old)

    def _remove_if(self, name: str, owner: str | None, wanted: frozenset[str], age_s: float) -> bool:
        try:
            with self.layout.named(name) as task:
                identity = task.identity()
                if identity is None or not identity.is_of(owner) or not self._is_old(task, wanted, age_s):
                    return False
                place = self._removed(task, settle(self.settings, task), DELETED)
        except Refusal:  # what cannot be read hides no other
            return False
        return remove_dead(place)

    def sweep(self) -> Swept:
        """Remove temporaries of the dead and expired tasks, end what dead merges began. Raises Refusal."""
        count, failures = self.layout.sweep(), []
        latest = time.time() - self.settings.task_expiry
        for name, summary in self.listing.scanned(patience_s=SWEEP_PATIENCE_S).summaries.items():
            if summary is not None and not summary.is_unfinished and summary.used_at > latest:
                continue
            try:
                count += self._tend(name)
            except Refusal as refusal:
                failures.append(f"{self.layout.tasks() / name}: {refusal.text}")
        return Swept(count, tuple(failures))

    def _tend(self, name: str) -> bool:
        with self.layout.named(name) as task:
            if not os.path.lexists(task.folder):  # it was removed meanwhile
                return False
            if task.identity() is None:  # of no use to anybody: no id leads there
                is_over = time.time() - task.folder.stat().st_mtime >= self.settings.task_expiry
            else:
                settle(self.settings, task)
                is_over = self._is_old(task, frozenset(states.STATES), self.settings.task_expiry)
            if not is_over:
                return False
            place = self._removed(task, task.record(), EXPIRED)
        return remove_dead(place)

    def _removed(self, task: Task, record: Record, event: str) -> Path:
        """Remove a task from its place, announce it, and return the new path of its folder. Raises OSError."""
        identity = task.identity()
        place = self.layout.trash(task)
        if identity is not None:
            task.tell(event, record, identity, status=record.status)
        return place

    def _is_old(self, task: Task, wanted: frozenset[str], age_s: float) -> bool:
        record = task.record()
        is_busy = record.status == states.MERGING or task.is_receiving() or _has_parts(record)
        last = max(record.updated_at, task.folder.stat().st_mtime)
        return record.status in wanted and not is_busy and time.time() - last >= age_s


def _has_parts(record: Record) -> bool:
    """Whether it is a completed final upload whose parts may still be there: they go first."""
    return record.status == states.COMPLETED and bool(parts_of(record))
