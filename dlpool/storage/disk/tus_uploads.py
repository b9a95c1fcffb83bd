"""Tus uploads on the disk.

This module creates uploads, appends to them, recovers them after a process was killed,
and merges complete ones.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.backend import UploadLock
from dlpool.storage.disk.append_lock import (
    appendable_record,
    expires_at,
    unexpired_record,
)
from dlpool.storage.disk.append_session import (
    DiskAppendSession,
    UploadTail,
    append_files,
    append_position,
    received_size,
)
from dlpool.storage.disk.capacity import CHUNK_COUNT_STEP, check_capacity_for_task
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merge_output import check_name_free
from dlpool.storage.disk.merger import Merger
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.part_claims import PARTS
from dlpool.storage.disk.quota import OwnerQuota, more_chunks_request, new_task_request
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TaskIdentity, TaskRecord
from dlpool.storage.errors import UploadError, offset_mismatch, upload_locked
from dlpool.storage.names import split_folders
from dlpool.storage.upload_requests import (
    PARTIAL,
    TUS,
    AppendRequest,
    MergeRequest,
    TusUploadRequest,
    check_size,
)
from dlpool.storage.values import MergeResult, TusUploadState

IDLE_S = 60.0  # without a change, after which a sweep recovers an upload
_SHARED = "shared"  # key of TaskRecord.tus


class DiskTusUploads:
    """Implements ``TusUploads``.

    May be used by several threads and processes. Methods raise UploadError.
    """

    def __init__(
        self,
        layout: StoreLayout,
        settings: UploadSettings,
        merger: Merger,
        quota: OwnerQuota,
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._merger = merger
        self._quota = quota

    def create(self, request: TusUploadRequest) -> str:
        """Create an upload and return its id.

        An upload without bytes is finished at once (see ``finish``).
        """
        with self.creating(request) as (file_id, _task):
            pass
        if request.length == 0:
            self.finish(file_id, request.owner)
        return file_id

    @contextmanager
    def creating(
        self, request: TusUploadRequest, parts: Sequence[str] = ()
    ) -> Iterator[tuple[str, TaskFolder]]:
        """Create an upload.

        Yields its id and its task, whose lock is held in the block. ``parts``: the ids
        of the parts of a final upload.
        """
        request.check(self._settings)
        file_id = secrets.token_hex(16)
        tus: dict[str, Any] = {"metadata": request.metadata, "concat": request.concat}
        if request.is_shared:
            tus[_SHARED] = True
        if parts:
            tus[PARTS] = list(parts)
        if request.filename and request.concat != PARTIAL:
            with translate_os_errors("begin the upload"):
                check_name_free(
                    self._settings,
                    split_folders(request.relative_path),
                    request.filename,
                )
        length = -1 if request.length is None else request.length
        with (
            self._admitted(request, length, parts),
            self._layout.lock_id(file_id) as task,
        ):
            check_capacity_for_task(self._settings, length)
            record = TaskRecord(
                filename=request.filename or file_id,
                relative_path=request.relative_path,
                file_size=length,
                tus=tus,
            )
            self._layout.create_task(
                task, TaskIdentity(file_id, request.owner, time.time(), TUS), record
            )
            yield file_id, task

    def _admitted(
        self, request: TusUploadRequest, length: int, parts: Sequence[str]
    ) -> AbstractContextManager[None]:
        """Return a context that reserves the owner's quota for one more task.

        For a final upload, the context reserves nothing: its parts have been counted.
        """
        wanted = new_task_request(self._settings, request.owner, length, None)
        return nullcontext() if parts else self._quota.reserve(wanted)

    def recover(self, file_id: str, owner: str | None) -> TusUploadState:
        """Make a chunk of the bytes that a killed process received; return the state.

        Raises UploadError: ``locked`` while a process merges the upload, because the
        merge may still fail.
        """
        with self._layout.lock_id(file_id) as task:
            record = unexpired_record(self._layout, self._settings, task, owner)
            if record.status == states.MERGING:
                raise upload_locked()
            has_bodies = record.status != states.COMPLETED and bool(
                append_files(task.folder)
            )
            lock = task.try_lock_append() if has_bodies else None
        # This process got the lock, so the process that received the bodies has exited.
        if lock is not None:
            try:
                UploadTail(self._layout, self._settings, file_id, owner).reclaim()
            finally:
                release(lock)
        return self.state(file_id, owner)

    def recover_idle(self, file_id: str) -> None:
        """Recover an upload if it is idle.

        Makes a chunk of the bytes that a killed process received. Merges the upload if
        it is complete.
        """
        with self._layout.lock_id(file_id) as task:
            record = unexpired_record(self._layout, self._settings, task, None)
            was_merged = record.status not in (states.PENDING, states.UPLOADING)
            if was_merged or time.time() - task.folder.stat().st_mtime < IDLE_S:
                return
        if self.recover(file_id, None).is_ready_to_merge:
            self.finish(file_id, None)

    def state(self, file_id: str, owner: str | None) -> TusUploadState:
        """Return the progress without changing anything.

        The progress includes bytes that are being received.
        """
        with self._layout.lock_id(file_id) as task:
            record = unexpired_record(self._layout, self._settings, task, owner)
            stored, receiving = record.file_size, 0
            if record.status != states.COMPLETED:
                stored = append_position(list_chunks(task.folder)).offset
                receiving = received_size(task.folder, stored)
            return TusUploadState(
                stored + receiving,
                record.file_size,
                str(record.tus.get("metadata", "")),
                record.concat,
                expires_at(record, self._settings),
                is_mergeable(record) and stored == record.file_size,
            )

    @contextmanager
    def append(
        self, lock: UploadLock, request: AppendRequest
    ) -> Iterator[DiskAppendSession]:
        """Start appending a body; the caller holds ``lock``.

        Raises UploadError, for example wrong_offset, bad_length or too_large.
        """
        tail = UploadTail(self._layout, self._settings, request.file_id, request.owner)
        tail.reclaim()
        with self._layout.lock_id(request.file_id) as task:
            record = appendable_record(
                self._layout, self._settings, task, request.owner
            )
            position = tail.drop_unreachable(task)
            if request.offset != position.offset:
                raise offset_mismatch(position.offset)
            self._check_chunk_count(task, position.chunks)
            self._check_length(record, request.length, position.offset)
            staged = tail.stage(task, request.offset, has_checksum=request.has_checksum)
        with DiskAppendSession(
            tail, staged, lock, position, record, request
        ) as session:
            session.check_fits(request.size or 0)
            yield session

    def finish(self, file_id: str, owner: str | None) -> MergeResult | None:
        """Merge a complete upload.

        Returns None if the upload is incomplete, or if ``is_mergeable`` refuses it.
        Raises UploadError: ``locked`` while another request merges the upload.
        """
        with self._layout.lock_id(file_id) as task:
            task.owned_identity(owner, TUS)
            record = task.record()
            if record.status == states.MERGING:  # by another request, which may fail
                raise upload_locked()
            if not is_mergeable(record):
                return None
            position = append_position(list_chunks(task.folder))
            if position.offset != record.file_size:
                return None
            if not position.chunks:
                self._create_empty_chunk(task)
        is_shared = record.tus.get(_SHARED) is True
        total = max(position.chunks, 1)
        request = MergeRequest(
            file_id, record.filename, total, owner, protocol=TUS, is_shared=is_shared
        )
        try:
            return self._merger.merge(request)
        except UploadError as error:
            if error.code == "task_merging":
                raise upload_locked() from error
            raise

    def _create_empty_chunk(self, task: TaskFolder) -> None:
        """Store an empty chunk as the only chunk of an upload without bytes."""
        with self._layout.stage_chunk(0) as staged:
            staged.seal()
            staged.publish(task.chunk_path(0))

    def _check_chunk_count(self, task: TaskFolder, chunks: int) -> None:
        """Raise UploadError if one more chunk exceeds the owner's quota.

        An upload takes its chunks from the quota in steps of ``CHUNK_COUNT_STEP``
        chunks. ``chunks``: the number of chunks that the upload has.
        """
        if chunks and chunks % CHUNK_COUNT_STEP == 0:
            self._quota.check(
                more_chunks_request(task.owned_identity(None).owner, CHUNK_COUNT_STEP)
            )

    def _check_length(
        self, record: TaskRecord, length: int | None, offset: int
    ) -> None:
        if length is None or length == record.file_size:
            return
        if record.file_size >= 0 or length < offset:
            raise UploadError("bad_length", "the upload has another length")
        check_size(self._settings, length)


def is_mergeable(record: TaskRecord) -> bool:
    """Return whether the upload may be merged once all its bytes are stored."""
    return not record.is_partial and record.status in (
        states.UPLOADING,
        states.FAILED,
        states.PENDING,
    )
