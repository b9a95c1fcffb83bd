"""The factory of an engine's transfers. It has the settings and the HTTP client."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dlpool.affinity import Affinity
from dlpool.config import NetworkSettings, ScanSettings, TransferSettings
from dlpool.dataclass import dataclass
from dlpool.engine.names import NameRegistry, NameRequest
from dlpool.engine.task import DownloadTask, TaskExecution
from dlpool.errors import DlpoolError, TargetExists
from dlpool.scan import open_guard
from dlpool.transfer.attempt import SMALL_FILE_BYTES
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.urls import display_url
from dlpool.transfer.job import Job, Notify, TransferCallbacks
from dlpool.transfer.target.file.cleanup import remove_part_files
from dlpool.transfer.transfer import Transfer


@dataclass(frozen=True)
class EngineSettings:
    """The settings of an engine and of all its transfers.

    ``chunk_size`` is the number of bytes to collect before a write. ``notify`` receives
    the events of all transfers. With ``keeps_ended``, tasks that have ended stay in the
    engine's table.
    """

    transfer: TransferSettings
    network: NetworkSettings
    scan: ScanSettings
    max_workers: int
    chunk_size: int
    progress_interval_s: float
    keeps_ended: bool
    notify: Notify


class TransferFactory:
    """A factory of transfers that share one HTTP client. Thread-safe.

    ``affinity`` selects the CPUs of the threads that run the transfers.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Create the HTTP client and, if a scanner is configured, the guard that scans
        files.

        Raises ConfigurationError if the settings cannot be used.
        """
        self._settings = settings.transfer
        self._client = HttpClient(
            settings.network,
            settings.transfer.pool_size(settings.max_workers),
            HostHolds(time.monotonic),
            NetworkMonitor(time.monotonic),
            min_read_bytes=settings.chunk_size,
        )
        self._client.check()
        self._notify = settings.notify
        self._guard = open_guard(settings.scan)
        self._names = NameRegistry()
        self.affinity = Affinity(None)

    def create(self, task: TaskExecution) -> Transfer:
        """Return a transfer for a task.

        Raises UsageError for a URL or headers that cannot be sent.
        """
        job = task.job if self._settings.verify else replace(task.job, checksum=None)
        url = task.job.url

        def notify(event: str, /, **fields: object) -> None:
            task.handle_event(event, **fields)
            if event == "job_started" and not _is_small(fields["size"]):
                self.affinity.unpin()  # before the threads of connections are started
            self._notify(event, **fields)

        def reserve(path: Path) -> None:
            name = task.label or display_url(url)
            self._names.reserve(path, NameRequest(task.id, url, name, bool(task.label)))

        return Transfer(
            job,
            self._settings,
            self._client,
            TransferCallbacks(notify, reserve, task.authorize_publish),
            self._guard,
        )

    def release_name(self, task: DownloadTask, *, is_completed: bool) -> None:
        """Release the file name of an ended task, as ``NameRegistry.release`` does."""
        self._names.release(task.id, is_completed=is_completed)

    def look_up_target(self, job: Job) -> Path | None:
        """Ask the server for the file name of a job, without downloading the file.

        Returns the path of the file; None if the request fails.
        """
        found: list[Path] = []

        def stop(path: Path) -> None:
            found.append(path)
            raise TargetExists("its name is known")

        settings = replace(
            self._settings,
            retries=0,
            network_wait=0.0,
            if_exists="overwrite",
            scan=False,
        )
        with suppress(DlpoolError):
            callbacks = TransferCallbacks(check_target=stop)
            Transfer(job, settings, self._client, callbacks).run()
        return found[0] if found else None

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


def _is_small(size: object) -> bool:
    return isinstance(size, int) and size < SMALL_FILE_BYTES


def discard_partial_file(task: DownloadTask) -> None:
    """Delete the partial file of a cancelled task.

    Errors are ignored: another process may be downloading to the same path, or the
    folder may have been deleted.
    """
    path = task.file_path
    if path is not None:
        with suppress(DlpoolError):
            remove_part_files(Path(path), task.url)
