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
from dlpool.scan.suspect import Suspect
from dlpool.web.refusal import Refusal
from dlpool.web.store import states
from dlpool.web.store.chunkfile import Chunk, chunk_path, list_chunks
from dlpool.web.store.content import check_head
from dlpool.web.store.events import FAILED
from dlpool.web.store.executables import HEAD_SIZE
from dlpool.web.store.faults import stored
from dlpool.web.store.joining import ChunksBad, Joint
from dlpool.web.store.layout import Layout
from dlpool.web.store.locks import release
from dlpool.web.store.names import folders
from dlpool.web.store.ownership import NOBODY, Owners, Ownership
from dlpool.web.store.publishing import Place, candidates, name_taken, open_place
from dlpool.web.store.record import CHUNKED, Publishing, Record, load_record
from dlpool.web.store.results import MergeResult
from dlpool.web.store.room import check_merge
from dlpool.web.store.screening import InfectedUpload, Screening, Upload
from dlpool.web.store.settling import complete, result_of, settle
from dlpool.web.store.task import Task
from dlpool.web.store.wishes import MergeWish, check_size


@dataclass(frozen=True)
class _Begun:
    """A merge that this process alone does, as long as ``hold`` is open."""

    task: Task
    record: Record
    chunks: tuple[Chunk, ...]
    hold: int
    ownership: Ownership


@dataclass(frozen=True)
class Merger:
    """Merges the tasks of one store."""

    layout: Layout
    settings: UploadSettings
    screening: Screening

    def merge(self, wish: MergeWish) -> MergeResult:
        """Publish the file of a task. Raises Refusal; a second merge gets the first one's result."""
        wish.check(self.settings)
        started_ns = time.monotonic_ns()
        with self.layout.task_of(wish.file_id, wish.owner) as task:
            begun = _begin(task, self.settings, wish)
        if isinstance(begun, MergeResult):
            return begun
        try:
            return _Merge(self, wish, begun).run(started_ns)
        finally:
            release(begun.hold)


def _begin(task: Task, settings: UploadSettings, wish: MergeWish) -> _Begun | MergeResult:
    """Check everything that needs no reading of the bytes, and record the merge."""
    identity = task.owned(wish.owner, wish.protocol)
    record = settle(settings, task)
    if record.result:
        return _same(settings, record, record.result, wish)
    if record.status in (states.MERGING, states.PAUSED):
        raise states.wrong_state(record.status)
    if wish.protocol == CHUNKED and record.total_chunks not in (0, wish.total_chunks):
        raise Refusal(
            409,
            "conflict",
            f"the task has {record.total_chunks} chunks, not {wish.total_chunks}",
            total_chunks=record.total_chunks,
        )
    chunks = list_chunks(task.folder)
    _check_whole(settings, record, chunks, wish)
    hold = task.hold_merge()
    if hold is None:
        raise states.wrong_state(states.MERGING)
    path = record.relative_path if wish.relative_path is None else wish.relative_path
    try:
        record = task.save(
            record,
            status=states.MERGING,
            filename=wish.filename,
            total_chunks=wish.total_chunks,
            temporary=folders(path),
            failure="",
            publishing=None,
        )
    except BaseException:
        release(hold)
        raise
    return _Begun(task, record, tuple(chunks.values()), hold, Ownership(identity.owner, wish.is_shared))


def _same(settings: UploadSettings, record: Record, result: MergeResult, wish: MergeWish) -> MergeResult:
    """The result of an earlier merge, if this one wants the same file."""
    has_path = wish.relative_path is None or folders(wish.relative_path) == folders(result.relative_path)
    if (wish.filename, wish.total_chunks) != (record.filename, record.total_chunks) or not has_path:
        raise Refusal(409, "task_completed", f"the task has been merged already, as {result.path!r}")
    is_checked = wish.expected_md5 is not None and settings.enable_integrity_check
    if is_checked and wish.expected_md5 is not None and wish.expected_md5.lower() != result.md5:
        raise Refusal(
            400, "file_md5_mismatch", "the file that was merged has another md5 than expected_md5", md5=result.md5
        )
    return result


def _check_whole(settings: UploadSettings, record: Record, chunks: dict[int, Chunk], wish: MergeWish) -> None:
    """Raise Refusal unless all chunks are there, and as many bytes as were announced."""
    if sorted(chunks) != list(range(wish.total_chunks)):
        if max(chunks, default=0) >= wish.total_chunks:
            raise Refusal(409, "conflict", f"there is a chunk {max(chunks)}, beyond total_chunks {wish.total_chunks}")
        raise missing(chunks, wish.total_chunks)
    size = sum(chunk.size for chunk in chunks.values())
    check_size(settings, size)
    if record.file_size not in (-1, size):
        text = f"the chunks have {size} bytes together, the file was to have {record.file_size}: send them again"
        raise Refusal(400, "size_mismatch", text, size=size, file_size=record.file_size)


def missing(chunks: dict[int, Chunk], total_chunks: int) -> Refusal:
    """That not all chunks are there."""
    lacking = total_chunks - len(chunks)
    return Refusal(
        400,
        "chunks_missing",
        f"{lacking} of {total_chunks} chunks are missing: send them",
        uploaded=len(chunks),
        total_required=total_chunks,
        uploaded_chunks=sorted(chunks),
    )


def _found(refusal: Refusal) -> dict[str, Any]:
    """Return what the event of a failed merge says of malware."""
    return {name: refusal.extra[name] for name in ("signature", "quarantine") if name in refusal.extra}


class _Merge:
    """The part of a merge that takes its time."""

    def __init__(self, merger: Merger, wish: MergeWish, begun: _Begun) -> None:
        self._layout = merger.layout
        self._settings = merger.settings
        self._screening = merger.screening
        self._wish = wish
        self._begun = begun
        self._owners = Owners(self._layout.root, self._layout.sync)
        self._is_marked = True

    def run(self, started_ns: int) -> MergeResult:
        """Raises Refusal; then the task has failed, and may be sent to or merged again."""
        try:
            with stored("merge the file"):
                place = self._place()
                try:
                    return self._publish(place, *self._written(place), started_ns)
                except BaseException:
                    place.clean_up()  # first, as its bytes may fill the disk
                    raise
                finally:
                    place.close()
        except ChunksBad as error:
            raise self._failed(self._without(error.indexes)) from error
        except InfectedUpload as refusal:
            self._remove_chunks()  # another merge would put the same bytes into quarantine again
            raise self._failed(refusal) from None
        except Refusal as refusal:
            raise self._failed(refusal) from None

    def _place(self) -> Place:
        task = self._begun.task
        check_merge(self._settings, sum(chunk.size for chunk in self._begun.chunks))
        parts = self._begun.record.temporary or ()
        place = open_place(self._settings.merged_dir, parts, task.folder.name, make=True, sync=task.sync)
        try:
            if self._settings.merge_conflict == "refuse" and place.has(self._wish.filename):
                raise name_taken(self._wish.filename)
        except BaseException:
            place.close()
            raise
        return place

    def _written(self, place: Place) -> tuple[os.stat_result, str]:
        """The temporary file, whole and right, with the note of its owner if it takes one; and its md5."""
        expected = self._wish.expected_md5.lower() if self._wish.expected_md5 else None
        is_checked = self._settings.enable_integrity_check
        descriptor = place.create()
        try:
            md5 = Joint(self._begun.task.folder, self._begun.chunks).write(
                descriptor, expected_md5=expected, is_checked=is_checked
            )
            check_head(self._settings, os.pread(descriptor, HEAD_SIZE, 0))
            self._make_bytes_durable(descriptor)
            status = os.fstat(descriptor)
            size = sum(chunk.size for chunk in self._begun.chunks)
            if status.st_size != size:
                text = f"the merged file has {status.st_size} bytes instead of {size}: merge again"
                raise Refusal(507, "storage", text)
            if is_checked and expected and md5 != expected:
                raise Refusal(400, "file_md5_mismatch", "the whole file has another md5 than expected_md5", md5=md5)
            self._screen(place, descriptor, size)
        finally:
            release(descriptor)
        return status, md5

    def _make_bytes_durable(self, descriptor: int) -> None:
        """Make the file durable, with the note of its owner if the file system takes one. Raises OSError."""
        if self._begun.ownership == NOBODY:
            self._layout.sync.data(descriptor)
            return
        self._is_marked = self._owners.mark(descriptor, self._begun.ownership)
        self._layout.sync.whole(descriptor)

    def _screen(self, place: Place, descriptor: int, size: int) -> None:
        """Check the merged file for malware. Raises Refusal, OSError."""
        identity = self._begun.task.identity()
        target = os.path.join(self._settings.merged_dir, *place.parts, self._wish.filename)
        upload = Upload(self._wish.file_id, None if identity is None else identity.owner, target)
        self._screening.check(Suspect(descriptor, Path(place.temporary), size, place.descriptor), upload)

    def _publish(self, place: Place, status: os.stat_result, md5: str, started_ns: int) -> MergeResult:
        """Record which file is about to get its name, then give it that, then record that it has it."""
        names = candidates(self._wish.filename, has_suffix=self._settings.merge_conflict == "suffix")
        for name in names:
            if place.has(name):
                continue
            publishing = Publishing(
                place.parts,
                name,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                md5,
                time.monotonic_ns() - started_ns,
            )
            with self._layout.named(self._begun.task.folder.name) as task:
                task.owned(None)  # 404 if it was removed meanwhile
                record = task.save(self._begun.record, publishing=publishing)
                if self._named(place, name, status):
                    return self._published(task, record, place, publishing)
                task.save(self._begun.record)  # another one got that name
        raise name_taken(self._wish.filename)

    def _named(self, place: Place, name: str, status: os.stat_result) -> bool:
        """Give the file its name; whether it got it. Raises Refusal, OSError."""
        if self._is_marked:
            return place.publish(name, identity_of(status))
        with self._owners.turn():
            if place.has(name):
                return False
            self._owners.note("/".join((*place.parts, name)), status, self._begun.ownership)
            return place.publish(name, identity_of(status))

    def _published(self, task: Task, record: Record, place: Place, publishing: Publishing) -> MergeResult:
        """Complete the task of a published file. Raises OSError if the name cannot be made durable."""
        self._make_durable(task, place, publishing)
        with suppress(OSError):  # the record has the published file: the next request completes it
            complete(self._settings, task, record, place, self._begun.chunks)
        return result_of(self._settings, publishing)

    def _make_durable(self, task: Task, place: Place, publishing: Publishing) -> None:
        """Make the name durable, or remove it: a failed merge leaves no file of that name. Raises OSError."""
        try:
            task.sync.folder(place.descriptor)
        except OSError:
            with suppress(OSError):  # then the record stays, and the next request finds the file
                place.withdraw(publishing)
                task.save(self._begun.record)
            raise

    def _without(self, indexes: frozenset[int]) -> Refusal:
        """Remove chunks that are not what they were; what the merge lacks."""
        for index in indexes:
            with suppress(FileNotFoundError):
                os.unlink(chunk_path(self._begun.task.folder, index))
        return missing(list_chunks(self._begun.task.folder), self._wish.total_chunks)

    def _remove_chunks(self) -> None:
        """Remove the chunks of the merge; what cannot be removed stays until the task is removed."""
        for chunk in self._begun.chunks:
            with suppress(OSError):
                os.unlink(chunk_path(self._begun.task.folder, chunk.index))

    def _failed(self, refusal: Refusal) -> Refusal:
        """Record it, unless the file may have its name already: then whoever comes next looks."""
        with suppress(Refusal), self._layout.named(self._begun.task.folder.name) as task:
            record = load_record(task.folder)
            if record is not None and record.publishing is None and record.status == states.MERGING:
                task.save(
                    record,
                    status=states.FAILED,
                    failure=refusal.text,
                    temporary=None,
                    failed_merges=record.failed_merges + 1,
                )
                task.tell(FAILED, record, label=refusal.code, message=refusal.text, **_found(refusal))
        return refusal
