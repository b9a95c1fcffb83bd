"""Locks between processes and threads: flock(2) on files; the kernel frees those of the dead."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlpool.web.refusal import Refusal
from dlpool.web.store.planted import READ

PATIENCE_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.001, 0.02
_FLAGS = READ | os.O_CREAT


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, which is never removed.

    Raises Refusal (503) where somebody holds it for half a minute: what is done under it takes milliseconds.
    """
    descriptor = os.open(path, _FLAGS, 0o666)
    try:
        _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    deadline, wait_s = time.monotonic() + PATIENCE_S, _FIRST_WAIT_S
    while not has_locked(descriptor):
        if time.monotonic() > deadline:
            raise Refusal(503, "busy", "the task is busy: try again later", headers={"Retry-After": "5"})
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def has_locked(descriptor: int) -> bool:
    """Lock the open file, if nobody has it; whether we have it now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held(path: Path) -> int | None:
    """A descriptor of ``path`` that has its lock until it is closed; None if another one has it."""
    descriptor = os.open(path, _FLAGS, 0o666)
    if has_locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def shared(path: Path) -> int | None:
    """A descriptor that shares the lock of the file ``path``, until it is closed; None if there is no such file."""
    try:
        descriptor = os.open(path, READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # nobody has it alone for longer than a look
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a living process has the lock of ``path``; ask under the lock under which it is taken."""
    try:
        descriptor = os.open(path, READ)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # nobody locks by a link
            return False
        raise
    try:
        return not has_locked(descriptor)
    finally:
        os.close(descriptor)
