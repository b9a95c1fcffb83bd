"""A merged file gets its name: in one step, and never in place of another file.

What the next one sees, whoever is killed when:

| killed | left behind | then |
|---|---|---|
| while copying | the temporary file beside the target | the next merge, a sweep or a deletion removes it |
| before the file has its name | the same, and a record that says which file it is | the same |
| after that | a target that is the recorded file | it counts as completed: the merge is not repeated |
| after completion | chunks | the next sweep removes them |
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

from dlpool.config import UploadSettings
from dlpool.disk import Identity, exists, publish_exclusive, remove_quietly
from dlpool.storage.disk.durability import NO_SYNC, Durability
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.disk.task_record import PendingPublish
from dlpool.storage.errors import UploadError
from dlpool.storage.names import MAX_NAME_BYTES, RESERVED, open_below

_MAX_SUFFIX = 999
_BUFFER = 256 * 1024


@dataclass(frozen=True)
class MergeOutput:
    """An open folder below merged_dir, and the temporary name that one task has in
    it."""

    descriptor: int
    parts: tuple[str, ...]
    temporary: str

    def create(self) -> int:
        """A new, empty temporary file; what an earlier merge left goes. Raises
        OSError."""
        self.remove_temporary()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.temporary, flags, 0o666, dir_fd=self.descriptor)

    def remove_temporary(self) -> None:
        """Remove the temporary name, if it is there. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self.temporary, dir_fd=self.descriptor)

    def discard(self) -> None:
        """Clean up after a failure; errors are ignored, as a sweep removes the rest."""
        remove_quietly(self.temporary, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Whether something has that name."""
        return exists(name, dir_fd=self.descriptor)

    def status_of(self, name: str) -> os.stat_result | None:
        """None if nothing has that name. Raises OSError."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def publish(self, name: str, identity: Identity) -> bool:
        """Give the temporary file its name; False if that is taken. Raises OSError.

        ``identity`` is that of the temporary file.
        """
        try:
            publish_exclusive(
                self.temporary, name, identity=identity, dir_fd=self.descriptor
            )
        except FileExistsError:
            return False
        return True

    def withdraw(self, publishing: PendingPublish) -> None:
        """Remove the name of the published file, if it still has it, as it is not
        durable. Raises OSError."""
        status = self.status_of(publishing.name)
        if status is not None and _is_recorded(status, publishing):
            os.unlink(publishing.name, dir_fd=self.descriptor)

    def has_published(self, publishing: PendingPublish) -> bool:
        """Return whether the recorded file has its name, by its inode number. Raises
        OSError.

        Some file systems give a file another number when they are mounted again (exFAT,
        others in user space). So a file counts as well that has the recorded size and
        md5, if the temporary one is gone.
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
        return (
            not self.has(self.temporary)
            and self._md5_of(publishing.name) == publishing.md5
        )

    def _md5_of(self, name: str) -> str:
        found = hashlib.md5(usedforsecurity=False)
        descriptor = os.open(name, READ_FLAGS, dir_fd=self.descriptor)
        try:
            while data := os.read(descriptor, _BUFFER):
                found.update(data)
        finally:
            release(descriptor)
        return found.hexdigest()

    def close(self) -> None:
        release(self.descriptor)


def _is_recorded(status: os.stat_result, publishing: PendingPublish) -> bool:
    wanted = (publishing.inode, publishing.size, publishing.modified_ns)
    return (status.st_ino, status.st_size, status.st_mtime_ns) == wanted


def open_merge_output(
    merged_dir: str,
    parts: tuple[str, ...],
    task_name: str,
    *,
    make: bool,
    sync: Durability = NO_SYNC,
) -> MergeOutput:
    """The folder ``parts`` below merged_dir. Raises Refusal, FileNotFoundError,
    OSError."""
    return MergeOutput(
        open_below(merged_dir, parts, make=make, sync=sync),
        parts,
        f"{RESERVED}{task_name[:32]}.merging",
    )


def name_candidates(name: str, *, has_suffix: bool) -> list[str]:
    """Names for the file, in the order in which they are tried: ``NAME``, ``NAME-1``
    before the ending, and so on."""
    if not has_suffix:
        return [name]
    stem, ending = PurePath(name).stem, PurePath(name).suffix
    return [name, *(f"{stem}-{number}{ending}" for number in range(1, _MAX_SUFFIX + 1))]


def check_name_free(
    settings: UploadSettings, parts: tuple[str, ...], name: str
) -> None:
    """Raise Refusal (409) for a name that another file has by now, unless it would get
    a suffix. Raises OSError."""
    if settings.merge_conflict == "suffix":
        return
    try:
        place = open_merge_output(settings.merged_dir, parts, "", make=False)
    except FileNotFoundError:
        return
    try:
        if place.has(name):
            raise name_taken(name)
    finally:
        place.close()


def name_taken(name: str) -> UploadError:
    """That another file has the name."""
    return UploadError(
        409,
        "file_exists",
        f"a file {name[:MAX_NAME_BYTES]!r} is there already: choose another name",
    )
