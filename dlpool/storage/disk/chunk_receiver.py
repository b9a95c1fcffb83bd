"""The receiver of chunks, which commits them to their task.

A request is checked before its bytes arrive. A commit compares size and digest with the
values that the client declared, seals the staged file (trailer, fdatasync), takes the
lock of the task, checks the state of the task again, renames the file to its chunk
name, and writes the record. The client gets its answer after the folder has been
synced. Two settings can switch steps off: without ``enable_integrity_check`` no digests
are compared, and without ``enable_atomic_operations`` nothing is synced.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from dlpool import disk
from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage import states
from dlpool.storage.backend import StagedChunk
from dlpool.storage.content_types import check_content
from dlpool.storage.digests import SHA256
from dlpool.storage.disk.assembled_file import Placement, open_placement
from dlpool.storage.disk.capacity import CHUNK_COUNT_STEP, check_capacity_for_task
from dlpool.storage.disk.chunk_file import list_chunks, stored_size
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
from dlpool.storage.disk.staged_chunk import StagedChunkFile
from dlpool.storage.disk.task_folder import SharedTaskLock, TaskFolder, check_access
from dlpool.storage.disk.task_record import TaskIdentity, TaskRecord, load_record
from dlpool.storage.errors import UploadError, task_removed
from dlpool.storage.names import split_folders
from dlpool.storage.upload_requests import CHUNKED, ChunkRequest, check_size
from dlpool.storage.values import ChunkResult


@dataclass(frozen=True)
class DiskChunkReceiver:
    """Implements ``ChunkReceiver``.

    May be used by several threads and processes. Methods raise UploadError.
    """

    layout: StoreLayout
    settings: UploadSettings
    quota: OwnerQuota

    def stage(self) -> StagedChunkFile:
        """Create a temporary file for a chunk.

        The file is locked, so that no sweep removes it. No request waits for this lock.
        """
        return self.layout.stage_chunk(self.settings.max_chunk_size)

    def check(
        self, staged: StagedChunk, request: ChunkRequest, size: int | None = None
    ) -> None:
        """Raise UploadError if it is known already that ``commit`` would refuse the
        request.

        If the task exists, it does not expire until ``staged`` is closed. A chunk of
        ``size`` bytes is then received into the assembled file if that is possible.
        """
        assert isinstance(staged, StagedChunkFile)
        staged.task_lock, placement = self._check(request, size)
        if placement is not None:
            staged.place(placement)
        if request.algorithm != staged.digest.algorithm:
            staged.hash_with(request.algorithm)

    def check_request(self, request: ChunkRequest) -> SharedTaskLock | None:
        """Raise UploadError if it is known already that ``commit`` would refuse the
        request.

        Returns a shared lock of the task, None if the task does not exist.
        """
        return self._check(request, None)[0]

    def _check(
        self, request: ChunkRequest, size: int | None
    ) -> tuple[SharedTaskLock | None, Placement | None]:
        """Check a request like ``check_request``.

        Returns two values. The first is a shared lock of the task, None if the task
        does not exist. The second is the position of a chunk of ``size`` bytes in the
        assembled file, None if the chunk must get a file of its own.
        """
        request.check(self.settings)
        if self.quota.is_set:
            wanted, _ = self._quota_request(request)
            if wanted is not None:
                self.quota.check(wanted)
        with self.layout.read_owned(request.file_id, request.owner) as task:
            identity = task.identity()
            record = self._checked_record(
                task, request, identity, None if identity is None else task.record()
            )
            lock = task.lock_shared()
            # What a merge has left must not be written to.
            if lock is None or not size or record.output_folder is not None:
                return lock, None
            try:
                return lock, _place(task, record, request.index, size)
            except BaseException:
                lock.release()
                raise

    def commit(self, staged: StagedChunk, request: ChunkRequest) -> ChunkResult:
        """Store the staged bytes as a chunk.

        The chunk replaces an earlier one with the same index. A refused request changes
        no chunk.
        """
        assert isinstance(staged, StagedChunkFile)  # as ``stage`` returned it
        request.check(self.settings)
        if self.settings.enable_integrity_check:
            self._check_digest(staged, request)
        if request.index == 0:
            check_content(self.settings, staged.head)
        staged.seal()
        with (
            self._admitted(request) as may_create,
            self.layout.lock_owned(request.file_id, request.owner) as task,
        ):
            if staged.task_lock is not None and staged.task_lock.is_stale(task.folder):
                raise task_removed()
            identity = task.identity()
            loaded = None if identity is None else recover(self.settings, task)
            record = self._checked_record(task, request, identity, loaded)
            if identity is None:
                if not may_create:  # the task existed when the quota was checked
                    raise task_removed()
                record = self.layout.create_task(
                    task,
                    TaskIdentity(request.file_id, request.owner, time.time()),
                    record,
                )
            record = self._publish(task, record, staged, request)
        if self.layout.durability:
            task.sync()
        is_checked = request.md5 is not None and self.settings.enable_integrity_check
        return ChunkResult(request.index, is_checked, record.relative_path, staged.size)

    def _check_digest(self, staged: StagedChunkFile, request: ChunkRequest) -> None:
        """Raise UploadError if the received bytes differ from the client's digest."""
        expected, digest = request.expected_digest, staged.digest
        if expected is None or expected == digest.hex_of(request.algorithm):
            return
        if request.algorithm != digest.algorithm:
            text = "the SHA-256 digest came after the chunk: send it before the chunk"
            raise UploadError("bad_sha256", text)
        self._count_mismatch(request)
        name = request.algorithm
        text = f"chunk {request.index} does not match its {name}: send it again"
        details: dict[str, Any] = {
            "chunk_index": request.index,
            name: digest.value.hex(),
        }
        raise UploadError(
            "sha256_mismatch" if name == SHA256 else "md5_mismatch", text, **details
        )

    @contextmanager
    def _admitted(self, request: ChunkRequest) -> Iterator[bool]:
        """Yield whether the chunk may create its task.

        The quota that the chunk needs is reserved during the block.
        """
        if not self.quota.is_set:
            yield True
            return
        wanted, is_missing = self._quota_request(request)
        with nullcontext() if wanted is None else self.quota.reserve(wanted):
            yield is_missing

    def _quota_request(self, request: ChunkRequest) -> tuple[QuotaRequest | None, bool]:
        """Return the quota that a chunk needs, and whether its task is new.

        The quota request is None if the chunk needs no additional quota. It does not
        count the bytes of the chunk, because the size of the file was counted when the
        task was created.
        """
        with translate_os_errors("read the upload folder"):
            task = self.layout.resolve(request.file_id, request.owner)
            identity, record = task.identity(), load_record(task.folder)
        has_file_limit = self.settings.owner_files is not None
        if identity is None:
            if has_file_limit:
                _check_total_stated(request)
            return new_task_request(
                self.settings,
                request.owner,
                _file_size_of(request),
                request.total_chunks,
            ), True
        if has_file_limit and (record is None or not record.total_chunks):
            if request.total_chunks:
                return more_chunks_request(
                    identity.owner, request.total_chunks - CHUNK_COUNT_STEP
                ), False
            _check_total_stated(request)
        return None, False

    def _checked_record(
        self,
        task: TaskFolder,
        request: ChunkRequest,
        identity: TaskIdentity | None,
        record: TaskRecord | None,
    ) -> TaskRecord:
        """Check a request, and return the record with the totals of the request.

        For a new task (``identity`` is None), checks capacity and file name. For an
        existing task, checks its owner, protocol, state and totals. Raises UploadError.
        """
        if identity is None or record is None:
            check_capacity_for_task(
                self.settings, _file_size_of(request), request.total_chunks or 1
            )
            if request.filename is not None:
                check_name_free(
                    self.settings,
                    split_folders(request.relative_path or ""),
                    request.filename,
                )
            new = TaskRecord()
            return new.with_totals(request.merged_into(new.totals, {}))
        check_access(identity, request.owner, CHUNKED)
        states.state_after_chunk(record.status)
        chunks = list_chunks(task.folder) if request.adds_totals(record.totals) else {}
        return record.with_totals(request.merged_into(record.totals, chunks))

    def _publish(
        self,
        task: TaskFolder,
        record: TaskRecord,
        staged: StagedChunkFile,
        request: ChunkRequest,
    ) -> TaskRecord:
        """Rename the staged file to its chunk name, and write the record.

        Raises UploadError if the file of the task would become too large.
        """
        path, key = task.chunk_path(request.index), str(request.index)
        earlier = stored_size(path)
        received = record.received + staged.size - (earlier or 0)
        if received > (
            self.settings.max_file_size if record.file_size < 0 else record.file_size
        ):
            received = _size_without(task, request.index) + staged.size
            check_size(self.settings, received)
            if 0 <= record.file_size < received:
                text = (
                    f"with this chunk the file would have {received} bytes, more than "
                    f"its {record.file_size}"
                )
                raise UploadError(
                    "size_mismatch", text, size=received, file_size=record.file_size
                )
        retries = (
            {**record.retries, key: record.retries.get(key, 0) + 1}
            if earlier is not None
            else record.retries
        )
        declared = {
            index: md5 for index, md5 in record.declared_md5s.items() if index != key
        }
        if request.md5 and not self.settings.enable_integrity_check:
            declared[key] = request.md5.lower()
        is_started = record.status == states.UPLOADING
        staged.publish(path)
        return task.save(
            record,
            durability=NO_SYNC if is_started else None,
            status=states.state_after_chunk(record.status),
            received=received,
            retries=retries,
            declared_md5s=declared,
            publishing=None,
        )

    def _count_mismatch(self, request: ChunkRequest) -> None:
        """Count a chunk that does not match its digest, if its task exists.

        Raises UploadError if there is another reason to refuse the chunk.
        """
        key = str(request.index)
        with self.layout.lock_owned(request.file_id, request.owner) as task:
            identity = task.identity()
            if identity is None:
                return
            record = task.record()
            self._checked_record(task, request, identity, record)
            task.save(
                record,
                durability=NO_SYNC,
                retries={**record.retries, key: record.retries.get(key, 0) + 1},
            )


def _place(
    task: TaskFolder, record: TaskRecord, index: int, size: int
) -> Placement | None:
    """Lock the position of a chunk in the assembled file, and return the position.

    None if the chunk is stored already, or must get a file of its own.
    """
    if disk.exists(task.chunk_path(index)):
        return None
    return open_placement(task.folder, index, size, record.totals)


def _check_total_stated(request: ChunkRequest) -> None:
    if request.index >= CHUNK_COUNT_STEP and not request.total_chunks:
        text = (
            f"chunk_index is {request.index}: from {CHUNK_COUNT_STEP} on total_chunks "
            "is required, as owners have limits"
        )
        raise UploadError("bad_index", text)


def _file_size_of(request: ChunkRequest) -> int:
    return -1 if request.file_size is None else request.file_size


def _size_without(task: TaskFolder, index: int) -> int:
    """Return the total bytes of all stored chunks except the one with this index."""
    return sum(
        chunk.size
        for chunk in list_chunks(task.folder).values()
        if chunk.index != index
    )
