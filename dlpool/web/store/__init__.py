"""Uploads on the disk: chunks, tasks and merges, for several processes at once. No HTTP here."""

from __future__ import annotations

from dlpool.web.store.appending import FINAL, PARTIAL, AppendSession, AlreadyComplete, UnlockRequested, offset_mismatch, too_large
from dlpool.web.store.catalog import MAX_PAGE, TaskCounts
from dlpool.web.store.concatenating import check_parts
from dlpool.web.store.events import UploadEventListener, UploadEvent
from dlpool.web.store.growing import TusUploadState, TusUploadRequest, upload_locked
from dlpool.web.store.reception import StagedChunk
from dlpool.web.store.results import ChunkResult, MergeResult
from dlpool.web.store.screening import UploadScanner
from dlpool.web.store.store import DiskBackend

__all__ = [
    "FINAL",
    "MAX_PAGE",
    "PARTIAL",
    "UploadEventListener",
    "AppendSession",
    "ChunkResult",
    "AlreadyComplete",
    "TaskCounts",
    "TusUploadRequest",
    "TusUploadState",
    "MergeResult",
    "StagedChunk",
    "UploadScanner",
    "UnlockRequested",
    "UploadEvent",
    "DiskBackend",
    "check_parts",
    "offset_mismatch",
    "upload_locked",
    "too_large",
]
