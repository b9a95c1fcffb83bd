"""A chunk that was received becomes part of its task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.content_types import check_content
from dlpool.storage.disk.capacity import CHUNK_COUNT_STEP, check_capacity_for_task
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, list_chunks
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merge_output import check_name_free
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.quota import (
    OwnerQuota,
    QuotaRequest,
    more_chunks_request,
    new_task_request,
)
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.staged_chunk import StagedChunk
from dlpool.storage.disk.task_folder import (
    SharedTaskLock,
    TaskFolder,
    check_owner,
    sync_task,
    task_removed,
)
from dlpool.storage.disk.task_record import (
    CHUNKED,
    TaskIdentity,
    TaskRecord,
    load_record,
)
from dlpool.storage.errors import UploadError
from dlpool.storage.names import split_folders
from dlpool.storage.results import ChunkResult
from dlpool.storage.upload_requests import ChunkRequest, check_size


def check_chunk(
    layout: StoreLayout, settings: UploadSettings, quota: OwnerQuota, wish: ChunkRequest
) -> SharedTaskLock | None:
    """Raise the Refusal that a chunk will meet anyway, before it is received; else a
    visit to its task, if it is there.

    Who receives it ends the visit.
    """
    wish.check(settings)
    if quota.is_set:
        wanted, _ = _wanted(layout, settings, wish)
        if wanted is not None:
            quota.check(wanted)
    with layout.read_owned(wish.file_id, wish.owner) as task:
        identity = task.identity()
        _agreed(
            task, settings, wish, identity, None if identity is None else task.record()
        )
        return task.lock_shared()


def commit_chunk(
    layout: StoreLayout,
    settings: UploadSettings,
    quota: OwnerQuota,
    reception: StagedChunk,
    wish: ChunkRequest,
) -> ChunkResult:
    """Store a chunk in place of an earlier one. Raises Refusal, and then the earlier
    one stays."""
    wish.check(settings)
    is_checked = wish.md5 is not None and settings.enable_integrity_check
    if is_checked and wish.md5 is not None and wish.md5.lower() != reception.md5:
        _note_mismatch(layout, settings, wish)
        raise UploadError(
            400,
            "md5_mismatch",
            f"chunk {wish.index} came with another md5 than its own: send it again",
            chunk_index=wish.index,
            md5=reception.md5,
        )
    if wish.index == 0:
        check_content(settings, reception.head)
    reception.seal()
    with (
        _admitted(layout, settings, quota, wish) as may_begin,
        layout.lock_owned(wish.file_id, wish.owner) as task,
    ):
        if reception.task_lock is not None and reception.task_lock.is_stale(
            task.folder
        ):
            raise task_removed()
        identity = task.identity()
        record = _agreed(
            task,
            settings,
            wish,
            identity,
            None if identity is None else recover(settings, task),
        )
        if identity is None:
            if not may_begin:  # it was there a moment ago
                raise task_removed()
            record = layout.create_task(
                task, TaskIdentity(wish.file_id, wish.owner, time.time()), record
            )
        record = _placed(task, settings, record, reception, wish)
    if layout.sync:
        sync_task(task)
    return ChunkResult(wish.index, is_checked, record.relative_path, reception.size)


@contextmanager
def _admitted(
    layout: StoreLayout, settings: UploadSettings, quota: OwnerQuota, wish: ChunkRequest
) -> Iterator[bool]:
    """Whether the chunk may begin a task in the block: in its owner's turn, if there is
    none. Raises Refusal (507)."""
    if not quota.is_set:
        yield True
        return
    wanted, is_missing = _wanted(layout, settings, wish)
    with nullcontext() if wanted is None else quota.reserve(wanted):
        yield is_missing


def _wanted(
    layout: StoreLayout, settings: UploadSettings, wish: ChunkRequest
) -> tuple[QuotaRequest | None, bool]:
    """What a chunk adds to what its owner has, beside itself; and whether there is no
    task yet. Raises Refusal."""
    with translate_os_errors("read the upload folder"):
        task = layout.resolve(wish.file_id, wish.owner)
        identity, record = task.identity(), load_record(task.folder)
    if identity is None:
        if settings.owner_files is not None:
            _check_said(wish)
        return new_task_request(
            settings, wish.owner, _size_of_file(wish), wish.total_chunks
        ), True
    if settings.owner_files is not None and (record is None or not record.total_chunks):
        if wish.total_chunks:
            return more_chunks_request(
                identity.owner, wish.total_chunks - CHUNK_COUNT_STEP
            ), False
        _check_said(wish)
    return None, False


def _check_said(wish: ChunkRequest) -> None:
    if wish.index >= CHUNK_COUNT_STEP and not wish.total_chunks:
        text = (
            f"chunk_index is {wish.index}: from {CHUNK_COUNT_STEP} on total_chunks is "
            f"to "
            f"be said, as owners have limits here"
        )
        raise UploadError(400, "bad_index", text)


def _size_of_file(wish: ChunkRequest) -> int:
    return -1 if wish.file_size is None else wish.file_size


def _agreed(
    task: TaskFolder,
    settings: UploadSettings,
    wish: ChunkRequest,
    identity: TaskIdentity | None,
    record: TaskRecord | None,
) -> TaskRecord:
    """The record as the chunk makes it, of a task that may not be there yet. Raises
    Refusal."""
    if identity is None or record is None:
        check_capacity_for_task(settings, _size_of_file(wish), wish.total_chunks or 1)
        if wish.filename is not None:
            check_name_free(
                settings, split_folders(wish.relative_path or ""), wish.filename
            )
        return wish.merged_into(TaskRecord(), {})
    check_owner(identity, wish.owner, CHUNKED)
    states.state_after_chunk(record.status)
    return wish.merged_into(
        record, list_chunks(task.folder) if wish.adds_totals(record) else {}
    )


def _placed(
    task: TaskFolder,
    settings: UploadSettings,
    record: TaskRecord,
    reception: StagedChunk,
    wish: ChunkRequest,
) -> TaskRecord:
    """Give the chunk its name and note it; a failure to note it loses nothing."""
    path, key = task.chunk_path(wish.index), str(wish.index)
    earlier = _size_of(path)
    received = record.received + reception.size - (earlier or 0)
    if received > (
        settings.max_file_size if record.file_size < 0 else record.file_size
    ):
        received = (
            _counted(task, wish.index) + reception.size
        )  # the record is only a cache
        check_size(settings, received)
        if 0 <= record.file_size < received:
            raise UploadError(
                400,
                "size_mismatch",
                f"with this chunk there would be {received} bytes of a file of "
                f"{record.file_size}",
                size=received,
                file_size=record.file_size,
            )
    retries = (
        {**record.retries, key: record.retries.get(key, 0) + 1}
        if earlier is not None
        else record.retries
    )
    sent = {index: md5 for index, md5 in record.sent.items() if index != key}
    if wish.md5 and not settings.enable_integrity_check:
        sent[key] = wish.md5.lower()
    is_begun = record.status == states.UPLOADING
    reception.publish(path)
    return task.save(
        record,
        sync=NO_SYNC if is_begun else None,
        status=states.state_after_chunk(record.status),
        received=received,
        retries=retries,
        sent=sent,
        publishing=None,
    )


def _counted(task: TaskFolder, index: int) -> int:
    """The bytes of all chunks but that one."""
    return sum(
        chunk.size
        for chunk in list_chunks(task.folder).values()
        if chunk.index != index
    )


def _note_mismatch(
    layout: StoreLayout, settings: UploadSettings, wish: ChunkRequest
) -> None:
    """Count a chunk that is refused for its md5, where there is a task that takes it.
    Raises Refusal if it does not."""
    key = str(wish.index)
    with layout.lock_owned(wish.file_id, wish.owner) as task:
        identity = task.identity()
        if identity is None:
            return
        record = task.record()
        _agreed(task, settings, wish, identity, record)
        task.save(
            record,
            sync=NO_SYNC,
            retries={**record.retries, key: record.retries.get(key, 0) + 1},
        )


def _size_of(path: Path) -> int | None:
    try:
        return max(0, path.lstat().st_size - TRAILER_SIZE)
    except FileNotFoundError:
        return None
