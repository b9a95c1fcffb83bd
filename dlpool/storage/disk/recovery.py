"""What a merge left is brought to its end: by itself, or by whoever comes after one
that was killed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.disk.chunk_file import StoredChunk, chunk_path, list_chunks
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.merge_output import MergeOutput, open_merge_output
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import PendingPublish, TaskRecord, load_record
from dlpool.storage.errors import UploadError
from dlpool.storage.events import COMPLETED
from dlpool.storage.results import MergeResult


def recover(settings: UploadSettings, task: TaskFolder) -> TaskRecord:
    """The record of a task whose lock is held, after what a dead or failed merge left
    is done or removed.

    Raises OSError.
    """
    noted = load_record(task.folder)
    record = task.effective(noted)
    if record.status == states.MERGING or (noted is None or noted.temporary is None):
        return record
    place = _place_of(settings, task, noted)
    if place is None:
        return record
    try:
        if noted.publishing is not None and place.has_published(noted.publishing):
            task.sync.sync_folder(place.descriptor)
            complete_merge(
                settings, task, noted, place, list_chunks(task.folder).values()
            )
            return task.record()
        place.remove_temporary()
    finally:
        place.close()
    _remove_chunks(task, record)
    return task.save(record, temporary=None, publishing=None)


def complete_merge(
    settings: UploadSettings,
    task: TaskFolder,
    record: TaskRecord,
    place: MergeOutput,
    chunks: Iterable[StoredChunk],
) -> None:
    """Record durably that the file has been published, then remove its sources.

    Raises OSError if it cannot be recorded; the earlier record, with the file to be
    published, stays then.
    """
    published = record.publishing
    assert published is not None
    result = merge_result(settings, published)
    record = task.save(
        record,
        status=states.COMPLETED,
        result=result,
        publishing=None,
        chunks=tuple(astuple(chunk) for chunk in chunks),
        file_size=published.size,
        relative_path=result.relative_path,
    )
    task.emit_event(COMPLETED, record, **_figures(published))
    with suppress(OSError):  # the file is there; the rest is a sweep's
        place.remove_temporary()
        _remove_chunks(task, record)
        task.save(record, sync=NO_SYNC, temporary=None)


def _figures(published: PendingPublish) -> dict[str, Any]:
    """Return the note of a completed upload's event; its path is relative to
    merged_dir."""
    path = "/".join((*published.folder, published.name))
    seconds = round(published.merge_time / 1e9, 6)
    return {
        "path": path,
        "size": published.size,
        "md5": published.md5,
        "seconds": seconds,
    }


def merge_result(settings: UploadSettings, published: PendingPublish) -> MergeResult:
    """Return the answer of a merge whose file has been published."""
    path = os.path.join(settings.merged_dir, *published.folder, published.name)
    return MergeResult(
        path,
        published.md5,
        "/".join(published.folder),
        published.size,
        published.merge_time,
    )


def _remove_chunks(task: TaskFolder, record: TaskRecord) -> None:
    if record.status == states.COMPLETED:
        for index, *_ in record.chunks:
            with suppress(FileNotFoundError):
                os.unlink(chunk_path(task.folder, index))


def _place_of(
    settings: UploadSettings, task: TaskFolder, record: TaskRecord
) -> MergeOutput | None:
    """Where a merge may have left its temporary file; None if that is not there any
    more."""
    try:
        return open_merge_output(
            settings.merged_dir, record.temporary or (), task.folder.name, make=False
        )
    except (FileNotFoundError, UploadError):
        return None
