"""Publishes a merged file.

The file gets its name in one step, and never replaces another file. A process that is
killed leaves the following:

- Killed while copying: the temporary file beside the target. The next merge, a sweep or
  a deletion removes it.
- Killed before the rename: the temporary file, and a record of the file to publish. The
  next merge, a sweep or a deletion removes the temporary file. If the temporary file is
  a second name of the task's assembled file, the assembled file stays.
- Killed after the rename: the recorded file under its final name. The merge counts as
  completed and is not repeated.
- Killed after completion: chunks. The next sweep removes them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from dlpool.config import UploadSettings
from dlpool.dataclass import dataclass
from dlpool.disk import (
    Identity,
    create_exclusive,
    exists,
    is_name_of,
    publish_exclusive,
    remove_quietly,
)
from dlpool.storage.disk.durability import NO_SYNC, Durability
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.published_file import read_digests
from dlpool.storage.disk.safe_open import READ_FLAGS, open_below
from dlpool.storage.disk.task_record import PendingPublish
from dlpool.storage.errors import UploadError
from dlpool.storage.names import MAX_NAME_BYTES, RESERVED

_MAX_SUFFIX = 999


@dataclass(frozen=True)
class MergeOutput:
    """An open folder below merged_dir, in which a task publishes its file.

    ``temporary``: the name of the task's temporary file.
    """

    descriptor: int
    parts: tuple[str, ...]
    temporary: str

    def create(self) -> int:
        """Create the temporary file; replace one that an earlier merge left.

        Raises OSError.
        """
        return create_exclusive(self.temporary, dir_fd=self.descriptor)

    def link(self, path: Path, identity: Identity) -> bool:
        """Give the file at ``path`` a second name: that of the temporary file.

        ``identity``: the identity of that file. Returns False if this fails, for
        example because the folder is on another file system.
        """
        try:
            self.remove_temporary()
            os.link(
                path, self.temporary, dst_dir_fd=self.descriptor, follow_symlinks=False
            )
            if is_name_of(self.temporary, identity, self.descriptor):
                return True
        except OSError:
            return False
        self.discard()
        return False

    def remove_temporary(self) -> None:
        """Remove the temporary file if it exists. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self.temporary, dir_fd=self.descriptor)

    def discard(self) -> None:
        """Remove the temporary file after a failure.

        Errors are ignored: a sweep removes a file that remains.
        """
        remove_quietly(self.temporary, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Return whether the folder has an entry of that name."""
        return exists(name, dir_fd=self.descriptor)

    def status_of(self, name: str) -> os.stat_result | None:
        """Return the status of an entry, None if it does not exist. Raises OSError."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def publish(self, name: str, identity: Identity) -> bool:
        """Rename the temporary file to ``name``; return False if the name is taken.

        ``identity``: the identity of the temporary file. Raises OSError.
        """
        try:
            publish_exclusive(
                self.temporary, name, identity=identity, dir_fd=self.descriptor
            )
        except FileExistsError:
            return False
        return True

    def withdraw(self, publishing: PendingPublish) -> None:
        """Remove the published file, because its name could not be made durable.

        Nothing happens if the name now belongs to another file. Raises OSError.
        """
        status = self.status_of(publishing.name)
        if status is not None and _is_recorded(status, publishing):
            os.unlink(publishing.name, dir_fd=self.descriptor)

    def has_published(
        self, publishing: PendingPublish, chunk_sizes: Sequence[int] = ()
    ) -> bool:
        """Return whether the file recorded in ``publishing`` has its final name.

        The file is recognized by its inode number, size and modification time. Some
        file systems give a file another inode number when they are mounted again
        (exFAT, several FUSE ones). Therefore a file with the recorded size and digest
        is recognized too, if the temporary file does not exist. ``chunk_sizes``: the
        sizes of the merged chunks. Raises OSError.
        """
        status = self.status_of(publishing.name)
        if (
            status is None
            or status.st_size != publishing.size
            or not stat.S_ISREG(status.st_mode)
        ):
            return False
        if _is_recorded(status, publishing):
            return True
        return not self.has(self.temporary) and self._has_content(
            publishing, chunk_sizes
        )

    def _has_content(
        self, publishing: PendingPublish, chunk_sizes: Sequence[int]
    ) -> bool:
        sizes = chunk_sizes if publishing.composite_sha256 else None
        descriptor = os.open(publishing.name, READ_FLAGS, dir_fd=self.descriptor)
        try:
            found = read_digests(descriptor, publishing.size, sizes)
        finally:
            release(descriptor)
        return found == publishing.digests

    def close(self) -> None:
        """Close the folder."""
        release(self.descriptor)


def _is_recorded(status: os.stat_result, publishing: PendingPublish) -> bool:
    recorded = (publishing.inode, publishing.size, publishing.modified_ns)
    return (status.st_ino, status.st_size, status.st_mtime_ns) == recorded


def open_merge_output(
    merged_dir: str,
    parts: tuple[str, ...],
    task_name: str,
    *,
    make: bool,
    durability: Durability = NO_SYNC,
) -> MergeOutput:
    """Open the folder ``parts`` below merged_dir. ``make``: create missing folders.

    Raises UploadError, FileNotFoundError, OSError.
    """
    folder = open_below(merged_dir, parts, make=make, durability=durability)
    return MergeOutput(folder, parts, f"{RESERVED}{task_name[:32]}.merging")


def name_candidates(name: str, *, has_suffix: bool) -> list[str]:
    """Return the names to try for a merged file, in order.

    Without ``has_suffix``, ``name`` is the only one. With it, ``NAME.x`` is followed by
    ``NAME-1.x``, ``NAME-2.x`` and so on.
    """
    if not has_suffix:
        return [name]
    stem, ending = PurePath(name).stem, PurePath(name).suffix
    return [name, *(f"{stem}-{number}{ending}" for number in range(1, _MAX_SUFFIX + 1))]


def check_name_free(
    settings: UploadSettings, parts: tuple[str, ...], name: str
) -> None:
    """Raise UploadError (file_exists) if another file has the name.

    A taken name is no error if the settings add a suffix to it. Raises UploadError and
    OSError like ``open_merge_output``.
    """
    if settings.merge_conflict == "suffix":
        return
    try:
        output = open_merge_output(settings.merged_dir, parts, "", make=False)
    except FileNotFoundError:
        return
    try:
        if output.has(name):
            raise name_taken(name)
    finally:
        output.close()


def name_taken(name: str) -> UploadError:
    """Return the error for a name that another file has."""
    return UploadError(
        "file_exists",
        f"a file {name[:MAX_NAME_BYTES]!r} exists already: choose another name",
    )
