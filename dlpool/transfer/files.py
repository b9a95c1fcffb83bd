"""What the two modules that touch the disk share: the errors of files, and the syncing of a folder."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress
from pathlib import Path

from dlpool.errors import DiskFailed, LocalFault, NoSpace, NotPermitted, ReadOnly

_CLASSES: dict[int | None, type[LocalFault]] = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted,
    errno.EROFS: ReadOnly,
    errno.EIO: DiskFailed,
    errno.ESTALE: DiskFailed,
}
_EXPLAINED = {
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "it is a symbolic link",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than the file system or a limit allows",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
}


def allow_open_files() -> None:
    """Let this process have as many files and connections open as it may at most: each lane needs three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))


class translated:
    """Turns an OSError of the block into the LocalFault that it is: "cannot DOING: why"."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError | ValueError):  # ValueError: a NUL in a path
            raise local_fault(self._doing, error) from error


def local_fault(doing: str, error: Exception) -> LocalFault:
    """The LocalFault for ``error``, whose message begins "cannot DOING"."""
    number = error.errno if isinstance(error, OSError) else None
    reason = _EXPLAINED.get(number or 0) or getattr(error, "strerror", None) or str(error)
    return _CLASSES.get(number, LocalFault)(f"cannot {doing}: {reason}")


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (a rename is not, until then). Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def make_folders(folder: Path, *, sync: bool) -> None:
    """Make ``folder`` and its missing parents, durably. Raises OSError."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(new)
        if sync:
            sync_folder(new.parent)
