"""An upload that grows at its end, as tus has it: each body becomes one more chunk of
its task.

A body goes to ``patch-OFFSET.tmp`` in the task's folder, and ``patch.lock`` is held as
long as it is received, so that there is one at a time. Who wants to append meanwhile
asks the holder for the end, by the lock file's time: a client that comes back over
another network does not wait until its old connection is given up. What a killed writer
left there counts: whoever has that lock next makes it a chunk. A body with a checksum
goes to ``patch.tmp``, which counts for nothing as long as nobody has compared. When a
body has ended and before its trailer is written, its file is renamed to
``patch-OFFSET-SIZE.tmp``, so that no part of a trailer is taken for a part of the body.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dlpool import disk
from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.content_types import check_content
from dlpool.storage.disk.chunk_file import StoredChunk, index_of, list_chunks
from dlpool.storage.disk.durability import NO_SYNC
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.recovery import recover
from dlpool.storage.disk.staged_chunk import StagedChunk
from dlpool.storage.disk.task_folder import TaskFolder, sync_task, task_removed
from dlpool.storage.disk.task_record import TUS, TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.executables import HEAD_SIZE
from dlpool.storage.upload_requests import MAX_CHUNKS

PARTIAL, FINAL = "partial", "final"
_BODY = re.compile(r"patch-([0-9]+)(?:-([0-9]+))?\.tmp")
_CHECKED = "patch.tmp"
_FLAGS = (
    os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)


class UnlockRequested(Exception):
    """Another request wants to append: this one has to end."""


class AppendPosition(NamedTuple):
    """Where an upload goes on: after so many chunks, and so many bytes."""

    chunks: int
    offset: int


def contiguous_chunks(chunks: Mapping[int, StoredChunk]) -> list[StoredChunk]:
    """The chunks from the first one on without a gap: what has come of an upload that
    grows at its end."""
    found: list[StoredChunk] = []
    while len(found) in chunks:
        found.append(chunks[len(found)])
    return found


def append_position(chunks: Mapping[int, StoredChunk]) -> AppendPosition:
    """Where the upload with these chunks goes on."""
    found = contiguous_chunks(chunks)
    return AppendPosition(len(found), sum(chunk.size for chunk in found))


def offset_mismatch(offset: int) -> UploadError:
    """That the body does not begin where the upload ends."""
    return UploadError(
        409,
        "wrong_offset",
        f"the upload goes on at {offset}: ask for its offset and send from there",
        headers={"Upload-Offset": str(offset)},
        offset=offset,
    )


class AlreadyComplete(UploadError):
    """The upload has all its bytes, and ends at ``offset``."""

    def __init__(self, offset: int) -> None:
        refusal = offset_mismatch(offset)
        super().__init__(
            refusal.status,
            refusal.code,
            refusal.text,
            headers=refusal.headers,
            **refusal.details,
        )
        self.offset = offset


def append_files(folder: Path) -> list[Path]:
    """What is being received, or was by one who was killed, in the order of offsets;
    nothing if the folder is gone."""
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
    """Bytes that have come of a body that begins at ``offset`` and counts, as far as it
    goes. Raises OSError."""
    for path in append_files(folder):
        match = _BODY.fullmatch(path.name)
        if match is not None and int(match[1]) == offset:
            with suppress(FileNotFoundError):  # it has just become a chunk
                size = path.lstat().st_size
                return min(size, int(match[2])) if match[2] else size
    return 0


@dataclass(frozen=True)
class UploadTail:
    """The end of one upload that grows, for a process that holds its ``patch.lock``."""

    layout: StoreLayout
    settings: UploadSettings
    file_id: str
    owner: str | None

    def reclaim(self, task: TaskFolder) -> None:
        """Make a chunk of what a killed writer left; what cannot be one goes. Raises
        Refusal of the disk, OSError."""
        with translate_os_errors("go on with the upload"):
            left = append_files(task.folder)
            if not left:
                return
            at = self.drop_unreachable(task)
            for path in left:
                match = _BODY.fullmatch(path.name)
                if match is not None and int(match[1]) == at.offset and _is_file(path):
                    at = self._adopt_one(path, at, int(match[2]) if match[2] else None)
                path.unlink(missing_ok=True)

    def _adopt_one(
        self, path: Path, at: AppendPosition, size: int | None
    ) -> AppendPosition:
        try:
            descriptor = os.open(
                path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise task_removed() from error
        with StagedChunk(
            path,
            descriptor,
            max_size=self.settings.max_file_size,
            sync=self.layout.sync,
        ) as reception:
            try:
                reception.load(size)
                self.commit(reception, at, None)
            except (UploadError, OSError) as error:
                if is_transient(error):
                    reception.close()
                    raise
                return at  # of a kind that is not taken, say: as if it had never come
            return AppendPosition(
                at.chunks + bool(reception.size), at.offset + reception.size
            )

    def drop_unreachable(self, task: TaskFolder) -> AppendPosition:
        """Where the upload goes on. Chunks behind one that was lost go, and one that
        was cut. Raises OSError."""
        at = append_position(list_chunks(task.folder))
        for name in os.listdir(task.folder):
            index = index_of(name)
            if index is not None and index >= at.chunks:
                (task.folder / name).unlink(missing_ok=True)
        return at

    def stage(self, task: TaskFolder, offset: int, *, is_checked: bool) -> StagedChunk:
        """Somewhere to write a body that begins at ``offset``. Raises OSError."""
        path = task.folder / (_CHECKED if is_checked else f"patch-{offset}.tmp")
        descriptor = os.open(path, _FLAGS, 0o666)
        return StagedChunk(
            path,
            descriptor,
            max_size=self.settings.max_file_size,
            sync=self.layout.sync,
        )

    def commit(
        self, reception: StagedChunk, at: AppendPosition, length: int | None
    ) -> TaskRecord:
        """Make a chunk of what has come; ``length`` of the whole, where that is known
        only now. Raises Refusal."""
        if reception.size:
            self._seal(reception, at)
        with self.layout.lock_id(self.file_id) as task:
            task.owned_identity(self.owner, TUS)
            record = recover(self.settings, task)
            if (
                record.status != states.PAUSED
            ):  # what was under way when it was paused counts
                states.state_after_chunk(record.status)
            record = self._place(task, record, reception, at, length)
        if self.layout.sync and reception.size:
            sync_task(task)
        return record

    def _seal(self, reception: StagedChunk, at: AppendPosition) -> None:
        with self.layout.lock_id(self.file_id) as task:
            task.owned_identity(self.owner, TUS)  # 404 if it was removed meanwhile
            reception.rename(
                reception.path.with_name(f"patch-{at.offset}-{reception.size}.tmp")
            )
        reception.seal()

    def _place(
        self,
        task: TaskFolder,
        record: TaskRecord,
        reception: StagedChunk,
        at: AppendPosition,
        length: int | None,
    ) -> TaskRecord:
        """The chunk gets its name; its bytes and the length are noted in one step."""
        end, file_size = (
            at.offset + reception.size,
            record.file_size if length is None else length,
        )
        if at.chunks >= MAX_CHUNKS or end > (
            file_size if file_size >= 0 else self.settings.max_file_size
        ):
            raise UploadError(
                413,
                "too_large",
                "the upload is longer than it was to be, or is sent in too many pieces",
            )
        if reception.size == 0:
            return (
                record
                if file_size == record.file_size
                else task.save(record, file_size=file_size)
            )
        if (
            at.offset == 0
            and reception.size >= HEAD_SIZE
            and record.tus.get("concat") != PARTIAL
        ):
            check_content(self.settings, reception.head)  # of less the merge does
        self._check_end(task, at)
        reception.publish(task.chunk_path(at.chunks))
        status = (
            record.status
            if record.status == states.PAUSED
            else states.state_after_chunk(record.status)
        )
        return task.save(
            record,
            sync=NO_SYNC if at.chunks else None,
            status=status,
            received=end,
            file_size=file_size,
        )

    def _check_end(self, task: TaskFolder, at: AppendPosition) -> None:
        """Raise Refusal if the end of the file has changed: the lock excludes writers,
        but files can be lost.

        Raises OSError.
        """
        has_last = at.chunks == 0 or disk.exists(task.chunk_path(at.chunks - 1))
        if not has_last or disk.exists(task.chunk_path(at.chunks)):
            raise offset_mismatch(append_position(list_chunks(task.folder)).offset)


class AppendSession:
    """Takes one body. A context manager: when it ends by an error, what has come
    counts, unless it was checked.

    ``record`` is that of the upload, as it was and as it is after ``commit``; ``at``:
    where the upload goes on.
    """

    def __init__(
        self,
        end: UploadTail,
        reception: StagedChunk,
        hold: int,
        held_since: int,
        at: AppendPosition,
        record: TaskRecord,
        *,
        length: int | None,
        is_checked: bool,
    ) -> None:
        self._end = end
        self._reception = reception
        self._hold = hold
        self._held_since = held_since
        self._length = length
        self._is_checked = is_checked
        self.position = at
        self.record = record

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there, and its file is to be made of them."""
        return (
            self.position.offset == self.record.file_size
            and self.record.tus.get("concat") != PARTIAL
        )

    @property
    def remaining(self) -> int:
        """How many bytes the upload may still get."""
        length = self._length if self._length is not None else self.record.file_size
        return (
            length if length >= 0 else self._end.settings.max_file_size
        ) - self.position.offset

    def check(self) -> None:
        """Raise Superseded if another request wants to append, Refusal (404) if the
        upload is gone. Cheap."""
        with translate_os_errors("receive the bytes"):
            status = os.fstat(self._hold)
        if status.st_nlink == 0:
            raise task_removed()
        if status.st_mtime_ns != self._held_since:
            raise UnlockRequested

    def check_fits(self, size: int) -> None:
        """So many more bytes are to come. Raises Refusal (413)."""
        if self._reception.size + size > self.remaining:
            raise too_large(self.position.offset, self.remaining)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises Refusal, Superseded."""
        self.check()
        self.check_fits(len(data))
        self._reception.write(data)

    def commit(self) -> TaskRecord:
        """Let what has come count, and the length; once. Raises Refusal: where that
        passes, the next one does it."""
        try:
            self.record = self._end.commit(self._reception, self.position, self._length)
            self.position = AppendPosition(
                self.position.chunks + bool(self._reception.size),
                self.position.offset + self._reception.size,
            )
        except UploadError as refusal:
            if is_transient(refusal):
                self._reception.close()
            raise
        finally:
            self._reception.discard()
        return self.record

    def __enter__(self) -> AppendSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        try:
            if (
                kind is not None
                and not self._is_checked
                and not _is_untrue(error)
                and self._reception.is_open
            ):
                with suppress(UploadError, OSError):
                    self._reception.truncate_to_size()
                    self.commit()
        finally:
            self._reception.discard()
            release(self._hold)


def too_large(offset: int, room: int) -> UploadError:
    """That more bytes come than the upload may have."""
    text = (
        f"the upload may have {offset + room} bytes: no more than {room} can follow "
        f"the first {offset}"
    )
    return UploadError(413, "too_large", text)


def is_transient(error: UploadError | OSError) -> bool:
    """Whether the same may succeed later: the disk is full, say."""
    return not isinstance(error, UploadError) or error.status >= 500


def _is_file(path: Path) -> bool:
    """Whether it is a file, no link to one. Raises OSError."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_untrue(error: BaseException | None) -> bool:
    """Whether the bytes cannot be those that were announced: there are too many of
    them."""
    return isinstance(error, UploadError) and error.status == 413
