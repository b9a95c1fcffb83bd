"""Summaries of tasks: what a list, the figures and the sweep need of a task, as read
from its folder once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from dlpool.storage import states
from dlpool.storage.disk.append_session import FINAL
from dlpool.storage.disk.chunk_file import StoredChunk
from dlpool.storage.disk.part_claims import claimed_parts
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TUS, TaskIdentity, TaskRecord, load_record
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name, owner_folder_name


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task. Times are in seconds since the epoch, sizes in bytes.

    ``file_size`` is -1 while it is unknown. ``chunks`` and ``stored`` are the number
    and bytes of the complete chunks; those of a completed task are the ones that were
    merged. ``used_at`` is the time of the last change, by the record and the folder.
    ``files`` counts the entries of the folder. ``is_unfinished``: the next sweep has
    something to do here, whatever its age: a merge that may have been interrupted, or a
    tus upload that is complete or has bytes that no chunk holds. ``is_final``: a tus
    upload that is made of parts.
    """

    file_id: str
    owner: str | None
    status: str
    created_at: float
    updated_at: float
    filename: str
    relative_path: str
    total_chunks: int
    file_size: int
    chunks: int
    stored: int
    completion_rate: float
    failed_merges: int
    used_at: float = 0.0
    files: int = 0
    is_unfinished: bool = False
    is_final: bool = False

    @classmethod
    def of(
        cls,
        identity: TaskIdentity,
        record: TaskRecord,
        chunks: Mapping[int, StoredChunk],
    ) -> TaskSummary:
        """Summarise a task by what was read of it. ``record`` has the state that chunks
        and locks say it has."""
        size = sum(chunk.size for chunk in chunks.values())
        wanted = sum(index < record.total_chunks for index in chunks)
        return cls(
            file_id=identity.file_id,
            owner=None if identity.owner is None else sys.intern(identity.owner),
            status=sys.intern(record.status),
            created_at=identity.created_at,
            updated_at=record.updated_at,
            filename=record.filename,
            relative_path=sys.intern(record.relative_path),
            total_chunks=record.total_chunks,
            file_size=record.file_size,
            chunks=len(chunks),
            stored=size,
            completion_rate=states.completion_rate(
                record.status, wanted, record.total_chunks, size, record.file_size
            ),
            failed_merges=record.failed_merges,
            is_final=identity.protocol == TUS and is_final(record),
        )

    def is_of(self, owner: str | None) -> bool:
        """Return whether ``owner`` may see the task; None may see all tasks."""
        return owner is None or self.owner == owner


def is_final(record: TaskRecord) -> bool:
    """Return whether a tus upload is made of parts."""
    return str(record.tus.get("concat", "")).startswith(FINAL)


class TaskReading(NamedTuple):
    """What was read of a task's folder. ``summary`` is None if no id leads to the
    folder.

    ``is_lasting``: the summary depends on nothing but what the folder contains, not on
    locks.
    """

    summary: TaskSummary | None
    is_stable: bool = True


def read_task(task: TaskFolder, *, is_locked: bool = False) -> TaskReading:
    """Read the summary of a task. Raises OSError.

    Without the task's lock (``is_locked`` False) a task that is being merged is shown
    as such, although its process may have been killed.
    """
    identity = task.identity()
    if identity is None or not _leads_to(task, identity):
        return TaskReading(None)
    noted = load_record(task.folder)
    is_merging = noted is not None and noted.status == states.MERGING
    record = (
        noted
        if is_merging and noted is not None and not is_locked
        else task.effective(noted)
    )
    chunks = task.chunks_of(record)
    names = os.listdir(task.folder)
    summary = TaskSummary.of(identity, record, chunks)
    has_bodies = any(
        name.startswith("patch") and name.endswith(".tmp") for name in names
    )
    summary = replace(
        summary,
        used_at=max(record.updated_at, os.stat(task.folder).st_mtime),
        files=len(names),
        is_unfinished=record.temporary is not None
        or _is_left(identity, record, summary.stored, has_bodies),
    )
    return TaskReading(summary, is_stable=not is_merging)


def _leads_to(task: TaskFolder, identity: TaskIdentity) -> bool:
    try:
        names = (
            folder_name(identity.file_id),
            owner_folder_name(identity.file_id, identity.owner),
        )
    except UploadError:
        return False
    return task.folder.name in names


def _is_left(
    identity: TaskIdentity, record: TaskRecord, stored: int, has_bodies: bool
) -> bool:
    """Return whether a tus upload needs a sweep: not merged though it is complete, or a
    process was killed at it."""
    if identity.protocol != TUS:
        return False
    if record.status == states.COMPLETED:
        return is_final(record) and bool(claimed_parts(record))
    return is_final(record) or has_bodies or 0 <= record.file_size <= stored
