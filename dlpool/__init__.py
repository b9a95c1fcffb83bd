"""Downloads URLs to files, runs a download service, and serves uploads.

The names below are the Python API (``dlpool.engine``). The programs are in
``dlpool.cli``; ``docs/internals.md`` describes the packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlpool.version import __version__

if TYPE_CHECKING:
    from dlpool.engine import (
        BatchSummary,
        DownloadEngine,
        DownloadQueue,
        DownloadStats,
        DownloadTask,
        download_many,
    )

__all__ = [
    "BatchSummary",
    "DownloadEngine",
    "DownloadQueue",
    "DownloadStats",
    "DownloadTask",
    "__version__",
    "download_many",
]


def __getattr__(name: str) -> Any:
    """Return ``name`` of the API. The API is imported on first use.

    This makes commands that do not use the API start faster.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dlpool import engine

    return getattr(engine, name)
