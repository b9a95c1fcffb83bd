"""Uploads on the disk: chunks, tasks and merges, for several processes at once. No HTTP here."""

from __future__ import annotations

from dlpool.web.store.reception import Reception
from dlpool.web.store.results import ChunkResult, MergeResult
from dlpool.web.store.store import UploadStore

__all__ = ["ChunkResult", "MergeResult", "Reception", "UploadStore"]
