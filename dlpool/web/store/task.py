"""One task's folder: what its chunks, its record and its locks say together."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlpool.web.refusal import Refusal
from dlpool.web.store import states
from dlpool.web.store.chunkfile import Chunk, chunk_path, list_chunks
from dlpool.web.store.events import Announce, UploadEvent, silent
from dlpool.web.store.faults import stored
from dlpool.web.store.locks import held, is_held, release, shared
from dlpool.web.store.record import IDENTITY, Identity, Record, load_identity, load_record, save_record
from dlpool.web.store.syncing import Syncing


def gone() -> Refusal:
    """That a task is not there any more."""
    return Refusal(404, "no_such_task", "the task was removed meanwhile: send all of it again")


def no_such_task() -> Refusal:
    """That no task has such an id, or none of who asks."""
    return Refusal(404, "no_such_task", "there is no such task: send its first chunk")


def check_owner(identity: Identity, owner: str | None, protocol: str | None = None) -> None:
    """Raise Refusal: 404 if the task is not the owner's, 409 if it is of another ``protocol``."""
    if not identity.is_of(owner):
        raise no_such_task()
    if protocol not in (None, identity.protocol):
        raise Refusal(409, "other_protocol", "the task is uploaded by another protocol: choose another file_id")


def sync_task(task: Task) -> None:
    """Make the names in a task's folder durable. Raises Refusal."""
    with stored("store the chunk"):
        try:
            task.sync.folder(task.folder)
        except FileNotFoundError as error:
            raise gone() from error


class Visit:
    """That somebody sends to a task: it does not expire meanwhile, and is not begun anew if it was removed.

    A shared lock of ``identity.json``, whose file lives exactly as long as the task.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of that file, locked; it is closed by ``end``."""
        self._descriptor = descriptor

    def is_over(self, folder: Path) -> bool:
        """Whether the task in ``folder`` is not the one that was visited. Ask under the task's lock. Raises OSError."""
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(folder / IDENTITY)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)

    def end(self) -> None:
        release(self._descriptor)


@dataclass(frozen=True)
class Task:
    """A folder that may be there. Methods raise OSError; who changes something holds the task's lock."""

    folder: Path
    sync: Syncing
    announce: Announce = silent

    def tell(self, name: str, record: Record, identity: Identity | None = None, **note: Any) -> None:
        """Announce a change of the task; a task without an identity is not announced."""
        with suppress(OSError):  # the change is made, even if it cannot be announced
            known = identity or self.identity()
            if known is not None:
                self.announce(
                    UploadEvent(
                        name, known.file_id, known.protocol, known.owner, record.filename, record.file_size, note
                    )
                )

    def identity(self) -> Identity | None:
        """None if there is no such task."""
        return load_identity(self.folder)

    def owned(self, owner: str | None, protocol: str | None = None) -> Identity:
        """The identity, for its owner; ``owner`` None: nobody is asked who he is. Raises Refusal: 404.

        409 for a task of another ``protocol``.
        """
        identity = self.identity()
        if identity is None:
            raise no_such_task()
        check_owner(identity, owner, protocol)
        return identity

    def chunks(self) -> dict[int, Chunk]:
        """The whole chunks, by index; for a completed task those that it was merged from."""
        return self.chunks_of(load_record(self.folder))

    def chunks_of(self, record: Record | None) -> dict[int, Chunk]:
        """The same, of a record that was read."""
        if record is not None and record.status == states.COMPLETED:
            return {entry[0]: Chunk(*entry) for entry in record.chunks}
        return list_chunks(self.folder)

    def record(self) -> Record:
        """The record, with the state that chunks and locks say it has; made anew where it is lost."""
        return self.effective(load_record(self.folder))

    def effective(self, noted: Record | None) -> Record:
        """The same, of a record that was read."""
        record = noted or self._rebuilt()
        has_chunks = record.status in (states.PENDING, states.MERGING) and bool(list_chunks(self.folder))
        is_merging = record.status == states.MERGING and self.is_merging()
        status = states.effective(record.status, has_chunks=has_chunks, is_merging=is_merging)
        return replace(record, status=status)

    def save(self, record: Record, *, sync: Syncing | None = None, **changed: Any) -> Record:
        """Write the record with the changes and the time; ``sync``: overrides the task's own. Raises OSError."""
        record = replace(record, **changed, updated_at=time.time())
        save_record(self.folder, record, sync=self.sync if sync is None else sync)
        return record

    def chunk_path(self, index: int) -> Path:
        return chunk_path(self.folder, index)

    def hold_merge(self) -> int | None:
        """A descriptor with which this process merges until it is closed; None if another one does."""
        return held(self.folder / "merge.lock")

    def is_merging(self) -> bool:
        """Whether a living process merges it."""
        return is_held(self.folder / "merge.lock")

    def hold_end(self) -> int | None:
        """A descriptor with which this process alone appends until it is closed; None if another one does."""
        return held(self.folder / "patch.lock")

    def ask_for_end(self) -> None:
        """Let who appends know that another one wants to: by the time of the lock file, which needs no room."""
        now = time.time_ns()
        with suppress(FileNotFoundError):
            os.utime(self.folder / "patch.lock", ns=(now, now))

    def visit(self) -> Visit | None:
        """Begin to send to it; None if there is no such task. Raises OSError."""
        descriptor = shared(self.folder / IDENTITY)
        return None if descriptor is None else Visit(descriptor)

    def is_receiving(self) -> bool:
        """Whether somebody sends to it: by ``visit``, or at its end."""
        return is_held(self.folder / IDENTITY) or is_held(self.folder / "patch.lock")

    def _rebuilt(self) -> Record:
        chunks = list_chunks(self.folder).values()
        updated_at = max((chunk.stored_at for chunk in chunks), default=self.folder.stat().st_mtime)
        return Record(updated_at=updated_at, received=sum(chunk.size for chunk in chunks))
