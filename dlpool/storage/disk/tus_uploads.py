"""Uploads that grow at their end: begun, appended to, and merged by themselves when
they are whole."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from dlpool.config import UploadSettings
from dlpool.storage import states
from dlpool.storage.content_types import check_extension
from dlpool.storage.disk.append_session import (
    FINAL,
    PARTIAL,
    AlreadyComplete,
    AppendSession,
    UploadTail,
    append_files,
    append_position,
    offset_mismatch,
    received_size,
)
from dlpool.storage.disk.capacity import CHUNK_COUNT_STEP, check_capacity_for_task
from dlpool.storage.disk.chunk_file import list_chunks
from dlpool.storage.disk.file_locks import release, released_on_error
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.merge_output import check_name_free
from dlpool.storage.disk.merger import Merger
from dlpool.storage.disk.os_errors import translate_os_errors
from dlpool.storage.disk.part_claims import PARTS, is_consumed
from dlpool.storage.disk.quota import OwnerQuota, more_chunks_request, new_task_request
from dlpool.storage.disk.task_folder import TaskFolder, no_such_task
from dlpool.storage.disk.task_record import TUS, TaskIdentity, TaskRecord
from dlpool.storage.errors import UploadError
from dlpool.storage.names import check_new_names, split_folders
from dlpool.storage.results import MergeResult
from dlpool.storage.upload_requests import MergeRequest, check_size

LOCK_TIMEOUT_S = 3.0  # for who appends, to end when somebody else wants to
IDLE_S = 60.0
_POLL_S = 0.02
_SHARED = "shared"  # in what is noted of an upload


@dataclass(frozen=True)
class TusUploadRequest:
    """An upload that is to begin. ``length`` in bytes, None: said later; ``note`` is
    kept for the client.

    ``filename``: "" for the id of the upload. ``concat``: PARTIAL if it is only to be a
    part of others; a text that begins with FINAL if it is made of them. ``is_shared``:
    everybody may read its file.
    """

    owner: str | None
    length: int | None
    filename: str = ""
    relative_path: str = ""
    metadata: str = ""
    concat: str = ""
    is_shared: bool = False

    def check(self, settings: UploadSettings) -> None:
        """Raise Refusal: 400, 413, 415."""
        check_new_names(self.filename or None, self.relative_path)
        if self.concat != PARTIAL:
            check_extension(settings, self.filename)
        if self.length is not None:
            check_size(settings, self.length)


@dataclass(frozen=True)
class TusUploadState:
    """How far an upload is. ``length``: in bytes, -1 if it is not known;
    ``expires_at``: None when it is completed.

    ``is_whole``: all bytes are there, and its file is yet to be made
    (``DiskTusUploads.finish``).
    """

    offset: int
    length: int
    metadata: str
    concat: str
    expires_at: float | None
    is_ready_to_merge: bool


class DiskTusUploads:
    """The uploads of one store that grow. Immutable; all methods raise Refusal."""

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

    def create(self, wish: TusUploadRequest) -> str:
        """Begin an upload; returns its id."""
        with self.creating(wish) as (file_id, _task):
            pass
        if wish.length == 0:
            self.finish(file_id, wish.owner)
        return file_id

    @contextmanager
    def creating(
        self, wish: TusUploadRequest, parts: Sequence[str] = ()
    ) -> Iterator[tuple[str, TaskFolder]]:
        """Begin an upload; its id, and its task with the lock held. ``parts``: ids of
        what a final one is made of."""
        wish.check(self._settings)
        file_id = secrets.token_hex(16)
        tus: dict[str, Any] = {"note": wish.metadata, "concat": wish.concat}
        if wish.is_shared:
            tus[_SHARED] = True
        if parts:
            tus[PARTS] = list(parts)
        if wish.filename and wish.concat != PARTIAL:
            with translate_os_errors("begin the upload"):
                check_name_free(
                    self._settings, split_folders(wish.relative_path), wish.filename
                )
        length = -1 if wish.length is None else wish.length
        with self._admitted(wish, length, parts), self._layout.lock_id(file_id) as task:
            check_capacity_for_task(self._settings, length)
            record = TaskRecord(
                filename=wish.filename or file_id,
                relative_path=wish.relative_path,
                file_size=length,
                tus=tus,
            )
            self._layout.create_task(
                task, TaskIdentity(file_id, wish.owner, time.time(), TUS), record
            )
            yield file_id, task

    def _admitted(
        self, wish: TusUploadRequest, length: int, parts: Sequence[str]
    ) -> AbstractContextManager[None]:
        """The owner's turn to begin one more task; what is made of parts takes no more
        than they do."""
        wanted = new_task_request(self._settings, wish.owner, length, None)
        return nullcontext() if parts else self._quota.reserve(wanted)

    def recover(self, file_id: str, owner: str | None) -> TusUploadState:
        """How far it is, with what is being received just now; 423 while it is merged,
        which may fail."""
        with self._layout.lock_id(file_id) as task:
            record = self.unexpired_record(task, owner)
            if record.status == states.MERGING:
                raise upload_locked()
            has_bodies = record.status != states.COMPLETED and bool(
                append_files(task.folder)
            )
            hold = task.try_lock_append() if has_bodies else None
        if hold is not None:  # else nobody was killed
            try:
                UploadTail(self._layout, self._settings, file_id, owner).reclaim(task)
            finally:
                release(hold)
        return self.state(file_id, owner)

    def recover_idle(self, file_id: str) -> None:
        """Do for an upload that nobody has asked for in a while what the next one to
        ask would do."""
        with self._layout.lock_id(file_id) as task:
            record = self.unexpired_record(task, None)
            was_tried = record.status not in (states.PENDING, states.UPLOADING)
            if was_tried or time.time() - task.folder.stat().st_mtime < IDLE_S:
                return
        if self.recover(file_id, None).is_ready_to_merge:
            self.finish(file_id, None)

    def state(self, file_id: str, owner: str | None) -> TusUploadState:
        """How far it is, as it stands: what a killed writer left does not become a
        chunk for that."""
        with self._layout.lock_id(file_id) as task:
            record = self.unexpired_record(task, owner)
            have = record.file_size
            if record.status != states.COMPLETED:
                have = append_position(list_chunks(task.folder)).offset
            coming = (
                0
                if record.status == states.COMPLETED
                else received_size(task.folder, have)
            )
            return TusUploadState(
                have + coming,
                record.file_size,
                str(record.tus.get("note", "")),
                str(record.tus.get("concat", "")),
                self.expires_at(record),
                is_mergeable(record) and have == record.file_size,
            )

    def expires_at(self, record: TaskRecord) -> float | None:
        """When an upload with this record goes, in seconds since the epoch; None for a
        completed one."""
        return (
            None
            if record.status == states.COMPLETED
            else record.updated_at + self._settings.task_expiry
        )

    @contextmanager
    def append(
        self,
        file_id: str,
        owner: str | None,
        offset: int,
        *,
        size: int | None,
        length: int | None = None,
        is_checked: bool = False,
    ) -> Iterator[AppendSession]:
        """Somewhere to write a body of ``size`` bytes (None: not known) to that begins
        at ``offset``.

        ``length`` of the whole, where that was not known. Who appends meanwhile is
        asked to end; 423 if he does not.
        """
        task, hold, held_since = self._hold_end(file_id, owner)
        try:
            end = UploadTail(self._layout, self._settings, file_id, owner)
            end.reclaim(task)
            with self._layout.lock_id(file_id) as task:
                record = self._appendable(task, owner)
                at = end.drop_unreachable(task)
                if offset != at.offset:
                    raise offset_mismatch(at.offset)
                self._check_chunks(task, at.chunks)
                self._check_length(record, length, at.offset)
                reception = end.stage(task, offset, is_checked=is_checked)
            appending = AppendSession(
                end,
                reception,
                hold,
                held_since,
                at,
                record,
                length=length,
                is_checked=is_checked,
            )
        except BaseException:
            release(hold)
            raise
        with appending as session:
            session.check_fits(size or 0)
            yield session

    def _hold_end(self, file_id: str, owner: str | None) -> tuple[TaskFolder, int, int]:
        """An upload that can be appended to, the lock of its end, and the time of that:
        another one means go."""
        deadline, has_asked = time.monotonic() + LOCK_TIMEOUT_S, False
        while True:
            with self._layout.lock_id(file_id) as task:
                self._appendable(task, owner)
                hold = task.try_lock_append()
                if hold is not None:
                    return task, hold, _time_of(hold)
                if not has_asked:
                    task.request_unlock()
                    has_asked = True
            if time.monotonic() > deadline:
                raise upload_locked()
            time.sleep(_POLL_S)

    def finish(self, file_id: str, owner: str | None) -> MergeResult | None:
        """Merge the upload if it is whole and no part of another one; None if it is
        not."""
        with self._layout.lock_id(file_id) as task:
            task.owned_identity(owner, TUS)
            record = task.record()
            if (
                record.status == states.MERGING
            ):  # by another request, which may yet fail
                raise upload_locked()
            if not is_mergeable(record):
                return None
            at = append_position(list_chunks(task.folder))
            if at.offset != record.file_size:
                return None
            if not at.chunks:
                self._place_nothing(task)
        wish = MergeRequest(
            file_id,
            record.filename,
            max(at.chunks, 1),
            owner,
            protocol=TUS,
            is_shared=record.tus.get(_SHARED) is True,
        )
        try:
            return self._merger.merge(wish)
        except UploadError as refusal:
            if refusal.code == "task_merging":
                raise upload_locked() from refusal
            raise

    def _place_nothing(self, task: TaskFolder) -> None:
        """Give an upload without bytes its only chunk."""
        with self._layout.stage_chunk(0) as reception:
            reception.seal()
            reception.publish(task.chunk_path(0))

    def unexpired_record(self, task: TaskFolder, owner: str | None) -> TaskRecord:
        """The record of an upload. Raises Refusal: 404, 410."""
        task.owned_identity(owner, TUS)
        record = task.record()
        if is_consumed(self._layout, record):
            raise no_such_task()
        is_late = time.time() > record.updated_at + self._settings.task_expiry
        if is_late and record.status != states.COMPLETED and not task.is_receiving():
            raise UploadError(410, "expired", "the upload has expired: begin it anew")
        return record

    def _appendable(self, task: TaskFolder, owner: str | None) -> TaskRecord:
        record = self.unexpired_record(task, owner)
        if str(record.tus.get("concat", "")).startswith(FINAL):
            raise UploadError(
                403, "final", "the upload is made of others: nothing can be added to it"
            )
        if record.status == states.COMPLETED:
            raise AlreadyComplete(record.file_size)
        if record.status == states.MERGING:
            raise upload_locked()
        states.state_after_chunk(record.status)
        return record

    def _check_chunks(self, task: TaskFolder, chunks: int) -> None:
        """Raise Refusal (507) where an upload has the chunks that it counts for, and
        its owner may have no more."""
        if chunks and chunks % CHUNK_COUNT_STEP == 0:
            self._quota.check(
                more_chunks_request(task.owned_identity(None).owner, CHUNK_COUNT_STEP)
            )

    def _check_length(self, record: TaskRecord, length: int | None, have: int) -> None:
        if length is None or length == record.file_size:
            return
        if record.file_size >= 0 or length < have:
            raise UploadError(400, "bad_length", "the upload has another length")
        check_size(self._settings, length)


def _time_of(hold: int) -> int:
    """Return the modification time of a lock file in nanoseconds. Raises OSError, after
    releasing the lock."""
    with released_on_error(hold):
        return os.fstat(hold).st_mtime_ns


def is_mergeable(record: TaskRecord) -> bool:
    """Whether its file is to be made as soon as all bytes are there."""
    return record.tus.get("concat") != PARTIAL and record.status in (
        states.UPLOADING,
        states.FAILED,
        states.PENDING,
    )


def upload_locked() -> UploadError:
    """That somebody else is at work on the upload."""
    text = "another request is at work on the upload: wait for its end"
    return UploadError(423, "locked", text, headers={"Retry-After": "1"})
