"""Uploads in tests: a store in a folder, and chunks sent to it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import UploadSettings
from dlpool.storage.disk import ChunkResult, DiskBackend, MergeResult, UploadScanner
from dlpool.storage.errors import UploadError

ID = "a file"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def store_in(folder: Path, screening: UploadScanner | None = None, **settings: Any) -> DiskBackend:
    """A store over ``upload`` and ``merged`` in a folder, without waiting for the disk."""
    options = {"enable_atomic_operations": False, **settings}
    folders = {"upload_dir": str(folder / "upload"), "merged_dir": str(folder / "merged")}
    own = replace(UploadSettings(), **{**folders, **options})
    return DiskBackend(own, screening=screening or UploadScanner())


def send(
    store: DiskBackend, index: int, data: bytes, *, file_id: str = ID, owner: str | None = None, **fields: Any
) -> ChunkResult:
    """Send one chunk."""
    with store.stage_chunk() as reception:
        reception.write(data)
        return store.commit_chunk(reception, file_id=file_id, index=index, owner=owner, **fields)


def send_all(store: DiskBackend, chunks: list[bytes], **fields: Any) -> None:
    for index, data in enumerate(chunks):
        send(store, index, data, md5=md5(data), total_chunks=len(chunks), **fields)


def merge(
    store: DiskBackend,
    total: int,
    name: str = "file.bin",
    *,
    file_id: str = ID,
    owner: str | None = None,
    **fields: Any,
) -> MergeResult:
    return store.merge(file_id=file_id, filename=name, total_chunks=total, owner=owner, **fields)


def uploaded(store: DiskBackend, file_id: str = ID) -> list[int]:
    found: list[int] = store.status(file_id, None)["uploaded_chunks"]
    return found


def state(store: DiskBackend, file_id: str = ID) -> str:
    return str(store.status(file_id, None)["status"])


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def leftovers(store: DiskBackend) -> list[str]:
    """Temporary files of any kind."""
    upload, merged = Path(store.settings.upload_dir), Path(store.settings.merged_dir)
    return files_below(upload / "tmp") + [name for name in files_below(merged) if ".dlpool-" in name]


class refused:
    """``with refused(409, "conflict") as refusal:`` the block is refused just so."""

    def __init__(self, status: int, code: str) -> None:
        self._wanted = (status, code)
        self._raises = pytest.raises(UploadError)
        self.extra: dict[str, Any] = {}
        self.text = ""

    def __enter__(self) -> refused:
        self._info = self._raises.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool:
        was_raised = self._raises.__exit__(*error)
        refusal = self._info.value
        assert (refusal.status, refusal.code) == self._wanted, refusal.text
        assert refusal.text and not refusal.text.endswith(".")
        self.extra, self.text = refusal.details, refusal.text
        return was_raised
