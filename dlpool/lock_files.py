"""Lock files, which replace ``flock`` on file systems that do not support it.

- A lock file is created with O_EXCL, and contains the host, boot, process and start
  time of its holder, and a random token.
- The holder renews its lock: it sets the modification time of the file to the current
  time of the file server. A thread of the holder does this every ``HEARTBEAT_S``
  seconds, and ``FileLock.is_held`` does it at each call.
- A lock is stale when its holder has ended. Only a process of the same host, boot and
  PID namespace can see this.
- A lock is also stale when its modification time is more than ``STALE_S`` seconds older
  than the modification time of a file that is created now.
- A process replaces a stale lock: it creates ``PATH.lock.tmp`` with O_EXCL and renames
  it. O_EXCL ensures that only one process at a time replaces the lock.
- If another process replaces the lock file while the holder is suspended,
  ``FileLock.is_held`` returns False, and the holder must stop.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dlpool import disk
from dlpool.dataclass import dataclass
from dlpool.errors import NoThread
from dlpool.threads import DaemonThread, start_thread

HEARTBEAT_S = 10.0
STALE_S = 60.0
_MAX_BYTES = 4096
_MAX_ATTEMPTS = 20

# tokens of the lock files that this process holds; each operation on the set is atomic
_own_tokens: set[str] = set()


class LockHeld(Exception):
    """The lock is held; the message names the holder, "process 123 on host", or is
    empty."""


class LockForeign(Exception):
    """The file at the lock's path was not created by dlpool; the message is the
    path."""


@dataclass(frozen=True)
class LockHolder:
    """The holder of a lock file.

    ``boot``: the id of the boot of its host; ``namespace``: its PID namespace; both
    empty if unknown. ``started``: when the process started, in clock ticks since the
    boot, 0 if unknown.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int
    token: str

    @classmethod
    def this_process(cls) -> LockHolder:
        """Return this process, with a new token."""
        pid = os.getpid()
        return cls(
            socket.gethostname(),
            boot_id(),
            _pid_namespace(),
            pid,
            _start_time(pid),
            secrets.token_hex(8),
        )

    @classmethod
    def from_json(cls, data: bytes) -> LockHolder | None:
        """Parse the content of a lock file; return None if dlpool did not write it."""
        try:
            fields: dict[str, Any] = json.loads(data)["dlpool_lock"]
            holder = cls(**fields)
        except (ValueError, TypeError, LookupError, RecursionError):
            return None
        return (
            holder
            if isinstance(holder.pid, int) and isinstance(holder.host, str)
            else None
        )

    def as_json(self) -> bytes:
        return json.dumps({"dlpool_lock": vars(self)}).encode()

    def has_ended(self) -> bool:
        """Return whether this process knows that the holder has ended.

        This can be known only of a holder with the same host, boot and PID namespace.
        """
        if not self.boot or (self.boot, self.namespace) != (
            boot_id(),
            _pid_namespace(),
        ):
            return False
        if self.pid == os.getpid():
            return self.token not in _own_tokens  # released, but its removal failed
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # the process exists and belongs to another user
        started = _start_time(self.pid)
        return 0 not in (self.started, started) and started != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class LockFile:
    """A lock that this process has taken, and its lock file.

    The descriptor of the file stays open, so that the inode number is not reused.
    """

    def __init__(self, path: Path, created: _CreatedLock, *, was_expired: bool) -> None:
        self.path = path
        self._token = created.token
        self.was_expired = was_expired
        self._descriptor = created.descriptor
        self._identity = created.identity
        self._lock = threading.Lock()  # guards the descriptor
        _heartbeat.add(self)

    @classmethod
    def acquired(cls, path: Path) -> LockFile:
        """Create the lock file, or replace a stale one; return the lock.

        Raises LockHeld, LockForeign, OSError.
        """
        for _ in range(_MAX_ATTEMPTS):
            try:
                return cls(path, _CreatedLock.create(path), was_expired=False)
            except FileExistsError:
                stale = _take_over(path)
            if stale is not None:
                return stale
        raise LockHeld("")

    def is_named(self) -> bool:
        """Return whether the path still names this lock file. Raises OSError.

        This method opens the file, because only open(2) makes a network file system ask
        its server.
        """
        try:
            named = os.open(
                self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return False
        try:
            return disk.identity_of(os.fstat(named)) == self._identity
        finally:
            disk.close_quietly(named)

    def renew(self) -> None:
        """Set the modification time to the file server's current time.

        Ignore errors. A lock that is not renewed for ``STALE_S`` seconds becomes stale.
        """
        with self._lock, suppress(OSError):
            if self._descriptor >= 0:
                os.utime(self._descriptor)

    def release(self) -> None:
        """Remove the lock file, unless another process has replaced it."""
        _heartbeat.drop(self)
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        for _ in range(2):
            with suppress(OSError):
                if self.is_named():
                    disk.remove(self.path)
        _own_tokens.discard(self._token)
        disk.close_quietly(descriptor)


class _Heartbeat:
    """The renewal of the lock files of this process, on a daemon thread.

    The thread exits when the last lock file is released. If the thread cannot be
    started, a lock is renewed only when ``is_held`` is called.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the set and the thread
        self._files: set[LockFile] = set()
        self._thread: DaemonThread | None = None
        self._changed = threading.Event()

    def add(self, file: LockFile) -> None:
        with self._lock:
            self._files.add(file)
            if self._thread is None or not self._thread.is_alive():
                self._changed = threading.Event()
                self._thread = None
                with suppress(NoThread):
                    self._thread = start_thread(
                        partial(self._run, self._changed), "dlpool-locks"
                    )

    def drop(self, file: LockFile) -> None:
        with self._lock:
            self._files.discard(file)
            if not self._files:
                self._thread = None
                self._changed.set()

    def _run(self, changed: threading.Event) -> None:
        while not changed.wait(HEARTBEAT_S):
            with self._lock:
                files = list(self._files)
            for file in files:
                file.renew()


_heartbeat = _Heartbeat()


@dataclass(frozen=True)
class _CreatedLock:
    """A new lock file of this process, at the lock's path or at a temporary path."""

    descriptor: int
    identity: disk.Identity
    token: str

    @classmethod
    def create(cls, path: Path) -> _CreatedLock:
        """Create a lock file of this process at ``path``.

        Raises FileExistsError if ``path`` exists, or another OSError.
        """
        holder = LockHolder.this_process()
        try:
            descriptor = os.open(
                path,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o644,
            )
        except FileExistsError:
            raise
        except OSError:
            # the call may have created the file, without a holder, and reported failure
            _remove_empty(path)
            raise
        try:
            _own_tokens.add(holder.token)
            disk.write_all(descriptor, holder.as_json())
            return cls(descriptor, disk.identity_of(os.fstat(descriptor)), holder.token)
        except OSError:
            _own_tokens.discard(holder.token)
            disk.remove_quietly(path)
            disk.close_quietly(descriptor)
            raise

    def remove(self, path: Path) -> None:
        """Remove the file if ``path`` still names it, and close the descriptor."""
        _own_tokens.discard(self.token)
        with suppress(OSError):
            if disk.is_name_of(path, self.identity):
                disk.remove(path)
        disk.close_quietly(self.descriptor)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if os.stat(path, follow_symlinks=False).st_size == 0:
            disk.remove(path)


def _take_over(path: Path) -> LockFile | None:
    """Replace a stale lock by a new one and return the new one.

    Return None if the caller must try again. Raises LockHeld, LockForeign, OSError.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        created = _CreatedLock.create(temporary)
    except FileExistsError:
        # left by a process that was killed in this function
        if _find_stale(temporary, now=None):
            disk.remove(temporary)
        return None
    try:
        stale = _find_stale(path, now=os.fstat(created.descriptor).st_mtime)
        if stale is not None:
            disk.replace(temporary, path, identity=created.identity)
            # otherwise another process removed our temporary file as stale
            if disk.is_name_of(path, created.identity):
                return LockFile(path, created, was_expired=not stale.has_ended)
    except BaseException:
        created.remove(temporary)
        raise
    created.remove(temporary)
    return None


@dataclass(frozen=True)
class _StaleLock:
    """A stale lock. ``has_ended``: True if its holder has ended, False if the lock was
    not renewed in time."""

    has_ended: bool


def _find_stale(path: Path, now: float | None) -> _StaleLock | None:
    """Return the lock at ``path`` if it is stale, None if there is no lock.

    ``now``: the present time of the file server; None if this function must ask the
    server. Raises LockHeld for a lock that is not stale, LockForeign, OSError.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except FileNotFoundError:
        return None
    except OSError:
        _check_regular(path, os.stat(path, follow_symlinks=False))
        raise
    try:
        status = os.fstat(descriptor)
        _check_regular(path, status)
        data = os.read(descriptor, _MAX_BYTES)
    finally:
        disk.close_quietly(descriptor)
    holder = LockHolder.from_json(data)
    if holder is None and data:
        raise LockForeign(str(path))
    if holder is not None and holder.has_ended():
        return _StaleLock(has_ended=True)
    if (_server_time(path.parent) if now is None else now) - status.st_mtime <= STALE_S:
        raise LockHeld("" if holder is None else str(holder))
    return _StaleLock(has_ended=False)


def _check_regular(path: Path, status: os.stat_result) -> None:
    """Raise LockForeign if ``path`` is not a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise LockForeign(str(path))


def _server_time(folder: Path) -> float:
    """Return the time of the file server's clock, in seconds since the epoch.

    The clock is read from the mtime of a new temporary file in ``folder``. Raises
    OSError.
    """
    path = folder / f".dlpool-{secrets.token_hex(8)}.tmp"
    descriptor = disk.create_exclusive(path)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        disk.close_quietly(descriptor)
        disk.remove_quietly(path)


def boot_id() -> str:
    """Return the id of the machine's current boot, empty if it is unknown."""
    with suppress(OSError):
        return (
            Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        )
    return ""


def _pid_namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot, 0 if unknown.

    The start time is field 22 of proc_pid_stat(5).
    """
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    return 0
