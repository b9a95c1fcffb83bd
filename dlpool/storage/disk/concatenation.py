"""The concatenation of parts into a final upload.

The chunks of the parts are linked into a new task, which is merged at once. Only one
final upload can take a part. The part is removed when the file of this upload has been
published. What a killed process leaves depends on the time of the kill. The next
process recovers the upload:

- Killed before all parts are claimed: the final upload, and claims on some parts. The
  final upload is removed, which ends all its claims.
- Killed before its file is published: the final upload, claims on all parts, and chunks
  with two names. The final upload is removed.
- Killed after its file is published: the file, and a task that recovery completes. The
  parts are removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.disk_errors import CANNOT_LINK
from dlpool.storage.disk.append_lock import unexpired_record
from dlpool.storage.disk.append_session import (
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
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.disk.tus_uploads import DiskTusUploads
from dlpool.storage.errors import UploadError, upload_locked
from dlpool.storage.states import COMPLETED, MERGING
from dlpool.storage.upload_requests import (
    MAX_CHUNKS,
    TUS,
    TusUploadRequest,
    check_parts,
    check_size,
)


@dataclass(frozen=True)
class _PartsTotal:
    """The owner, size in bytes and number of chunks of one part or of all parts."""

    owner: str | None
    size: int
    chunks: int


@dataclass(frozen=True)
class DiskConcatenator:
    """Implements ``Concatenator``. May be used by several threads and processes.

    Methods raise UploadError. The process that creates a final upload holds the append
    lock of the upload until the upload is completed. So an incomplete final upload
    whose lock is free was left by a killed process.
    """

    layout: StoreLayout
    settings: UploadSettings
    uploads: DiskTusUploads
    remover: TaskRemover

    def concatenate(self, request: TusUploadRequest, parts: Sequence[str]) -> str:
        """Join complete parts, publish the file, and remove the parts.

        Returns the id of the new upload. Raises UploadError, for example for a part
        that is listed twice, unknown, incomplete, of another owner, or taken by another
        final upload.
        """
        check_parts(parts)
        total = self._total_of(parts, request.owner)
        check_size(self.settings, total.size)
        if total.chunks > MAX_CHUNKS:
            text = (
                f"the parts were sent in {total.chunks} pieces, and at most "
                f"{MAX_CHUNKS} can be joined"
            )
            raise UploadError("too_large", text)
        with translate_os_errors("begin the upload"):
            # The chunks exist already.
            check_capacity_for_merge(self.settings, total.size)
        file_id, lock = self._create(
            replace(request, owner=total.owner, length=None), parts
        )
        try:
            try:
                self._fill(file_id, parts, total)
                if self.uploads.finish(file_id, total.owner) is None:
                    raise _part_gone()
            finally:
                release(lock)
        except BaseException:
            if not self._is_published(file_id):
                raise
        with suppress(UploadError):  # then a sweep removes them
            self.remover.remove_parts(file_id)
        return file_id

    def recover(self, file_id: str) -> int:
        """Recover a final upload that a killed process left.

        Removes an incomplete final upload, or the parts of a completed one. Returns the
        number of removed uploads.
        """
        with self.layout.lock_id(file_id) as task:
            identity = task.identity()
            if identity is None or identity.protocol != TUS:
                return 0
            if not task.record().is_final or task.is_receiving():
                return 0
            status = recover(self.settings, task).status
        if status == COMPLETED:
            return self.remover.remove_parts(file_id)
        if status == MERGING:
            return 0
        self.remover.delete(file_id, None)
        return 1

    def _is_published(self, file_id: str) -> bool:
        """Recover a final upload after an error; return whether its file is
        published."""
        with suppress(UploadError):
            self.recover(file_id)
            with self.layout.lock_id(file_id) as task:
                return task.identity() is not None and task.record().status == COMPLETED
        return False

    def _create(
        self, request: TusUploadRequest, parts: Sequence[str]
    ) -> tuple[str, int]:
        """Create the final upload.

        Returns its id and a descriptor that holds its append lock.
        """
        with self.uploads.creating(request, parts) as (file_id, task):
            try:
                lock = task.try_lock_append()
            except BaseException:
                self.layout.trash(task)
                raise
        if lock is None:
            self.remover.delete(file_id, None)
            raise upload_locked()
        return file_id, lock

    def _total_of(self, parts: Sequence[str], owner: str | None) -> _PartsTotal:
        """Return the owner, total size and number of chunks of all parts.

        Raises UploadError, for example if the parts have several owners.
        """
        found = [self._part(part, owner) for part in parts]
        owners = {part.owner for part in found}
        if len(owners) > 1:
            raise UploadError(
                "bad_part", "the parts have several owners: join parts of one owner"
            )
        return _PartsTotal(
            owners.pop(),
            sum(part.size for part in found),
            sum(part.chunks for part in found),
        )

    def _part(self, file_id: str, owner: str | None) -> _PartsTotal:
        """Return owner, size and number of chunks of one part.

        Raises UploadError, for example if the part is incomplete, or if another final
        upload has claimed it. A part of another owner is refused like an unknown one.
        """
        try:
            self.uploads.recover(file_id, owner)
            with self.layout.lock_id(file_id) as task:
                record = unexpired_record(self.layout, self.settings, task, owner)
                identity = task.owned_identity(owner)
                position = _complete_part(task, record, file_id)
                claimant = claimant_of(self.layout, record)
        except UploadError as error:
            if error.code == "no_such_task":
                raise _unknown_part(file_id) from None
            raise
        if claimant is not None:
            self._check_claimant(file_id, claimant)
        return _PartsTotal(identity.owner, position.offset, position.chunks)

    def _check_claimant(self, file_id: str, claimant: str) -> None:
        """Raise UploadError if another final upload, ``claimant``, has taken the part.

        First recovers ``claimant`` if a killed process left it.
        """
        self.recover(claimant)
        with self.layout.lock_id(file_id) as task:
            self._check_unclaimed(task, file_id)

    def _check_unclaimed(self, task: TaskFolder, file_id: str) -> None:
        if task.identity() is None or is_consumed(self.layout, task.record()):
            raise _unknown_part(file_id)
        if claimant_of(self.layout, task.record()) is not None:
            text = (
                f"another final upload has taken the part {file_id!r}: a part goes "
                "into one file"
            )
            raise UploadError("part_taken", text)

    def _fill(self, file_id: str, parts: Sequence[str], total: _PartsTotal) -> None:
        """Claim all parts, then link their chunks into the final upload."""
        # In the same order everywhere: of two final uploads with the same parts, one
        # gets all.
        for part in sorted(parts):
            self._claim(part, file_id)
        target, count = self.layout.task_by_id(file_id), 0
        linker = _ChunkLinker(self.settings, total)
        for part in parts:
            with self.layout.lock_id(part) as task:
                for chunk in contiguous_chunks(list_chunks(task.folder)):
                    linker.link(task.chunk_path(chunk.index), target.chunk_path(count))
                    count += 1
        with self.layout.lock_id(file_id) as final:
            final.save(final.record(), file_size=total.size, received=total.size)

    def _claim(self, part: str, final: str) -> None:
        with self.layout.lock_id(part) as task:
            if task.identity() is None:
                raise _part_gone()
            record = task.record()
            if append_position(list_chunks(task.folder)).offset != record.file_size:
                raise _part_gone()
            self._check_unclaimed(task, part)
            task.save(with_claim(record, final))


class _ChunkLinker:
    """Gives chunks a second name, as hard links.

    Where hard links are not supported, chunks are copied if the disk has enough space.
    """

    def __init__(self, settings: UploadSettings, total: _PartsTotal) -> None:
        self._settings = settings
        self._total = total
        self._can_link = True

    def link(self, source: os.PathLike[str], target: os.PathLike[str]) -> None:
        """Link or copy one chunk. Raises UploadError."""
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
                self._settings, self._total.size, self._total.chunks
            )
            self._can_link = False
        return self._can_link


def _complete_part(
    task: TaskFolder, record: TaskRecord, file_id: str
) -> AppendPosition:
    """Return the end of a complete part.

    Raises OSError, and UploadError (bad_part) for an incomplete part.
    """
    position = append_position(list_chunks(task.folder))
    if not record.is_partial or position.offset != record.file_size:
        raise UploadError(
            "bad_part", f"{file_id[:64]!r} is not a complete part: finish it first"
        )
    return position


def _unknown_part(file_id: str) -> UploadError:
    return UploadError(
        "no_such_task", f"there is no part {file_id[:64]!r}: send it first"
    )


def _part_gone() -> UploadError:
    return UploadError(
        "part_gone", "a part was removed while it was joined: send it again"
    )
