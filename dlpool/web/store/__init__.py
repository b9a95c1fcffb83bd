"""Uploads on the disk: chunks, tasks and merges, for several processes at once. No HTTP here."""

from __future__ import annotations

from dlpool.web.store.appending import FINAL, PARTIAL, Appending, Completed, Superseded, conflict, too_large
from dlpool.web.store.catalog import MAX_PAGE, Counts
from dlpool.web.store.concatenating import check_parts
from dlpool.web.store.events import Announce, UploadEvent
from dlpool.web.store.growing import Growth, GrowWish, locked
from dlpool.web.store.reception import Reception
from dlpool.web.store.results import ChunkResult, MergeResult
from dlpool.web.store.screening import Screening
from dlpool.web.store.store import UploadStore

__all__ = [
    "FINAL",
    "MAX_PAGE",
    "PARTIAL",
    "Announce",
    "Appending",
    "ChunkResult",
    "Completed",
    "Counts",
    "GrowWish",
    "Growth",
    "MergeResult",
    "Reception",
    "Screening",
    "Superseded",
    "UploadEvent",
    "UploadStore",
    "check_parts",
    "conflict",
    "locked",
    "too_large",
]
