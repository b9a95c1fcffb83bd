"""The metadata files of a task.

The file ``identity.json`` never changes. ``record.json`` changes; if it is lost, it can
be rebuilt from the chunks. A process that holds the lock of the task writes each file
under a temporary name and then renames it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.disk import close_quietly
from dlpool.storage.digests import FileDigests
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.states import PENDING, STATES
from dlpool.storage.upload_requests import CHUNKED, FINAL, PARTIAL
from dlpool.storage.values import MergeResult, TaskTotals

IDENTITY, RECORD = "identity.json", "record.json"


@dataclass(frozen=True)
class TaskIdentity:
    """The part of a task that never changes.

    ``owner``: None if the creator authenticated with ``secret_key``, or if
    authentication was off.
    """

    file_id: str
    owner: str | None
    created_at: float
    protocol: str = CHUNKED

    def is_visible_to(self, owner: str | None) -> bool:
        """Return whether ``owner`` may access the task; None may access all tasks."""
        return owner is None or self.owner == owner


@dataclass(frozen=True)
class PendingPublish:
    """A merged file that is about to get its name.

    ``name`` in ``folder`` (below merged_dir) is the target.
    ``MergeOutput.has_published`` recognizes the file. ``merge_time`` is in nanoseconds.
    """

    folder: tuple[str, ...]
    name: str
    inode: int
    size: int
    modified_ns: int
    md5: str
    merge_time: int
    composite_sha256: str = ""

    @property
    def digests(self) -> FileDigests:
        """The digests of the file."""
        return FileDigests(self.md5, self.composite_sha256)


@dataclass(frozen=True)
class TaskRecord:
    """The part of a task that changes.

    Sizes are in bytes, times in seconds since the epoch.

    - ``received``: bytes of all chunks
    - ``retries``: for each chunk index, how often the chunk was sent again or had a
      wrong md5
    - ``declared_md5s``: for each chunk index, an md5 that the client sent and the
      server did not compare
    - ``output_folder``: folders below merged_dir in which a merge may have left its
      temporary file
    - ``publishing``: the file whose publication has been started
    - ``chunks``: ``(index, size, md5, stored_at, sha256)`` of each chunk; only in a
      completed task
    - ``tus``: for a tus upload, ``metadata`` (Upload-Metadata), ``concat``
      (Upload-Concat), ``shared`` (every user may read the file), ``parts`` (the ids of
      the parts of a final upload) and ``claim`` (the id of the final upload that has
      taken this part)
    """

    status: str = PENDING
    updated_at: float = 0.0
    filename: str = ""
    relative_path: str = ""
    total_chunks: int = 0
    file_size: int = -1
    received: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    declared_md5s: dict[str, str] = field(default_factory=dict)
    failed_merges: int = 0
    failure: str = ""
    output_folder: tuple[str, ...] | None = None
    publishing: PendingPublish | None = None
    result: MergeResult | None = None
    chunks: tuple[tuple[int, int, str, float, str], ...] = ()
    tus: dict[str, Any] = field(default_factory=dict)

    @property
    def totals(self) -> TaskTotals:
        """What clients have stated about the file."""
        return TaskTotals(self.total_chunks, self.file_size, self.relative_path)

    def with_totals(self, totals: TaskTotals) -> TaskRecord:
        """Return the record with these totals."""
        return replace(
            self,
            total_chunks=totals.total_chunks,
            file_size=totals.file_size,
            relative_path=totals.relative_path,
        )

    @property
    def concat(self) -> str:
        """The Upload-Concat value of a tus upload; empty if there is none."""
        return str(self.tus.get("concat", ""))

    @property
    def is_partial(self) -> bool:
        """Whether this is a tus upload that is a part for a final upload."""
        return self.tus.get("concat") == PARTIAL

    @property
    def is_final(self) -> bool:
        """Whether this is a tus upload that is concatenated from parts."""
        return self.concat.startswith(FINAL)


def load_identity(folder: Path) -> TaskIdentity | None:
    """Return the identity of the task in ``folder``; None if it is missing or damaged.

    Raises OSError.
    """
    found = _read(folder / IDENTITY)
    if found is None or not _has_types(found, _IDENTITY_TYPES):
        return None
    try:
        return TaskIdentity(
            **{name: value for name, value in found.items() if name in _IDENTITY_TYPES}
        )
    except TypeError:
        return None


def load_record(folder: Path) -> TaskRecord | None:
    """Return the record of the task in ``folder``; None if it is missing or damaged.

    Raises OSError. A missing record can be rebuilt from the chunks.
    """
    found = _read(folder / RECORD)
    try:
        return _record(found) if found is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _record(found: dict[str, Any]) -> TaskRecord:
    values = {name: value for name, value in found.items() if name in _RECORD_TYPES}
    if values["status"] not in STATES or not _has_types(values, _RECORD_TYPES):
        raise ValueError(values["status"])
    if values.get("publishing"):
        values["publishing"]["folder"] = tuple(values["publishing"]["folder"])
        values["publishing"] = PendingPublish(**values["publishing"])
    if values.get("result"):
        values["result"] = MergeResult(**values["result"])
    if values.get("output_folder") is not None:
        values["output_folder"] = tuple(values["output_folder"])
    values["chunks"] = tuple(
        (int(i), int(size), str(md5), float(at), str(sha256))
        for i, size, md5, at, sha256 in values.get("chunks", ())
    )
    return TaskRecord(**values)


_NUMBER = (int, float)
_IDENTITY_TYPES: Mapping[str, Any] = {
    "file_id": str,
    "owner": (str, NoneType),
    "created_at": _NUMBER,
    "protocol": str,
}
_RECORD_TYPES: Mapping[str, Any] = {
    "status": str,
    "updated_at": _NUMBER,
    "filename": str,
    "relative_path": str,
    "total_chunks": int,
    "file_size": int,
    "received": int,
    "retries": dict,
    "declared_md5s": dict,
    "failed_merges": int,
    "failure": str,
    "output_folder": (list, NoneType),
    "publishing": (dict, NoneType),
    "result": (dict, NoneType),
    "chunks": list,
    "tus": dict,
}


def _has_types(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        isinstance(value, wanted[name])
        for name, value in found.items()
        if name in wanted
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = jsontext.loads(_read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, empty for a FIFO or a device.

    Raises OSError, also for a folder.
    """
    descriptor = os.open(path, READ_FLAGS)
    try:
        status = os.fstat(descriptor)
        is_special = not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        return b"" if is_special else os.read(descriptor, status.st_size)
    finally:
        close_quietly(descriptor)


def save_identity(
    folder: Path, identity: TaskIdentity, *, durability: Durability
) -> None:
    """Write the identity of a new task into its folder.

    Raises OSError.
    """
    durability.write(folder / IDENTITY, jsontext.dumps(identity))


def save_record(folder: Path, record: TaskRecord, *, durability: Durability) -> None:
    """Replace the record atomically. Raises OSError."""
    durability.write(folder / RECORD, jsontext.dumps(record))
