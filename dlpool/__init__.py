"""dlpool turns jobs ("this URL, to this path") into files."""

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
    """The API when somebody wants it: the commands start faster without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dlpool import engine

    return getattr(engine, name)
