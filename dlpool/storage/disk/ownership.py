"""The owner of each merged file, recorded before the file gets its name.

The owner is an extended attribute of the file. The attribute follows renames and
disappears with the file. Where the file system does not support attributes, or has no
space for an attribute, the owner is recorded in an ownership file in the folder
``owners`` of upload_dir. The name of the ownership file is a digest of the merged
file's path, size and modification time. So a different file that later gets the same
path does not get the same owner.

The attribute or the ownership file is durable before the merged file gets its name. So
a killed process leaves no published file without its owner.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.disk_errors import HAS_NO_XATTR
from dlpool.scan.scannedfile import OWNER_ATTRIBUTE
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import hold_lock, release
from dlpool.storage.disk.safe_open import READ_FLAGS, open_file_below
from dlpool.storage.errors import UploadError

FOLDER = "owners"
NO, UNOWNED, YES = "no", "unowned", "yes"  # values of the setting shared_files
_MAX_BYTES = 64 * 1024  # of an ownership file
_TIME_STEP_NS = 2_000_000_000  # FAT stores modification times in steps of two seconds


@dataclass(frozen=True)
class FileOwnership:
    """The owner of a merged file, and whether other users may read it.

    ``owner``: None if the file was uploaded without a user. ``is_shared``: every user
    may read the file.
    """

    owner: str | None = None
    is_shared: bool = False

    def is_readable(self, reader: str | None, shared_files: str) -> bool:
        """Return whether ``reader`` may read the file.

        ``reader``: None for an administrator, or where authentication is off; None may
        read all files. ``shared_files``: the value of the setting of that name.
        """
        if reader is None or self.is_shared or shared_files == YES:
            return True
        return self.owner == reader or (self.owner is None and shared_files == UNOWNED)

    def as_bytes(self) -> bytes:
        """Return the ownership as JSON."""
        return jsontext.dumps({"owner": self.owner, "shared": self.is_shared})


NO_OWNER = FileOwnership()
UNREADABLE = FileOwnership("")  # no user has the empty name


def parse(data: bytes) -> FileOwnership:
    """Parse the JSON of an ownership.

    For damaged JSON, returns ``UNREADABLE``, whose owner is no existing user.
    """
    try:
        found = jsontext.loads(data)
        owner, is_shared = found["owner"], found["shared"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return UNREADABLE
    return (
        FileOwnership(owner, is_shared is True)
        if isinstance(owner, str | None)
        else UNREADABLE
    )


@dataclass(frozen=True)
class OwnershipStore:
    """Records and reads the owners of the files of one backend.

    Methods raise OSError.
    """

    root: Path  # upload_dir
    durability: Durability

    def set_attribute(self, descriptor: int, ownership: FileOwnership) -> bool:
        """Record the ownership in an attribute of an open file.

        Returns whether that was possible. The attribute becomes durable when the file
        is synced with its metadata (``Durability.sync_file``).
        """
        try:
            os.setxattr(descriptor, OWNER_ATTRIBUTE, ownership.as_bytes())
        except OSError:  # no support for attributes, or no space for one
            return False
        return True

    def write_file(
        self, path: str, status: os.stat_result, ownership: FileOwnership
    ) -> None:
        """Record the ownership durably in upload_dir.

        The merged file is about to get the name ``path`` below merged_dir. The caller
        must hold ``hold_lock`` while it checks that the name is free, calls this method
        and renames the file. So only one of two merges to the same name writes an
        ownership file.
        """
        target = self._path_of(path, status)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.durability.write(
            target,
            jsontext.dumps({"path": path, **jsontext.loads(ownership.as_bytes())}),
        )

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the lock under which ownership files are written.

        Raises UploadError (busy).
        """
        with hold_lock(self.root / "locks" / FOLDER):
            yield

    def read(self, descriptor: int, path: str) -> FileOwnership:
        """Return the ownership of an open file, NO_OWNER if none is recorded.

        ``path``: the path of the file below merged_dir.
        """
        try:
            return parse(os.getxattr(descriptor, OWNER_ATTRIBUTE))
        except OSError as error:
            if error.errno not in HAS_NO_XATTR:
                raise
        try:
            return parse(_read(self._path_of(path, os.fstat(descriptor))))
        except (FileNotFoundError, NotADirectoryError):
            return NO_OWNER

    def sweep(self, merged_dir: str, latest: float) -> int:
        """Remove ownership files whose merged file no longer exists.

        ``latest``: seconds since the epoch; ownership files written later are kept.
        Returns the number of removed files.
        """
        count = 0
        for path in list((self.root / FOLDER).glob("*.json")):
            with suppress(OSError):
                if path.lstat().st_mtime < latest and not self._is_used(
                    path, merged_dir
                ):
                    path.unlink()
                    count += 1
        return count

    def _is_used(self, ownership_path: Path, merged_dir: str) -> bool:
        try:
            path = str(jsontext.loads(_read(ownership_path))["path"])
            descriptor = open_file_below(merged_dir, path)
        except (ValueError, KeyError, TypeError, UploadError):
            return False
        try:
            return self._path_of(path, os.fstat(descriptor)) == ownership_path
        finally:
            release(descriptor)

    def _path_of(self, path: str, status: os.stat_result) -> Path:
        text = f"{path}\0{status.st_size}\0{status.st_mtime_ns // _TIME_STEP_NS}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return self.root / FOLDER / f"{digest}.json"


def _read(path: Path) -> bytes:
    descriptor = os.open(path, READ_FLAGS)
    try:
        return os.read(descriptor, _MAX_BYTES)
    finally:
        release(descriptor)
