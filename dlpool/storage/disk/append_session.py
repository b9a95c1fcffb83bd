"""Appends to a tus upload: each body becomes one more chunk of its task.

A body is received into a temporary file in the folder of the task, under the append
lock. If its writer is killed, the name of the file tells the next lock holder what to
do:

- ``patch-OFFSET.tmp`` is a body that starts at ``OFFSET``: all its bytes become a
  chunk.
- ``patch-OFFSET-SIZE.tmp`` is a complete body: its first ``SIZE`` bytes become a chunk.
  A file is renamed to this name before its trailer is written, so that no part of a
  trailer is taken for bytes of the body.
- ``patch.tmp`` is a body whose checksum has not been verified yet: it is removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dlpool import disk
from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage import states
from dlpool.storage.backend import UploadLock
from dlpool.storage.content_types import check_content
from dlpool.storage.disk.append_lock import expires_at
from dlpool.storage.disk.chunk_file import index_of, list_chunks
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.staged_chunk import StagedChunkFile
from dlpool.storage.disk.task_folder import TaskFolder
from dlpool.storage.disk.task_record import TaskRecord
from dlpool.storage.errors import (
    TOO_LARGE,
    UploadError,
    offset_mismatch,
    task_removed,
    too_large,
)
from dlpool.storage.executables import HEAD_SIZE
from dlpool.storage.upload_requests import MAX_CHUNKS, TUS, AppendRequest
from dlpool.storage.values import StoredChunk

_BODY = re.compile(r"patch-([0-9]+)(?:-([0-9]+))?\.tmp")
_WITH_CHECKSUM = "patch.tmp"
_FLAGS = (
    os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)


class AppendPosition(NamedTuple):
    """The end of a tus upload: the number of its chunks and of its bytes."""

    chunks: int
    offset: int

    def after(self, staged: StagedChunkFile) -> AppendPosition:
        """Return the position after the staged bytes have been stored as a chunk."""
        return AppendPosition(
            self.chunks + bool(staged.size), self.offset + staged.size
        )


def contiguous_chunks(chunks: Mapping[int, StoredChunk]) -> list[StoredChunk]:
    """Return the chunks from the first one up to the first gap."""
    found: list[StoredChunk] = []
    while len(found) in chunks:
        found.append(chunks[len(found)])
    return found


def append_position(chunks: Mapping[int, StoredChunk]) -> AppendPosition:
    """Return the end of an upload with these chunks."""
    found = contiguous_chunks(chunks)
    return AppendPosition(len(found), sum(chunk.size for chunk in found))


def append_files(folder: Path) -> list[Path]:
    """Return the files of received bodies that are not chunks yet, sorted.

    A running process is writing them, or a killed process left them. Empty if the
    folder does not exist. Raises OSError.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(
        folder / name
        for name in names
        if name.startswith("patch") and name.endswith(".tmp")
    )


def received_size(folder: Path, offset: int) -> int:
    """Return how many bytes of a body that starts at ``offset`` were received.

    0 if there is no such body, or if the body has a checksum. Raises OSError.
    """
    for path in append_files(folder):
        match = _BODY.fullmatch(path.name)
        if match is not None and int(match[1]) == offset:
            with suppress(FileNotFoundError):  # it has become a chunk meanwhile
                size = path.lstat().st_size
                return min(size, int(match[2])) if match[2] else size
    return 0


@dataclass(frozen=True)
class UploadTail:
    """The end of one tus upload; the caller holds its append lock."""

    layout: StoreLayout
    settings: UploadSettings
    file_id: str
    owner: str | None

    def reclaim(self) -> None:
        """Make a chunk of the bytes that a killed process received.

        Bytes that cannot become a chunk are removed. Raises UploadError.
        """
        with translate_os_errors("resume the upload"):
            task = self.layout.task_by_id(self.file_id)
            left = append_files(task.folder)
            if not left:
                return
            position = self.drop_unreachable(task)
            for path in left:
                match = _BODY.fullmatch(path.name)
                if (
                    match is not None
                    and int(match[1]) == position.offset
                    and _is_file(path)
                ):
                    position = self._reclaim_file(
                        path, position, int(match[2]) if match[2] else None
                    )
                path.unlink(missing_ok=True)

    def _reclaim_file(
        self, path: Path, position: AppendPosition, size: int | None
    ) -> AppendPosition:
        try:
            descriptor = os.open(
                path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise task_removed() from error
        with self._staged(path, descriptor) as staged:
            try:
                staged.load(size)
                self.commit(staged, position, None)
            except (UploadError, OSError) as error:
                if is_transient(error):
                    staged.close()
                    raise
                # Refused, for its content type, for example: the bytes are dropped.
                return position
            return position.after(staged)

    def drop_unreachable(self, task: TaskFolder) -> AppendPosition:
        """Remove truncated chunks and chunks behind a gap.

        Returns the end of the upload. Raises OSError.
        """
        position = append_position(list_chunks(task.folder))
        for name in os.listdir(task.folder):
            index = index_of(name)
            if index is not None and index >= position.chunks:
                (task.folder / name).unlink(missing_ok=True)
        return position

    def stage(
        self, task: TaskFolder, offset: int, *, has_checksum: bool
    ) -> StagedChunkFile:
        """Create the file for a body that starts at ``offset``. Raises OSError."""
        path = task.folder / (_WITH_CHECKSUM if has_checksum else f"patch-{offset}.tmp")
        return self._staged(path, os.open(path, _FLAGS, 0o666))

    def _staged(self, path: Path, descriptor: int) -> StagedChunkFile:
        return StagedChunkFile(
            path,
            descriptor,
            max_size=self.settings.max_file_size,
            durability=self.layout.durability,
        )

    def commit(
        self, staged: StagedChunkFile, position: AppendPosition, length: int | None
    ) -> TaskRecord:
        """Make a chunk of the staged bytes and return the new record.

        ``length``: the size of the upload in bytes if this request is the first to
        state it, else None. Raises UploadError.
        """
        if staged.size:
            self._seal(staged, position)
        with self.layout.lock_id(self.file_id) as task:
            task.owned_identity(self.owner, TUS)
            record = recover(self.settings, task)
            # Bytes that were received before the upload was paused are kept.
            if record.status != states.PAUSED:
                states.state_after_chunk(record.status)
            record = self._publish(task, record, staged, position, length)
        if self.layout.durability and staged.size:
            task.sync()
        return record

    def _seal(self, staged: StagedChunkFile, position: AppendPosition) -> None:
        with self.layout.lock_id(self.file_id) as task:
            task.owned_identity(self.owner, TUS)  # raises if the upload was removed
            staged.rename(
                staged.path.with_name(f"patch-{position.offset}-{staged.size}.tmp")
            )
        staged.seal()

    def _publish(
        self,
        task: TaskFolder,
        record: TaskRecord,
        staged: StagedChunkFile,
        position: AppendPosition,
        length: int | None,
    ) -> TaskRecord:
        """Rename the staged file to its chunk name, and write the record."""
        end, file_size = (
            position.offset + staged.size,
            record.file_size if length is None else length,
        )
        if position.chunks >= MAX_CHUNKS or end > (
            file_size if file_size >= 0 else self.settings.max_file_size
        ):
            text = (
                "the upload is longer than its length, or was sent in too many pieces"
            )
            raise UploadError("too_large", text)
        if staged.size == 0:
            return (
                record
                if file_size == record.file_size
                else task.save(record, file_size=file_size)
            )
        if position.offset == 0 and staged.size >= HEAD_SIZE and not record.is_partial:
            # The merge checks a shorter first body.
            check_content(self.settings, staged.head)
        self._check_end(task, position)
        staged.publish(task.chunk_path(position.chunks))
        status = (
            record.status
            if record.status == states.PAUSED
            else states.state_after_chunk(record.status)
        )
        durability = NO_SYNC if position.chunks else None
        return task.save(
            record,
            durability=durability,
            status=status,
            received=end,
            file_size=file_size,
        )

    def _check_end(self, task: TaskFolder, position: AppendPosition) -> None:
        """Raise UploadError if the chunks of the upload no longer end at ``position``.

        The append lock excludes other writers, but chunk files can be lost. Raises
        OSError.
        """
        has_last = position.chunks == 0 or disk.exists(
            task.chunk_path(position.chunks - 1)
        )
        if not has_last or disk.exists(task.chunk_path(position.chunks)):
            raise offset_mismatch(append_position(list_chunks(task.folder)).offset)


class DiskAppendSession:
    """Implements ``AppendSession``. Used by one thread.

    ``position``: the end of the committed bytes.
    """

    def __init__(
        self,
        tail: UploadTail,
        staged: StagedChunkFile,
        lock: UploadLock,
        position: AppendPosition,
        record: TaskRecord,
        request: AppendRequest,
    ) -> None:
        """Start a session; ``record`` is the record before the body is appended."""
        self.position = position
        self._tail = tail
        self._staged = staged
        self.lock = lock
        self._record = record
        self._length = request.length
        self._has_checksum = request.has_checksum

    @property
    def offset(self) -> int:
        """The number of committed bytes of the upload."""
        return self.position.offset

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are committed and the file has to be published next."""
        return (
            self.position.offset == self._record.file_size
            and not self._record.is_partial
        )

    @property
    def expires_at(self) -> float | None:
        """When the upload expires, in seconds since the epoch; None if it is
        completed."""
        return expires_at(self._record, self._tail.settings)

    @property
    def remaining(self) -> int:
        """How many more bytes the upload may have."""
        length = self._length if self._length is not None else self._record.file_size
        return (
            length if length >= 0 else self._tail.settings.max_file_size
        ) - self.position.offset

    def check_fits(self, size: int) -> None:
        """Raise UploadError (too_large) if ``size`` more bytes do not fit."""
        if self._staged.size + size > self.remaining:
            raise too_large(self.position.offset, self.remaining)

    def write(self, data: bytes) -> None:
        """Append bytes. Raises UploadError, UnlockRequested."""
        self.lock.check()
        self.check_fits(len(data))
        self._staged.write(data)

    def commit(self) -> None:
        """Make a chunk of the received bytes. Record the length of the upload if the
        request states it.

        Called once. Raises UploadError. If the error is transient, the received bytes
        are kept, and the next append request stores them.
        """
        try:
            self._record = self._tail.commit(self._staged, self.position, self._length)
            self.position = self.position.after(self._staged)
        except UploadError as error:
            if is_transient(error):
                self._staged.close()
            raise
        finally:
            self._staged.discard()

    def discard(self) -> None:
        """Discard the received bytes, because they differ from what the client
        announced."""
        self._staged.discard()

    def __enter__(self) -> DiskAppendSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        is_oversized = isinstance(error, UploadError) and error.code in TOO_LARGE
        try:
            if (
                kind is not None
                and not self._has_checksum
                and not is_oversized
                and self._staged.is_open
            ):
                with suppress(UploadError, OSError):  # the error of the block is raised
                    self._staged.truncate_to_size()
                    self.commit()
        finally:
            self._staged.discard()


def is_transient(error: UploadError | OSError) -> bool:
    """Return whether the operation that failed with ``error`` can succeed later."""
    return not isinstance(error, UploadError) or error.is_transient


def _is_file(path: Path) -> bool:
    """Return whether the path names a regular file. Raises OSError."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
