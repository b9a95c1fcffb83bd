"""Uploads in tests: a store in a folder, and chunks sent to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import UploadSettings
from dlpool.storage.disk.append_session import DiskAppendSession
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.scanning import UploadScanner
from dlpool.storage.disk.staged_chunk import StagedChunkFile
from dlpool.storage.disk.task_folder import SharedTaskLock
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import AppendRequest, ChunkRequest, MergeRequest
from dlpool.storage.values import ChunkResult, MergeResult, TaskCounts
from dlpool.web.errors import http_error
from dlpool.web.upload_json import detail_json, page_json, status_json

ID = "a file"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def store_in(folder: Path, scanner: UploadScanner | None = None, **settings: Any) -> DiskBackend:
    """Return a backend over ``upload`` and ``merged`` in a folder, without syncing."""
    options = {"enable_atomic_operations": False, **settings}
    folders = {"upload_dir": str(folder / "upload"), "merged_dir": str(folder / "merged")}
    own = replace(UploadSettings(), **{**folders, **options})
    return DiskBackend(own, scanner=scanner or UploadScanner())


def send(
    store: DiskBackend, index: int, data: bytes, *, file_id: str = ID, owner: str | None = None, **fields: Any
) -> ChunkResult:
    """Send one chunk."""
    with store.chunks.stage() as staged:
        staged.write(data)
        return commit_chunk(store, staged, file_id=file_id, index=index, owner=owner, **fields)


def commit_chunk(store: DiskBackend, staged: StagedChunkFile, **fields: Any) -> ChunkResult:
    """Commit a chunk whose request has these fields."""
    return store.chunks.commit(staged, ChunkRequest(**fields))


def check_chunk(store: DiskBackend, **fields: Any) -> SharedTaskLock | None:
    """Check a request with these fields; the lock is of its task."""
    return store.chunks.check_request(ChunkRequest(**fields))


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
    return store.merge(MergeRequest(file_id, name, total, owner, **fields))


@contextmanager
def open_append(
    store: DiskBackend, file_id: str, owner: str | None, offset: int, **options: Any
) -> Iterator[DiskAppendSession]:
    """Append to a tus upload under its lock."""
    request = AppendRequest(file_id, owner, offset, **options)
    with store.locker.lock(file_id, owner) as lock, store.tus.append(lock, request) as session:
        yield session


def status_of(store: DiskBackend, file_id: str, owner: str | None) -> dict[str, Any]:
    """Return the answer of ``GET /upload_status``."""
    return status_json(store.find_task(file_id, owner))


def detail_of(store: DiskBackend, file_id: str, owner: str | None) -> dict[str, Any]:
    """Return the answer of ``GET /tasks/ID``."""
    return detail_json(store.task(file_id, owner))


def list_of(store: DiskBackend, owner: str | None, **options: Any) -> dict[str, Any]:
    """Return the answer of ``GET /tasks``."""
    return page_json(store.tasks(owner, **options))


def counts_of(store: DiskBackend, owner: str | None, max_age_s: float = 0.0) -> TaskCounts:
    """Return what the tasks of an owner use, and for None those of all owners."""
    catalog = store.index.current(max_age_s=max_age_s)
    return TaskCounts.sum_of(catalog.counts().values()) if owner is None else catalog.counts_of(owner)


def uploaded(store: DiskBackend, file_id: str = ID) -> list[int]:
    found: list[int] = status_of(store, file_id, None)["uploaded_chunks"]
    return found


def state(store: DiskBackend, file_id: str = ID) -> str:
    return str(status_of(store, file_id, None)["status"])


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def leftovers(store: DiskBackend) -> list[str]:
    """Temporary files of any kind."""
    upload, merged = Path(store.settings.upload_dir), Path(store.settings.merged_dir)
    return files_below(upload / "tmp") + [name for name in files_below(merged) if ".dlpool-" in name]


class refused:
    """``with refused(409, "conflict") as error:`` the block raises that UploadError, which HTTP answers so."""

    def __init__(self, status: int, code: str) -> None:
        self._wanted = (status, code)
        self._raises = pytest.raises(UploadError)
        self.details: dict[str, Any] = {}
        self.text = ""

    def __enter__(self) -> refused:
        self._info = self._raises.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool:
        was_raised = self._raises.__exit__(*error)
        caught = self._info.value
        assert (http_error(caught).status, caught.code) == self._wanted, caught.text
        assert caught.text and not caught.text.endswith(".")
        self.details, self.text = caught.details, caught.text
        return was_raised
