"""Downloads in a Python program: ``from dlpool import DownloadEngine``."""

from __future__ import annotations

from dlpool.engine.batch import BatchSummary
from dlpool.engine.engine import DownloadEngine
from dlpool.engine.many import download_many
from dlpool.engine.stats import DownloadStats
from dlpool.engine.task import DownloadTask
from dlpool.engine.task_queue import DownloadQueue

__all__ = [
    "BatchSummary",
    "DownloadEngine",
    "DownloadQueue",
    "DownloadStats",
    "DownloadTask",
    "download_many",
]
