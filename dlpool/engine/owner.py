"""An engine, as its tasks see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dlpool.engine.task import DownloadTask


class Owner(Protocol):
    """Called by tasks, under no lock."""

    def waits(self, task: DownloadTask) -> None:
        """It is pending and idle: it belongs into the queue."""

    def waits_no_more(self, task: DownloadTask) -> None:
        """It was paused or cancelled while nothing ran for it."""
