"""Uploads on the disk: chunks, tasks and merges, for several processes at once. No HTTP
here."""

from __future__ import annotations

from dlpool.storage.disk.append_session import (
    FINAL,
    PARTIAL,
    AlreadyComplete,
    AppendSession,
    UnlockRequested,
    offset_mismatch,
    too_large,
)
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.disk.catalog import MAX_PAGE, TaskCounts
from dlpool.storage.disk.concatenation import check_parts
from dlpool.storage.disk.scanning import UploadScanner
from dlpool.storage.disk.staged_chunk import StagedChunk
from dlpool.storage.disk.tus_uploads import (
    TusUploadRequest,
    TusUploadState,
    upload_locked,
)
from dlpool.storage.events import UploadEvent, UploadEventListener
from dlpool.storage.results import ChunkResult, MergeResult

__all__ = [
    "FINAL",
    "MAX_PAGE",
    "PARTIAL",
    "AlreadyComplete",
    "AppendSession",
    "ChunkResult",
    "DiskBackend",
    "MergeResult",
    "StagedChunk",
    "TaskCounts",
    "TusUploadRequest",
    "TusUploadState",
    "UnlockRequested",
    "UploadEvent",
    "UploadEventListener",
    "UploadScanner",
    "check_parts",
    "offset_mismatch",
    "too_large",
    "upload_locked",
]
