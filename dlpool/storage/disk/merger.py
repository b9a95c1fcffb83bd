"""A task's chunks are merged: begun under its lock, done without it, ended under it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlpool.config import UploadSettings
from dlpool.disk import identity_of
from dlpool.scan.scannedfile import ScannedFile
from dlpool.storage import states
from dlpool.storage.content_types import check_content
from dlpool.storage.disk.assembly import ChunkAssembly, CorruptChunks
from dlpool.storage.disk.capacity import check_capacity_for_merge
from dlpool.storage.disk.chunk_file import StoredChunk, chunk_path, list_chunks
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merge_output import (
    MergeOutput,
    name_candidates,
    name_taken,
    open_merge_output,
)
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.ownership import NO_OWNER, FileOwnership, OwnershipStore
from dlpool.storage.disk.recovery import complete_merge, merge_result, recover
from dlpool.storage.disk.scanning import InfectedUpload, ScannedUpload, UploadScanner
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import (
    CHUNKED,
    PendingPublish,
    TaskRecord,
    load_record,
)
from dlpool.storage.errors import UploadError
from dlpool.storage.events import FAILED
from dlpool.storage.executables import HEAD_SIZE
from dlpool.storage.names import split_folders
from dlpool.storage.results import MergeResult
from dlpool.storage.upload_requests import MergeRequest, check_size


@dataclass(frozen=True)
class _StartedMerge:
    """A merge that this process alone does, as long as ``hold`` is open."""

    task: TaskFolder
    record: TaskRecord
    chunks: tuple[StoredChunk, ...]
    hold: int
    ownership: FileOwnership


@dataclass(frozen=True)
class Merger:
    """Merges the tasks of one store."""

    layout: StoreLayout
    settings: UploadSettings
    screening: UploadScanner

    def merge(self, wish: MergeRequest) -> MergeResult:
        """Publish the file of a task. Raises Refusal; a second merge gets the first
        one's result."""
        wish.check(self.settings)
        started_ns = time.monotonic_ns()
        with self.layout.lock_owned(wish.file_id, wish.owner) as task:
            begun = _begin(task, self.settings, wish)
        if isinstance(begun, MergeResult):
            return begun
        try:
            return _MergeRun(self, wish, begun).run(started_ns)
        finally:
            release(begun.hold)


def _begin(
    task: TaskFolder, settings: UploadSettings, wish: MergeRequest
) -> _StartedMerge | MergeResult:
    """Check everything that needs no reading of the bytes, and record the merge."""
    identity = task.owned_identity(wish.owner, wish.protocol)
    record = recover(settings, task)
    if record.result:
        return _same(settings, record, record.result, wish)
    if record.status in (states.MERGING, states.PAUSED):
        raise states.wrong_state(record.status)
    if wish.protocol == CHUNKED and record.total_chunks not in (0, wish.total_chunks):
        raise UploadError(
            409,
            "conflict",
            f"the task has {record.total_chunks} chunks, not {wish.total_chunks}",
            total_chunks=record.total_chunks,
        )
    chunks = list_chunks(task.folder)
    _check_whole(settings, record, chunks, wish)
    hold = task.try_lock_merge()
    if hold is None:
        raise states.wrong_state(states.MERGING)
    path = record.relative_path if wish.relative_path is None else wish.relative_path
    try:
        record = task.save(
            record,
            status=states.MERGING,
            filename=wish.filename,
            total_chunks=wish.total_chunks,
            temporary=split_folders(path),
            failure="",
            publishing=None,
        )
    except BaseException:
        release(hold)
        raise
    return _StartedMerge(
        task,
        record,
        tuple(chunks.values()),
        hold,
        FileOwnership(identity.owner, wish.is_shared),
    )


def _same(
    settings: UploadSettings,
    record: TaskRecord,
    result: MergeResult,
    wish: MergeRequest,
) -> MergeResult:
    """The result of an earlier merge, if this one wants the same file."""
    has_path = wish.relative_path is None or split_folders(
        wish.relative_path
    ) == split_folders(result.relative_path)
    if (wish.filename, wish.total_chunks) != (
        record.filename,
        record.total_chunks,
    ) or not has_path:
        raise UploadError(
            409,
            "task_completed",
            f"the task has been merged already, as {result.path!r}",
        )
    is_checked = wish.expected_md5 is not None and settings.enable_integrity_check
    if (
        is_checked
        and wish.expected_md5 is not None
        and wish.expected_md5.lower() != result.md5
    ):
        raise UploadError(
            400,
            "file_md5_mismatch",
            "the file that was merged has another md5 than expected_md5",
            md5=result.md5,
        )
    return result


def _check_whole(
    settings: UploadSettings,
    record: TaskRecord,
    chunks: dict[int, StoredChunk],
    wish: MergeRequest,
) -> None:
    """Raise Refusal unless all chunks are there, and as many bytes as were
    announced."""
    if sorted(chunks) != list(range(wish.total_chunks)):
        if max(chunks, default=0) >= wish.total_chunks:
            raise UploadError(
                409,
                "conflict",
                f"there is a chunk {max(chunks)}, beyond total_chunks "
                f"{wish.total_chunks}",
            )
        raise chunks_missing(chunks, wish.total_chunks)
    size = sum(chunk.size for chunk in chunks.values())
    check_size(settings, size)
    if record.file_size not in (-1, size):
        text = (
            f"the chunks have {size} bytes together, the file was to have "
            f"{record.file_size}: send them again"
        )
        raise UploadError(
            400, "size_mismatch", text, size=size, file_size=record.file_size
        )


def chunks_missing(chunks: dict[int, StoredChunk], total_chunks: int) -> UploadError:
    """That not all chunks are there."""
    lacking = total_chunks - len(chunks)
    return UploadError(
        400,
        "chunks_missing",
        f"{lacking} of {total_chunks} chunks are missing: send them",
        uploaded=len(chunks),
        total_required=total_chunks,
        uploaded_chunks=sorted(chunks),
    )


def _found(refusal: UploadError) -> dict[str, Any]:
    """Return what the event of a failed merge says of malware."""
    return {
        name: refusal.details[name]
        for name in ("signature", "quarantine")
        if name in refusal.details
    }


class _MergeRun:
    """The part of a merge that takes its time."""

    def __init__(
        self, merger: Merger, wish: MergeRequest, begun: _StartedMerge
    ) -> None:
        self._layout = merger.layout
        self._settings = merger.settings
        self._screening = merger.screening
        self._wish = wish
        self._begun = begun
        self._owners = OwnershipStore(self._layout.root, self._layout.sync)
        self._is_marked = True

    def run(self, started_ns: int) -> MergeResult:
        """Raises Refusal; then the task has failed, and may be sent to or merged
        again."""
        try:
            with translate_os_errors("merge the file"):
                place = self._place()
                try:
                    return self._publish(place, *self._written(place), started_ns)
                except BaseException:
                    place.discard()  # first, as its bytes may fill the disk
                    raise
                finally:
                    place.close()
        except CorruptChunks as error:
            raise self._failed(self._without(error.indexes)) from error
        except InfectedUpload as refusal:
            # another merge would put the same bytes into quarantine again
            self._remove_chunks()
            raise self._failed(refusal) from None
        except UploadError as refusal:
            raise self._failed(refusal) from None

    def _place(self) -> MergeOutput:
        task = self._begun.task
        check_capacity_for_merge(
            self._settings, sum(chunk.size for chunk in self._begun.chunks)
        )
        parts = self._begun.record.temporary or ()
        place = open_merge_output(
            self._settings.merged_dir,
            parts,
            task.folder.name,
            make=True,
            sync=task.sync,
        )
        try:
            if self._settings.merge_conflict == "refuse" and place.has(
                self._wish.filename
            ):
                raise name_taken(self._wish.filename)
        except BaseException:
            place.close()
            raise
        return place

    def _written(self, place: MergeOutput) -> tuple[os.stat_result, str]:
        """The temporary file, whole and right, with the note of its owner if it takes
        one; and its md5."""
        expected = self._wish.expected_md5.lower() if self._wish.expected_md5 else None
        is_checked = self._settings.enable_integrity_check
        descriptor = place.create()
        try:
            md5 = ChunkAssembly(self._begun.task.folder, self._begun.chunks).write(
                descriptor, expected_md5=expected, is_checked=is_checked
            )
            check_content(self._settings, os.pread(descriptor, HEAD_SIZE, 0))
            self._make_bytes_durable(descriptor)
            status = os.fstat(descriptor)
            size = sum(chunk.size for chunk in self._begun.chunks)
            if status.st_size != size:
                text = (
                    f"the merged file has {status.st_size} bytes instead of {size}: "
                    f"merge "
                    f"again"
                )
                raise UploadError(507, "storage", text)
            if is_checked and expected and md5 != expected:
                raise UploadError(
                    400,
                    "file_md5_mismatch",
                    "the whole file has another md5 than expected_md5",
                    md5=md5,
                )
            self._screen(place, descriptor, size)
        finally:
            release(descriptor)
        return status, md5

    def _make_bytes_durable(self, descriptor: int) -> None:
        """Make the file durable, with the note of its owner if the file system takes
        one. Raises OSError."""
        if self._begun.ownership == NO_OWNER:
            self._layout.sync.sync_data(descriptor)
            return
        self._is_marked = self._owners.set_attribute(descriptor, self._begun.ownership)
        self._layout.sync.sync_file(descriptor)

    def _screen(self, place: MergeOutput, descriptor: int, size: int) -> None:
        """Check the merged file for malware. Raises Refusal, OSError."""
        identity = self._begun.task.identity()
        target = os.path.join(
            self._settings.merged_dir, *place.parts, self._wish.filename
        )
        upload = ScannedUpload(
            self._wish.file_id, None if identity is None else identity.owner, target
        )
        self._screening.check(
            ScannedFile(descriptor, Path(place.temporary), size, place.descriptor),
            upload,
        )

    def _publish(
        self, place: MergeOutput, status: os.stat_result, md5: str, started_ns: int
    ) -> MergeResult:
        """Record which file is about to get its name, then give it that, then record
        that it has it."""
        names = name_candidates(
            self._wish.filename, has_suffix=self._settings.merge_conflict == "suffix"
        )
        for name in names:
            if place.has(name):
                continue
            publishing = PendingPublish(
                place.parts,
                name,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                md5,
                time.monotonic_ns() - started_ns,
            )
            with self._layout.lock_folder(self._begun.task.folder.name) as task:
                task.owned_identity(None)  # 404 if it was removed meanwhile
                record = task.save(self._begun.record, publishing=publishing)
                if self._named(place, name, status):
                    return self._published(task, record, place, publishing)
                task.save(self._begun.record)  # another one got that name
        raise name_taken(self._wish.filename)

    def _named(self, place: MergeOutput, name: str, status: os.stat_result) -> bool:
        """Give the file its name; whether it got it. Raises Refusal, OSError."""
        if self._is_marked:
            return place.publish(name, identity_of(status))
        with self._owners.hold_lock():
            if place.has(name):
                return False
            self._owners.write_file(
                "/".join((*place.parts, name)), status, self._begun.ownership
            )
            return place.publish(name, identity_of(status))

    def _published(
        self,
        task: TaskFolder,
        record: TaskRecord,
        place: MergeOutput,
        publishing: PendingPublish,
    ) -> MergeResult:
        """Complete the task of a published file. Raises OSError if the name cannot be
        made durable."""
        self._make_durable(task, place, publishing)
        with suppress(
            OSError
        ):  # the record has the published file: the next request completes it
            complete_merge(self._settings, task, record, place, self._begun.chunks)
        return merge_result(self._settings, publishing)

    def _make_durable(
        self, task: TaskFolder, place: MergeOutput, publishing: PendingPublish
    ) -> None:
        """Make the name durable, or remove it: a failed merge leaves no file of that
        name. Raises OSError."""
        try:
            task.sync.sync_folder(place.descriptor)
        except OSError:
            with suppress(
                OSError
            ):  # then the record stays, and the next request finds the file
                place.withdraw(publishing)
                task.save(self._begun.record)
            raise

    def _without(self, indexes: frozenset[int]) -> UploadError:
        """Remove chunks that are not what they were; what the merge lacks."""
        for index in indexes:
            with suppress(FileNotFoundError):
                os.unlink(chunk_path(self._begun.task.folder, index))
        return chunks_missing(
            list_chunks(self._begun.task.folder), self._wish.total_chunks
        )

    def _remove_chunks(self) -> None:
        """Remove the chunks of the merge; what cannot be removed stays until the task
        is removed."""
        for chunk in self._begun.chunks:
            with suppress(OSError):
                os.unlink(chunk_path(self._begun.task.folder, chunk.index))

    def _failed(self, refusal: UploadError) -> UploadError:
        """Record it, unless the file may have its name already: then whoever comes next
        looks."""
        with (
            suppress(UploadError),
            self._layout.lock_folder(self._begun.task.folder.name) as task,
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
                    failure=refusal.text,
                    temporary=None,
                    failed_merges=record.failed_merges + 1,
                )
                task.emit_event(
                    FAILED,
                    record,
                    label=refusal.code,
                    message=refusal.text,
                    **_found(refusal),
                )
        return refusal
