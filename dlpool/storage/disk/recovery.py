"""Completes merges, and recovers interrupted ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.disk.assembled_file import remove_assembled
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.merge_output import MergeOutput, open_merge_output
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import PendingPublish, TaskRecord, load_record
from dlpool.storage.errors import UploadError
from dlpool.storage.values import COMPLETED_EVENT, MergeResult, StoredChunk


def recover(settings: UploadSettings, task: TaskFolder) -> TaskRecord:
    """Complete or clean up a merge that was interrupted or failed.

    Does nothing while a merge runs. Returns the current record. The caller holds the
    lock of the task. Raises OSError.
    """
    loaded = load_record(task.folder)
    record = task.effective(loaded)
    if (
        record.status == states.MERGING
        or loaded is None
        or loaded.output_folder is None
    ):
        return record
    output = _output_of(settings, task, loaded)
    if output is None:
        return record
    try:
        chunks = list_chunks(task.folder).values()
        if loaded.publishing is not None and output.has_published(
            loaded.publishing, [chunk.size for chunk in chunks]
        ):
            task.durability.sync_folder(output.descriptor)
            complete_merge(settings, task, loaded, output, chunks)
            return task.record()
        output.remove_temporary()
    finally:
        output.close()
    _remove_chunks(task, record)
    return task.save(record, output_folder=None, publishing=None)


def complete_merge(
    settings: UploadSettings,
    task: TaskFolder,
    record: TaskRecord,
    output: MergeOutput,
    chunks: Iterable[StoredChunk],
) -> None:
    """Record durably that the file has been published, then remove its chunks.

    Raises OSError if the record cannot be written. The task then keeps its earlier
    record, which names the published file.
    """
    published = record.publishing
    assert published is not None
    result = merge_result(settings, published)
    record = task.save(
        record,
        status=states.COMPLETED,
        result=result,
        publishing=None,
        chunks=tuple(
            (chunk.index, chunk.size, chunk.md5, chunk.stored_at, chunk.sha256)
            for chunk in chunks
        ),
        file_size=published.size,
        relative_path=result.relative_path,
    )
    task.emit_event(COMPLETED_EVENT, record, **_event_details(published))
    with suppress(OSError):  # the file is published; a sweep removes the rest
        output.remove_temporary()
        _remove_chunks(task, record)
        task.save(record, durability=NO_SYNC, output_folder=None)


def _event_details(published: PendingPublish) -> dict[str, Any]:
    """Return the details of a completion event; ``path`` is relative to merged_dir."""
    path = "/".join((*published.folder, published.name))
    seconds, digests = round(published.merge_time / 1e9, 6), published.digests._asdict()
    return {
        "path": path,
        "size": published.size,
        **{name: value for name, value in digests.items() if value},
        "seconds": seconds,
    }


def merge_result(settings: UploadSettings, published: PendingPublish) -> MergeResult:
    """Return the result of a merge whose file has been published."""
    path = os.path.join(settings.merged_dir, *published.folder, published.name)
    return MergeResult(
        path,
        published.md5,
        "/".join(published.folder),
        published.size,
        published.merge_time,
        published.composite_sha256,
    )


def _remove_chunks(task: TaskFolder, record: TaskRecord) -> None:
    if record.status == states.COMPLETED:
        for index, *_ in record.chunks:
            with suppress(FileNotFoundError):
                os.unlink(task.chunk_path(index))
        remove_assembled(task.folder)


def _output_of(
    settings: UploadSettings, task: TaskFolder, record: TaskRecord
) -> MergeOutput | None:
    """Return the folder in which a merge may have left its temporary file.

    None if the folder does not exist or its path is unsafe. Raises OSError.
    """
    try:
        return open_merge_output(
            settings.merged_dir,
            record.output_folder or (),
            task.folder.name,
            make=False,
        )
    except (FileNotFoundError, UploadError):
        return None
