"""A merged file gets its name: in one step, and never in place of another file.

What the next one sees, whoever is killed when:

| killed | left behind | then |
|---|---|---|
| while copying | the temporary file beside the target | the next merge, a sweep or a deletion removes it |
| before the file has its name | the same, and a record that says which file it is | the same |
| after that | a target that is the recorded file | it counts as completed: the merge is not repeated |
| after completion | the temporary name, chunks | the next sweep removes them |
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

from dlpool.config import UploadSettings
from dlpool.syscalls import rename_noreplace
from dlpool.web.refusal import Refusal
from dlpool.web.store.names import MAX_NAME_BYTES, RESERVED, open_below
from dlpool.web.store.record import Publishing

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_MAX_SUFFIX = 999


@dataclass(frozen=True)
class Place:
    """An open folder below merged_dir, and the temporary name that one task has in it."""

    descriptor: int
    parts: tuple[str, ...]
    temporary: str

    def create(self) -> int:
        """A new, empty temporary file; what an earlier merge left goes. Raises OSError."""
        self.remove_temporary()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.temporary, flags, 0o666, dir_fd=self.descriptor)

    def remove_temporary(self) -> None:
        """Remove the temporary name, if it is there. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self.temporary, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Whether something has that name."""
        return self.status_of(name) is not None

    def status_of(self, name: str) -> os.stat_result | None:
        """None if nothing has that name. Raises OSError."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def publish(self, name: str) -> bool:
        """Give the temporary file its name; False if that is taken. Raises OSError.

        By a hard link, which cannot replace a file, or else by renameat2(2), which is told not to.
        """
        try:
            os.link(self.temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self.rename(name)
        return True

    def rename(self, name: str) -> bool:
        """The same by renameat2(2), for file systems without hard links. Raises OSError."""
        try:
            rename_noreplace(self.temporary, name, self.descriptor)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise OSError(errno.EOPNOTSUPP, "the file system has no hard links") from error
        return True

    def has_published(self, publishing: Publishing) -> bool:
        """Whether the recorded file has its name: no other file has its number, as long as it is there."""
        status = self.status_of(publishing.name)
        wanted = (publishing.inode, publishing.size, publishing.modified_ns)
        return status is not None and (status.st_ino, status.st_size, status.st_mtime_ns) == wanted

    def close(self) -> None:
        os.close(self.descriptor)


def open_place(merged_dir: str, parts: tuple[str, ...], task_name: str, *, make: bool, sync: bool = False) -> Place:
    """The folder ``parts`` below merged_dir. Raises Refusal, FileNotFoundError, OSError."""
    return Place(open_below(merged_dir, parts, make=make, sync=sync), parts, f"{RESERVED}{task_name[:32]}.merging")


def candidates(name: str, *, has_suffix: bool) -> list[str]:
    """Names for the file, in the order in which they are tried: ``NAME``, ``NAME-1`` before the ending, and so on."""
    if not has_suffix:
        return [name]
    stem, ending = PurePath(name).stem, PurePath(name).suffix
    return [name, *(f"{stem}-{number}{ending}" for number in range(1, _MAX_SUFFIX + 1))]


def check_free(settings: UploadSettings, parts: tuple[str, ...], name: str) -> None:
    """Raise Refusal (409) for a name that another file has by now, unless it would get a suffix. Raises OSError."""
    if settings.merge_conflict == "suffix":
        return
    try:
        place = open_place(settings.merged_dir, parts, "", make=False)
    except FileNotFoundError:
        return
    try:
        if place.has(name):
            raise name_taken(name)
    finally:
        place.close()


def name_taken(name: str) -> Refusal:
    """That another file has the name."""
    return Refusal(409, "file_exists", f"a file {name[:MAX_NAME_BYTES]!r} is there already: choose another name")
