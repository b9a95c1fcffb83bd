"""What is noted of a task: its ``Identity``, once, with the folder; its ``Record``, a
cache beside the chunks.

Both are JSON, written to a temporary file that is renamed, under the task's lock.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from dlpool import jsontext
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.results import MergeResult
from dlpool.storage.states import PENDING, STATES

IDENTITY, RECORD = "identity.json", "record.json"
CHUNKED, TUS = "chunked", "tus"


@dataclass(frozen=True)
class TaskIdentity:
    """What of a task never changes. ``owner``: None if it was begun without a token, by
    the secret or by anybody."""

    file_id: str
    owner: str | None
    created_at: float
    protocol: str = CHUNKED

    def is_of(self, owner: str | None) -> bool:
        """Whether who asks may have it; None may have all."""
        return owner is None or self.owner == owner


@dataclass(frozen=True)
class PendingPublish:
    """The file that was about to get its name: where, and what the file system says of
    it."""

    folder: tuple[str, ...]
    name: str
    inode: int
    size: int
    modified_ns: int
    md5: str
    merge_time: int


@dataclass(frozen=True)
class TaskRecord:
    """What changes. ``retries``: how often a chunk came again, or was refused for its
    md5, by index.

    ``temporary``: folders below merged_dir, where a merge may have left its file;
    ``chunks`` are those of a completed task, ``[index, size, md5, stored_at]``;
    ``sent``: md5s that were sent and not compared, by index.
    """

    status: str = PENDING
    updated_at: float = 0.0
    filename: str = ""
    relative_path: str = ""
    total_chunks: int = 0
    file_size: int = -1
    received: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    failed_merges: int = 0
    failure: str = ""
    temporary: tuple[str, ...] | None = None
    publishing: PendingPublish | None = None
    result: MergeResult | None = None
    chunks: tuple[tuple[int, int, str, float], ...] = ()
    tus: dict[str, Any] = field(default_factory=dict)

    def with_details(
        self, total_chunks: int | None, file_size: int | None, relative_path: str | None
    ) -> TaskRecord:
        """With what was not known yet; None: not said."""
        return replace(
            self,
            total_chunks=self.total_chunks or total_chunks or 0,
            file_size=self.file_size
            if self.file_size >= 0 or file_size is None
            else file_size,
            relative_path=self.relative_path or relative_path or "",
        )


def load_identity(folder: Path) -> TaskIdentity | None:
    """None where there is none that can be read. Raises OSError."""
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
    """None where there is none that can be read: the chunks tell enough to go on.
    Raises OSError."""
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
    if values.get("temporary") is not None:
        values["temporary"] = tuple(values["temporary"])
    values["chunks"] = tuple(
        (int(i), int(size), str(md5), float(at))
        for i, size, md5, at in values.get("chunks", ())
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
    "sent": dict,
    "failed_merges": int,
    "failure": str,
    "temporary": (list, NoneType),
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
        found = jsontext.loads(_bytes_of(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _bytes_of(path: Path) -> bytes:
    """What is in the file; nothing of a FIFO or device. Raises OSError, also for a
    folder."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        status = os.fstat(descriptor)
        is_special = not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        return b"" if is_special else os.read(descriptor, status.st_size)
    finally:
        release(descriptor)


def save_identity(folder: Path, identity: TaskIdentity, *, sync: Durability) -> None:
    """Note it in a folder that has no name yet that counts. Raises OSError."""
    sync.write(folder / IDENTITY, jsontext.dumps(identity))


def save_record(folder: Path, record: TaskRecord, *, sync: Durability) -> None:
    """Replace the record; who is killed leaves the old one or the new one. Raises
    OSError."""
    sync.write(folder / RECORD, jsontext.dumps(record))
