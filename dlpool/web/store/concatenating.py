"""Uploads that are parts become one: their chunks get another name in a new task, which is merged at once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dlpool.config import UploadSettings
from dlpool.disk import CANNOT_LINK
from dlpool.web.refusal import Refusal
from dlpool.web.store.appending import FINAL, PARTIAL, front
from dlpool.web.store.chunkfile import list_chunks
from dlpool.web.store.cleaning import Cleaner
from dlpool.web.store.faults import stored
from dlpool.web.store.growing import IDLE_S, GrowingUploads, GrowWish, locked
from dlpool.web.store.layout import Layout
from dlpool.web.store.locks import release
from dlpool.web.store.record import TUS
from dlpool.web.store.room import check_merge
from dlpool.web.store.states import COMPLETED, MERGING
from dlpool.web.store.task import Task
from dlpool.web.store.wishes import check_size


@dataclass(frozen=True)
class Concatenation:
    """Makes final uploads. A final one that is not completed is left by somebody who was killed; nobody knows its id.

    While it is made, the lock of its end is held, from ``grace_s`` after its beginning on at the latest. All methods
    raise Refusal.
    """

    layout: Layout
    settings: UploadSettings
    growing: GrowingUploads
    cleaner: Cleaner
    grace_s: float = IDLE_S

    def make(self, wish: GrowWish, parts: Sequence[str]) -> str:
        """Publish a file of uploads that are PARTIAL and whole, in that order; returns the id of the new upload."""
        size = sum(self._length_of_part(part, wish.owner) for part in parts)
        check_size(self.settings, size)
        with stored("begin the upload"):
            check_merge(self.settings, size)  # its chunks are there already
        file_id = self.growing.create(wish)
        try:
            with self.layout.task(file_id) as final:
                hold = final.hold_end()
            if hold is None:
                raise locked()
            try:
                self._fill(final, file_id, parts, size)
                if self.growing.finish(file_id, wish.owner) is None:
                    raise _part_gone()
            finally:
                release(hold)
        except BaseException:
            with suppress(Refusal):
                self.cleaner.delete(file_id, None)
            raise
        return file_id

    def remove_dead(self, file_id: str) -> bool:
        """Remove a final upload that nobody makes any more; whether it was one."""
        with self.layout.task(file_id) as task:
            identity = task.identity()
            if identity is None or identity.protocol != TUS:
                return False
            record = task.record()
            is_final = str(record.tus.get("concat", "")).startswith(FINAL)
            is_busy = record.status == MERGING or task.is_receiving() or time.time() - record.updated_at < self.grace_s
            if not is_final or record.status == COMPLETED or is_busy:
                return False
        self.cleaner.delete(file_id, None)
        return True

    def _fill(self, final: Task, file_id: str, parts: Sequence[str], size: int) -> None:
        """Give the new upload the chunks of all parts; where one was removed meanwhile, fewer than ``size`` bytes."""
        count = 0
        for part in parts:
            with self.layout.task(part) as task:
                for chunk in front(list_chunks(task.folder)):
                    _link(task.chunk_path(chunk.index), final.chunk_path(count))
                    count += 1
        with self.layout.task(file_id):
            final.save(final.record(), file_size=size, received=size)

    def _length_of_part(self, file_id: str, owner: str | None) -> int:
        growth = self.growing.look(file_id, owner)
        if growth.concat != PARTIAL or growth.offset != growth.length:
            raise Refusal(400, "bad_part", f"{file_id[:64]!r} is no part that is whole: finish it first")
        return growth.length


def _part_gone() -> Refusal:
    return Refusal(409, "part_gone", "a part was removed while it was joined: send it again")


def _link(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """The same chunk under another name; a copy where there are no hard links."""
    with stored("join the uploads"), suppress(FileExistsError):
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            shutil.copyfile(source, target)
