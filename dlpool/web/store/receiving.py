"""A chunk that was received becomes part of its task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal
from dlpool.web.store import states
from dlpool.web.store.chunkfile import TRAILER_SIZE, list_chunks
from dlpool.web.store.content import check_head
from dlpool.web.store.faults import stored
from dlpool.web.store.layout import Layout
from dlpool.web.store.names import folders
from dlpool.web.store.publishing import check_free
from dlpool.web.store.quota import Quota, Wanted, another_task, more_chunks
from dlpool.web.store.reception import Reception
from dlpool.web.store.record import CHUNKED, Identity, Record, load_record
from dlpool.web.store.results import ChunkResult
from dlpool.web.store.room import STEP, check_room
from dlpool.web.store.settling import settle
from dlpool.web.store.syncing import UNSYNCED
from dlpool.web.store.task import Task, Visit, check_owner, gone, sync_task
from dlpool.web.store.wishes import ChunkWish, check_size


def foresee(layout: Layout, settings: UploadSettings, quota: Quota, wish: ChunkWish) -> Visit | None:
    """Raise the Refusal that a chunk will meet anyway, before it is received; else a visit to its task, if it is there.

    Who receives it ends the visit.
    """
    wish.check(settings)
    if quota.is_set:
        wanted, _ = _wanted(layout, settings, wish)
        if wanted is not None:
            quota.check(wanted)
    with layout.seen(wish.file_id, wish.owner) as task:
        identity = task.identity()
        _agreed(task, settings, wish, identity, None if identity is None else task.record())
        return task.visit()


def commit(
    layout: Layout, settings: UploadSettings, quota: Quota, reception: Reception, wish: ChunkWish
) -> ChunkResult:
    """Store a chunk in place of an earlier one. Raises Refusal, and then the earlier one stays."""
    wish.check(settings)
    is_checked = wish.md5 is not None and settings.enable_integrity_check
    if is_checked and wish.md5 is not None and wish.md5.lower() != reception.md5:
        _note_mismatch(layout, settings, wish)
        raise Refusal(
            400,
            "md5_mismatch",
            f"chunk {wish.index} came with another md5 than its own: send it again",
            chunk_index=wish.index,
            md5=reception.md5,
        )
    if wish.index == 0:
        check_head(settings, reception.head)
    reception.seal()
    with _admitted(layout, settings, quota, wish) as may_begin, layout.task_of(wish.file_id, wish.owner) as task:
        if reception.visit is not None and reception.visit.is_over(task.folder):
            raise gone()
        identity = task.identity()
        record = _agreed(task, settings, wish, identity, None if identity is None else settle(settings, task))
        if identity is None:
            if not may_begin:  # it was there a moment ago
                raise gone()
            record = layout.create(task, Identity(wish.file_id, wish.owner, time.time()), record)
        record = _placed(task, settings, record, reception, wish)
    if layout.sync:
        sync_task(task)
    return ChunkResult(wish.index, is_checked, record.relative_path, reception.size)


@contextmanager
def _admitted(layout: Layout, settings: UploadSettings, quota: Quota, wish: ChunkWish) -> Iterator[bool]:
    """Whether the chunk may begin a task in the block: in its owner's turn, if there is none. Raises Refusal (507)."""
    if not quota.is_set:
        yield True
        return
    wanted, is_missing = _wanted(layout, settings, wish)
    with nullcontext() if wanted is None else quota.admitted(wanted):
        yield is_missing


def _wanted(layout: Layout, settings: UploadSettings, wish: ChunkWish) -> tuple[Wanted | None, bool]:
    """What a chunk adds to what its owner has, beside itself; and whether there is no task yet. Raises Refusal."""
    with stored("read the upload folder"):
        task = layout.meant(wish.file_id, wish.owner)
        identity, record = task.identity(), load_record(task.folder)
    if identity is None:
        if settings.owner_files is not None:
            _check_said(wish)
        return another_task(settings, wish.owner, _size_of_file(wish), wish.total_chunks), True
    if settings.owner_files is not None and (record is None or not record.total_chunks):
        if wish.total_chunks:
            return more_chunks(identity.owner, wish.total_chunks - STEP), False
        _check_said(wish)
    return None, False


def _check_said(wish: ChunkWish) -> None:
    if wish.index >= STEP and not wish.total_chunks:
        text = f"chunk_index is {wish.index}: from {STEP} on total_chunks is to be said, as owners have limits here"
        raise Refusal(400, "bad_index", text)


def _size_of_file(wish: ChunkWish) -> int:
    return -1 if wish.file_size is None else wish.file_size


def _agreed(
    task: Task, settings: UploadSettings, wish: ChunkWish, identity: Identity | None, record: Record | None
) -> Record:
    """The record as the chunk makes it, of a task that may not be there yet. Raises Refusal."""
    if identity is None or record is None:
        check_room(settings, _size_of_file(wish), wish.total_chunks or 1)
        if wish.filename is not None:
            check_free(settings, folders(wish.relative_path or ""), wish.filename)
        return wish.fits(Record(), {})
    check_owner(identity, wish.owner, CHUNKED)
    states.receiving(record.status)
    return wish.fits(record, list_chunks(task.folder) if wish.is_news(record) else {})


def _placed(task: Task, settings: UploadSettings, record: Record, reception: Reception, wish: ChunkWish) -> Record:
    """Give the chunk its name and note it; a failure to note it loses nothing."""
    path, key = task.chunk_path(wish.index), str(wish.index)
    earlier = _size_of(path)
    received = record.received + reception.size - (earlier or 0)
    if received > (settings.max_file_size if record.file_size < 0 else record.file_size):
        received = _counted(task, wish.index) + reception.size  # the record is only a cache
        check_size(settings, received)
        if 0 <= record.file_size < received:
            raise Refusal(
                400,
                "size_mismatch",
                f"with this chunk there would be {received} bytes of a file of {record.file_size}",
                size=received,
                file_size=record.file_size,
            )
    retries = {**record.retries, key: record.retries.get(key, 0) + 1} if earlier is not None else record.retries
    sent = {index: md5 for index, md5 in record.sent.items() if index != key}
    if wish.md5 and not settings.enable_integrity_check:
        sent[key] = wish.md5.lower()
    is_begun = record.status == states.UPLOADING
    reception.move(path)
    return task.save(
        record,
        sync=UNSYNCED if is_begun else None,
        status=states.receiving(record.status),
        received=received,
        retries=retries,
        sent=sent,
        publishing=None,
    )


def _counted(task: Task, index: int) -> int:
    """The bytes of all chunks but that one."""
    return sum(chunk.size for chunk in list_chunks(task.folder).values() if chunk.index != index)


def _note_mismatch(layout: Layout, settings: UploadSettings, wish: ChunkWish) -> None:
    """Count a chunk that is refused for its md5, where there is a task that takes it. Raises Refusal if it does not."""
    key = str(wish.index)
    with layout.task_of(wish.file_id, wish.owner) as task:
        identity = task.identity()
        if identity is None:
            return
        record = task.record()
        _agreed(task, settings, wish, identity, record)
        task.save(record, sync=UNSYNCED, retries={**record.retries, key: record.retries.get(key, 0) + 1})


def _size_of(path: Path) -> int | None:
    try:
        return max(0, path.lstat().st_size - TRAILER_SIZE)
    except FileNotFoundError:
        return None
