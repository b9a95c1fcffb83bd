"""Locks between processes and threads of one machine: flock(2) on files.

The kernel releases the locks of a process that exits. Some file systems refuse
flock(2), and some grant it to every process, so each process tests flock(2) once for
each file system. Where flock(2) does not work, the process locks one byte of a file in
the temporary folder instead (``lock_byte``). The offset of the byte is computed from
device and inode number, so processes on one machine still exclude each other. A lock is
held until its descriptor is passed to ``release``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool.disk import close_quietly
from dlpool.disk_errors import CANNOT_LOCK
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.errors import UploadError
from dlpool.syscalls import lock_byte

LOCK_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.02
_FLAGS = READ_FLAGS | os.O_CREAT

# By device: whether flock(2) excludes other descriptors; missing until it is tested.
_has_flock: dict[int, bool] = {}
# By locked descriptor: the descriptor of the file whose byte is locked in its place.
_substitutes: dict[int, int] = {}


@contextmanager
def hold_lock(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of the file ``path``. The file is never removed.

    The caller holds the lock for milliseconds. Raises OSError, and UploadError (busy)
    if the lock does not become free within ``timeout_s`` seconds.
    """
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        _wait_for(descriptor, path, timeout_s=timeout_s)
        yield
    finally:
        release(descriptor)


def _wait_for(
    descriptor: int,
    path: Path,
    *,
    is_shared: bool = False,
    timeout_s: float = LOCK_TIMEOUT_S,
) -> None:
    deadline, wait_s = time.monotonic() + timeout_s, _FIRST_WAIT_S
    while not try_lock_descriptor(descriptor, path, is_shared=is_shared):
        if time.monotonic() > deadline:
            raise UploadError(
                "busy", "the task is busy: try again later", retry_after_s=5
            )
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def try_lock_descriptor(
    descriptor: int, path: Path, *, is_shared: bool = False
) -> bool:
    """Lock an open file, without waiting, and return True.

    Returns False if another descriptor holds the lock. ``path``: the path of the file.
    Raises OSError.
    """
    device = os.fstat(descriptor).st_dev
    if device not in _has_flock:
        _test_flock(path, device)
    if not _has_flock.get(device, True):
        return _lock_substitute(descriptor, is_shared=is_shared)
    try:
        return _flock(descriptor, is_shared=is_shared)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
    _test_flock(path, device)
    if _has_flock.get(device, True):
        return _flock(descriptor, is_shared=is_shared)
    return _lock_substitute(descriptor, is_shared=is_shared)


def _flock(descriptor: int, *, is_shared: bool = False) -> bool:
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        )
    except BlockingIOError:
        return False
    return True


def _test_flock(path: Path, device: int) -> None:
    """Test whether flock(2) works on ``device``, and record the result.

    Creates a file beside ``path`` and locks two descriptors of it. Records nothing if
    the test cannot be made.
    """
    probe = path.with_name(f".dlpool-{secrets.token_hex(8)}.probe")
    descriptors: list[int] = []
    with suppress(OSError):
        try:
            descriptors = [os.open(probe, _FLAGS | os.O_EXCL, 0o600)]
            descriptors += [os.open(probe, READ_FLAGS)]
            _has_flock[device] = _flock(descriptors[0]) and not _flock(descriptors[1])
        except OSError as error:
            if error.errno in CANNOT_LOCK and len(descriptors) == 2:
                _has_flock[device] = False
        finally:
            for descriptor in descriptors:
                release(descriptor)
            if descriptors:
                os.unlink(probe)


def _lock_substitute(descriptor: int, *, is_shared: bool) -> bool:
    """Lock the byte that stands for an open file, without waiting, and return True.

    Returns False if another descriptor holds the lock. Raises OSError.
    """
    status = os.fstat(descriptor)
    digest = hashlib.blake2b(
        f"{status.st_dev}:{status.st_ino}".encode(), digest_size=8
    ).digest()
    offset = int.from_bytes(digest, "big") >> 2
    substitute = os.open(
        _substitute_path(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with release_on_error(substitute):
        os.utime(substitute)  # so that cleaners of temporary files do not remove it
        if lock_byte(substitute, offset, is_shared=is_shared):
            _substitutes[descriptor] = substitute
            return True
    release(substitute)
    return False


def _substitute_path() -> str:
    return os.path.join(tempfile.gettempdir(), f"dlpool-locks-{os.getuid()}")


def release(descriptor: int) -> None:
    """Close a descriptor and release its lock.

    Errors of close(2) are ignored. That is safe because nothing was written through the
    descriptor, or its bytes have been synced (``Durability.sync_data``).
    """
    substitute = _substitutes.pop(descriptor, None)
    if substitute is not None:
        close_quietly(substitute)
    close_quietly(descriptor)


@contextmanager
def release_on_error(descriptor: int) -> Iterator[None]:
    """Release the descriptor if the block raises."""
    try:
        yield
    except BaseException:
        release(descriptor)
        raise


def try_lock(path: Path) -> int | None:
    """Lock the file ``path``, without waiting, and return a descriptor that holds the
    lock.

    None if another descriptor holds the lock. Raises OSError.
    """
    descriptor = os.open(path, _FLAGS, 0o666)
    with release_on_error(descriptor):
        if try_lock_descriptor(descriptor, path):
            return descriptor
    release(descriptor)
    return None


def lock_shared(path: Path) -> int | None:
    """Take a shared lock of ``path``, and return a descriptor that holds the lock.

    None if the file does not exist. Waits while another descriptor holds the exclusive
    lock, which ``is_locked`` takes for a moment. Raises OSError, and UploadError (busy)
    like ``hold_lock``.
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with release_on_error(descriptor):
        _wait_for(descriptor, path, is_shared=True)
    return descriptor


def is_locked(path: Path) -> bool:
    """Return whether a running process holds the lock of ``path``. Raises OSError.

    If the lock is free, the call takes it for a moment. The caller must hold the lock
    of the task, so that no other process calls ``try_lock`` with ``path`` meanwhile.
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # dlpool never locks through a symbolic link
            return False
        raise
    try:
        return not try_lock_descriptor(descriptor, path)
    finally:
        release(descriptor)
