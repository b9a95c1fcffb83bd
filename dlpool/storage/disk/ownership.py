"""Whose a merged file is, and who may read it: noted with the file before it gets its
name.

The note is an extended attribute of the file, which goes with it when it is renamed and
ends with it. A file system without them (or without room for one) has the note in a
file of ``owners`` in upload_dir, which is named by the digest of the path, size and
modification time: a file that takes the place of another one has not its owner. Both
are written and durable before the file gets its name, so that nobody who is killed
leaves a file under its name without its owner.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dlpool import jsontext
from dlpool.scan.scannedfile import OWNER_ATTRIBUTE
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import hold_lock, release
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.errors import UploadError
from dlpool.storage.names import open_file_below

FOLDER = "owners"
NO, UNOWNED, YES = "no", "unowned", "yes"  # values of shared_files
_MOST = 64 * 1024  # bytes of a note
_NONE = (
    errno.ENODATA,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
)  # no such attribute, or none at all
# of modification times that are the same: FAT has them in steps of two seconds
_SPAN_NS = 2_000_000_000


@dataclass(frozen=True)
class FileOwnership:
    """Whose a file is: ``owner`` None where it was uploaded without a token;
    ``is_shared``: everybody may read it."""

    owner: str | None = None
    is_shared: bool = False

    def is_readable(self, reader: str | None, shared_files: str) -> bool:
        """Return whether ``reader`` may read the file; None: who knows the secret, or
        where nobody is asked.

        ``shared_files`` is the setting.
        """
        if reader is None or self.is_shared or shared_files == YES:
            return True
        return self.owner == reader or (self.owner is None and shared_files == UNOWNED)

    def as_bytes(self) -> bytes:
        """Return the note."""
        return jsontext.dumps({"owner": self.owner, "shared": self.is_shared})


NO_OWNER = FileOwnership()
UNREADABLE = FileOwnership("")  # no token has that name


def parse(note: bytes) -> FileOwnership:
    """Return what a note says; for one that is damaged an ownership that no token
    has."""
    try:
        found = jsontext.loads(note)
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
    """The notes of the files of one store. Methods raise OSError."""

    root: Path  # upload_dir
    sync: Durability

    def set_attribute(self, descriptor: int, ownership: FileOwnership) -> bool:
        """Note it with an open file, which has no name yet; whether that was possible.

        It is durable when the file is synced with its metadata (``Durability.whole``).
        """
        try:
            os.setxattr(descriptor, OWNER_ATTRIBUTE, ownership.as_bytes())
        except OSError:  # not known to the file system, no room, a limit
            return False
        return True

    def write_file(
        self, path: str, status: os.stat_result, ownership: FileOwnership
    ) -> None:
        """Note it durably in upload_dir, for a file that is about to get the name
        ``path`` below merged_dir.

        The caller holds ``turn``: of two that want the same name the one that does not
        get it leaves no note.
        """
        place = self._place(path, status)
        place.parent.mkdir(parents=True, exist_ok=True)
        self.sync.write(
            place,
            jsontext.dumps({"path": path, **jsontext.loads(ownership.as_bytes())}),
        )

    @contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the lock of all who write a note. Raises Refusal: 503."""
        with hold_lock(self.root / "locks" / FOLDER):
            yield

    def read(self, descriptor: int, path: str) -> FileOwnership:
        """Return whose an open file is that has the name ``path`` below merged_dir."""
        try:
            return parse(os.getxattr(descriptor, OWNER_ATTRIBUTE))
        except OSError as error:
            if error.errno not in _NONE:
                raise
        try:
            return parse(_read(self._place(path, os.fstat(descriptor))))
        except (FileNotFoundError, NotADirectoryError):
            return NO_OWNER

    def sweep(self, merged_dir: str, latest: float) -> int:
        """Remove the notes, older than ``latest``, of files that are not there any
        more; return how many."""
        count = 0
        for place in list((self.root / FOLDER).glob("*.json")):
            with suppress(OSError):
                if place.lstat().st_mtime < latest and not self._is_used(
                    place, merged_dir
                ):
                    place.unlink()
                    count += 1
        return count

    def _is_used(self, place: Path, merged_dir: str) -> bool:
        """Whether the file of a note is there."""
        try:
            path = str(jsontext.loads(_read(place))["path"])
            descriptor = open_file_below(merged_dir, path)
        except (ValueError, KeyError, TypeError, UploadError):
            return False
        try:
            return self._place(path, os.fstat(descriptor)) == place
        finally:
            release(descriptor)

    def _place(self, path: str, status: os.stat_result) -> Path:
        text = f"{path}\0{status.st_size}\0{status.st_mtime_ns // _SPAN_NS}"
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return self.root / FOLDER / f"{digest}.json"


def _read(path: Path) -> bytes:
    descriptor = os.open(path, READ_FLAGS)
    try:
        return os.read(descriptor, _MOST)
    finally:
        release(descriptor)
