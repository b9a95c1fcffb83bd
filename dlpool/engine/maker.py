"""Makes the transfers of an engine: with its settings, over its connections."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dlpool.config import NetworkSettings, TransferSettings
from dlpool.engine.task import DownloadTask
from dlpool.errors import DlpoolError, TargetExists
from dlpool.transfer.client import Client
from dlpool.transfer.leftovers import discard_unfinished
from dlpool.transfer.limits import HostGate, NetworkWatch
from dlpool.transfer.transfer import Transfer


class Maker:
    """Thread-safe; the lock guards which task has which target."""

    def __init__(self, transfer: TransferSettings, network: NetworkSettings, max_workers: int) -> None:
        """Raises ConfigurationError for a proxy or certificates that cannot be used."""
        self._settings = transfer
        gate, watch = HostGate(time.monotonic), NetworkWatch(time.monotonic)
        self._client = Client(network, max_workers * transfer.connections, gate, watch)
        self._client.check()
        self._lock = threading.Lock()
        self._owners: dict[str, DownloadTask] = {}  # by real path

    def make(self, task: DownloadTask) -> Transfer:
        """A transfer for a task. Raises UsageError for a URL or headers that cannot be sent."""
        job = task.job if self._settings.verify else replace(task.job, checksum=None)
        return Transfer(job, self._settings, self._client, task.hear, lambda path: self._admit(task, path), task.permit)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _admit(self, task: DownloadTask, path: Path) -> None:
        """Two URLs must not become one file: the second would silently replace the first."""
        with self._lock:
            owner = self._owners.setdefault(os.path.realpath(path), task)
        if owner.url != task.url and self._settings.if_exists == "overwrite":
            raise TargetExists(f"it would overwrite {path}, the file of {owner.url}")


def discard(task: DownloadTask) -> None:
    """What a cancelled task has fetched goes, unless somebody else works on it, or its folder is gone."""
    path = task.file_path
    if path is not None:
        with suppress(DlpoolError):
            discard_unfinished(path, task.url)
