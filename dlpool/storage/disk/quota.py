"""How much one owner's uploads may take: counted whenever a task is about to begin.

The counters of the catalog follow what is on the disk, so that nothing is counted that
a killed process could leave wrong. Tasks of one owner begin one after the other, also
in several processes: each is counted by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from dlpool.config import UploadSettings
from dlpool.storage.disk.capacity import FILES_PER_TASK, assumed_chunks
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.errors import UploadError


class QuotaUsage(NamedTuple):
    """What uploads take. ``bytes``: those that are announced, or that completed ones
    have; ``files``: inodes."""

    tasks: int = 0
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class QuotaRequest:
    """What an owner's uploads are to take more than they do; ``hint``: what would make
    that less."""

    owner: str | None
    added: QuotaUsage
    hint: str = ""


def new_task_request(
    settings: UploadSettings, owner: str | None, size: int, chunks: int | None
) -> QuotaRequest:
    """One more task, of ``size`` bytes (-1: unknown), in so many chunks (None:
    unknown)."""
    unsaid = [
        name
        for name, is_unsaid in (
            ("file_size", size < 0),
            ("total_chunks", chunks is None),
        )
        if is_unsaid
    ]
    taken = QuotaUsage(
        1,
        size if size >= 0 else settings.max_file_size,
        FILES_PER_TASK + (assumed_chunks(0) if chunks is None else chunks),
    )
    return QuotaRequest(
        owner, taken, f"say {' and '.join(unsaid)}, or " if unsaid else ""
    )


def more_chunks_request(owner: str | None, chunks: int) -> QuotaRequest:
    """So many more files of a task."""
    return QuotaRequest(owner, QuotaUsage(files=max(0, chunks)))


@dataclass(frozen=True)
class OwnerQuota:
    """The limits ``owner_tasks``, ``owner_bytes`` and ``owner_files`` of one store.
    Thread-safe, and between processes.

    Tasks that nobody owns (begun by an admin, or where nobody is asked who he is) count
    together, as one owner's.
    """

    layout: StoreLayout
    settings: UploadSettings
    listing: TaskIndex

    @property
    def is_set(self) -> bool:
        """Whether there is any limit; else nothing is counted."""
        return any(limit is not None for limit in self._limits())

    def _limits(self) -> tuple[int | None, int | None, int | None]:
        return (
            self.settings.owner_tasks,
            self.settings.owner_bytes,
            self.settings.owner_files,
        )

    @contextmanager
    def reserve(self, wanted: QuotaRequest) -> Iterator[None]:
        """Take in the block what is wanted. Raises Refusal (507).

        No task's lock may be held: who wants both takes this one first.
        """
        if not self.is_set:
            yield
            return
        with self.layout.lock_name(f"owner {wanted.owner!r}"):
            self.check(wanted)
            yield

    def check(self, wanted: QuotaRequest) -> None:
        """Raise Refusal (507) if that would be too much, as it is at present."""
        if not self.is_set:
            return
        taken = self.usage(wanted.owner)
        for what, limit, used, more in zip(
            QuotaUsage._fields, self._limits(), taken, wanted.added, strict=True
        ):
            if limit is not None and more > 0 and used + more > limit:
                text = (
                    f"your uploads may have {limit} {what} together, have {used}, and "
                    f"{more} more "
                    f"are wanted"
                )
                text = f"{text}: {wanted.hint}remove some, or wait until they expire"
                raise UploadError(
                    507,
                    "over_quota",
                    text,
                    quota=f"owner_{what}",
                    limit=limit,
                    used=used,
                    wanted=more,
                )

    def usage(self, owner: str | None) -> QuotaUsage:
        """Return what the owner has, with every change that was made before the call.
        Raises Refusal (503, 507).

        An upload whose size is not known counts as the largest one, and a final one of
        tus that is being made only as a task: its parts count.
        """
        counts = self.listing.current(is_exact=True).counts_of(owner)
        size = (
            counts.declared_bytes + counts.unknown_sizes * self.settings.max_file_size
        )
        return QuotaUsage(
            counts.tasks, size, counts.tasks * FILES_PER_TASK + counts.expected_chunks
        )
