"""Uploads that grow at their end: begun, appended to, joined, and merged by themselves when they are whole."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal
from dlpool.web.store import merging, states
from dlpool.web.store.appending import Appending, Front, conflict, front, size_of
from dlpool.web.store.chunkfile import list_chunks
from dlpool.web.store.content import check_name
from dlpool.web.store.faults import stored
from dlpool.web.store.layout import Layout
from dlpool.web.store.names import file_name, folders
from dlpool.web.store.publishing import check_free
from dlpool.web.store.record import TUS, Identity, Record
from dlpool.web.store.results import MergeResult
from dlpool.web.store.room import check_room
from dlpool.web.store.task import Task
from dlpool.web.store.wishes import MergeWish, check_size

PARTIAL, FINAL = "partial", "final"


@dataclass(frozen=True)
class GrowWish:
    """An upload that is to begin. ``length`` in bytes, None: said later; ``note`` is kept for the client.

    ``filename``: "" for the id of the upload. ``concat``: PARTIAL if it is only to be a part of others; a text that
    begins with FINAL if it is made of them.
    """

    owner: str | None
    length: int | None
    filename: str = ""
    relative_path: str = ""
    note: str = ""
    concat: str = ""

    def check(self, settings: UploadSettings) -> None:
        """Raise Refusal: 400, 413, 415."""
        folders(self.relative_path)
        if self.filename:
            file_name(self.filename)
        if self.concat != PARTIAL:
            check_name(settings, self.filename)
        check_size(settings, self.length or 0)


@dataclass(frozen=True)
class Growth:
    """How far an upload is. ``length``: in bytes, -1 if it is not known; ``expires_at``: None when it is completed."""

    offset: int
    length: int
    note: str
    concat: str
    expires_at: float | None


class GrowingUploads:
    """The uploads of one store that grow. Immutable; all methods raise Refusal."""

    def __init__(self, layout: Layout, settings: UploadSettings) -> None:
        self._layout = layout
        self._settings = settings

    def create(self, wish: GrowWish) -> str:
        """Begin an upload; returns its id."""
        wish.check(self._settings)
        file_id = secrets.token_hex(16)
        if wish.filename and wish.concat != PARTIAL:
            with stored("begin the upload"):
                check_free(self._settings, folders(wish.relative_path), wish.filename)
        with self._layout.task(file_id) as task:
            check_room(self._settings, -1 if wish.length is None else wish.length)
            self._layout.create(task, Identity(file_id, wish.owner, time.time(), TUS))
            length = -1 if wish.length is None else wish.length
            task.save(Record(filename=wish.filename or file_id, relative_path=wish.relative_path, file_size=length,
                             tus={"note": wish.note, "concat": wish.concat}))  # fmt: skip
        self.finish(file_id, wish.owner)
        return file_id

    def look(self, file_id: str, owner: str | None) -> Growth:
        """How far it is, also when its writer was killed; what is whole is merged before that is said."""
        with self._layout.task(file_id) as task:
            record = self._alive(task, owner)
            hold = None if record.status == states.COMPLETED else task.hold_end()
        if hold is not None:  # else a body is being received, and counts when it has ended
            try:
                Front(self._layout, self._settings, file_id, owner).adopt(task)
            finally:
                os.close(hold)
            self.finish(file_id, owner)
        return self.peek(file_id, owner)

    def peek(self, file_id: str, owner: str | None) -> Growth:
        """How far it is, as it stands: nothing is merged, and what a killed writer left does not count yet."""
        with self._layout.task(file_id) as task:
            return self._growth(task, self._alive(task, owner))

    def append(
        self, file_id: str, owner: str | None, offset: int, *, length: int | None = None, is_checked: bool = False
    ) -> Appending:
        """Somewhere to write a body to that begins at ``offset``; ``length`` of the whole, where that was not known.

        423 if another body is being received.
        """
        with self._layout.task(file_id) as task:
            record = self._appendable(self._alive(task, owner))
            hold = task.hold_end()
        if hold is None:
            raise locked()
        try:
            end = Front(self._layout, self._settings, file_id, owner)
            end.adopt(task)
            with self._layout.task(file_id) as task:
                record = self._appendable(self._alive(task, owner))
                record = self._with_length(task, record, length)
                return self._begun(task, record, end, offset, hold, is_checked=is_checked)
        except BaseException:
            os.close(hold)
            raise

    def _begun(self, task: Task, record: Record, end: Front, offset: int, hold: int, *, is_checked: bool) -> Appending:
        have = size_of(list_chunks(task.folder))
        if offset != have:
            raise conflict(have)
        room = (record.file_size if record.file_size >= 0 else self._settings.max_file_size) - offset
        return Appending(end, end.receive(task, offset, room, is_checked=is_checked), offset, room, hold)

    def finish(self, file_id: str, owner: str | None) -> MergeResult | None:
        """Merge the upload if it is whole and no part of another one."""
        with self._layout.task(file_id) as task:
            task.owned(owner, TUS)
            record = task.record()
            is_last = record.tus.get("concat") != PARTIAL and record.status in (states.UPLOADING, states.FAILED,
                                                                             states.PENDING)  # fmt: skip
            chunks = front(list_chunks(task.folder))
            if not is_last or sum(chunk.size for chunk in chunks) != record.file_size:
                return None
            if not chunks:
                self._place_nothing(task, record)
        wish = MergeWish(file_id, record.filename, max(len(chunks), 1), owner, protocol=TUS)
        try:
            return merging.merge(self._layout, self._settings, wish)
        except Refusal as refusal:
            if refusal.code == "task_merging":  # by another request, which may yet fail
                raise locked() from refusal
            raise

    def join(self, wish: GrowWish, parts: list[str]) -> str:
        """Make a file of uploads that are PARTIAL and whole, in that order; returns the id of the new upload."""
        lengths = [self._length_of_part(part, wish.owner) for part in parts]
        file_id = self.create(replace(wish, length=None))
        check_size(self._settings, sum(lengths))
        with self._layout.task(file_id) as task:
            folder = task.folder
        count = 0
        for part in parts:
            with self._layout.task(part) as task:
                for chunk in front(list_chunks(task.folder)):
                    _link(task.chunk_path(chunk.index), Task(folder, sync=task.sync).chunk_path(count))
                    count += 1
        with self._layout.task(file_id) as task:
            task.save(task.record(), file_size=sum(lengths))
        self.finish(file_id, wish.owner)
        return file_id

    def _length_of_part(self, file_id: str, owner: str | None) -> int:
        growth = self.look(file_id, owner)
        if growth.concat != PARTIAL or growth.offset != growth.length:
            raise Refusal(400, "bad_part", f"{file_id[:64]!r} is no part that is whole: finish it first")
        return growth.length

    def _place_nothing(self, task: Task, record: Record) -> None:
        with self._layout.begin(0) as reception:
            reception.seal()
            reception.move(task.chunk_path(0))
        task.save(record, status=states.receiving(record.status))

    def _alive(self, task: Task, owner: str | None) -> Record:
        """The record of an upload. Raises Refusal: 404, 403, 410."""
        task.owned(owner, TUS)
        record = task.record()
        is_over = record.status == states.COMPLETED or task.is_receiving()
        if not is_over and time.time() > record.updated_at + self._settings.task_expiry:
            raise Refusal(410, "expired", "the upload has expired: begin it anew")
        return record

    def _appendable(self, record: Record) -> Record:
        if str(record.tus.get("concat", "")).startswith(FINAL):
            raise Refusal(403, "final", "the upload is made of others: nothing can be added to it")
        if record.status == states.COMPLETED:
            raise conflict(record.file_size)
        states.receiving(record.status)
        return record

    def _with_length(self, task: Task, record: Record, length: int | None) -> Record:
        if length is None or length == record.file_size:
            return record
        if record.file_size >= 0 or length < size_of(list_chunks(task.folder)):
            raise Refusal(400, "bad_length", "the upload has another length")
        check_size(self._settings, length)
        return task.save(record, file_size=length)

    def _growth(self, task: Task, record: Record) -> Growth:
        is_completed = record.status == states.COMPLETED
        offset = record.file_size if is_completed else size_of(list_chunks(task.folder))
        expires_at = None if is_completed else record.updated_at + self._settings.task_expiry
        return Growth(offset, record.file_size, str(record.tus.get("note", "")), str(record.tus.get("concat", "")),
                      expires_at)  # fmt: skip


def locked() -> Refusal:
    """That somebody else is at work on the upload."""
    text = "another request is at work on the upload: wait for its end"
    return Refusal(423, "locked", text, headers={"Retry-After": "1"})


def _link(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """The same chunk under another name; a copy where there are no hard links."""
    with stored("join the uploads"), suppress(FileExistsError):
        try:
            os.link(source, target)
        except PermissionError:
            shutil.copyfile(source, target)
