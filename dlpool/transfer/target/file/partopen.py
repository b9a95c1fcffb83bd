"""Find or create the part file of a target, and lock it.

Other programs use the suffix ``.part``, too. A part file is dlpool's if it has the
extended attribute ``MARK``, or if a state file of dlpool is beside it. Any other file
of that name, even an empty one, is refused and not changed.

A kill must never leave a part file that the next run would refuse. So a part file is
created without a name (O_TMPFILE), locked and marked, and only then linked to its name.
Where the file system does not support O_TMPFILE or extended attributes, a placeholder
is first written as the state file; it stays until the part file has a mark or a state.
See open(2), xattr(7).
"""

from __future__ import annotations

import os
import stat
import unicodedata
from contextlib import suppress
from pathlib import Path

from dlpool import disk, disk_errors
from dlpool.dataclass import dataclass
from dlpool.errors import ForeignFile, LocalFault, Locked
from dlpool.filelock import FileLock
from dlpool.lock_files import LockForeign, LockHeld
from dlpool.transfer.job import Notify
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.names import PART_SUFFIX

MARK = "user.dlpool.part"
MAX_OPEN_ATTEMPTS = 100
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o666


@dataclass(frozen=True)
class OpenPart:
    """An open, locked part file.

    ``status``: its stat result when it was opened. ``is_new``: this process has just
    created the file.
    """

    descriptor: int
    status: os.stat_result
    lock: FileLock
    is_marked: bool
    is_new: bool


class PartOpener:
    """Opens the part file of one target, initially and after each restart.

    Used by one thread. ``name``: the path of the part file; it may change to another
    spelling, see ``_has_exact_name``.
    """

    def __init__(self, target: Path, *, sync: bool, notify: Notify) -> None:
        self.name = f"{target}{PART_SUFFIX}"
        self._target = target
        self._sync = sync
        self._notify = notify

    def open(self) -> OpenPart:
        """Open or create the part file, and create missing parent folders.

        Raises Locked if another download holds the lock, ForeignFile for a file that
        dlpool did not create, LocalFault.
        """
        for _ in range(MAX_OPEN_ATTEMPTS):
            with disk_errors.translated(f"open {self.name}"):
                opened = self._existing() or self._created()
            if opened is not None:
                return opened
        raise LocalFault(f"cannot use {self.name}: another program keeps replacing it")

    def replace(self, old: FileLock) -> OpenPart:
        """Remove the part file and create a new one.

        ``old``: the lock of the old file. If ``old`` uses a lock file, the new part
        file keeps this lock file. Raises Locked if another download creates a part file
        first, LocalFault.
        """
        held = old if old.uses_lock_file else None
        with disk_errors.translated(f"replace {self.name}"):
            disk.remove(self.name)
            opened = self._created(held)
        if opened is None:
            raise Locked(f"another download is writing to {self._target}")
        return opened

    def on_unsynced(self, folder: str, error: OSError) -> None:
        """Report a folder whose new or removed names could not be synced to disk."""
        self._notify(
            "folder_not_synced", folder=folder, reason=error.strerror or str(error)
        )

    def _existing(self) -> OpenPart | None:
        """Open and lock the existing part file.

        Returns None if it does not exist, or was published or replaced meanwhile.
        Raises Locked, ForeignFile, LocalFault, OSError.
        """
        try:
            descriptor = os.open(self.name, _FLAGS)
        except FileNotFoundError:
            return None
        lock: FileLock | None = None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise LocalFault(f"cannot use {self.name}: it is not a regular file")
            is_marked = self._is_usable(descriptor, status)
            if is_marked is None:
                _abandon(descriptor, None)
                return None
            lock = self._locked(descriptor, status)
            status = os.fstat(descriptor)
            is_named = disk.is_name_of(self.name, disk.identity_of(status))
            if is_named and status.st_nlink == 1:
                return OpenPart(descriptor, status, lock, is_marked, is_new=False)
            if is_named:  # it was published by a link, and a kill left its old name
                disk.remove(self.name)
        except BaseException:
            _abandon(descriptor, lock)
            raise
        _abandon(descriptor, lock)  # published or replaced between open and lock
        return None

    def _was_published(self, status: os.stat_result) -> bool:
        """Return whether the open file is the published target.

        If it is, removes the part file's name. Both names exist if a run published by
        hard link and was killed before it removed the part file's name.
        """
        if status.st_nlink == 1 or not disk.is_name_of(
            self._target, disk.identity_of(status)
        ):
            return False
        disk.remove(self.name)
        return True

    def _has_exact_name(self) -> bool:
        """Return False if the folder lists only another spelling of the name.

        In this case sets ``name`` to that spelling. A case-insensitive file system in
        user space may show a different inode number for each spelling of a name; then
        locks by two spellings do not exclude each other. The caller checks only files
        without a mark: the known file systems of this kind cannot store one. Raises
        OSError.
        """
        expected, found = Path(self.name).name, None
        with os.scandir(self._target.parent) as entries:
            for entry in entries:
                if entry.name == expected:
                    return True
                if _folded(entry.name) == _folded(expected):
                    found = entry.name
        if found is None:
            return True
        self.name = str(self._target.with_name(found))
        return False

    def _is_usable(self, descriptor: int, status: os.stat_result) -> bool | None:
        """Return whether the file has dlpool's mark (an extended attribute).

        If only the state file shows that dlpool made the file, tries to set the mark.
        Returns None if the caller must open the file again. Raises ForeignFile if
        neither mark nor state file shows that dlpool made the file, LocalFault,
        OSError.
        """
        if self._was_published(status):
            return None
        if _has_mark(descriptor):
            return True
        if not disk.is_name_of(self.name, disk.identity_of(status)):
            # another download removed its mark and published it since it was opened
            return None
        if StateFile.for_target(self._target, sync=False).is_recognized():
            return _mark(descriptor) or (None if not self._has_exact_name() else False)
        raise ForeignFile(
            f"{self.name} was not made by dlpool: move it away, or choose another name "
            "for the download"
        )

    def _created(self, held: FileLock | None = None) -> OpenPart | None:
        """Create a part file; return None if another process created one meanwhile.

        ``held``: a lock file that this process holds already. Raises Locked,
        ForeignFile, LocalFault, OSError.
        """
        descriptor = self._unnamed()
        try:
            opened = self._linked(descriptor, held) if descriptor is not None else None
        except FileExistsError:
            return None
        return opened or self._named(held)

    def _linked(self, descriptor: int, held: FileLock | None) -> OpenPart | None:
        """Lock and mark an unnamed file, and link it to the part file's name.

        Returns None if the file system does not support the link. Raises
        FileExistsError if another file has the name, Locked, ForeignFile, LocalFault,
        OSError.
        """
        lock = held
        try:
            status = os.fstat(descriptor)
            lock = held or self._locked(
                descriptor, status, f"/proc/self/fd/{descriptor}"
            )
            is_marked = _mark(descriptor)
            if not is_marked:
                StateFile.for_target(self._target, sync=False).write_placeholder()
            if self._has_linked(descriptor):
                return OpenPart(descriptor, status, lock, is_marked, is_new=True)
        except BaseException:
            _abandon(descriptor, None if held else lock)
            raise
        _abandon(descriptor, None if held else lock)
        return None

    def _has_linked(self, descriptor: int) -> bool:
        """Link an unnamed file to the part file's name; return whether it has the name.

        link(2) may report failure although the file has been linked. Raises
        FileExistsError if another file has the name, OSError.
        """
        try:
            disk.link_open_file(descriptor, self.name)
        except OSError as error:
            if disk.is_name_of(self.name, disk.identity_of(os.fstat(descriptor))):
                return True
            if isinstance(error, FileExistsError):
                raise
            return False
        return True

    def _unnamed(self) -> int | None:
        """Return a descriptor of a new unnamed file; None if that is not supported.

        Raises OSError.
        """
        for _ in range(2):
            try:
                return os.open(
                    self._target.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE
                )
            except OSError:
                if self._target.parent.is_dir():
                    break  # creating the file by its name reports any other problem
            disk.make_folders(
                self._target.parent, sync=self._sync, on_unsynced=self.on_unsynced
            )
        return None

    def _named(self, held: FileLock | None) -> OpenPart | None:
        """Write a placeholder of the state file, then create the part file by its name.

        Returns None if another process has created the part file first. Raises Locked,
        ForeignFile, LocalFault, OSError.
        """
        state_file = StateFile.for_target(self._target, sync=False)
        state_file.write_placeholder()
        try:
            descriptor = os.open(self.name, _FLAGS | os.O_CREAT | os.O_EXCL, _MODE)
        except FileExistsError:
            self._withdraw(state_file)
            return None
        except OSError:
            if not disk.exists(self.name):
                state_file.remove_placeholder()
            raise
        lock = held
        try:
            is_marked = _mark(descriptor)
            status = os.fstat(descriptor)
            lock = held or self._locked(descriptor, status)
            if is_marked:
                state_file.remove_placeholder()
            return OpenPart(descriptor, status, lock, is_marked, is_new=True)
        except BaseException:
            _abandon(descriptor, None if held else lock)
            raise

    def _withdraw(self, state_file: StateFile) -> None:
        """Remove the placeholder after another process has created the part file.

        If that part file has no mark, it needs the placeholder, which then stays.
        """
        is_needed = False
        with suppress(OSError):
            descriptor = os.open(self.name, _FLAGS)
            is_needed = not _has_mark(descriptor)
            disk.close_quietly(descriptor)
        if not is_needed:
            state_file.remove_placeholder()

    def _locked(
        self, descriptor: int, status: os.stat_result, again: str | None = None
    ) -> FileLock:
        """Lock the open file. Raises Locked, ForeignFile, OSError.

        ``status``: the stat result of the file. ``again``: a path by which a file
        without a name can be opened again; None for a file that already has a name.
        """
        try:
            return FileLock(descriptor, self.name, status=status, reopen_path=again)
        except LockHeld as error:
            holder = f" ({error})" if str(error) else ""
            raise Locked(
                f"another download is writing to {self._target}{holder}"
            ) from error
        except LockForeign as error:
            raise ForeignFile(
                f"{error} was not made by dlpool: move it away"
            ) from error


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _abandon(descriptor: int, lock: FileLock | None) -> None:
    disk.close_quietly(descriptor)
    if lock is not None:
        lock.release()


def _mark(descriptor: int) -> bool:
    """Mark the file as dlpool's; return False if that is not supported."""
    try:
        os.setxattr(descriptor, MARK, b"1")
    except OSError:
        return False
    return True


def _has_mark(descriptor: int) -> bool:
    """Return whether the file has the mark. Raises OSError."""
    try:
        os.getxattr(descriptor, MARK)
    except OSError as error:
        if error.errno in disk_errors.HAS_NO_XATTR:
            return False
        raise
    return True


def remove_mark(descriptor: int) -> None:
    """Remove the mark of a published file.

    Errors are ignored, because a mark that stays is harmless.
    """
    with suppress(OSError):
        os.removexattr(descriptor, MARK)
