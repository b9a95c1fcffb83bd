"""The interfaces of upload storage: what the upload API, tus and the janitor call.

A backend implements ``UploadBackend`` and ``Locker``; ``dlpool.storage.open_backend``
selects it. If a backend lacks an optional capability, it returns None for that
capability, and the HTTP layer does not offer it. For foreseeable faults, methods raise
``UploadError``. Methods may be called by any thread of any process, unless their class
says otherwise.

``owner`` is the user of the request. It is None for an administrator, and for any
client where authentication is off. With None, all tasks are accessible.
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

    A context manager. At the end of the block, bytes that have not been committed are
    discarded.
    """

    def reserve(self, size: int) -> None:
        """Announce that about ``size`` bytes follow, so that the backend can reserve
        space."""

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

    The caller stages a chunk, passes the request to ``check`` as soon as the request's
    fields are known, writes the bytes, and commits the chunk.
    """

    def stage(self) -> StagedChunk:
        """Start receiving a chunk. No other request has to wait while the bytes
        arrive."""

    def check(
        self, staged: StagedChunk, request: ChunkRequest, /, size: int | None = None
    ) -> None:
        """Raise UploadError if it is known already that ``commit`` would refuse the
        request.

        Called before the bytes are received. ``size``: the exact number of these bytes,
        None if unknown. If the task exists, it does not expire until the chunk is
        committed or discarded.
        """

    def commit(self, staged: StagedChunk, request: ChunkRequest, /) -> ChunkResult:
        """Store the received bytes durably as a chunk of its task.

        The first chunk creates the task. A chunk replaces an earlier one with the same
        index. A refused request changes no chunk.
        """


class UploadLock(Protocol):
    """The append lock of one upload."""

    def check(self) -> None:
        """Raise UnlockRequested if another request waits for the lock.

        Raises UploadError if the upload was removed. Cheap: called for each block of a
        body.
        """


class Locker(Protocol):
    """Locks tus uploads, so that one request at a time appends to an upload.

    A lock works between all processes that share the backend.
    """

    def lock(
        self, file_id: str, owner: str | None
    ) -> AbstractContextManager[UploadLock]:
        """Hold the append lock of an upload that accepts bytes.

        Asks the current lock holder to release the lock (see ``UploadLock.check``), so
        that a client that reconnects does not wait until its old connection times out.
        Raises AlreadyComplete. Raises UploadError, for example ``locked`` if the holder
        does not release the lock in time.
        """


class AppendSession(Protocol):
    """A request body that is being appended to an upload.

    A context manager. If the block raises, the bytes received so far are kept. They are
    discarded instead if ``discard`` was called, if the body has a checksum, or if the
    body is too large.
    """

    @property
    def offset(self) -> int:
        """The number of committed bytes of the upload."""

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are committed and the file has to be published next."""

    @property
    def expires_at(self) -> float | None:
        """When the upload expires, in seconds since the epoch; None if it is
        completed."""

    def write(self, data: bytes, /) -> None:
        """Append bytes. Raises UploadError, UnlockRequested."""

    def commit(self) -> None:
        """Store the received bytes durably. Called once, when the body is complete."""

    def discard(self) -> None:
        """Discard the received bytes, because they differ from what the client
        announced."""


class TusUploads(Protocol):
    """Uploads by the tus protocol: each request appends bytes to the end.

    A complete upload is published without a further request of the client.
    """

    def create(self, request: TusUploadRequest, /) -> str:
        """Create an upload and return its id."""

    def state(self, file_id: str, owner: str | None) -> TusUploadState:
        """Return the progress of an upload. Changes nothing."""

    def recover(self, file_id: str, owner: str | None) -> TusUploadState:
        """Store the bytes that a killed process received, and return the progress."""

    def append(
        self, lock: UploadLock, request: AppendRequest, /
    ) -> AbstractContextManager[AppendSession]:
        """Start appending the body of a request; the caller holds ``lock``."""

    def finish(self, file_id: str, owner: str | None) -> MergeResult | None:
        """Publish a complete upload and return the result.

        Returns None if the upload is incomplete, or if it is a part of a final upload.
        Raises UploadError: ``locked`` while another request merges the upload.
        """


class Concatenator(Protocol):
    """The tus extension Concatenation, an optional capability.

    It joins uploads, called parts, into a final upload.
    """

    def concatenate(self, request: TusUploadRequest, parts: Sequence[str], /) -> str:
        """Join the parts in this order, publish the file, and remove the parts.

        Returns the id of the new upload.
        """


class MergedFile(Protocol):
    """A published file, opened for reading.

    ``modified_at``: time in seconds since the epoch. ``size``: number of bytes.
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

        ``on_close`` is called when the stream is closed. The caller must not close the
        file before the stream.
        """

    def close(self) -> None:
        """Close the file."""


class UploadBackend(Protocol):
    """Everything that the HTTP layer and the janitor need of upload storage."""

    @property
    def chunks(self) -> ChunkReceiver:
        """The receiver of chunks."""

    @property
    def tus(self) -> TusUploads:
        """The tus uploads."""

    @property
    def locker(self) -> Locker:
        """The append locks of tus uploads."""

    @property
    def concatenator(self) -> Concatenator | None:
        """Joins parts; None if the backend cannot concatenate uploads."""

    def merge(self, request: MergeRequest, /) -> MergeResult:
        """Publish the file of a task. A repeated request returns the first result."""

    def find_task(self, file_id: str, owner: str | None) -> TaskDetail | None:
        """Return a task, None if it does not exist or has another owner."""

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

        ``cursor``: ``next_cursor`` of the previous page, empty for the first page.
        ``status``: the states of the returned tasks, empty for all states. A task that
        exists and keeps its state while all pages are requested is on exactly one page.
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

        Completes interrupted merges and tus uploads.
        """

    def open_merged(self, path: str, reader: str | None) -> MergedFile:
        """Open a published file.

        Raises UploadError, for example not_found if the file does not exist or
        ``reader`` has no access to it.
        """

    def volumes(self) -> Sequence[Volume]:
        """Return the folders of the backend and their free space."""
