"""The quarantine of infected files: ``quarantine_dir/ID`` and a record ``ID.json``.

Files have mode 0600. A process that is killed leaves different entries:

- Killed before the move of a file: a record without a file. The record is not listed,
  and ``add`` removes it after a day.
- Killed during a copy from another file system: the record, ``ID.copying`` and the
  complete source. ``add`` removes the record and ``ID.copying`` after a day.
- Killed after the move: the file and the record, perhaps also the source. The file is
  listed, and the source is scanned again.
- Killed during a release: perhaps a record without a file, which ``add`` removes after
  a day. Or the file is both in quarantine and at its target; the quarantined file can
  be deleted, or released to another path.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dlpool import disk, jsontext
from dlpool.dataclass import dataclass
from dlpool.errors import NotFound, TargetExists
from dlpool.scan.scannedfile import OWNER_ATTRIBUTE, ScannedFile

COPYING, RECORD = ".copying", ".json"
# age after which a record without a file was left by a killed process
STALE_S = 86400.0
# bytes that each file counts beside its size, for its record and its folder entries
ENTRY_BYTES = 8192
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class ScanFinding:
    """What was found and where the file came from; texts for people, without secrets.

    ``kind``: ``download`` or ``upload``; ``source``: the URL, or the id of the upload;
    ``target``: the path that the file would have been published to; ``owner``: the user
    who owns the upload or job, None if unknown; ``job_id``: the id of the job in the
    queue, None if there is none.
    """

    signature: str
    kind: str
    source: str
    target: str
    owner: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class QuarantinedFile:
    """A file in quarantine. ``at``: when it was added, RFC 3339; ``size`` in bytes."""

    id: str
    at: str
    size: int
    sha256: str
    finding: ScanFinding

    def as_json(self) -> dict[str, Any]:
        """Return the fields that the record and the command line show."""
        return {
            "id": self.id,
            "at": self.at,
            "size": self.size,
            "sha256": self.sha256,
            **asdict(self.finding),
        }


@dataclass(frozen=True)
class Quarantine:
    """The quarantine folder. Several processes may use the same folder.

    ``max_bytes``: limit on the total size of the files. To stay below it, ``add``
    removes the oldest files.
    """

    folder: Path
    max_bytes: int

    def add(self, file: ScannedFile, finding: ScanFinding) -> QuarantinedFile:
        """Move a file into quarantine.

        Raises OSError; the file may still have its temporary name in this case.
        """
        if file.size + ENTRY_BYTES > self.max_bytes:
            raise OSError(
                errno.E2BIG,
                f"it is larger than quarantine_size ({self.max_bytes} bytes)",
            )
        self._make_folder()
        self._evict(file.size)
        item = QuarantinedFile(
            secrets.token_hex(8), _now(), file.size, file.sha256(), finding
        )
        disk.atomic_write(
            self._record(item.id), jsontext.dumps(item.as_json()), sync=True, mode=0o600
        )
        try:
            self._move(file, self.folder / item.id)
        except OSError:
            disk.remove_quietly(self._record(item.id))
            raise
        return item

    def items(self) -> list[QuarantinedFile]:
        """Return the quarantined files, oldest first. Raises OSError."""
        found = [
            item for item_id in self._ids() if (item := self._item(item_id)) is not None
        ]
        return sorted(found, key=lambda item: (item.at, item.id))

    def item(self, item_id: str) -> QuarantinedFile:
        """Return one quarantined file. Raises NotFound, OSError."""
        found = self._item(item_id) if _ID.fullmatch(item_id) else None
        if found is None:
            raise NotFound(
                f"nothing in quarantine has the id {item_id[:40]!r}: dlpool quarantine "
                "list shows the ids"
            )
        return found

    def delete(self, item_id: str) -> QuarantinedFile:
        """Remove a file and its record. Raises NotFound, OSError."""
        item = self.item(item_id)
        disk.remove(self.folder / item.id)
        disk.remove(self._record(item.id))
        return item

    def release(
        self, item_id: str, target: Path | None = None
    ) -> tuple[QuarantinedFile, Path]:
        """Publish a file to ``target``, or to its original path if ``target`` is None.
        Remove the file from quarantine.

        An existing file is not replaced. Raises NotFound, TargetExists, OSError.
        """
        item = self.item(item_id)
        path = target or Path(item.finding.target)
        disk.make_folders(path.parent, sync=True)
        source = self.folder / item.id
        temporary = path.with_name(f".dlpool-{item.id}.released")
        try:
            _copied(source, temporary)
            disk.publish_exclusive(
                temporary, path, identity=disk.identity_of(os.stat(temporary))
            )
        except FileExistsError as error:
            disk.remove_quietly(temporary)
            raise TargetExists(f"{path} exists already: name another PATH") from error
        except OSError:
            disk.remove_quietly(temporary)
            raise
        disk.sync_folder(path.parent)
        self.delete(item_id)
        return item, path

    def _make_folder(self) -> None:
        disk.make_folders(self.folder.parent, sync=True)
        with suppress(FileExistsError):
            os.mkdir(self.folder, 0o700)

    def _evict(self, size: int) -> None:
        """Remove the oldest files until ``size`` more bytes fit. Remove stale entries
        as well."""
        items = self.items()
        total = sum(item.size + ENTRY_BYTES for item in items) + size + ENTRY_BYTES
        for item in items:
            if total <= self.max_bytes:
                break
            with suppress(NotFound):
                self.delete(item.id)
            total -= item.size + ENTRY_BYTES
        self._remove_stale()

    def _remove_stale(self) -> None:
        known = set(self._ids())
        with os.scandir(self.folder) as entries:
            stale = [entry.path for entry in entries if _is_stale(entry, known)]
        for path in stale:
            disk.remove_quietly(path)

    def _move(self, file: ScannedFile, destination: Path) -> None:
        """Rename the file into quarantine, or copy it if it cannot be renamed.

        Raises OSError.
        """
        os.fchmod(file.descriptor, 0o600)
        if file.is_named() and _renamed(file, destination):
            os.fsync(file.descriptor)
        else:
            _write(file, destination.with_name(destination.name + COPYING), 0o600)
            disk.replace(destination.with_name(destination.name + COPYING), destination)
        disk.sync_folder(self.folder)
        file.remove()

    def _ids(self) -> list[str]:
        """Return the ids of the quarantined files."""
        try:
            return [name for name in os.listdir(self.folder) if _ID.fullmatch(name)]
        except FileNotFoundError:
            return []

    def _item(self, item_id: str) -> QuarantinedFile | None:
        """Return a quarantined file; None if the file is missing. Raises OSError.

        If the record is missing or damaged, placeholders replace its values.
        """
        try:
            status = os.lstat(self.folder / item_id)
        except FileNotFoundError:
            return None
        with suppress(OSError, ValueError, TypeError, KeyError):
            record = jsontext.loads(self._record(item_id).read_bytes())
            at, sha256 = str(record["at"]), str(record["sha256"])
            texts = {
                name: record.get(name) for name in ScanFinding.__dataclass_fields__
            }
            if all(
                isinstance(texts[name], str)
                for name in ("signature", "kind", "source", "target")
            ):
                return QuarantinedFile(
                    item_id, at, status.st_size, sha256, ScanFinding(**texts)
                )
        return QuarantinedFile(
            item_id,
            _at(status.st_mtime),
            status.st_size,
            "",
            ScanFinding("unknown", "unknown", "", ""),
        )

    def _record(self, item_id: str) -> Path:
        return self.folder / f"{item_id}{RECORD}"


def _renamed(file: ScannedFile, destination: Path) -> bool:
    """Rename the file to ``destination``. Return False if ``destination`` is on another
    file system.

    Raises OSError.
    """
    try:
        os.rename(file.path, destination, src_dir_fd=file.dir_fd)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _copied(source: Path, target: Path) -> None:
    """Copy a file durably to a new name, with default permissions. Raises OSError."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        file = ScannedFile(descriptor, source, os.fstat(descriptor).st_size)
        _write(file, target, 0o666)
    finally:
        disk.close_quietly(descriptor)


def _write(file: ScannedFile, path: Path, mode: int) -> None:
    """Copy a file durably to a new file ``path``, with the attribute that names the
    owner.

    Raises OSError, and leaves no new file in this case.
    """
    with disk.new_file(path, mode, sync=True) as descriptor:
        for block in file.blocks(1024 * 1024):
            disk.write_all(descriptor, block)
        # most files have no owner, and some file systems have no attributes
        with suppress(OSError):
            owner = os.getxattr(file.descriptor, OWNER_ATTRIBUTE)
            os.setxattr(descriptor, OWNER_ATTRIBUTE, owner)


def _is_stale(entry: os.DirEntry[str], known: set[str]) -> bool:
    """Return whether a killed process left this entry more than a day ago.

    Such an entry is a record without a file, or an unfinished copy. ``known``: the ids
    of the quarantined files.
    """
    name, _, ending = entry.name.partition(".")
    if (
        not _ID.fullmatch(name)
        or (ending == RECORD[1:] and name in known)
        or not ending
    ):
        return False
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_S
    except OSError:
        return False


def _now() -> str:
    return _at(time.time())


def _at(seconds: float) -> str:
    return (
        datetime.fromtimestamp(seconds, timezone.utc)
        .isoformat(timespec="microseconds")
        .replace("+00:00", "Z")
    )
