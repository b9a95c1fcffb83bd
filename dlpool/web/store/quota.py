"""How much one owner's uploads may take: counted from the disk whenever a task is about to begin.

Nothing is counted beforehand that a killed process could leave wrong. Tasks of one owner begin one after the other,
also in several processes: each is counted by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dlpool.config import UploadSettings
from dlpool.web.refusal import Refusal
from dlpool.web.store.appending import FINAL
from dlpool.web.store.chunkfile import index_of
from dlpool.web.store.layout import Layout
from dlpool.web.store.record import IDENTITY, Record, load_identity, load_record
from dlpool.web.store.room import FILES_OF_TASK
from dlpool.web.store.states import COMPLETED

STEP = 1000  # chunks: an upload that does not say how many it has counts as the next multiple
_REMEMBERED = 20_000


class Taken(NamedTuple):
    """What uploads take. ``bytes``: those that are announced, or that completed ones have; ``files``: inodes."""

    tasks: int = 0
    bytes: int = 0
    files: int = 0

    def plus(self, other: Taken) -> Taken:
        """The sum of both."""
        return Taken(self.tasks + other.tasks, self.bytes + other.bytes, self.files + other.files)


@dataclass(frozen=True)
class Wanted:
    """What an owner's uploads are to take more than they do; ``hint``: what would make that less."""

    owner: str | None
    more: Taken
    hint: str = ""


def _thousands(chunks: int) -> int:
    """What an upload takes that has so many chunks, and that does not say how many it will have."""
    return max(1, -(-chunks // STEP)) * STEP


def another_task(settings: UploadSettings, owner: str | None, size: int, chunks: int | None) -> Wanted:
    """One more task, of ``size`` bytes (-1: unknown), in so many chunks (None: unknown)."""
    unsaid = [name for name, is_unsaid in (("file_size", size < 0), ("total_chunks", chunks is None)) if is_unsaid]
    taken = Taken(1, size if size >= 0 else settings.max_file_size,
                  FILES_OF_TASK + (_thousands(0) if chunks is None else chunks))  # fmt: skip
    return Wanted(owner, taken, f"say {' and '.join(unsaid)}, or " if unsaid else "")


def more_chunks(owner: str | None, chunks: int) -> Wanted:
    """So many more files of a task."""
    return Wanted(owner, Taken(files=max(0, chunks)))


@dataclass(frozen=True)
class Quota:
    """The limits ``owner_tasks``, ``owner_bytes`` and ``owner_files`` of one store. Thread-safe, and between processes.

    Tasks that nobody owns (begun by an admin, or where nobody is asked who he is) count together, as one owner's.
    """

    layout: Layout
    settings: UploadSettings

    @property
    def is_set(self) -> bool:
        """Whether there is any limit; else nothing is counted."""
        return any(limit is not None for limit in self._limits())

    def _limits(self) -> tuple[int | None, int | None, int | None]:
        return self.settings.owner_tasks, self.settings.owner_bytes, self.settings.owner_files

    @contextmanager
    def admitted(self, wanted: Wanted) -> Iterator[None]:
        """Take in the block what is wanted. Raises Refusal (507).

        No task's lock may be held: who wants both takes this one first.
        """
        if not self.is_set:
            yield
            return
        with self.layout.turn(f"owner {wanted.owner!r}"):
            self.check(wanted)
            yield

    def check(self, wanted: Wanted) -> None:
        """Raise Refusal (507) if that would be too much, as it is at present."""
        if not self.is_set:
            return
        taken = self.taken(wanted.owner)
        for what, limit, used, more in zip(Taken._fields, self._limits(), taken, wanted.more, strict=True):
            if limit is not None and more > 0 and used + more > limit:
                text = f"your uploads may have {limit} {what} together, have {used}, and {more} more are wanted"
                text = f"{text}: {wanted.hint}remove some, or wait until they expire"
                raise Refusal(507, "over_quota", text, quota=f"owner_{what}", limit=limit, used=used, wanted=more)

    def taken(self, owner: str | None) -> Taken:
        """Count what the owner has. No lock is needed: what is read changes by one rename. Raises Refusal."""
        taken = Taken()
        for folder in self.layout.places():
            with suppress(OSError):  # one that cannot be read, or has just gone
                if _is_of(folder, owner):
                    taken = taken.plus(self._taken_by(folder, load_record(Path(folder))))
        return taken

    def _taken_by(self, folder: str, record: Record | None) -> Taken:
        """What a task takes at most: a final upload that is being made has nothing but its parts, which count.

        Raises OSError.
        """
        if record is None:
            return Taken(1, self.settings.max_file_size, FILES_OF_TASK + self._chunks_in(folder))
        if record.status == COMPLETED:
            return Taken(1, max(record.file_size, 0), FILES_OF_TASK)
        if str(record.tus.get("concat", "")).startswith(FINAL):
            return Taken(1, 0, FILES_OF_TASK)
        size = record.file_size if record.file_size >= 0 else self.settings.max_file_size
        return Taken(1, size, FILES_OF_TASK + (record.total_chunks or self._chunks_in(folder)))

    def _chunks_in(self, folder: str) -> int:
        """How many chunks count of a task that does not say how many it will have. Raises OSError."""
        if self.settings.owner_files is None:
            return 0
        with os.scandir(folder) as entries:
            return _thousands(sum(index_of(entry.name) is not None for entry in entries))


def _is_of(folder: str, owner: str | None) -> bool:
    """Whether the task in the folder is the owner's. Raises OSError."""
    status = os.stat(f"{folder}/{IDENTITY}", follow_symlinks=False)
    return _owner_of(folder, status.st_ino, status.st_ctime_ns) == (owner,)


@lru_cache(maxsize=_REMEMBERED)
def _owner_of(folder: str, _inode: int, _changed_ns: int) -> tuple[str | None] | None:
    """The owner that is noted there; None if none can be read. What is noted once does not change."""
    identity = load_identity(Path(folder))
    return None if identity is None else (identity.owner,)
