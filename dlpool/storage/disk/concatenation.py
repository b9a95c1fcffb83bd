"""Uploads that are parts become one: their chunks get another name in a new task, which
is merged at once.

Each part goes into one file, and is removed when that is published. What the next one
sees, whoever is killed when:

| killed | left behind | then |
|---|---|---|
| before the final upload has all parts | it, and claims to some parts | it is removed, and no claim holds any more |
| before its file has its name | it, claims to all parts, chunks with two names | the same |
| after that | the file, and a task that is completed by whoever looks | its parts are removed |
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from dlpool.config import UploadSettings
from dlpool.disk import CANNOT_LINK
from dlpool.storage.disk.append_session import (
    FINAL,
    PARTIAL,
    AppendPosition,
    append_position,
    contiguous_chunks,
)
from dlpool.storage.disk.capacity import (
    check_capacity_for_copies,
    check_capacity_for_merge,
)
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.part_claims import claimant_of, is_consumed, with_claim
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.removal import TaskRemover
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TUS, TaskRecord
from dlpool.storage.disk.tus_uploads import (
    DiskTusUploads,
    TusUploadRequest,
    upload_locked,
)
from dlpool.storage.errors import UploadError
from dlpool.storage.states import COMPLETED, MERGING
from dlpool.storage.upload_requests import MAX_CHUNKS, check_size

MAX_PARTS = 100  # of a final upload: their URLs have to fit into one header


@dataclass(frozen=True)
class _PartsTotal:
    """What a final upload is made of, as it was counted before anything was made.
    Bytes."""

    owner: str | None
    size: int
    chunks: int


@dataclass(frozen=True)
class DiskConcatenator:
    """Makes final uploads. Thread-safe, and between processes; all methods raise
    Refusal.

    As long as one is made the lock of its end is held, from the moment on at which it
    is there. So one that is not completed and whose lock is free was left by somebody
    who was killed.
    """

    layout: StoreLayout
    settings: UploadSettings
    growing: DiskTusUploads
    cleaner: TaskRemover

    def concatenate(self, wish: TusUploadRequest, parts: Sequence[str]) -> str:
        """Publish a file of uploads that are PARTIAL and whole, in that order; returns
        the id of the new upload.

        The parts are removed then. Refused are a part that is there twice (400), that
        is unknown or another owner's (404), or that another final upload has taken
        (409).
        """
        check_parts(parts)
        whole = self._counted(parts, wish.owner)
        check_size(self.settings, whole.size)
        if whole.chunks > MAX_CHUNKS:
            text = (
                f"the parts were sent in {whole.chunks} pieces, and {MAX_CHUNKS} can "
                f"be "
                f"joined"
            )
            raise UploadError(413, "too_large", text)
        with translate_os_errors("begin the upload"):
            check_capacity_for_merge(
                self.settings, whole.size
            )  # its chunks are there already
        file_id, hold = self._begin(
            replace(wish, owner=whole.owner, length=None), parts
        )
        try:
            try:
                self._fill(file_id, parts, whole)
                if self.growing.finish(file_id, whole.owner) is None:
                    raise _part_gone()
            finally:
                release(hold)
        except BaseException:
            if not self._is_published(file_id):
                raise
        with suppress(UploadError):  # else a sweep does it
            self.cleaner.remove_parts(file_id)
        return file_id

    def recover(self, file_id: str) -> int:
        """Bring to its end what nobody makes any more: a final upload goes, or its
        parts if it is completed.

        Returns how many uploads went.
        """
        with self.layout.lock_id(file_id) as task:
            identity = task.identity()
            if identity is None or identity.protocol != TUS:
                return 0
            if (
                not str(task.record().tus.get("concat", "")).startswith(FINAL)
                or task.is_receiving()
            ):
                return 0
            status = recover(self.settings, task).status
        if status == COMPLETED:
            return self.cleaner.remove_parts(file_id)
        if status == MERGING:
            return 0
        self.cleaner.delete(file_id, None)
        return 1

    def _is_published(self, file_id: str) -> bool:
        """Undo a final upload that could not be made; whether its file is there
        nevertheless."""
        with suppress(UploadError):
            self.recover(file_id)
            with self.layout.lock_id(file_id) as task:
                return task.identity() is not None and task.record().status == COMPLETED
        return False

    def _begin(self, wish: TusUploadRequest, parts: Sequence[str]) -> tuple[str, int]:
        """Begin the final upload; its id, and the lock of its end."""
        with self.growing.creating(wish, parts) as (file_id, task):
            try:
                hold = task.try_lock_append()
            except BaseException:
                self.layout.trash(task)
                raise
        if hold is None:
            self.cleaner.delete(file_id, None)
            raise upload_locked()
        return file_id, hold

    def _counted(self, parts: Sequence[str], owner: str | None) -> _PartsTotal:
        """Add up the parts, which are all of one owner."""
        found = [self._part(part, owner) for part in parts]
        owners = {one.owner for one in found}
        if len(owners) > 1:
            raise UploadError(
                400, "bad_part", "the parts are of several owners: join those of one"
            )
        return _PartsTotal(
            owners.pop(),
            sum(one.size for one in found),
            sum(one.chunks for one in found),
        )

    def _part(self, file_id: str, owner: str | None) -> _PartsTotal:
        """One part that can be taken. Who may not have it hears what he hears of one
        that is unknown."""
        try:
            self.growing.recover(
                file_id, owner
            )  # what a killed writer left becomes a chunk
            with self.layout.lock_id(file_id) as task:
                record, identity = (
                    self.growing.unexpired_record(task, owner),
                    task.owned_identity(owner),
                )
                at = _whole_part(task, record, file_id)
                claimant = claimant_of(self.layout, record)
        except UploadError as refusal:
            if refusal.code == "no_such_task":
                raise _unknown(file_id) from None
            raise
        if claimant is not None:
            self._check_dead(file_id, claimant)
        return _PartsTotal(identity.owner, at.offset, at.chunks)

    def _check_dead(self, file_id: str, claimant: str) -> None:
        """Refuse a part that another final upload has taken, unless it was made by
        somebody who was killed."""
        self.recover(claimant)
        with self.layout.lock_id(file_id) as task:
            self._check_free(task, file_id)

    def _check_free(self, task: TaskFolder, file_id: str) -> None:
        if task.identity() is None or is_consumed(self.layout, task.record()):
            raise _unknown(file_id)
        if claimant_of(self.layout, task.record()) is not None:
            text = (
                f"the part {file_id!r} is being joined by another final upload: a part "
                f"goes "
                f"into one file"
            )
            raise UploadError(409, "part_taken", text)

    def _fill(self, file_id: str, parts: Sequence[str], whole: _PartsTotal) -> None:
        """Give the new upload the chunks of all parts, after it has taken all of
        them."""
        for part in sorted(
            parts
        ):  # in one order everywhere: of those that want the same parts one gets all
            self._take(part, file_id)
        target, count = self.layout.task_by_id(file_id), 0
        join = _ChunkLinker(self.settings, whole)
        for part in parts:
            with self.layout.lock_id(part) as task:
                for chunk in contiguous_chunks(list_chunks(task.folder)):
                    join.link(task.chunk_path(chunk.index), target.chunk_path(count))
                    count += 1
        with self.layout.lock_id(file_id) as final:
            final.save(final.record(), file_size=whole.size, received=whole.size)

    def _take(self, part: str, final: str) -> None:
        with self.layout.lock_id(part) as task:
            if task.identity() is None:
                raise _part_gone()
            record = task.record()
            if append_position(list_chunks(task.folder)).offset != record.file_size:
                raise _part_gone()
            self._check_free(task, part)
            task.save(with_claim(record, final))


class _ChunkLinker:
    """Gives chunks another name; copies where there are no hard links, if the disk has
    room for all of them."""

    def __init__(self, settings: UploadSettings, whole: _PartsTotal) -> None:
        self._settings = settings
        self._whole = whole
        self._can_link = True

    def link(self, source: os.PathLike[str], target: os.PathLike[str]) -> None:
        """Raises Refusal."""
        with translate_os_errors("join the uploads"), suppress(FileExistsError):
            if not self._has_linked(source, target):
                shutil.copyfile(source, target)

    def _has_linked(self, source: os.PathLike[str], target: os.PathLike[str]) -> bool:
        if not self._can_link:
            return False
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            check_capacity_for_copies(
                self._settings, self._whole.size, self._whole.chunks
            )
            self._can_link = False
        return self._can_link


def check_parts(parts: Sequence[str]) -> None:
    """Raise Refusal (400) for parts that no final upload can have, whatever they
    are."""
    if not 1 <= len(parts) <= MAX_PARTS:
        raise UploadError(
            400, "bad_concat", f"a final upload has 1 to {MAX_PARTS} parts"
        )
    if len(set(parts)) < len(parts):
        raise UploadError(
            400,
            "repeated_part",
            "a part is there twice: each part goes into a file once",
        )


def _whole_part(task: TaskFolder, record: TaskRecord, file_id: str) -> AppendPosition:
    """How much there is of a part that is whole. Raises Refusal (400), OSError."""
    at = append_position(list_chunks(task.folder))
    if record.tus.get("concat") != PARTIAL or at.offset != record.file_size:
        raise UploadError(
            400,
            "bad_part",
            f"{file_id[:64]!r} is no part that is whole: finish it first",
        )
    return at


def _unknown(file_id: str) -> UploadError:
    return UploadError(
        404, "no_such_task", f"there is no part {file_id[:64]!r}: send it first"
    )


def _part_gone() -> UploadError:
    return UploadError(
        409, "part_gone", "a part was removed while it was joined: send it again"
    )
