"""The Python API: downloads in the process of the program, on threads.

Read in this order: ``engine`` (the public class), ``core`` (the table of tasks),
``task`` (one download), ``task_queue`` (pending tasks), ``workers`` (the threads),
``transfers`` (creates the ``transfer.Transfer`` of a task), ``names`` (prevents two
tasks from writing one file), ``progress``, ``sampling`` and ``stats`` (progress and
speeds), ``callbacks``, ``arguments`` (validation); then ``batch`` and
``batch_download`` for lists, ``collisions`` (entries of a list that have the same
target), and the session files ``engine_session`` and ``batch_session``.

Threads: one per running download (``dlpool-worker``), one that samples speeds
(``dlpool-sampler``), one that calls callbacks (``dlpool-callbacks``).
"""

from __future__ import annotations

from dlpool.engine.batch_download import BatchSummary, download_many
from dlpool.engine.engine import DownloadEngine
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
