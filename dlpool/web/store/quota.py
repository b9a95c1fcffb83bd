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
from dlpool.web.store.faults import stored
from dlpool.web.store.layout import Layout
from dlpool.web.store.record import IDENTITY, Record, load_identity, load_record
from dlpool.web.store.states import COMPLETED

_REMEMBERED = 20_000


class Taken(NamedTuple):
    """What the uploads of one owner take. ``bytes``: those that have been announced, or that completed ones have."""

    tasks: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Quota:
    """The limits ``owner_tasks`` and ``owner_bytes`` of one store. Thread-safe, and between processes.

    Tasks that nobody owns (begun with the secret, or where nobody is asked who he is) count together, as one owner's.
    """

    layout: Layout
    settings: UploadSettings

    @property
    def is_set(self) -> bool:
        """Whether there is any limit; else nothing is counted."""
        return (self.settings.owner_tasks, self.settings.owner_bytes) != (None, None)

    @contextmanager
    def admitted(self, owner: str | None, size: int) -> Iterator[None]:
        """Make one more task of the owner in the block, of ``size`` bytes (-1: unknown). Raises Refusal (507).

        No task's lock may be held: who makes tasks takes this lock first.
        """
        if not self.is_set:
            yield
            return
        with self.layout.turn(f"owner {owner!r}"):
            self.check(owner, size)
            yield

    def check(self, owner: str | None, size: int) -> None:
        """Raise Refusal (507) if one more task would be too much, as it is now."""
        if not self.is_set:
            return
        taken, wanted = self.taken(owner), size if size >= 0 else self.settings.max_file_size
        tasks, most = self.settings.owner_tasks, self.settings.owner_bytes
        if tasks is not None and taken.tasks >= tasks:
            text = f"you have {taken.tasks} uploads, and may have {tasks}: delete some, or wait until they expire"
            raise _over("owner_tasks", text, tasks, taken.tasks, 1)
        if most is not None and taken.bytes + wanted > most:
            hint = "delete some" if size >= 0 else "say the size of the file, or delete some"
            text = f"your uploads have {taken.bytes} bytes, may have {most}, and this one may need {wanted}: {hint}"
            raise _over("owner_bytes", text, most, taken.bytes, wanted)

    def taken(self, owner: str | None) -> Taken:
        """Count what the owner has. No lock is needed: what is read changes by one rename. Raises Refusal."""
        tasks = size = 0
        for folder in self._folders():
            with suppress(OSError):  # one that cannot be read, or has just gone
                if _is_of(folder, owner):
                    tasks += 1
                    size += self._bytes_of(load_record(Path(folder)))
        return Taken(tasks, size)

    def _folders(self) -> list[str]:
        with stored("read the upload folder"):
            try:
                with os.scandir(self.layout.tasks()) as entries:
                    return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            except FileNotFoundError:
                return []

    def _bytes_of(self, record: Record | None) -> int:
        """What a task takes at most: a final upload that is being made has nothing but its parts, which count."""
        if record is None:
            return self.settings.max_file_size
        if str(record.tus.get("concat", "")).startswith(FINAL) and record.status != COMPLETED:
            return 0
        return record.file_size if record.file_size >= 0 else self.settings.max_file_size


def _is_of(folder: str, owner: str | None) -> bool:
    """Whether the task in the folder is the owner's. Raises OSError."""
    status = os.stat(f"{folder}/{IDENTITY}", follow_symlinks=False)
    return _owner_of(folder, status.st_ino, status.st_ctime_ns) == (owner,)


@lru_cache(maxsize=_REMEMBERED)
def _owner_of(folder: str, _inode: int, _changed_ns: int) -> tuple[str | None] | None:
    """The owner that is noted there; None if none can be read. What is noted once does not change."""
    identity = load_identity(Path(folder))
    return None if identity is None else (identity.owner,)


def _over(quota: str, text: str, limit: int, used: int, wanted: int) -> Refusal:
    return Refusal(507, "over_quota", text, quota=quota, limit=limit, used=used, wanted=wanted)
