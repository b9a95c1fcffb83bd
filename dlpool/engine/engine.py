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
    handlers, configures no logging, and registers one exit handler. After a fork the
    child must create its own engine.

    ``max_workers`` is the number of simultaneous downloads. ``retry_times`` is the
    number of attempts in a row that may bring no progress before a download fails. In
    seconds: ``retry_delay`` is the first backoff, ``timeout`` the limit for connecting,
    ``progress_interval`` the time between progress callbacks. ``chunk_size`` is the
    number of bytes to collect before a write; values below 128 KiB mean 128 KiB. After
    20 ms the engine writes the bytes that it has collected by then.

    With ``verify_hash``, the engine verifies checksums and the server's digests.
    ``session`` is a file that records the unfinished tasks. ``transfer``, ``network``
    and ``scan`` hold all other settings. With ``keeps_ended``, tasks that have ended
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

        It reads ``[downloader]``, ``[transfer]``, ``[network]`` and ``[scan]``. The
        values of the file are overridden by ``conf.d/*.ini`` beside the file and by
        environment variables (``DLPOOL_SECTION_KEY``), as in the service. ``session``
        is a file that records the unfinished tasks; None: they are not recorded. Raises
        ConfigurationError, which names all invalid settings.
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
        """The number of bytes to collect before a write, as given."""
        return self._arguments.chunk_size

    @property
    def retry_times(self) -> int:
        """The number of attempts in a row that may bring no progress."""
        return self._arguments.retry_times

    @property
    def retry_delay(self) -> float:
        """The first backoff, in seconds."""
        return self._arguments.retry_delay

    @property
    def timeout(self) -> float:
        """The limit for connecting, in seconds."""
        return self._arguments.timeout

    # --- tasks ---

    @property
    def tasks(self) -> dict[str, DownloadTask]:
        """A copy of the tasks by id, in the order of submission."""
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

        If a worker is free, the returned task has the status ``downloading``. Raises
        UsageError.
        """
        return self.submit(
            DownloadTask(
                url, output_path, filename, headers, priority, checksum=checksum
            )
        )

    def submit(self, task: DownloadTask) -> DownloadTask:
        """Queue a task and return it.

        If the task belonged to another engine, that engine must be shut down. A task
        that belongs to this engine, or has ended, is not changed. Raises UsageError for
        an invalid URL, for a task of another engine that is not shut down, and after
        ``shutdown`` of this engine.
        """
        self._core.submit(task)
        return task

    def cancel_task(self, task_id: str) -> bool:
        """Call ``cancel`` of the task and return its result; False for an unknown
        id."""
        return (task := self.get_task(task_id)) is not None and task.cancel()

    def pause_task(self, task_id: str) -> bool:
        """Call ``pause`` of the task and return its result; False for an unknown id."""
        return (task := self.get_task(task_id)) is not None and task.pause()

    def resume_task(self, task_id: str) -> bool:
        """Call ``resume`` of the task and return its result; False for an unknown
        id."""
        return (task := self.get_task(task_id)) is not None and task.resume()

    def get_task(self, task_id: str) -> DownloadTask | None:
        """Return the task with this id; None for an unknown id."""
        return self._core.task(task_id)

    def get_all_tasks(self) -> list[DownloadTask]:
        """Return all tasks, in the order of submission."""
        return list(self._core.tasks().values())

    def get_active_tasks(self) -> list[DownloadTask]:
        """Return the tasks that are downloading."""
        return self._core.active_tasks()

    @property
    def queue(self) -> DownloadQueue:
        """The pending tasks."""
        return self._core.queue

    @property
    def stats(self) -> DownloadStats:
        """The current statistics of all tasks."""
        return self._core.stats

    def register_progress_callback(self, callback: Callback) -> None:
        """Call ``callback(task)`` for each downloading task that has made progress.

        The calls for one task are at least ``progress_interval`` seconds apart. One
        thread calls all callbacks, in order and without a lock, so callbacks may use
        the engine. Exceptions that callbacks raise are logged by the logger ``dlpool``.
        """
        self._core.callbacks.add_progress_callback(callback)

    def register_completion_callback(self, callback: Callback) -> None:
        """Call ``callback(task)`` once when a task is completed, failed or cancelled.

        The callback runs on the thread of the progress callbacks.
        """
        self._core.callbacks.add_completion_callback(callback)

    def shutdown(self, wait: bool = True) -> None:
        """Stop the engine; a second call has no effect.

        With ``wait`` the call first waits until all tasks have ended, except paused
        tasks. Without ``wait`` the engine pauses unfinished tasks and keeps their
        fetched bytes. These tasks resume when they are submitted again, or in the next
        engine with the same session. A program that exits without this call waits for
        its pending and running downloads; Ctrl-C ends the wait.
        """
        self._core.shutdown(wait=wait)


def core_of(engine: DownloadEngine) -> EngineCore:
    """Return the core of an engine, for other modules of dlpool."""
    return engine._core
