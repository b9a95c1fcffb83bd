"""The public class ``DownloadEngine``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

from dlpool.config import NetworkSettings, ScanSettings, TransferSettings
from dlpool.config.layers import load_effective
from dlpool.engine.arguments import EngineArguments
from dlpool.engine.callbacks import Callback
from dlpool.engine.core import EngineCore
from dlpool.engine.stats import DownloadStats
from dlpool.engine.task import DownloadTask
from dlpool.engine.task_queue import DownloadQueue
from dlpool.engine.transfers import EngineSettings
from dlpool.transfer.job import Notify, ignore_event


class DownloadEngine:
    """A downloader of files that runs in this process. Thread-safe.

    A program may create several engines. An engine uses threads, but installs no signal
    handlers and configures no logging. After a fork the child must create its own
    engine.

    ``max_workers``: the number of simultaneous downloads. ``retry_times``: the number
    of retries in a row without progress before a download fails. ``retry_delay``: the
    first wait before a retry, in seconds. ``timeout``: the limit for connecting, in
    seconds. ``progress_interval``: the time between progress callbacks, in seconds.
    ``chunk_size``: the number of bytes to collect before a write; values below 128 KiB
    mean 128 KiB. After 20 ms the engine writes the bytes that it has collected by then.

    With ``verify_hash``, the engine verifies checksums and the server's digests.
    ``session`` is a file that records the unfinished tasks. ``transfer``, ``network``
    and ``scan`` contain all other settings. With ``keeps_ended``, tasks that have ended
    can still be looked up. ``notify`` receives the events of all downloads.

    Raises UsageError for invalid values, ConfigurationError if ``network`` or ``scan``
    cannot be used, and LocalFault if the session cannot be used.
    """

    def __init__(
        self,
        max_workers: int = 3,
        chunk_size: int = 8192,
        retry_times: int = 3,
        retry_delay: float = 5,
        *,
        timeout: float = 30,
        progress_interval: float = 0.5,
        verify_hash: bool = True,
        session: str | PathLike[str] | None = None,
        transfer: TransferSettings | None = None,
        network: NetworkSettings | None = None,
        scan: ScanSettings | None = None,
        keeps_ended: bool = True,
        notify: Notify = ignore_event,
    ) -> None:
        self._arguments = EngineArguments(
            max_workers,
            chunk_size,
            retry_times,
            retry_delay,
            timeout,
            progress_interval,
        )
        self._arguments.check()
        settings = EngineSettings(
            replace(
                transfer or TransferSettings(),
                retries=retry_times,
                retry_delay=float(retry_delay),
                verify=verify_hash,
            ),
            replace(network or NetworkSettings(), connect_timeout=float(timeout)),
            scan or ScanSettings(),
            max_workers,
            chunk_size,
            progress_interval,
            keeps_ended,
            notify,
        )
        self._core = EngineCore(settings, None if session is None else Path(session))

    def __repr__(self) -> str:
        return f"<DownloadEngine {len(self.tasks)} tasks>"

    def __enter__(self) -> DownloadEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown(wait=error is None)

    @classmethod
    def from_config(
        cls, path: str | PathLike[str], *, session: str | PathLike[str] | None = None
    ) -> DownloadEngine:
        """Create an engine from an INI file.

        Reads the sections ``[downloader]``, ``[transfer]``, ``[network]`` and
        ``[scan]``. Files ``conf.d/*.ini`` beside the file and environment variables
        ``DLPOOL_SECTION_KEY`` override its values, as in the service. ``session`` is a
        file that records the unfinished tasks; None: they are not recorded. Raises
        ConfigurationError if the settings cannot be used, and LocalFault if the session
        cannot be used.
        """
        found = load_effective(os.fspath(path))
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        settings = found.settings
        return cls(
            **vars(settings.downloader),
            session=session,
            transfer=settings.transfer,
            network=settings.network,
            scan=settings.scan,
        )

    # --- the arguments ---

    @property
    def max_workers(self) -> int:
        """The number of simultaneous downloads."""
        return self._arguments.max_workers

    @property
    def chunk_size(self) -> int:
        """The given number of bytes to collect before a write."""
        return self._arguments.chunk_size

    @property
    def retry_times(self) -> int:
        """The number of retries in a row without progress before a download fails."""
        return self._arguments.retry_times

    @property
    def retry_delay(self) -> float:
        """The first wait before a retry, in seconds."""
        return self._arguments.retry_delay

    @property
    def timeout(self) -> float:
        """The limit for connecting, in seconds."""
        return self._arguments.timeout

    # --- tasks ---

    @property
    def tasks(self) -> dict[str, DownloadTask]:
        """A new dictionary of the tasks by id, in the order of submission."""
        return self._core.tasks()

    def download(
        self,
        url: str,
        output_path: str | PathLike[str],
        filename: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        *,
        checksum: str | None = None,
    ) -> DownloadTask:
        """Create a task, submit it and return it.

        Raises the errors of ``DownloadTask`` and ``submit``.
        """
        return self.submit(
            DownloadTask(
                url, output_path, filename, headers, priority, checksum=checksum
            )
        )

    def submit(self, task: DownloadTask) -> DownloadTask:
        """Queue a task and return it.

        A task that belongs to this engine, or has ended, is not changed. Raises
        UsageError for an invalid task, for a task of another engine that is not shut
        down, and if this engine is shut down or was created before a fork. Raises
        LocalFault if the session file cannot be written.
        """
        self._core.submit(task)
        return task

    def cancel_task(self, task_id: str) -> bool:
        """Cancel a task as ``DownloadTask.cancel`` does; return False for an unknown
        id."""
        return (task := self.get_task(task_id)) is not None and task.cancel()

    def pause_task(self, task_id: str) -> bool:
        """Pause a task as ``DownloadTask.pause`` does; return False for an unknown
        id."""
        return (task := self.get_task(task_id)) is not None and task.pause()

    def resume_task(self, task_id: str) -> bool:
        """Resume a task as ``DownloadTask.resume`` does; return False for an unknown
        id."""
        return (task := self.get_task(task_id)) is not None and task.resume()

    def get_task(self, task_id: str) -> DownloadTask | None:
        """Return the task with this id; None for an unknown id."""
        return self._core.task(task_id)

    def get_all_tasks(self) -> list[DownloadTask]:
        """Return the tasks in the order of submission."""
        return list(self._core.tasks().values())

    def get_active_tasks(self) -> list[DownloadTask]:
        """Return the tasks that are downloading."""
        return self._core.active_tasks()

    @property
    def queue(self) -> DownloadQueue:
        """The queue of the pending tasks."""
        return self._core.queue

    @property
    def stats(self) -> DownloadStats:
        """The current statistics of all tasks."""
        return self._core.stats

    def register_progress_callback(self, callback: Callback) -> None:
        """Register ``callback`` for the progress of downloading tasks.

        The engine calls ``callback(task)`` when the downloaded bytes of the task have
        changed. Between two calls for one task at least ``progress_interval`` seconds
        pass. One thread runs all callbacks one after the other, without a lock.
        Callbacks may use the engine. The logger ``dlpool`` logs the exceptions of
        callbacks. Raises NoThread.
        """
        self._core.callbacks.add_progress_callback(callback)

    def register_completion_callback(self, callback: Callback) -> None:
        """Register ``callback`` for the ends of tasks.

        The engine calls ``callback(task)`` once for each task that is completed, failed
        or cancelled after this registration. The callback runs on the thread of the
        progress callbacks. Raises NoThread.
        """
        self._core.callbacks.add_completion_callback(callback)

    def shutdown(self, wait: bool = True) -> None:
        """Stop the engine. A call after the shutdown has no effect.

        With ``wait``, first waits until all tasks have ended, except paused tasks.
        Without ``wait``, pauses all pending and running tasks and keeps their fetched
        bytes. These tasks resume when they are submitted to another engine, or in the
        next engine with the same session. A program that exits without this call waits
        for its pending and running downloads; Ctrl-C ends the wait.
        """
        self._core.shutdown(wait=wait)


def core_of(engine: DownloadEngine) -> EngineCore:
    """Return the ``EngineCore`` of an engine, for other modules of dlpool."""
    return engine._core
