"""The file under construction, ``PATH.part``: lock, sync, publish by rename.

Only one process at a time works on a part file: the process that holds its lock
(``filelock``). If another process has published the file before this process locks it,
this process opens the name again. Each writer (a thread of this process) has its own
descriptor if the file can be opened a second time, by ``/proc`` or by its name.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from dlpool import disk, disk_errors
from dlpool.disk_errors import is_out_of_descriptors, translated
from dlpool.errors import LocalFault, NoRoom, NoSpace, TargetExists
from dlpool.scan.scannedfile import ScannedFile
from dlpool.transfer.job import Job, Notify, ignore_event
from dlpool.transfer.space_rules import ENTIRE_DISK, SpaceRules
from dlpool.transfer.target.file.partopen import PartOpener, remove_mark
from dlpool.transfer.target.file.partwriter import PartWriter
from dlpool.transfer.target.file.publish import set_mark

_OWNER = 0o600  # the rights of the owner while the file is under construction
_PERMISSIONS = 0o777  # without setuid and setgid: the content comes from the network
_MODE = 0o7777  # all bits of a mode, see chmod(2)
_UNCHANGED = -1  # an owner, see chown(2)
_ACL = "system.posix_acl_access"


class PartFile:
    """A locked part file, used by one thread; other threads use its writers."""

    def __init__(
        self, target: Path, *, sync: bool, notify: Notify = ignore_event
    ) -> None:
        """Open or create ``TARGET.part`` and lock it.

        Missing parent folders are created. Raises Locked if another download holds the
        lock, ForeignFile for a file that dlpool did not create, LocalFault.
        """
        self.target = target
        self._opener = PartOpener(target, sync=sync, notify=notify)
        self._sync = sync
        # the open writers; threads only append, which is atomic
        self._writers: list[PartWriter] = []
        # the mode to set when the file is published; None: the present one stays
        self._final_mode: int | None = None
        self.is_preallocated = False  # whether its whole length is reserved on the disk
        self._opened = self._opener.open()
        self._name = self._opener.name

    def __repr__(self) -> str:
        return f"<PartFile {self._name}>"

    @property
    def path(self) -> Path:
        """The path of the part file."""
        return Path(self._name)

    @property
    def is_new(self) -> bool:
        """Whether this object created the part file."""
        return self._opened.is_new

    @property
    def is_marked(self) -> bool:
        """Whether the file has dlpool's mark.

        A marked file is recognized as dlpool's without a state file.
        """
        return self._opened.is_marked

    @property
    def has_lock_file(self) -> bool:
        """Whether the lock is a lock file, because ``flock`` does not work."""
        return self._opened.lock.uses_lock_file

    @property
    def was_empty(self) -> bool:
        """Whether the file was empty when it was locked."""
        return self._opened.status.st_size == 0

    @property
    def was_expired(self) -> bool:
        """Whether an earlier holder of the lock may still write to the file.

        This is so if the holder's lock expired without proof that its process has
        ended.
        """
        return self._opened.lock.was_expired

    @property
    def inode(self) -> int:
        return self._opened.status.st_ino

    @property
    def length(self) -> int:
        """The length of the file in bytes. Raises LocalFault."""
        with translated(f"access {self._name}"):
            return os.fstat(self._descriptor).st_size

    def is_named(self) -> bool:
        """Return whether the part file's name still refers to the locked file.

        Raises LocalFault.
        """
        with translated(f"access {self._name}"):
            return disk.is_name_of(self._name, self._identity)

    def check_ownership(self) -> None:
        """Raise LocalFault if the lock is lost, or the name is not this file's name.

        The state file beside the part file may then belong to another download.
        """
        with translated(f"access the lock of {self._name}"):
            if not self._opened.lock.is_held():
                raise LocalFault(
                    f"cannot continue with {self.target}: another download has taken "
                    "over its lock file, which this process had not renewed for too "
                    "long"
                )
        if self.is_named():
            return
        if not self.target.parent.is_dir():
            raise LocalFault(
                f"cannot continue with {self.target}: the folder {self.target.parent} "
                "was removed"
            )
        raise LocalFault(
            f"cannot continue with {self.target}: another program removed or replaced "
            f"{self._name}"
        )

    def mark_published(self, job: Job) -> bool:
        """Set the attribute that records a publish for a queue's job.

        Returns False for a job without a queue, or if the file system has no such
        attributes.
        """
        return set_mark(self._descriptor, job)

    def restart(self) -> None:
        """Replace the file by a new, empty, locked one of the same name.

        Writers that are still open reach only the old file. Raises Locked if another
        download has taken the name meanwhile, LocalFault.
        """
        self.check_ownership()
        old = self._opened
        self._opened = self._opener.replace(old.lock)
        # this releases the flock of the old file; a lock file is kept
        disk.close_quietly(old.descriptor)
        self._writers = []  # their threads close them
        self.is_preallocated = False

    def truncate(self) -> None:
        """Drop the content of a file that has no writers. Raises LocalFault."""
        with translated(f"empty {self._name}"):
            os.ftruncate(self._descriptor, 0)

    def copy_permissions(self) -> None:
        """Copy the permissions of the target that the file will replace.

        These are mode, owner, group and access control list. All except the mode are
        copied only if permitted. Until ``publish`` sets the exact mode, the owner may
        always read and write the file. Without a target, the file keeps the default
        mode. Raises LocalFault, also if the mode cannot be set and the present mode
        allows more than the target's.
        """
        with translated(f"set the permissions of {self._name}"):
            try:
                old = os.stat(self.target, follow_symlinks=False)
            except FileNotFoundError:
                return
            if not stat.S_ISREG(old.st_mode):
                return  # publishing will fail
            own = os.fstat(self._descriptor)
            self._copy_owner(old, own)
            self._copy_acl()
            self._copy_mode(old.st_mode & _PERMISSIONS)

    def preallocate(
        self, size: int, mode: str, rules: SpaceRules = ENTIRE_DISK
    ) -> None:
        """Check that the file fits, and preallocate ``size`` bytes.

        ``mode`` is a value of the setting ``preallocate``. ``truncate`` only sets the
        length. ``falloc`` reserves blocks, but not in a service; ``auto`` does nothing
        here: blocks are reserved as bytes arrive. Raises TooLarge for a file that can
        never fit, NoRoom for one that does not fit now, LocalFault.
        """
        rules.check(self._descriptor, self.target.parent, size)
        try:
            with translated(f"preallocate {size} bytes for {self._name}"):
                if mode == "falloc" and size and not rules.is_monitored:
                    os.posix_fallocate(self._descriptor, 0, size)
                    self.is_preallocated = True
                elif mode == "truncate":
                    os.ftruncate(self._descriptor, size)
        except NoSpace as error:  # a quota, or another job took the space
            raise NoRoom(str(error)) from error

    def writer(self) -> PartWriter:
        """Return a writer with a separate descriptor, for one thread.

        Raises LocalFault.
        """
        with translated(f"open {self._name}"):
            descriptor = self._second()
            is_shared = descriptor is None
            writer = PartWriter(
                os.dup(self._descriptor) if descriptor is None else descriptor,
                self._name,
                is_shared,
                writes_back=self._sync,
            )
        self._writers.append(writer)
        return writer

    def locked_writer(self) -> PartWriter:
        """Return a writer with the locked descriptor, for the part file's thread."""
        return PartWriter(
            self._descriptor, self._name, closes=False, writes_back=self._sync
        )

    def as_scanned_file(self) -> ScannedFile:
        """Return the complete file for a malware scan. Raises LocalFault."""
        return ScannedFile(self._descriptor, self.path, self.length)

    def close_writers(self) -> None:
        """Close all writers. Raises the first LocalFault.

        Call it after their last write. Network file systems report failed writes only
        when a file is closed.
        """
        writers, self._writers = self._writers, []
        first: LocalFault | None = None
        for writer in writers:
            try:
                writer.close()
            except LocalFault as fault:
                first = first or fault
        if first is not None:
            raise first

    def sync_data(self) -> None:
        """Sync all written bytes to disk; do nothing if ``sync`` is False.

        A failure is final: the kernel may have dropped the pages. Raises LocalFault.
        """
        if self._sync:
            with translated(f"write {self._name} to disk"):
                os.fdatasync(self._descriptor)

    def report_delayed_errors(self) -> None:
        """Make the file system report the errors that it delays until close(2).

        Closes a duplicate of the descriptor. If the process has no free descriptor for
        it, calls fdatasync(2), which waits for all writes and reports the same errors.
        Raises LocalFault.
        """
        with translated(f"close {self._name}"):
            try:
                second = os.dup(self._descriptor)
            except OSError as error:
                if not is_out_of_descriptors(error):
                    raise
                os.fdatasync(self._descriptor)
                return
            # the first descriptor holds the lock until the file is published
            os.close(second)

    def set_modified(self, seconds: float) -> None:
        """Set the modification time, in seconds since the epoch. Raises LocalFault.

        Does nothing if the file system does not support or permit that.
        """
        with translated(f"set the time of {self._name}"):
            try:
                os.utime(self._descriptor, (seconds, seconds))
            except OSError as error:
                if disk_errors.fault_of(error).kind not in (
                    "unsupported",
                    "permission",
                ):
                    raise

    def publish(self, *, overwrite: bool) -> None:
        """Rename the file to the target, atomically and durably.

        The data must have been synced. Without ``overwrite``, raises TargetExists if
        the target exists. Raises LocalFault; the target is then missing or unchanged.
        """
        self.check_ownership()
        with translated(f"publish {self.target}"):
            source = self._private_name()
            try:
                if overwrite:
                    disk.replace(source, self.target, identity=self._identity)
                else:
                    disk.publish_exclusive(source, self.target, identity=self._identity)
            except OSError as error:
                if source != self._name:
                    disk.remove_quietly(source)
                if isinstance(error, FileExistsError):
                    raise TargetExists(f"{self.target} exists already") from error
                raise
        self._finish_publish()

    def retarget(self, target: Path) -> None:
        """Change the target; the part file keeps its name."""
        self.target = target

    def discard(self) -> None:
        """Remove the part file, if its name still refers to it. Raises LocalFault."""
        with translated(f"remove {self._name}"):
            if disk.is_name_of(self._name, self._identity):
                disk.remove(self._name)

    def close(self) -> None:
        """Close the file and release the lock. Errors are ignored.

        ``close_writers`` reports delayed write errors before the file is published.
        """
        disk.close_quietly(self._descriptor)
        self._opened.lock.release()

    @property
    def _descriptor(self) -> int:
        return self._opened.descriptor

    @property
    def _identity(self) -> disk.Identity:
        return disk.identity_of(self._opened.status)

    def _second(self) -> int | None:
        """Return another descriptor, None if no path leads to the file.

        Raises OSError.
        """
        for path in (f"/proc/self/fd/{self._descriptor}", self._name):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # no /proc, or the file's name was removed
            if self._is_same(descriptor):
                return descriptor
            disk.close_quietly(descriptor)
        return None

    def _is_same(self, descriptor: int) -> bool:
        """Return whether ``descriptor`` refers to this file; False if unknown."""
        try:
            return disk.identity_of(os.fstat(descriptor)) == self._identity
        except OSError:
            return False

    def _private_name(self) -> str:
        """Return the name to publish from: usually the part file's name.

        A process can lose its lock file at any moment, and the next holder may then
        replace the part file. So with a lock file, the result is a new private hard
        link to the open file. If it cannot be created (no hard links or no /proc), the
        result is the part file's name, which the caller has just checked.
        """
        if not self.has_lock_file:
            return self._name
        private = f"{self.target.parent}/.dlpool-{secrets.token_hex(8)}.part"
        try:
            disk.link_open_file(self._descriptor, private)
        except OSError:
            # the call may have been performed and reported as failed
            disk.remove_quietly(private)
            return self._name
        return private

    def _finish_publish(self) -> None:
        """Clean up after the publish; errors here cannot damage the file.

        The mark is kept while the part file's name exists: the next run recognizes the
        file by the mark and removes that name.
        """
        if self._final_mode is not None:
            with suppress(OSError):
                os.fchmod(self._descriptor, self._final_mode)
        if self._has_one_name() and self._opened.is_marked:
            remove_mark(self._descriptor)
        if not self._sync:
            return
        try:
            disk.sync_folder(self.target.parent, on_unsynced=self._opener.on_unsynced)
        except OSError as error:
            self._opener.on_unsynced(str(self.target.parent), error)

    def _has_one_name(self) -> bool:
        """Remove the part file's name after a publish by hard link.

        Return whether only the target's name is left.
        """
        for _ in range(2):
            with suppress(OSError):
                if os.fstat(self._descriptor).st_nlink == 1:
                    return True
                if disk.is_name_of(self._name, self._identity):
                    disk.remove(self._name)
        return False

    def _copy_owner(self, old: os.stat_result, own: os.stat_result) -> None:
        if (old.st_uid, old.st_gid) == (own.st_uid, own.st_gid):
            return
        owner = old.st_uid if os.geteuid() == 0 else _UNCHANGED
        try:
            os.fchown(self._descriptor, owner, old.st_gid)
        except OSError as error:
            if disk_errors.fault_of(error).kind not in ("unsupported", "permission"):
                raise

    def _copy_mode(self, wanted: int) -> None:
        own = os.fstat(self._descriptor).st_mode & _MODE
        self._final_mode = None if wanted | _OWNER == wanted else wanted
        if own == wanted | _OWNER:
            return
        try:
            os.fchmod(self._descriptor, wanted | _OWNER)
        except OSError as error:
            is_refused = disk_errors.fault_of(error).kind in (
                "unsupported",
                "permission",
            )
            if not is_refused or own & ~(wanted | _OWNER):
                raise

    def _copy_acl(self) -> None:
        """Copy the target's access control list (see acl(5)); ignore errors."""
        with suppress(OSError):
            os.setxattr(self._descriptor, _ACL, os.getxattr(self.target, _ACL))
