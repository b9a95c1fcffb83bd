"""The quota of each owner: how many tasks, bytes and files its uploads may have.

Usage is computed from the task index, which follows the disk: a killed process cannot
leave a wrong counter. Tasks of one owner are created one after the other, even by
several processes. Each is counted before the next is admitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.storage.disk.capacity import FILES_PER_TASK, assumed_chunks
from dlpool.storage.disk.layout import StoreLayout
from dlpool.storage.disk.task_index import TaskIndex
from dlpool.storage.errors import UploadError


class QuotaUsage(NamedTuple):
    """The number of tasks, bytes and files that uploads use.

    ``bytes``: announced sizes, or stored sizes of completed uploads; ``files``: inodes.
    """

    tasks: int = 0
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class QuotaRequest:
    """The additional usage that an owner's request needs.

    ``hint``: text for the error message: how the client can reduce ``added``; may be
    empty.
    """

    owner: str | None
    added: QuotaUsage
    hint: str = ""


def new_task_request(
    settings: UploadSettings, owner: str | None, size: int, chunks: int | None
) -> QuotaRequest:
    """Return the quota request for one more task.

    ``size``: bytes of the file, -1 if unknown. ``chunks``: number of chunks, None if
    unknown.
    """
    unknown = [
        name
        for name, is_unknown in (
            ("file_size", size < 0),
            ("total_chunks", chunks is None),
        )
        if is_unknown
    ]
    files = FILES_PER_TASK + (assumed_chunks(0) if chunks is None else chunks)
    added = QuotaUsage(1, size if size >= 0 else settings.max_file_size, files)
    return QuotaRequest(
        owner, added, f"send {' and '.join(unknown)}, or " if unknown else ""
    )


def more_chunks_request(owner: str | None, chunks: int) -> QuotaRequest:
    """Return the quota request for additional chunks of a task.

    ``chunks``: their number; each chunk is a file.
    """
    return QuotaRequest(owner, QuotaUsage(files=max(0, chunks)))


@dataclass(frozen=True)
class OwnerQuota:
    """The limits ``owner_tasks``, ``owner_bytes`` and ``owner_files``.

    May be used by several threads and processes. Tasks without an owner (of
    administrators, or where authentication is off) share one quota.
    """

    layout: StoreLayout
    settings: UploadSettings
    index: TaskIndex

    @property
    def is_set(self) -> bool:
        """Whether any limit is configured; usage is computed only then."""
        return any(limit is not None for limit in self._limits())

    def _limits(self) -> tuple[int | None, int | None, int | None]:
        return (
            self.settings.owner_tasks,
            self.settings.owner_bytes,
            self.settings.owner_files,
        )

    @contextmanager
    def reserve(self, request: QuotaRequest) -> Iterator[None]:
        """Check the request, and admit no other request of the owner during the block.

        The caller creates the task or chunk in the block. No effect if no limit is
        configured. Raises the errors of ``check``. Lock order: the caller must not hold
        the lock of a task; the block may take the lock of a task.
        """
        if not self.is_set:
            yield
            return
        with self.layout.lock_name(f"owner {request.owner!r}"):
            self.check(request)
            yield

    def check(self, request: QuotaRequest) -> None:
        """Raise UploadError (over_quota) if the request exceeds a limit.

        Raises the errors of ``usage``.
        """
        if not self.is_set:
            return
        usage = self.usage(request.owner)
        for what, limit, used, more in zip(
            QuotaUsage._fields, self._limits(), usage, request.added, strict=True
        ):
            if limit is not None and more > 0 and used + more > limit:
                text = (
                    f"the limit of your uploads is {limit} {what}: they have {used}, "
                    f"and this one needs {more} more: {request.hint}remove some, or "
                    "wait until they expire"
                )
                raise UploadError(
                    "over_quota",
                    text,
                    quota=f"owner_{what}",
                    limit=limit,
                    used=used,
                    wanted=more,
                )

    def usage(self, owner: str | None) -> QuotaUsage:
        """Return what the owner uses, including every change before the call.

        Raises UploadError. An upload of unknown size counts as ``max_file_size``.
        During a concatenation, the bytes of the parts count once: the final upload adds
        no bytes.
        """
        counts = self.index.current(is_exact=True).counts_of(owner)
        size = (
            counts.declared_bytes + counts.unknown_sizes * self.settings.max_file_size
        )
        return QuotaUsage(
            counts.tasks, size, counts.tasks * FILES_PER_TASK + counts.expected_chunks
        )
