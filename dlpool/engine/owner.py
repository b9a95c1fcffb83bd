"""An engine, as its tasks see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dlpool.engine.task import DownloadTask


class TaskOwner(Protocol):
    """Called by tasks, under no lock."""

    def task_ready(self, task: DownloadTask) -> None:
        """It is pending and idle: it belongs into the queue."""

    def task_withdrawn(self, task: DownloadTask) -> None:
        """It was paused or cancelled while nothing ran for it."""
