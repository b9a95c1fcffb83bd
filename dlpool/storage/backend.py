"""The interfaces of upload storage: what the upload API, tus and the janitor call.

A backend implements ``UploadBackend`` and ``Locker``; ``dlpool.storage.open_backend``
selects it. A backend without an optional capability returns None for it, and the HTTP
layer does not offer it. All methods raise ``UploadError`` and nothing else for
foreseeable faults, and may be called by any thread of any process.

``owner`` is the user of the request. None is an administrator, or any client where
authentication is off, and may access all tasks.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from dlpool.storage.upload_requests import (
    AppendRequest,
    ChunkRequest,
    MergeRequest,
    TusUploadRequest,
)
from dlpool.storage.values import (
    MAX_PAGE,
    ChunkResult,
    MergeResult,
    SweepResult,
    TaskCounts,
    TaskDetail,
    TaskPage,
    TusUploadState,
    Volume,
)


class StagedChunk(Protocol):
    """A chunk while it is received. Used by one thread.

    A context manager that discards bytes that have not been committed.
    """

    def reserve(self, size: int) -> None:
        """Announce about ``size`` bytes, so that the backend can reserve space."""

    def write(self, data: bytes, /) -> None:
        """Append bytes."""

    def __enter__(self) -> StagedChunk: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class ChunkReceiver(Protocol):
    """Receives chunks.

    The caller stages a chunk, checks its request as soon as the fields are known,
    writes the bytes, and commits it.
    """

    def stage(self) -> StagedChunk:
        """Start receiving a chunk. No lock is held while its bytes arrive."""

    def check(self, staged: StagedChunk, request: ChunkRequest, /) -> None:
        """Refuse a request that ``commit`` would refuse, before its bytes are received.

        An existing task does not expire until the chunk is committed or discarded.
        """

    def commit(self, staged: StagedChunk, request: ChunkRequest, /) -> ChunkResult:
        """Store the received bytes durably as a chunk of its task.

        The first chunk creates the task. A chunk that was stored with the same index is
        replaced, unless the request is refused.
        """


class UploadLock(Protocol):
    """The append lock of one upload."""

    def check(self) -> None:
        """Raise UnlockRequested if another request waits for the lock.

        Raises UploadError if the upload was removed. Cheap: called for each block of a
        body.
        """


class Locker(Protocol):
    """Locks tus uploads, for one appending request at a time.

    The lock excludes all processes and machines of the backend.
    """

    def lock(
        self, file_id: str, owner: str | None
    ) -> AbstractContextManager[UploadLock]:
        """Hold the append lock of an upload that accepts bytes.

        The current lock holder is asked to release it (see ``UploadLock.check``), so
        that a client that reconnects does not wait until its old connection times out.
        Raises UploadError: ``locked`` if the holder does not release the lock in time;
        AlreadyComplete.
        """


class AppendSession(Protocol):
    """A body while it is appended.

    A context manager: when the block raises, the bytes received so far are kept.
    The bytes are discarded after ``discard``, if the body has a checksum, or if the
    body has more bytes than were announced.
    """

    @property
    def offset(self) -> int:
        """The end of the upload in bytes; only committed bytes count."""

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are committed and the file has to be published next."""

    @property
    def expires_at(self) -> float | None:
        """When the upload expires, in seconds since the epoch; None if completed."""

    def write(self, data: bytes, /) -> None:
        """Append bytes. Raises UploadError, UnlockRequested."""

    def commit(self) -> None:
        """Store the received bytes durably. Called once, when the body is complete."""

    def discard(self) -> None:
        """Drop the received bytes, which differ from what the client announced."""


class TusUploads(Protocol):
    """Uploads by tus: they grow at their end.

    A complete upload is published automatically.
    """

    def create(self, request: TusUploadRequest, /) -> str:
        """Create an upload and return its id."""

    def state(self, file_id: str, owner: str | None) -> TusUploadState:
        """Return the progress without changing anything."""

    def recover(self, file_id: str, owner: str | None) -> TusUploadState:
        """Store the bytes that a killed process received, and return the progress."""

    def append(
        self, lock: UploadLock, request: AppendRequest, /
    ) -> AbstractContextManager[AppendSession]:
        """Start appending a body; the caller holds ``lock``."""

    def finish(self, file_id: str, owner: str | None) -> MergeResult | None:
        """Publish a complete upload; return None for an incomplete one or a part.

        Raises UploadError: ``locked`` while another request merges it.
        """


class Concatenator(Protocol):
    """Optional capability: the tus extension concatenation.

    A final upload is concatenated from parts.
    """

    def concatenate(self, request: TusUploadRequest, parts: Sequence[str], /) -> str:
        """Publish a file of the parts, in this order, and remove the parts.

        Returns the id of the new upload.
        """


class MergedFile(Protocol):
    """A published file, opened for reading.

    ``modified_at`` in seconds since the epoch, ``size`` in bytes.
    """

    @property
    def size(self) -> int: ...

    @property
    def modified_at(self) -> float: ...

    @property
    def etag(self) -> str:
        """The entity tag, a strong validator (RFC 9110 section 8.8.3)."""

    def read_range(
        self, start: int, size: int, on_close: Callable[[], None]
    ) -> io.RawIOBase:
        """Return a stream of ``size`` bytes from ``start``.

        ``on_close`` is called when the stream is closed. The file must stay open until
        the stream is closed.
        """

    def close(self) -> None:
        """Close the file."""


class UploadBackend(Protocol):
    """Everything that the HTTP layer and the janitor need of upload storage."""

    @property
    def chunks(self) -> ChunkReceiver:
        """Uploads in chunks."""

    @property
    def tus(self) -> TusUploads:
        """Uploads by tus."""

    @property
    def locker(self) -> Locker:
        """Append locks of tus uploads."""

    @property
    def concatenator(self) -> Concatenator | None:
        """Joins parts; None if the backend cannot concatenate uploads."""

    def merge(self, request: MergeRequest, /) -> MergeResult:
        """Publish the file of a task. A repeated request returns the first result."""

    def find_task(self, file_id: str, owner: str | None) -> TaskDetail | None:
        """Return a task, None if it does not exist."""

    def task(self, file_id: str, owner: str | None) -> TaskDetail:
        """Return a task. Raises UploadError: no_such_task."""

    def tasks(
        self,
        owner: str | None,
        *,
        limit: int = MAX_PAGE,
        cursor: str = "",
        status: Iterable[str] = (),
    ) -> TaskPage:
        """Return at most ``limit`` tasks, sorted by id.

        ``cursor``: ``next_cursor`` of the page before, empty for the first page.
        ``status``: the states of the returned tasks, empty for all states. A task that
        exists from the first request of a list to the last is on exactly one page.
        """

    def counts_by_state(self) -> Mapping[str, TaskCounts]:
        """Return the number, bytes and files of the tasks of all owners, by state."""

    def pause(self, file_id: str, owner: str | None) -> TaskDetail:
        """Refuse chunks of the task until it is resumed."""

    def resume(self, file_id: str, owner: str | None) -> TaskDetail:
        """Accept chunks of a paused task again."""

    def delete(self, file_id: str, owner: str | None) -> None:
        """Remove a task and its chunks, not the published file."""

    def cleanup(
        self,
        owner: str | None,
        status: Sequence[str] = ...,
        older_than_days: float = ...,
    ) -> int:
        """Remove tasks that have not changed for ``older_than_days``.

        ``status``: only tasks in these states. Returns the number of removed tasks.
        """

    def sweep(self) -> SweepResult:
        """Remove expired tasks and leftovers of killed processes.

        Interrupted merges and tus uploads are completed.
        """

    def open_merged(self, path: str, reader: str | None) -> MergedFile:
        """Open a published file.

        Raises UploadError: ``not_found``, also if ``reader`` may not read it.
        """

    def volumes(self) -> Sequence[Volume]:
        """Return the folders of the backend and their free space."""
