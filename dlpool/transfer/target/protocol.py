"""The interface between the core of a download and its output.

The core (``transfer``, ``attempt``, ``probe``, ``worker``) uses only ``Target``;
``file/`` implements it on a file system. An implementation must fit this life cycle:

1. open: choose the final name, lock it against other writers, and load the state of an
   interrupted run (``saved``);
2. write: each connection worker writes byte ranges through its own ``RangeWriter``, in
   any order;
3. checkpoint: make the written bytes durable, then the state that lists them, in this
   order;
4. prepare and publish: make the complete bytes durable, then give them their final name
   in one atomic step. The core asks for permission to publish (the fence of a queue's
   job) immediately before ``publish``;
5. close: release the lock. The checkpointed bytes and state stay for the next run,
   unless they were published or discarded.

A multipart upload to object storage would fit: a writer uploads parts, a checkpoint
writes the state object, ``publish`` completes the upload and ``discard`` aborts it. An
ordered stream would fit as well: it is opened without ``saved``, and its download uses
one connection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dlpool.dataclass import dataclass
from dlpool.errors import DlpoolError
from dlpool.scan.scannedfile import ScannedFile
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.pipe import Pipe
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.space_rules import BlockReserver, SpaceRules
from dlpool.transfer.target.state import SavedState


@dataclass(frozen=True)
class TargetOptions:
    """The options with which a target is opened.

    ``if_exists``: what to do with an existing file: ``fail``, ``skip``, ``overwrite``
    or ``rename``. ``resume``: whether to use the bytes of an interrupted run. ``sync``:
    whether to make checkpoints and the published file durable.
    """

    if_exists: str
    resume: bool
    sync: bool


class TargetPresent(Exception):
    """The target exists already, so the download publishes nothing.

    ``is_published``: whether an earlier run of this download published the file.
    ``size``: the size of the file in bytes.
    """

    def __init__(self, path: Path, size: int, *, is_published: bool) -> None:
        super().__init__(str(path))
        self.path = path
        self.size = size
        self.is_published = is_published


class RangeWriter(BlockReserver, Protocol):
    """Writes byte ranges for one thread. ``close`` may be called by another thread."""

    def write(self, position: int, data: memoryview) -> None:
        """Write all of ``data`` at ``position``. Raises LocalFault."""
        ...

    def splice(self, position: int, pipe: Pipe, size: int) -> int:
        """Move ``size`` bytes from ``pipe`` to ``position``.

        Returns how many bytes were moved. If there are fewer, the output does not
        support that: the rest is still in the pipe, and must be written with ``write``.
        Raises LocalFault.
        """
        ...

    def close(self) -> None:
        """Close the writer; a second call closes nothing.

        Raises LocalFault for a failed write that the system reports only now.
        """
        ...


class RangeReader(Protocol):
    """Reads back bytes that have been written. Used by one thread."""

    def read(self, position: int, size: int) -> bytes:
        """Return at most ``size`` bytes at ``position``.

        The result is empty beyond the last written byte. Raises LocalFault.
        """
        ...

    def close(self) -> None:
        """Close the reader. Raises LocalFault."""
        ...


class Target(Protocol):
    """The output of one download.

    The thread that runs the download uses it; other threads use its writers and
    readers.

    All methods raise LocalFault if the storage fails.
    """

    path: Path
    """The final name; with ``if_exists = rename`` it may change at the publish."""
    saved: SavedState | None
    """The state of an interrupted run whose bytes can be used, or None."""
    unverifiable: RemoteResource | None
    """The resource of saved bytes whose version nothing can prove, or None."""
    has_other_query: bool
    """Whether the saved bytes were fetched with another query or user info."""
    has_failed: bool
    """Whether a checkpoint or publish has failed; no further one may be tried then."""

    @property
    def has_state(self) -> bool:
        """Whether a state of this download is stored."""
        ...

    @property
    def is_preallocated(self) -> bool:
        """Whether space for the complete file is reserved."""
        ...

    @property
    def length(self) -> int:
        """The number of stored bytes, including holes."""
        ...

    def restart(self, reason: str) -> None:
        """Drop all bytes and the state.

        Late writes through writers that were opened before have no effect.
        """
        ...

    def drop_unverifiable(self) -> None:
        """Drop the saved bytes if nothing can prove their version.

        ``unverifiable`` is the resource of these bytes. The core calls this when a
        response that replaces the bytes has arrived.
        """
        ...

    def enable_checkpoints(self, resource: RemoteResource) -> None:
        """Allow checkpoints, because ``resource`` can be fetched in ranges."""
        ...

    def preallocate(self, size: int, mode: str, rules: SpaceRules) -> None:
        """Check that ``size`` bytes fit; reserve them if ``mode`` demands it.

        ``mode`` is a value of the setting ``preallocate``. Raises TooLarge for a file
        that can never fit, NoRoom for one that does not fit now.
        """
        ...

    def writer(self) -> RangeWriter:
        """Return a writer for one thread.

        It stays valid until ``prepare`` or ``close``.
        """
        ...

    def main_writer(self) -> RangeWriter:
        """Return the writer of the thread that runs the download.

        It uses the target's own descriptor, and opens no further descriptor.
        """
        ...

    def reader(self) -> RangeReader:
        """Return a reader for one thread."""
        ...

    def checkpoint(
        self, snapshot: ChunkSnapshot, last_error: DlpoolError | None = None
    ) -> None:
        """Make the bytes of ``snapshot`` durable, then the state that lists them.

        ``last_error``: the error that ended the attempt; it is stored in the state.
        """
        ...

    def prepare(self, resource: RemoteResource, *, remote_time: bool) -> None:
        """Make the complete bytes durable and close all writers.

        ``remote_time``: whether to set the modification time that the server reports.
        """
        ...

    def scanned_file(self) -> ScannedFile:
        """Return the complete, unpublished file, so that it can be scanned for malware.

        Raises LocalFault.
        """
        ...

    def publish(self, resource: RemoteResource, snapshot: ChunkSnapshot) -> None:
        """Give the prepared bytes their final name.

        Raises TargetExists or TargetPresent if the name has been taken meanwhile.
        """
        ...

    def discard(self) -> None:
        """Mark all bytes as unusable: ``close`` removes them."""
        ...

    def close(self) -> None:
        """Release the lock; remove bytes that no later run can use. Raises nothing."""
        ...
