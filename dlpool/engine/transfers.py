"""Makes the transfers of an engine: with its settings, over its connections."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dlpool.config import NetworkSettings, ScanSettings, TransferSettings
from dlpool.engine.names import NameRegistry, NameRequest
from dlpool.engine.task import DownloadTask
from dlpool.errors import DlpoolError, TargetExists
from dlpool.scan.guard import open_guard
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.urls import display_url
from dlpool.transfer.job import Job, Notify
from dlpool.transfer.target.file.cleanup import remove_part_files
from dlpool.transfer.transfer import Transfer


class TransferFactory:
    """Thread-safe."""

    def __init__(
        self,
        transfer: TransferSettings,
        network: NetworkSettings,
        max_workers: int,
        chunk_size: int,
        notify: Notify,
        scan: ScanSettings,
    ) -> None:
        """``notify`` hears what happens in all of them. Raises ConfigurationError."""
        self._settings = transfer
        gate, watch = HostHolds(time.monotonic), NetworkMonitor(time.monotonic)
        self._client = HttpClient(
            network,
            transfer.pool_size(max_workers),
            gate,
            watch,
            min_read_bytes=chunk_size,
        )
        self._client.check()
        self._notify = notify
        self._guard = open_guard(scan)
        self._names = NameRegistry()

    def create(self, task: DownloadTask) -> Transfer:
        """A transfer for a task. Raises UsageError for a URL or headers that cannot be
        sent."""
        job = task.job if self._settings.verify else replace(task.job, checksum=None)

        def notify(event: str, /, **fields: object) -> None:
            task.hear(event, **fields)
            self._notify(event, **fields)

        def admit(path: Path) -> None:
            self._names.reserve(
                path,
                NameRequest(
                    task.id,
                    task.url,
                    task.label or display_url(task.url),
                    bool(task.label),
                ),
            )

        return Transfer(
            job, self._settings, self._client, notify, admit, task.permit, self._guard
        )

    def release_name(self, task: DownloadTask, *, is_completed: bool) -> None:
        """Release the file name of a task that has ended without the file."""
        self._names.release(task.id, is_completed=is_completed)

    def look_up_target(self, job: Job) -> Path | None:
        """Request a job's file name from the server, without a body, and return its
        path; None on failure."""
        learnt: list[Path] = []

        def admit(path: Path) -> None:
            learnt.append(path)
            raise TargetExists("its name is known")

        settings = replace(
            self._settings,
            retries=0,
            network_wait=0.0,
            if_exists="overwrite",
            scan=False,
        )
        with suppress(DlpoolError):
            Transfer(job, settings, self._client, check_target=admit).run()
        return learnt[0] if learnt else None

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


def discard_partial_file(task: DownloadTask) -> None:
    """What a cancelled task has fetched goes, unless somebody else works on it, or its
    folder is gone."""
    path = task.file_path
    if path is not None:
        with suppress(DlpoolError):
            remove_part_files(Path(path), task.url)
