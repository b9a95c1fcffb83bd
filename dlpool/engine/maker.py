"""Makes the transfers of an engine: with its settings, over its connections."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from dlpool.config import NetworkSettings, TransferSettings
from dlpool.engine.task import DownloadTask
from dlpool.errors import DlpoolError, TargetExists
from dlpool.transfer.client import Client
from dlpool.transfer.job import Notify
from dlpool.transfer.leftovers import discard_unfinished
from dlpool.transfer.limits import HostGate, NetworkWatch
from dlpool.transfer.transfer import Transfer


class Maker:
    """Thread-safe; the lock guards which task has which target."""

    def __init__(
        self, transfer: TransferSettings, network: NetworkSettings, max_workers: int, chunk_size: int, notify: Notify
    ) -> None:
        """``notify`` hears what happens in all of them. Raises ConfigurationError."""
        self._settings = transfer
        gate, watch = HostGate(time.monotonic), NetworkWatch(time.monotonic)
        self._client = Client(network, transfer.pool_size(max_workers), gate, watch, collect=chunk_size)
        self._client.check()
        self._lock = threading.Lock()
        self._notify = notify
        self._owners: dict[bytes, tuple[bytes, str]] = {}  # of real paths, as hashes: their URLs, and what to say

    def make(self, task: DownloadTask) -> Transfer:
        """A transfer for a task. Raises UsageError for a URL or headers that cannot be sent."""
        job = task.job if self._settings.verify else replace(task.job, checksum=None)

        def notify(event: str, /, **fields: object) -> None:
            task.hear(event, **fields)
            self._notify(event, **fields)

        admit = (lambda path: self._admit(task, path)) if self._settings.if_exists == "overwrite" else None
        return Transfer(job, self._settings, self._client, notify, admit, task.permit)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _admit(self, task: DownloadTask, path: Path) -> None:
        """Two URLs must not become one file: the second would silently replace the first."""
        mine = _hash(task.url)
        with self._lock:
            url, label = self._owners.setdefault(_hash(os.path.realpath(path)), (mine, task.label or task.url))
        if url != mine:
            raise TargetExists(f"{task.label or 'it'} would overwrite {path}, the file of {label}")


def _hash(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()


def discard(task: DownloadTask) -> None:
    """What a cancelled task has fetched goes, unless somebody else works on it, or its folder is gone."""
    path = task.file_path
    if path is not None:
        with suppress(DlpoolError):
            discard_unfinished(path, task.url)
