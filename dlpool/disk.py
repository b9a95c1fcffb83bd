"""Durable files: atomic writes, publishing without replacing, folder sync.

Modules whose files must survive a kill or a power failure write them through ``disk``.
A network file system may perform a call and report failure, because the reply to the
first transmission was lost (RFC 1813 section 4.5). After an error, ``replace``,
``publish_exclusive`` and ``remove`` check whether the call was performed nevertheless.

Where a function takes ``dir_fd``, its paths may be relative to that open folder. All
functions are thread-safe.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool.disk_errors import (
    CANNOT_LINK,
    CANNOT_RENAME_NOREPLACE,
    CANNOT_SYNC_FOLDER,
)
from dlpool.syscalls import rename_noreplace

# attempts to lock a folder, 2 ms apart; a publish holds its lock for microseconds
FOLDER_LOCK_ATTEMPTS = 2500
Name = str | os.PathLike[str]
Identity = tuple[int, int]  # device and inode number
# called with the folder and the error, see sync_folder
OnUnsynced = Callable[[str, OSError], None]


def identity_of(status: os.stat_result) -> Identity:
    """Return the device and inode number, which identify a file while it is open."""
    return status.st_dev, status.st_ino


def is_name_of(name: Name, identity: Identity, dir_fd: int | None = None) -> bool:
    """Return whether ``name`` is a name of the file with ``identity``. Raises OSError.

    A symbolic link to the file is not one of its names.
    """
    try:
        return (
            identity_of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False)) == identity
        )
    except FileNotFoundError:
        return False


def write_all(
    descriptor: int, data: bytes | memoryview, offset: int | None = None
) -> None:
    """Write all of ``data`` at ``offset``; None means the descriptor's file offset.

    Repeats write(2), which may write only a part of the data after a signal or on a
    nearly full disk. Raises OSError.
    """
    view = memoryview(data)
    written = 0
    while written < len(view):
        rest = view[written:] if written else view
        count = (
            os.write(descriptor, rest)
            if offset is None
            else os.pwrite(descriptor, rest, offset + written)
        )
        if count == 0:
            raise OSError(errno.EIO, "the file system wrote nothing and gave no reason")
        written += count


def atomic_write(
    path: Name,
    data: bytes,
    *,
    sync: bool,
    mode: int = 0o666,
    temporary: Name | None = None,
    on_unsynced: OnUnsynced | None = None,
) -> None:
    """Replace the content of ``path``: readers see the complete old or new content.

    Writes the file ``temporary`` (default: ``PATH.tmp``) and renames it to ``path``. An
    existing ``temporary`` is removed, so only one writer at a time may write ``path``.
    With ``sync`` the content is durable on return; otherwise the file may be absent or
    empty after a power failure. ``mode``: mode of the new file, reduced by the umask.
    Raises OSError; ``path`` then has its old content, unless the sync of the folder
    failed.
    """
    with _written(
        temporary or f"{os.fspath(path)}.tmp", data, sync=sync, mode=mode
    ) as (source, identity):
        replace(source, path, identity=identity)
    if sync:
        _sync_parent(path, on_unsynced)


def atomic_create(
    path: Name,
    data: bytes,
    *,
    sync: bool,
    mode: int = 0o666,
    temporary: Name | None = None,
) -> None:
    """Create ``path`` with the content ``data``.

    ``atomic_write`` explains the parameters. Raises FileExistsError if ``path`` exists,
    and OSError.
    """
    with _written(
        temporary or f"{os.fspath(path)}.tmp", data, sync=sync, mode=mode
    ) as (source, identity):
        publish_exclusive(source, path, identity=identity)
    if sync:
        _sync_parent(path, None)


@contextmanager
def _written(
    temporary: Name, data: bytes, *, sync: bool, mode: int
) -> Iterator[tuple[Name, Identity]]:
    """Write a temporary file, and yield its name and identity.

    The block must rename the file. If the block fails, this function removes the file.
    """
    with new_file(temporary, mode, sync=sync) as descriptor:
        write_all(descriptor, data)
        identity = identity_of(os.fstat(descriptor))
    try:
        yield temporary, identity
    except BaseException:
        remove_quietly(temporary)
        raise


@contextmanager
def new_file(path: Name, mode: int = 0o666, *, sync: bool) -> Iterator[int]:
    """Create a file, and yield its descriptor. The block writes the content.

    At the end of the block, the file is synced if ``sync`` is true, and closed. The
    file is removed if the block, the sync or the close fails. Raises OSError.
    """
    descriptor = create_exclusive(path, mode)
    try:
        try:
            yield descriptor
            if sync:
                os.fsync(descriptor)
        except BaseException:
            close_quietly(descriptor)
            raise
        os.close(descriptor)
    except BaseException:
        remove_quietly(path)
        raise


def write_and_close(descriptor: int, data: bytes, *, sync: bool) -> Identity:
    """Write all of ``data``, durably if ``sync``, and close the descriptor.

    Returns the identity of the file. Raises the first OSError, even if only close(2)
    fails: a network file system may report a failed write at that point.
    """
    try:
        write_all(descriptor, data)
        if sync:
            os.fsync(descriptor)
        identity = identity_of(os.fstat(descriptor))
    except OSError:
        close_quietly(descriptor)
        raise
    os.close(descriptor)
    return identity


def create_exclusive(
    path: Name, mode: int = 0o666, *, dir_fd: int | None = None, flags: int = 0
) -> int:
    """Create an empty file and return its descriptor.

    An existing file of that name is removed first. ``flags``: further flags for
    open(2). Raises OSError.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode, dir_fd=dir_fd)
    except FileExistsError:
        os.unlink(path, dir_fd=dir_fd)
    except OSError:
        # the call may have created the file and reported failure
        remove_quietly(path, dir_fd=dir_fd)
        raise
    return os.open(path, flags, mode, dir_fd=dir_fd)


def replace(source: Name, target: Name, *, identity: Identity | None = None) -> None:
    """Rename a file or folder to ``target``, and replace a file that has that name.

    ``identity``: the identity of the source, None if unknown. An error is ignored if
    ``target`` has this identity after the call. Raises OSError.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if not _is_done(target, identity, None):
            raise error from None
        remove_quietly(source)  # rename(2) of two names of one file does nothing


def publish_exclusive(
    source: Name, target: Name, *, identity: Identity, dir_fd: int | None = None
) -> None:
    """Rename ``source`` to ``target`` unless ``target`` exists.

    Tries three ways, until the file system supports one. 1. renameat2(2) with
    RENAME_NOREPLACE; FUSE, 9p and NFS answer EINVAL. 2. A hard link, which never
    replaces a file; ``source`` is removed afterwards. 3. Without hard links (exFAT): a
    check that ``target`` is absent, then rename(2), under ``flock`` of the folder if
    possible. The lock excludes only other callers of this function: a file that another
    program creates after the check is replaced. ``identity``: that of the source. If a
    call fails and ``target`` then has this identity, the rename was performed, and the
    error is ignored. Raises FileExistsError, OSError.
    """
    for publish in (_rename_noreplace, _link, _check_and_rename):
        try:
            publish(source, target, dir_fd)
            return
        except OSError as error:
            if _is_done(target, identity, dir_fd):
                remove_quietly(source, dir_fd=dir_fd)
                return
            if error.errno not in _CANNOT_PUBLISH.get(publish, ()):
                raise error from None


def _rename_noreplace(source: Name, target: Name, dir_fd: int | None) -> None:
    rename_noreplace(source, target, dir_fd)


def _link(source: Name, target: Name, dir_fd: int | None) -> None:
    os.link(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    remove_quietly(source, dir_fd=dir_fd)


def _check_and_rename(source: Name, target: Name, dir_fd: int | None) -> None:
    with _locked_folder(target, dir_fd):
        if exists(target, dir_fd=dir_fd):
            raise FileExistsError(
                errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)
            )
        os.replace(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


_CANNOT_PUBLISH = {_rename_noreplace: CANNOT_RENAME_NOREPLACE, _link: CANNOT_LINK}


@contextmanager
def _locked_folder(name: Name, dir_fd: int | None) -> Iterator[None]:
    """Hold ``flock`` on the folder of ``name`` during the block.

    The block runs without a lock if the folder cannot be locked, or if another program
    holds the lock for more than five seconds.
    """
    folder = _open_folder(os.path.dirname(name) or ".", dir_fd)  # noqa: PTH120 - relative to dir_fd
    try:
        for _ in range(FOLDER_LOCK_ATTEMPTS):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.002)
            except OSError:
                break  # it cannot be locked
        yield
    finally:
        close_quietly(folder)


def link_open_file(descriptor: int, path: Name) -> None:
    """Give an open file the name ``path``. The file need not have another name.

    Raises FileExistsError if the name exists, and OSError where /proc or hard links are
    missing.
    """
    source = f"/proc/self/fd/{descriptor}"
    os.link(source, path, src_dir_fd=descriptor, follow_symlinks=True)


def exists(name: Name, *, dir_fd: int | None = None) -> bool:
    """Return whether the name exists; a dangling symbolic link counts as existing.

    Raises OSError.
    """
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def remove(name: Name, *, dir_fd: int | None = None) -> None:
    """Remove a file; ignore a missing file. Raises OSError."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        with suppress(OSError):
            if not exists(name, dir_fd=dir_fd):
                return
        raise error from None


def remove_quietly(name: Name, *, dir_fd: int | None = None) -> None:
    """Remove a temporary file. Errors are ignored: a file that remains is harmless."""
    with suppress(OSError):
        os.unlink(name, dir_fd=dir_fd)


def close_quietly(descriptor: int) -> None:
    """Close a descriptor; errors are ignored.

    Use this function if nothing was written to the descriptor, or after an error that
    an error of close(2) must not hide.
    """
    with suppress(OSError):
        os.close(descriptor)


def _is_done(target: Name, identity: Identity | None, dir_fd: int | None) -> bool:
    """Return whether a rename that reported an error has nevertheless been performed.

    ``identity`` is the identity of the renamed file. The rename has been performed if
    ``target`` names this file. Returns False if ``identity`` is None.
    """
    if identity is None:
        return False
    with suppress(OSError):
        return is_name_of(target, identity, dir_fd)
    return False


# --- folders ---

_reported_lock = threading.Lock()
# devices of reported file systems that cannot sync folders; guarded by _reported_lock
_reported: set[int] = set()


def sync_folder(folder: Name | int, *, on_unsynced: OnUnsynced | None = None) -> bool:
    """Make the names in ``folder`` durable; a rename is durable only after this call.

    If the sync is unsupported or not permitted, returns False, and calls
    ``on_unsynced`` with the folder and the error, once per file system. Even then, the
    contents of synced files are durable. ``folder`` is a path or an open descriptor.
    Raises OSError for any other failure (EIO, ESTALE).
    """
    try:
        descriptor = folder if isinstance(folder, int) else _open_folder(folder)
        try:
            os.fsync(descriptor)
        finally:
            if descriptor != folder:
                close_quietly(descriptor)
    except OSError as error:  # EACCES, EPERM: the folder is writable, but not readable
        if error.errno not in CANNOT_SYNC_FOLDER:
            raise
        _report_unsynced(folder, error, on_unsynced)
        return False
    return True


def _sync_parent(path: Name, on_unsynced: OnUnsynced | None) -> None:
    sync_folder(os.path.dirname(path) or ".", on_unsynced=on_unsynced)  # noqa: PTH120 - any kind of path


def _open_folder(folder: Name, dir_fd: int | None = None) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)


def _report_unsynced(
    folder: Name | int, error: OSError, on_unsynced: OnUnsynced | None
) -> None:
    if on_unsynced is None:
        return
    device = -1
    with suppress(OSError):
        device = os.stat(folder).st_dev
    with _reported_lock:
        is_reported = device in _reported
        _reported.add(device)
    if not is_reported:
        on_unsynced(
            _path_of(folder) if isinstance(folder, int) else os.fspath(folder), error
        )


def _path_of(descriptor: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return "an open folder"


def make_folders(
    folder: Path, *, sync: bool, on_unsynced: OnUnsynced | None = None
) -> None:
    """Create ``folder`` and its missing parents, durably if ``sync``.

    Raises OSError.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            os.mkdir(new)
        except OSError:
            # otherwise another program created it, or the call succeeded
            if not new.is_dir():
                raise
        if sync:
            sync_folder(new.parent, on_unsynced=on_unsynced)
