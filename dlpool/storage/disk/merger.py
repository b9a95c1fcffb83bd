"""Merges the chunks of a task.

A merge is started under the lock of the task, assembled without the lock, and published
under the lock.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.disk import identity_of
from dlpool.scan.scannedfile import ScannedFile
from dlpool.storage import states
from dlpool.storage.content_types import check_content
from dlpool.storage.digests import FileDigests
from dlpool.storage.disk.assembled_file import assembled_path, open_assembled
from dlpool.storage.disk.assembly import ChunkAssembly, CorruptChunks
from dlpool.storage.disk.capacity import check_capacity_for_merge
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.file_locks import release, release_on_error
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merge_output import (
    MergeOutput,
    name_candidates,
    name_taken,
    open_merge_output,
)
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.ownership import NO_OWNER, FileOwnership, OwnershipStore
from dlpool.storage.disk.published_file import check_digests, earlier_result
from dlpool.storage.disk.recovery import complete_merge, merge_result, recover
from dlpool.storage.disk.scanning import InfectedUpload, ScannedUpload, UploadScanner
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import PendingPublish, TaskRecord, load_record
from dlpool.storage.errors import UploadError, chunks_missing
from dlpool.storage.executables import HEAD_SIZE
from dlpool.storage.names import split_folders
from dlpool.storage.upload_requests import CHUNKED, MergeRequest, check_size
from dlpool.storage.values import FAILED_EVENT, MergeResult, StoredChunk


@dataclass(frozen=True)
class _StartedMerge:
    """A merge whose start has been recorded.

    ``lock``: the descriptor that holds the merge lock of the task.
    """

    task: TaskFolder
    record: TaskRecord
    chunks: tuple[StoredChunk, ...]
    lock: int
    ownership: FileOwnership

    @property
    def size(self) -> int:
        """The size of the merged file in bytes."""
        return sum(chunk.size for chunk in self.chunks)


@dataclass(frozen=True)
class Merger:
    """Merges the tasks of one backend. May be used by several threads and processes."""

    layout: StoreLayout
    settings: UploadSettings
    scanner: UploadScanner

    def merge(self, request: MergeRequest) -> MergeResult:
        """Publish the file of a task; a repeated request returns the first result.

        Raises UploadError.
        """
        request.check(self.settings)
        started_ns = time.monotonic_ns()
        with self.layout.lock_owned(request.file_id, request.owner) as task:
            started = _start(task, self.settings, request)
        if isinstance(started, tuple):
            return earlier_result(self.settings, *started, request)
        try:
            return _MergeRun(self, request, started).run(started_ns)
        finally:
            release(started.lock)


def _start(
    task: TaskFolder, settings: UploadSettings, request: MergeRequest
) -> _StartedMerge | tuple[TaskRecord, MergeResult]:
    """Check everything except the bytes of the chunks, and record the start.

    Returns the record and the earlier result if the task has been merged already.
    Raises UploadError.
    """
    identity = task.owned_identity(request.owner, request.protocol)
    record = recover(settings, task)
    if record.result:
        return record, record.result
    if record.status in (states.MERGING, states.PAUSED):
        raise states.wrong_state(record.status)
    if request.protocol == CHUNKED and record.total_chunks not in (
        0,
        request.total_chunks,
    ):
        text = f"the task has {record.total_chunks} chunks, not {request.total_chunks}"
        raise UploadError("conflict", text, total_chunks=record.total_chunks)
    chunks = list_chunks(task.folder)
    _check_complete(settings, record, chunks, request)
    lock = task.try_lock_merge()
    if lock is None:
        raise states.wrong_state(states.MERGING)
    path = (
        record.relative_path if request.relative_path is None else request.relative_path
    )
    try:
        record = task.save(
            record,
            status=states.MERGING,
            filename=request.filename,
            total_chunks=request.total_chunks,
            output_folder=split_folders(path),
            failure="",
            publishing=None,
        )
    except BaseException:
        release(lock)
        raise
    return _StartedMerge(
        task,
        record,
        tuple(chunks.values()),
        lock,
        FileOwnership(identity.owner, request.is_shared),
    )


def _check_complete(
    settings: UploadSettings,
    record: TaskRecord,
    chunks: dict[int, StoredChunk],
    request: MergeRequest,
) -> None:
    """Raise UploadError if chunks are missing, or their total size is wrong."""
    if sorted(chunks) != list(range(request.total_chunks)):
        if max(chunks, default=0) >= request.total_chunks:
            text = (
                f"the task has a chunk {max(chunks)}, beyond total_chunks "
                f"{request.total_chunks}"
            )
            raise UploadError("conflict", text)
        raise chunks_missing(chunks, request.total_chunks)
    size = sum(chunk.size for chunk in chunks.values())
    check_size(settings, size)
    if record.file_size not in (-1, size):
        text = (
            f"the chunks have {size} bytes together, the file_size was "
            f"{record.file_size}: send them again"
        )
        raise UploadError("size_mismatch", text, size=size, file_size=record.file_size)


def _malware_details(error: UploadError) -> dict[str, Any]:
    """Return what the event of a failed merge says about malware."""
    return {
        name: error.details[name]
        for name in ("signature", "quarantine")
        if name in error.details
    }


class _MergeRun:
    """A started merge, which assembles and publishes the file. Used by one thread."""

    def __init__(
        self, merger: Merger, request: MergeRequest, started: _StartedMerge
    ) -> None:
        self._layout = merger.layout
        self._settings = merger.settings
        self._scanner = merger.scanner
        self._request = request
        self._started = started
        self._ownerships = OwnershipStore(self._layout.root, self._layout.durability)
        self._has_attribute = True

    def run(self, started_ns: int) -> MergeResult:
        """Assemble and publish the file.

        Raises UploadError; ``_fail`` records the failure.
        """
        try:
            with translate_os_errors("merge the file"):
                output = self._open_output()
                try:
                    return self._publish(output, *self._assemble(output), started_ns)
                except BaseException:
                    # Before anything else: the temporary file may fill the disk.
                    output.discard()
                    raise
                finally:
                    output.close()
        except CorruptChunks as error:
            raise self._fail(self._remove_corrupt(error.indexes)) from error
        except InfectedUpload as error:
            # A second merge would only quarantine the same bytes again.
            self._remove_chunks()
            raise self._fail(error) from None
        except UploadError as error:
            raise self._fail(error) from None

    def _open_output(self) -> MergeOutput:
        task = self._started.task
        check_capacity_for_merge(self._settings, self._started.size)
        parts = self._started.record.output_folder or ()
        output = open_merge_output(
            self._settings.merged_dir,
            parts,
            task.folder.name,
            make=True,
            durability=task.durability,
        )
        try:
            name = self._request.filename
            if self._settings.merge_conflict == "refuse" and output.has(name):
                raise name_taken(name)
        except BaseException:
            output.close()
            raise
        return output

    def _assemble(self, output: MergeOutput) -> tuple[os.stat_result, FileDigests]:
        """Write the temporary file, check and sync it; return its status and digest."""
        expected = self._request.expected_digests
        is_checked = self._settings.enable_integrity_check
        descriptor = self._link_assembled(output)
        is_in_place = descriptor is not None
        if descriptor is None:
            descriptor = output.create()
        try:
            assembly = ChunkAssembly(
                self._started.task.folder, self._started.chunks, is_in_place
            )
            digests = assembly.write(
                descriptor, expected=expected, is_checked=is_checked
            )
            check_content(self._settings, os.pread(descriptor, HEAD_SIZE, 0))
            self._sync_bytes(descriptor)
            status = os.fstat(descriptor)
            size = self._started.size
            if status.st_size != size:
                text = (
                    f"the merged file has {status.st_size} bytes instead of {size}: "
                    "merge again"
                )
                raise UploadError("storage", text)
            if is_checked:
                check_digests(expected, digests)
            self._scan(output, descriptor, size)
        finally:
            release(descriptor)
        return status, digests

    def _link_assembled(self, output: MergeOutput) -> int | None:
        """Use the assembled file as the temporary file, and return its descriptor.

        No request writes to the file while the descriptor is open. Returns None if the
        chunks must be copied. A scanner requires copies, because it may move the file.
        """
        started = self._started
        if self._scanner.guard is not None:
            return None
        descriptor = open_assembled(started.task.folder, started.chunks)
        if descriptor is None:
            return None
        with release_on_error(descriptor):
            size = max(chunk.placed_size for chunk in started.chunks)
            path = assembled_path(started.task.folder, size)
            if output.link(path, identity_of(os.fstat(descriptor))):
                return descriptor
        release(descriptor)
        return None

    def _sync_bytes(self, descriptor: int) -> None:
        """Make the file durable, with its owner if the file system supports attributes.

        Raises OSError.
        """
        if self._started.ownership == NO_OWNER:
            self._layout.durability.sync_data(descriptor)
            return
        self._has_attribute = self._ownerships.set_attribute(
            descriptor, self._started.ownership
        )
        self._layout.durability.sync_file(descriptor)

    def _scan(self, output: MergeOutput, descriptor: int, size: int) -> None:
        """Scan the merged file for malware. Raises UploadError, OSError."""
        identity = self._started.task.identity()
        target = os.path.join(
            self._settings.merged_dir, *output.parts, self._request.filename
        )
        upload = ScannedUpload(
            self._request.file_id, None if identity is None else identity.owner, target
        )
        self._scanner.check(
            ScannedFile(descriptor, Path(output.temporary), size, output.descriptor),
            upload,
        )

    def _publish(
        self,
        output: MergeOutput,
        status: os.stat_result,
        digests: FileDigests,
        started_ns: int,
    ) -> MergeResult:
        """Rename the file, and complete the task.

        Writes the new name to the record before the rename: recovery needs the name.
        """
        names = name_candidates(
            self._request.filename, has_suffix=self._settings.merge_conflict == "suffix"
        )
        for name in names:
            if output.has(name):
                continue
            publishing = PendingPublish(
                output.parts,
                name,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                digests.md5,
                time.monotonic_ns() - started_ns,
                digests.composite_sha256,
            )
            with self._layout.lock_folder(self._started.task.folder.name) as task:
                task.owned_identity(None)  # raises if the task was removed meanwhile
                record = task.save(self._started.record, publishing=publishing)
                if self._rename(output, name, status):
                    return self._complete(task, record, output, publishing)
                task.save(self._started.record)  # another file has got that name
        raise name_taken(self._request.filename)

    def _rename(self, output: MergeOutput, name: str, status: os.stat_result) -> bool:
        """Give the file its name; return False if the name is taken.

        Raises UploadError, OSError.
        """
        if self._has_attribute:
            return output.publish(name, identity_of(status))
        with self._ownerships.hold_lock():
            if output.has(name):
                return False
            self._ownerships.write_file(
                "/".join((*output.parts, name)), status, self._started.ownership
            )
            return output.publish(name, identity_of(status))

    def _complete(
        self,
        task: TaskFolder,
        record: TaskRecord,
        output: MergeOutput,
        publishing: PendingPublish,
    ) -> MergeResult:
        """Complete the task of a published file.

        Raises OSError if the name cannot be made durable.
        """
        self._sync_name(task, output, publishing)
        # After an error the next request completes the task: its record has the file.
        with suppress(OSError):
            complete_merge(self._settings, task, record, output, self._started.chunks)
        return merge_result(self._settings, publishing)

    def _sync_name(
        self, task: TaskFolder, output: MergeOutput, publishing: PendingPublish
    ) -> None:
        """Make the name of the published file durable.

        If that fails, tries to remove the file and raises OSError.
        """
        try:
            task.durability.sync_folder(output.descriptor)
        except OSError:
            # If this fails, the record is kept, and the next request finds the file.
            with suppress(OSError):
                output.withdraw(publishing)
                task.save(self._started.record)
            raise

    def _remove_corrupt(self, indexes: frozenset[int]) -> UploadError:
        """Remove corrupt chunks.

        Returns the error that tells the client what to send again.
        """
        for index in indexes:
            with suppress(FileNotFoundError):
                os.unlink(self._started.task.chunk_path(index))
        return chunks_missing(
            list_chunks(self._started.task.folder), self._request.total_chunks
        )

    def _remove_chunks(self) -> None:
        """Remove the merged chunks.

        Errors are ignored: remaining chunks are removed with their task.
        """
        for chunk in self._started.chunks:
            with suppress(OSError):
                os.unlink(self._started.task.chunk_path(chunk.index))

    def _fail(self, error: UploadError) -> UploadError:
        """Record the failure and return ``error``.

        Records nothing if the file may have its final name already: ``recover``
        completes or cleans up the merge later.
        """
        with (
            suppress(UploadError),
            self._layout.lock_folder(self._started.task.folder.name) as task,
        ):
            record = load_record(task.folder)
            if (
                record is not None
                and record.publishing is None
                and record.status == states.MERGING
            ):
                task.save(
                    record,
                    status=states.FAILED,
                    failure=error.text,
                    output_folder=None,
                    failed_merges=record.failed_merges + 1,
                )
                details = {
                    "label": error.code,
                    "message": error.text,
                    **_malware_details(error),
                }
                task.emit_event(FAILED_EVENT, record, **details)
        return error
