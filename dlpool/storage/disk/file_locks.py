"""Locks between processes and threads of one machine: flock(2) on files; the kernel
releases those of ended processes.

Some file systems refuse flock(2), and some grant it to every process, so each process
tries it once for each file system. Where it does not lock, a byte of a file in the
folder for temporary files is locked instead (``lock_byte``), whose place follows from
device and inode number: processes on one machine still exclude each other. A lock lasts
until its descriptor is given to ``release``.
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

from dlpool.disk import CANNOT_LOCK, close_quietly
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.errors import UploadError
from dlpool.syscalls import lock_byte

LOCK_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.02
_FLAGS = READ_FLAGS | os.O_CREAT

_locks: dict[
    int, bool
] = {}  # by device: whether its flock(2) locks; missing: not tested yet
_substitutes: dict[
    int, int
] = {}  # the descriptor whose byte is locked, by the descriptor that it replaces


@contextmanager
def hold_lock(path: Path, *, patience_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file ``path``, which is never removed.

    Raises Refusal (503) if another process or thread holds it for ``patience_s``: work
    under it takes milliseconds.
    """
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        _wait_for(descriptor, path, patience_s=patience_s)
        yield
    finally:
        release(descriptor)


def _wait_for(
    descriptor: int,
    path: Path,
    *,
    is_shared: bool = False,
    patience_s: float = LOCK_TIMEOUT_S,
) -> None:
    deadline, wait_s = time.monotonic() + patience_s, _FIRST_WAIT_S
    while not try_lock_descriptor(descriptor, path, is_shared=is_shared):
        if time.monotonic() > deadline:
            raise UploadError(
                503,
                "busy",
                "the task is busy: try again later",
                headers={"Retry-After": "5"},
            )
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def try_lock_descriptor(
    descriptor: int, path: Path, *, is_shared: bool = False
) -> bool:
    """Lock the open file at ``path`` unless another process or descriptor has it;
    return whether it is locked now.

    Raises OSError.
    """
    device = os.fstat(descriptor).st_dev
    if device not in _locks:
        _try_flock(path, device)
    if not _locks.get(device, True):
        return _lock_substitute(descriptor, is_shared=is_shared)
    try:
        return _flock(descriptor, is_shared=is_shared)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
    _try_flock(path, device)
    if _locks.get(device, True):
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


def _try_flock(path: Path, device: int) -> None:
    """Test whether two descriptors of a file beside ``path`` exclude each other;
    undecided if the test fails."""
    probe = path.with_name(f".dlpool-{secrets.token_hex(8)}.probe")
    descriptors: list[int] = []
    with suppress(OSError):
        try:
            descriptors = [os.open(probe, _FLAGS | os.O_EXCL, 0o600)]
            descriptors += [os.open(probe, READ_FLAGS)]
            _locks[device] = _flock(descriptors[0]) and not _flock(descriptors[1])
        except OSError as error:
            if error.errno in CANNOT_LOCK and len(descriptors) == 2:
                _locks[device] = False
        finally:
            for descriptor in descriptors:
                release(descriptor)
            if descriptors:
                os.unlink(probe)


def _lock_substitute(descriptor: int, *, is_shared: bool) -> bool:
    """Lock the byte that represents the open file. Raises OSError."""
    status = os.fstat(descriptor)
    digest = hashlib.blake2b(
        f"{status.st_dev}:{status.st_ino}".encode(), digest_size=8
    ).digest()
    place = int.from_bytes(digest, "big") >> 2
    substitute = os.open(
        _substitute_path(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with released_on_error(substitute):
        os.utime(substitute)  # so that cleaners of temporary files do not remove it
        if lock_byte(substitute, place, is_shared=is_shared):
            _substitutes[descriptor] = substitute
            return True
    release(substitute)
    return False


def _substitute_path() -> str:
    return os.path.join(tempfile.gettempdir(), f"dlpool-locks-{os.getuid()}")


def release(descriptor: int) -> None:
    """Close a descriptor, and release its lock.

    For descriptors that nothing was written through, or whose bytes were synced
    (``Durability.data``): what close(2) reports concerns no byte of ours, and the
    descriptor is closed all the same.
    """
    substitute = _substitutes.pop(descriptor, None)
    if substitute is not None:
        close_quietly(substitute)
    close_quietly(descriptor)


@contextmanager
def released_on_error(descriptor: int) -> Iterator[None]:
    """Release the descriptor if the block raises."""
    try:
        yield
    except BaseException:
        release(descriptor)
        raise


def try_lock(path: Path) -> int | None:
    """Return a descriptor of ``path`` that holds its lock until it is released; None if
    it is locked."""
    descriptor = os.open(path, _FLAGS, 0o666)
    with released_on_error(descriptor):
        if try_lock_descriptor(descriptor, path):
            return descriptor
    release(descriptor)
    return None


def lock_shared(path: Path) -> int | None:
    """Return a descriptor that holds a shared lock of ``path`` until it is released;
    None if the file does not exist.

    Raises Refusal (503) like ``locked``: exclusive holders keep it only for a check.
    """
    try:
        descriptor = os.open(path, READ_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with released_on_error(descriptor):
        _wait_for(descriptor, path, is_shared=True)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a living process has the lock of ``path``; ask under the lock under which
    it is taken."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # nobody locks by a link
            return False
        raise
    try:
        return not try_lock_descriptor(descriptor, path)
    finally:
        release(descriptor)
