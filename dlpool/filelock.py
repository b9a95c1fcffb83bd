"""Exclusive locks of files between processes and hosts: ``flock``, verified, and a lock
file where that does not work.

Some file systems refuse flock(2) (ENOSYS, ENOLCK, EOPNOTSUPP), and some cluster file
systems are mounted so that it succeeds and locks nothing. A lock is verified by a
second descriptor of the same file, which must be refused. Where ``flock`` cannot be
relied on, the lock is a file beside the locked one, ``PATH.lock``:

- it is created with O_EXCL, and says which host, boot, process and start time hold it,
  and a random token;
- a thread renews its modification time every ``HEARTBEAT_S`` seconds, by the clock of
  the file server, and so does each ``is_held``;
- a lock is stale when its process has ended (known only on the same host, boot and PID
  namespace), or when it has not been renewed for ``STALE_S`` seconds, compared with the
  time that the server gives a file of our own;
- a stale lock is replaced by a rename of ``PATH.lock.tmp``, whose O_EXCL creation
  admits one process at a time;
- a holder whose lock file was replaced (it was suspended for that long) learns it from
  ``is_held`` and must stop.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlpool import disk
from dlpool.errors import NoThread
from dlpool.threads import DaemonThread, start_thread

HEARTBEAT_S = 10.0
STALE_S = 60.0
SUFFIX = ".lock"
_MAX_BYTES = 4096
_ATTEMPTS = 20

_no_flock: set[int] = (
    set()
    # devices whose flock(2) was found to be refused or without effect; only ever added
    # to
)
_own_tokens: set[str] = (
    set()
)  # of the lock files that this process holds; each operation on it is atomic


class LockHeld(Exception):
    """Another process holds the lock; the message says which, as "process 123 on host",
    or is empty."""


class LockForeign(Exception):
    """A file that is not a lock of ours has the name of the lock file, which is the
    message."""


def flock(descriptor: int, *, is_shared: bool = False) -> bool:
    """Lock an open file by flock(2) without waiting; return False where the file system
    does not offer it.

    Raises BlockingIOError if another process holds it, OSError.
    """
    try:
        fcntl.flock(
            descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        )
    except OSError as error:
        if error.errno in disk.CANNOT_LOCK:
            return False
        raise
    return True


class FileLock:
    """An exclusive lock of the open file ``path``, until ``release`` or the end of the
    process.

    ``is_file``: it is a lock file. ``was_expired``: the lease of the earlier holder has
    expired, but its process may still run and write to the same file. Thread-safe.
    """

    def __init__(
        self, descriptor: int, path: Path, *, reopen_path: Path | None = None
    ) -> None:
        """Lock. ``descriptor`` is one of ``path``, open for writing, and stays the
        caller's.

        ``again``: another path by which the file can be opened, for one that has no
        name yet. Raises LockHeld, LockForeign, OSError.
        """
        self.was_expired = False
        self._lock_file: _LockFile | None = None
        if _has_flock(descriptor, reopen_path or path):
            return
        self._lock_file = _LockFile.acquired(path.with_name(path.name + SUFFIX))
        self.was_expired = self._lock_file.was_expired

    @property
    def uses_lock_file(self) -> bool:
        return self._lock_file is not None

    def is_held(self) -> bool:
        """Tell whether this process still holds the lock, and renew it; always true for
        ``flock``. Raises OSError."""
        if self._lock_file is None:
            return True
        if not self._lock_file.is_named():
            return False
        self._lock_file.renew()
        return True

    def release(self) -> None:
        """Remove the lock file, if there is one; ``flock`` ends with the descriptor.
        Safe to call twice."""
        if self._lock_file is not None:
            self._lock_file.release()


def _has_flock(descriptor: int, path: Path) -> bool:
    """Lock by flock(2) and verify the lock; return False where it has no effect. Raises
    LockHeld, OSError."""
    status = os.fstat(descriptor)
    if status.st_dev in _no_flock:
        return False
    try:
        has_locked = flock(descriptor)
    except BlockingIOError as error:
        raise LockHeld(_flock_holder(status)) from error
    if has_locked and _refuses_second(path, disk.identity_of(status)):
        return True
    _no_flock.add(status.st_dev)
    return False


def _refuses_second(path: Path, identity: disk.Identity) -> bool:
    """Return whether a second descriptor of the file cannot lock it; True if the file
    cannot be opened again."""
    try:
        second = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        if disk.identity_of(os.fstat(second)) != identity:
            # published or replaced meanwhile: the caller checks the name and retries
            return True
        flock(second)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        disk.close_quietly(second)


def _flock_holder(status: os.stat_result) -> str:
    """Return the lock holder by ``/proc/locks`` (proc_locks(5)), "process 123, dlpool",
    or an empty text."""
    device = (
        f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    )
    with (
        suppress(OSError, IndexError, ValueError),
        open("/proc/locks", encoding="ascii") as locks,
    ):
        for fields in (line.split() for line in locks):
            if device in fields and fields[1] == "FLOCK":
                process = int(fields[4])
                name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
                return f"process {process}, {name}"
    return ""


# --- lock files ---


@dataclass(frozen=True)
class LockHolder:
    """The holder of a lock file. ``started`` is in clock ticks since boot, 0 where it
    is unknown."""

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
            _boot_id(),
            _pid_namespace(),
            pid,
            _start_time(pid),
            secrets.token_hex(8),
        )

    @classmethod
    def from_json(cls, data: bytes) -> LockHolder | None:
        """Read the content of a lock file; None if it is not one."""
        try:
            fields: dict[str, Any] = json.loads(data)["dlpool_lock"]
            owner = cls(**fields)
        except (ValueError, TypeError, LookupError, RecursionError):
            return None
        return (
            owner
            if isinstance(owner.pid, int) and isinstance(owner.host, str)
            else None
        )

    def as_json(self) -> bytes:
        return json.dumps({"dlpool_lock": vars(self)}).encode()

    def has_ended(self) -> bool:
        """Tell whether the process is known to have ended: only for one of this host,
        boot and PID namespace."""
        if not self.boot or (self.boot, self.namespace) != (
            _boot_id(),
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


class _LockFile:
    """A lock file that this process created. Its descriptor stays open, so that the
    inode number is not reused."""

    def __init__(self, path: Path, made: _Made, *, was_expired: bool) -> None:
        self.path = path
        self._token = made.token
        self.was_expired = was_expired
        self._descriptor = made.descriptor
        self._identity = made.identity
        self._lock = threading.Lock()  # guards the descriptor
        _heartbeat.add(self)

    @classmethod
    def acquired(cls, path: Path) -> _LockFile:
        """Create the lock file, or replace a stale one. Raises LockHeld, LockForeign,
        OSError."""
        for _ in range(_ATTEMPTS):
            try:
                return cls(path, _Made.create(path), was_expired=False)
            except FileExistsError:
                found = _take_over(path)
            if found is not None:
                return found
        raise LockHeld("")

    def is_named(self) -> bool:
        """Return whether the path still names this lock file, by open(2), which asks a
        network file system's server."""
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
        """Set the modification time to the server's current time. A failure is ignored:
        the lock becomes stale then."""
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
    """Renews the lock files of this process on a daemon thread, which ends with the
    last of them.

    Where this process may not have another thread, a lock is renewed when its holder
    asks whether it is still held.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the set and the thread
        self._files: set[_LockFile] = set()
        self._thread: DaemonThread | None = None
        self._changed = threading.Event()

    def add(self, file: _LockFile) -> None:
        with self._lock:
            self._files.add(file)
            if self._thread is None or not self._thread.is_alive():
                self._changed = threading.Event()
                self._thread = None
                with suppress(NoThread):
                    self._thread = start_thread(
                        partial(self._run, self._changed), "dlpool-locks"
                    )

    def drop(self, file: _LockFile) -> None:
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
class _Made:
    """A lock file that this process has created."""

    descriptor: int
    identity: disk.Identity
    token: str

    @classmethod
    def create(cls, path: Path) -> _Made:
        """Create the file and write its owner into it. Raises FileExistsError,
        OSError."""
        owner = LockHolder.this_process()
        try:
            descriptor = os.open(
                path,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o644,
            )
        except FileExistsError:
            raise
        except OSError:
            _remove_empty(
                path
                # the call may have created it and reported failure: a lock without a
                # holder
            )
            raise
        try:
            _own_tokens.add(owner.token)
            disk.write_all(descriptor, owner.as_json())
            return cls(descriptor, disk.identity_of(os.fstat(descriptor)), owner.token)
        except OSError:
            _own_tokens.discard(owner.token)
            disk.remove_quietly(path)
            disk.close_quietly(descriptor)
            raise

    def remove(self, path: Path) -> None:
        """Remove the file, if ``path`` still names it."""
        _own_tokens.discard(self.token)
        with suppress(OSError):
            if disk.is_name_of(path, self.identity):
                disk.remove(path)
        disk.close_quietly(self.descriptor)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if os.stat(path, follow_symlinks=False).st_size == 0:
            disk.remove(path)


def _take_over(path: Path) -> _LockFile | None:
    """Replace a stale lock by a new one; None if it was removed meanwhile. Raises
    LockHeld, LockForeign, OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        made = _Made.create(temporary)
    except FileExistsError:
        if _judged(
            temporary, now=None
        ):  # left by a process that was killed in this function
            disk.remove(temporary)
        return None
    try:
        found = _judged(path, now=os.fstat(made.descriptor).st_mtime)
        if found is not None:
            disk.replace(temporary, path, identity=made.identity)
            if disk.is_name_of(
                path, made.identity
            ):  # else another process removed our temporary file as stale
                return _LockFile(path, made, was_expired=not found.has_ended)
    except BaseException:
        made.remove(temporary)
        raise
    made.remove(temporary)
    return None


@dataclass(frozen=True)
class _Stale:
    """A stale lock; ``has_ended``: its process is known to have ended."""

    has_ended: bool


def _judged(path: Path, now: float | None) -> _Stale | None:
    """Return why the lock is stale, None if it does not exist. ``now``: the server's
    time, None to ask for it.

    Raises LockHeld for a lock that is in use, LockForeign, OSError.
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
    owner = LockHolder.from_json(data)
    if owner is None and data:
        raise LockForeign(str(path))
    if owner is not None and owner.has_ended():
        return _Stale(has_ended=True)
    if (_server_time(path.parent) if now is None else now) - status.st_mtime <= STALE_S:
        raise LockHeld("" if owner is None else str(owner))
    return _Stale(has_ended=False)


def _check_regular(path: Path, status: os.stat_result) -> None:
    """Raise LockForeign for a link, a folder, a pipe or a socket: none of them is a
    lock that was left."""
    if not stat.S_ISREG(status.st_mode):
        raise LockForeign(str(path))


def _server_time(folder: Path) -> float:
    """Return the time of the file server's clock, in seconds since the epoch. Raises
    OSError."""
    path = folder / f".dlpool-{secrets.token_hex(8)}.tmp"
    descriptor = disk.create_exclusive(path)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        disk.close_quietly(descriptor)
        disk.remove_quietly(path)


def _boot_id() -> str:
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
    """Return the start time of the process (field 22 of proc_pid_stat(5)), 0 if it is
    unknown."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    return 0
