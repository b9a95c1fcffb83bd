"""Opens files safely, whatever another program has put into the backend's folders.

No symbolic link is followed, and no FIFO blocks the caller. A path below merged_dir is
opened folder by folder, each relative to its open parent (openat(2), O_NOFOLLOW), so
that a link that is created during the call is not followed either.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from dlpool import disk
from dlpool.storage.disk.durability import NO_SYNC, Durability
from dlpool.storage.errors import UploadError
from dlpool.storage.names import check_file_name, file_not_found, split_folders

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_symlink(path: Path) -> Path:
    """Return ``path``. Raises OSError (ELOOP) if it is a symbolic link."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return path


def open_below(
    root: str, parts: tuple[str, ...], *, make: bool, durability: Durability = NO_SYNC
) -> int:
    """Return a descriptor of the folder ``parts`` below ``root``.

    ``make``: create missing folders, with this ``durability``. Raises
    FileNotFoundError, OSError, and UploadError if a part is not a folder.
    """
    if make:
        os.makedirs(root, exist_ok=True)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = _open_folder(folder, part, make=make, durability=durability)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise UploadError(
                    "bad_path", f"{part[:100]!r} is not a folder: choose another path"
                ) from error
            raise
        finally:
            disk.close_quietly(folder)
        folder = inner
    return folder


def _open_folder(folder: int, name: str, *, make: bool, durability: Durability) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, dir_fd=folder)
    except OSError as error:
        # It exists if another merge created it, or if mkdir succeeded nevertheless.
        if not disk.exists(name, dir_fd=folder):
            raise error from None
    durability.sync_folder(folder)
    return os.open(name, _FOLDER_FLAGS, dir_fd=folder)


def open_file_below(root: str, path: str) -> int:
    """Open the regular file ``path`` below ``root`` for reading; return its descriptor.

    Raises OSError, and UploadError for an unsafe path or a missing file.
    """
    head, _, name = path.rpartition("/")
    try:
        folder = open_below(root, split_folders(head), make=False)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(check_file_name(name, 255), flags, dir_fd=folder)
        finally:
            disk.close_quietly(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise file_not_found(path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise file_not_found(path) from error
        raise
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except BaseException:
        disk.close_quietly(descriptor)
        raise
    if not is_regular:
        disk.close_quietly(descriptor)
        raise file_not_found(path)
    return descriptor
