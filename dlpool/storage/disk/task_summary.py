"""Summaries of tasks, read from their folders.

The list of tasks, the metrics and the sweep use these summaries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from dlpool.storage import states
from dlpool.storage.disk.part_claims import claimed_parts
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TaskIdentity, TaskRecord, load_record
from dlpool.storage.errors import UploadError
from dlpool.storage.names import folder_name, owner_folder_name
from dlpool.storage.upload_requests import TUS
from dlpool.storage.values import StoredChunk, TaskDetail, TaskSummary


def summarize(
    identity: TaskIdentity, record: TaskRecord, chunks: Mapping[int, StoredChunk]
) -> TaskSummary:
    """Return the summary of a task from its identity, record and chunks.

    The state in ``record`` must be the effective state (``states.effective_state``).
    """
    size = sum(chunk.size for chunk in chunks.values())
    expected = sum(index < record.total_chunks for index in chunks)
    return TaskSummary(
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
            record.status, expected, record.total_chunks, size, record.file_size
        ),
        failed_merges=record.failed_merges,
        is_final=identity.protocol == TUS and record.is_final,
    )


def describe(
    identity: TaskIdentity, record: TaskRecord, chunks: Mapping[int, StoredChunk]
) -> TaskDetail:
    """Return a task with its chunks.

    The state in ``record`` must be the effective state (``states.effective_state``).
    """
    return TaskDetail(
        summary=summarize(identity, record, chunks),
        chunks=chunks,
        file_md5=record.result.md5 if record.result else "",
        file_composite_sha256=record.result.composite_sha256 if record.result else "",
        failure=record.failure,
        retries=record.retries,
        declared_md5s=record.declared_md5s,
    )


class TaskReading(NamedTuple):
    """The result of reading a folder.

    ``summary``: None if the folder belongs to no task. ``is_stable``: the summary
    depends only on the content of the folder, not on locks.
    """

    summary: TaskSummary | None
    is_stable: bool = True


def read_task(task: TaskFolder, *, is_locked: bool = False) -> TaskReading:
    """Read the summary of a task. Raises OSError.

    ``is_locked``: the caller holds the lock of the task. If False, a task whose record
    says ``merging`` is reported as merging, although its merge may have been killed.
    """
    identity = task.identity()
    if identity is None or not _leads_to(task, identity):
        return TaskReading(None)
    loaded = load_record(task.folder)
    is_merging = loaded is not None and loaded.status == states.MERGING
    record = (
        loaded
        if is_merging and loaded is not None and not is_locked
        else task.effective(loaded)
    )
    chunks = task.chunks_of(record)
    names = os.listdir(task.folder)
    summary = summarize(identity, record, chunks)
    has_bodies = any(
        name.startswith("patch") and name.endswith(".tmp") for name in names
    )
    summary = replace(
        summary,
        used_at=max(record.updated_at, os.stat(task.folder).st_mtime),
        files=len(names),
        needs_recovery=record.output_folder is not None
        or _is_interrupted(identity, record, summary.stored, has_bodies),
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


def _is_interrupted(
    identity: TaskIdentity, record: TaskRecord, stored: int, has_bodies: bool
) -> bool:
    """Return whether a tus upload needs recovery.

    It needs recovery in three cases: all bytes are stored, but the upload is not
    merged; received bytes are not a chunk yet; or a killed process may have left a
    final upload or its parts.
    """
    if identity.protocol != TUS:
        return False
    if record.status == states.COMPLETED:
        return record.is_final and bool(claimed_parts(record))
    return record.is_final or has_bodies or 0 <= record.file_size <= stored
