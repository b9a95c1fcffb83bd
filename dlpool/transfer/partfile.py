"""The file under construction, ``PATH.part``: lock, length, bounded writes, sync, publishing by rename.

One process at a time works on a part file: it holds ``flock`` on it, and the inode that it locked is the one that
the name means (after a publish it is not: then the name is opened again). Every writer has a descriptor of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from dlpool.disk import local_fault, make_folders, sync_folder, translated
from dlpool.errors import LocalFault, Locked, NoSpace, TargetExists
from dlpool.syscalls import LEAST_FALLOC, fallocate
from dlpool.transfer.mark import set_mark
from dlpool.transfer.names import PART_SUFFIX

SPACE_RESERVE = 1024 * 1024  # bytes that stay free for the state file and the file system's own needs
MAX_OPENS = 100
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class PartFile:
    """A locked part file. One thread owns it; ``writer()`` gives others what they need."""

    def __init__(self, target: Path, *, sync: bool) -> None:
        """Open or create, and lock, ``TARGET.part``; missing parent folders are made.

        Raises Locked if another download has it, LocalFault for what the file system refuses.
        """
        self.target = target
        self.path = target.with_name(target.name + PART_SUFFIX)
        self._sync = sync
        self.has_blocks = False  # whether its whole length is reserved on the disk
        self._descriptor = self._open_locked()

    def __repr__(self) -> str:
        return f"<PartFile {self.path}>"

    @property
    def was_empty(self) -> bool:
        """Whether it held nothing when it was locked."""
        return self._status.st_size == 0

    @property
    def inode(self) -> int:
        return self._status.st_ino

    @property
    def length(self) -> int:
        """Length of the file in bytes."""
        return os.fstat(self._descriptor).st_size

    def is_named(self) -> bool:
        """Whether the name of the part file means the file that is locked."""
        return _is_name_of(self.path, self._status)

    def check_named(self) -> None:
        """Raise LocalFault if the name, and so what is beside it, is another download's by now."""
        if not self.is_named():
            raise LocalFault(f"cannot go on with {self.target}: another program removed or replaced {self.path}")

    def mark(self, job_id: str) -> bool:
        """Note in the file itself that it is published for a job of a queue; False where that is not possible."""
        return set_mark(self._descriptor, job_id)

    def begin_anew(self) -> None:
        """Go on with a new, empty, locked file under the same name; late writers reach only the old one."""
        self.check_named()
        with translated(f"begin {self.path} anew"):
            with suppress(FileNotFoundError):
                os.unlink(self._fresh)
            descriptor = os.open(self._fresh, _FLAGS | os.O_EXCL, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(self._fresh, self.path)
            except BaseException:
                os.close(descriptor)
                raise
        os.close(self._descriptor)
        self._descriptor, self._status, self.has_blocks = descriptor, os.fstat(descriptor), False

    def remove_leftovers(self) -> None:
        """Remove what a run left that was killed while it began anew."""
        with translated(f"remove {self._fresh}"), suppress(FileNotFoundError):
            os.unlink(self._fresh)

    @property
    def _fresh(self) -> Path:
        return self.path.with_name(self.path.name + ".tmp")

    def empty(self) -> None:
        """Drop the content; for a file that nobody has written to since it was locked."""
        with translated(f"empty {self.path}"):
            os.ftruncate(self._descriptor, 0)

    def preallocate(self, size: int, how: str) -> None:
        """Give the file its length; ``how`` is a value of the setting ``preallocate``.

        Raises NoSpace when what is missing, and a reserve, does not fit.
        """
        self._check_space(size)
        with translated(f"preallocate {size} bytes for {self.path}"):
            if how == "falloc" and size:
                os.posix_fallocate(self._descriptor, 0, size)
                self.has_blocks = True
            elif how == "auto" and size >= LEAST_FALLOC:
                self.has_blocks = fallocate(self._descriptor, 0, size)
            if how == "truncate" or (how == "auto" and size >= LEAST_FALLOC and not self.has_blocks):
                os.ftruncate(self._descriptor, size)

    def writer(self) -> Writer:
        """A descriptor of its own on the same file, for one thread."""
        with translated(f"open {self.path}"):
            return Writer(os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDWR), self.path)

    def own_writer(self) -> Writer:
        """The locked descriptor itself, for the thread that owns the part file and writes before it closes it."""
        return Writer(self._descriptor, self.path, closes=False)

    def sync_data(self) -> None:
        """Return when all written bytes are on disk. A failure is final: the kernel may have dropped the pages."""
        if self._sync:
            with translated(f"write {self.path} to disk"):
                os.fdatasync(self._descriptor)

    def set_modified(self, seconds: float) -> None:
        """Set the modification time, seconds since the epoch."""
        with translated(f"set the time of {self.path}"):
            os.utime(self._descriptor, (seconds, seconds))

    def publish(self, *, overwrite: bool) -> None:
        """Let the target's name mean this file, at once and durably; the data must be synced already.

        Raises TargetExists, without ``overwrite``, if the target is there.
        """
        with translated(f"publish {self.target}"):
            self.check_named()
            if overwrite:
                os.replace(self.path, self.target)
            else:
                self._link()
            if self._sync:
                sync_folder(self.target.parent)

    def retarget(self, target: Path) -> None:
        """Publish to another name than was planned; the part file keeps its own."""
        self.target = target

    def discard(self) -> None:
        """Remove the part file, if its name still means it."""
        with translated(f"remove {self.path}"), suppress(FileNotFoundError):
            if self.is_named():
                os.unlink(self.path)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._descriptor)

    def _link(self) -> None:
        """Give the file its name unless that exists; by a hard link, which cannot replace, where there are some."""
        try:
            os.link(self.path, self.target)
        except FileExistsError as error:
            raise TargetExists(f"{self.target} exists already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.target):
                raise TargetExists(f"{self.target} exists already") from error
            os.replace(self.path, self.target)
        else:
            os.unlink(self.path)

    def _open_locked(self) -> int:
        for _ in range(MAX_OPENS):
            descriptor = self._open()
            try:
                self._status = self._locked(descriptor)
                if _is_name_of(self.path, self._status):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # published or replaced between open and lock
        raise LocalFault(f"cannot use {self.path}: it is replaced again and again")

    def _open(self) -> int:
        with translated(f"open {self.path}"):
            try:
                return os.open(self.path, _FLAGS, 0o666)
            except FileNotFoundError:
                make_folders(self.target.parent, sync=self._sync)
                return os.open(self.path, _FLAGS, 0o666)

    def _locked(self, descriptor: int) -> os.stat_result:
        """Lock the open file and return its status."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(f"another download is writing to {self.target}{_holder(os.fstat(descriptor))}") from error
        except OSError as error:
            raise local_fault(f"lock {self.path}", error) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LocalFault(f"cannot use {self.path}: it is not a regular file")
        if status.st_nlink > 1:  # it has been published by a link, and its old name was left by a kill
            with translated(f"remove {self.path}"), suppress(FileNotFoundError):
                os.unlink(self.path)
        return status

    def _check_space(self, size: int) -> None:
        if size < LEAST_FALLOC:
            return  # its first write tells as soon
        status = os.fstat(self._descriptor)
        needed = max(0, size - status.st_blocks * 512)
        room = os.fstatvfs(self._descriptor)
        free = room.f_bavail * room.f_frsize
        if needed and needed + SPACE_RESERVE > free:
            raise NoSpace(f"{self.target.parent} has {free} bytes free, {needed + SPACE_RESERVE} are needed")


class Writer:
    """One thread's descriptor on a part file, whose offset is 0 at first."""

    def __init__(self, descriptor: int, path: Path, *, closes: bool = True) -> None:
        self._descriptor = descriptor
        self._path = path
        self._closes = closes
        self._position = 0

    def write(self, position: int, data: memoryview) -> None:
        """Write all of ``data`` at ``position``. Raises LocalFault."""
        try:
            if position != self._position:
                os.lseek(self._descriptor, position, os.SEEK_SET)
            written = os.write(self._descriptor, data)
            while written < len(data):  # a signal or a full disk; the next write tells which
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            self._position = -1
            raise local_fault(f"write {self._path}", error) from error
        self._position = position + len(data)

    def read(self, position: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``position``. Raises LocalFault."""
        try:
            return os.pread(self._descriptor, size, position)
        except OSError as error:
            raise local_fault(f"read {self._path}", error) from error

    def close(self) -> None:
        if self._closes:
            os.close(self._descriptor)


def _is_name_of(path: Path, status: os.stat_result) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)


def _holder(status: os.stat_result) -> str:
    """Who has the lock, where ``/proc/locks`` (proc_locks(5)) tells: " (process 123, dlpool)"."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError, IndexError), open("/proc/locks", encoding="ascii") as locks:
        for fields in (line.split() for line in locks):
            if device in fields and fields[1] == "FLOCK":
                process = int(fields[4])
                name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
                return f" (process {process}, {name})"
    return ""
