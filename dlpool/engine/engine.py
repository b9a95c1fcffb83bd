"""Runs the downloads of a Python program: some at a time, on threads of its own."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

from dlpool.config import NetworkSettings, ScanSettings, TransferSettings
from dlpool.config.layers import load_effective
from dlpool.engine.callbacks import Callback, Callbacks
from dlpool.engine.engine_session import EngineSession
from dlpool.engine.limits import EngineArguments
from dlpool.engine.sampling import ProgressSampler, stop_at_exit
from dlpool.engine.stats import DownloadStats
from dlpool.engine.status import (
    CANCELLED,
    COMPLETED,
    DOWNLOADING,
    FAILED,
    FINAL,
    PENDING,
)
from dlpool.engine.task import DownloadTask
from dlpool.engine.task_queue import DownloadQueue
from dlpool.engine.transfers import TransferFactory, discard_partial_file
from dlpool.engine.workers import EngineWorkers, TaskSource
from dlpool.errors import DlpoolError, InternalError, NoThread, UsageError
from dlpool.transfer.job import Job, Notify, TransferResult, ignore_event

_log = logging.getLogger("dlpool")
# when the program exits, for calls that cannot be interrupted, such as a name look-up
LEAVE_S = 5.0


class DownloadEngine:
    """Downloads files in this process. Thread-safe; make as many as you like.

    It uses only threads: no signal handlers, no logging set-up, and nothing global
    except an exit handler. After a fork the child must create a new engine.
    ``max_workers`` files at once; ``retry_times`` attempts in a row without progress,
    the first after about ``retry_delay`` seconds; ``timeout`` of connecting and
    ``progress_interval`` in seconds. ``chunk_size``: the least bytes that one write
    collects, of what comes within 20 ms; less than 128 KiB means 128 KiB. ``session``:
    a file that remembers unfinished tasks. ``transfer`` and ``network`` settle all
    else. The lock guards the table of tasks. Raises UsageError for values that make no
    sense, LocalFault if the session cannot be used.
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
        """``keeps_ended``: ended tasks can still be looked up. ``notify`` hears what
        happens in all downloads."""
        self._given = EngineArguments(
            max_workers,
            chunk_size,
            retry_times,
            retry_delay,
            timeout,
            progress_interval,
        )
        self._given.check()
        self._keeps_ended = keeps_ended
        transfer = replace(
            transfer or TransferSettings(),
            retries=retry_times,
            retry_delay=float(retry_delay),
            verify=verify_hash,
        )
        network = replace(network or NetworkSettings(), connect_timeout=float(timeout))
        self._maker = TransferFactory(
            transfer, network, max_workers, chunk_size, notify, scan or ScanSettings()
        )
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tasks: dict[str, DownloadTask] = {}
        self._workers = EngineWorkers(max_workers, self._run)
        self._stats = DownloadStats()
        self._is_closed = self._is_stopping = self._is_pulling = False
        self._callbacks = Callbacks(self.get_active_tasks, progress_interval)
        self._tell_end: Callback = self._callbacks.notify_completion
        self._session = EngineSession(Path(session)) if session is not None else None
        self._keeper = ProgressSampler(self._sample)
        stop_at_exit(self)
        for task, is_paused in self._session.unfinished() if self._session else ():
            self._restore(task, is_paused=is_paused)

    def __repr__(self) -> str:
        return f"<DownloadEngine {len(self._tasks)} tasks, {self._workers!r}>"

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
        """An engine as an INI file says: ``[downloader]``; ``[transfer]``,
        ``[network]``, ``[scan]`` for all else.

        What ``conf.d/*.ini`` beside it and variables ``DLPOOL_SECTION_KEY`` say goes
        over that, as in the service. Raises ConfigurationError that names everything
        wrong at once.
        """
        found = load_effective(os.fspath(path))
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        settings = found.settings
        own = vars(settings.downloader)
        return cls(
            **own,
            session=session,
            transfer=settings.transfer,
            network=settings.network,
            scan=settings.scan,
        )

    # --- the arguments ---

    @property
    def max_workers(self) -> int:
        """The number of files that are downloaded at once."""
        return self._given.max_workers

    @property
    def chunk_size(self) -> int:
        """The least bytes that one write collects, as given."""
        return self._given.chunk_size

    @property
    def retry_times(self) -> int:
        """The number of attempts in a row without progress."""
        return self._given.retry_times

    @property
    def retry_delay(self) -> float:
        """The first backoff, in seconds."""
        return self._given.retry_delay

    @property
    def timeout(self) -> float:
        """The limit of connecting, in seconds."""
        return self._given.timeout

    @property
    def tasks(self) -> dict[str, DownloadTask]:
        """A copy of all tasks by id, in the order of submission."""
        with self._lock:
            return dict(self._tasks)

    # --- tasks ---

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
        """Make a task and submit it: with a worker free it is downloading when this
        returns. Raises UsageError."""
        return self.submit(
            DownloadTask(
                url, output_path, filename, headers, priority, checksum=checksum
            )
        )

    def submit(self, task: DownloadTask) -> DownloadTask:
        """Take a task over, also from an engine that is shut down; one that is ours, or
        has ended, stays as it is.

        Raises UsageError for a URL that is none, for another engine's task, and after
        ``shutdown``.
        """
        self._check_usable()
        self._maker.create(
            task
        )  # now, as the caller wants to hear what is wrong with it
        if task.adopt(self):
            with self._lock:
                is_late = self._is_closed
                if not is_late:
                    self._tasks[task.id] = task
            if is_late:
                task.abandon(self)
                self._check_usable()
            if self._session is not None:
                self._session.add(task)
            self.task_ready(task)
        return task

    def cancel_task(self, task_id: str) -> bool:
        """``DownloadTask.cancel`` by id; False for an unknown one."""
        return (task := self.get_task(task_id)) is not None and task.cancel()

    def pause_task(self, task_id: str) -> bool:
        """``DownloadTask.pause`` by id; False for an unknown one."""
        return (task := self.get_task(task_id)) is not None and task.pause()

    def resume_task(self, task_id: str) -> bool:
        """``DownloadTask.resume`` by id; False for an unknown one."""
        return (task := self.get_task(task_id)) is not None and task.resume()

    def get_task(self, task_id: str) -> DownloadTask | None:
        """The task with that id."""
        with self._lock:
            return self._tasks.get(task_id)

    def get_all_tasks(self) -> list[DownloadTask]:
        """All tasks, as they were submitted."""
        with self._lock:
            return list(self._tasks.values())

    def get_active_tasks(self) -> list[DownloadTask]:
        """The tasks that are downloading."""
        return [task for task in self.get_all_tasks() if task.status == DOWNLOADING]

    @property
    def queue(self) -> DownloadQueue:
        """The tasks that are pending."""
        return self._workers.queue

    @property
    def stats(self) -> DownloadStats:
        """The figures of all tasks, as they are now."""
        self._sample()
        return self._stats

    def register_progress_callback(self, callback: Callback) -> None:
        """Call ``callback(task)`` while a task comes further, every
        ``progress_interval`` seconds at most.

        All callbacks are called on one thread of their own, in order, under no lock, so
        they may use the engine. What one raises is logged by the logger ``dlpool``.
        """
        self._callbacks.add_progress_callback(callback)

    def register_completion_callback(self, callback: Callback) -> None:
        """Call ``callback(task)`` once when a task is completed, failed or cancelled;
        where, as for progress."""
        self._callbacks.add_completion_callback(callback)

    def shutdown(self, wait: bool = True) -> None:
        """End: when all tasks have ended (paused ones stay), or now, with what was
        fetched kept. May be repeated.

        Unfinished tasks are paused then; they resume when they are submitted again, or
        by the next engine with the session. A program that exits without this call
        waits for its downloads, but not for paused ones; Ctrl-C ends the wait.
        """
        if os.getpid() != self._pid:
            return  # the threads are the parent's
        with self._lock:
            self._is_closed = True
        if wait:
            self._workers.wait_until_idle()
        self._end(None)

    def stop_at_exit(self) -> None:
        """Stop when the program exits, resumably. A pulling engine is stopped by its
        command instead."""
        if os.getpid() != self._pid or self._is_pulling or self._is_closed:
            return
        self._is_closed = True
        unfinished = sum(
            task.status in (PENDING, DOWNLOADING) for task in self.get_all_tasks()
        )
        if unfinished:
            _log.warning(
                "the program ended before %d of its downloads; downloaded again, they "
                "resume",
                unfinished,
            )
        self._end(LEAVE_S)

    def wait_at_exit(self) -> None:
        """Wait at the end of the program until all that is pending or running has
        ended."""
        if os.getpid() == self._pid:
            self._keeper.join()

    def _end(self, patience_s: float | None) -> None:
        self._workers.stop()
        self._is_stopping = True
        for task in self.get_all_tasks():
            task.abandon(self)
        self._workers.wait_until_stopped(patience_s)
        self._keeper.close()
        self._callbacks.close()
        self._maker.close()
        if self._session is not None:
            self._session.close()

    def look_up_target(self, job: Job) -> Path | None:
        """Request the name of a job's file from the server without fetching it; return
        its path, None on failure."""
        return self._maker.look_up_target(job)

    def pull_from(self, source: TaskSource, tell_end: Callback) -> None:
        """Have all workers take tasks from ``source`` too; it may block, and gives None
        when there are no more.

        ``tell_end`` is called with each task that has ended, by the thread that ran it,
        instead of the callbacks. Raises NoThread; ``work_here`` does without.
        """

        def adopted() -> DownloadTask | None:
            task = source()
            if task is not None and task.adopt(self):
                with self._lock:
                    self._tasks[task.id] = task
            return task

        self._tell_end, self._is_pulling = tell_end, True
        self._workers.pull_from(adopted)

    def run_in_caller(self) -> None:
        """Run all pulled tasks on the calling thread; return when they have ended."""
        self._workers.run_in_caller()

    # --- what tasks tell (Owner) ---

    def task_ready(self, task: DownloadTask) -> None:
        """It is pending and idle: it belongs into the queue."""
        self._note_pause(task, is_paused=False)
        stranded = self._workers.add(task)
        if stranded is not None:
            failure = NoThread(
                "cannot start a thread for the download: raise the limit of processes "
                "(ulimit -u)"
            )
            if stranded.end_run(None, failure) in FINAL:
                self._ended(stranded)
        if not self._is_pulling:
            self._keeper.wake()

    def task_withdrawn(self, task: DownloadTask) -> None:
        """It was paused or cancelled while nothing ran for it."""
        self._workers.queue.remove_task(task.id)
        if task.status in FINAL:
            self._ended(task)
        else:
            self._note_pause(task, is_paused=True)

    # --- the threads ---

    def _run(self, task: DownloadTask) -> None:
        self._stats.start_task(task.id)
        outcome: TransferResult | None = None
        failure: DlpoolError | None = None
        try:
            outcome = task.run(self._maker.create)
        except DlpoolError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - top of a thread
            failure = InternalError.of(error)
        self._update(task)
        self._workers.release()
        status = task.end_run(outcome, failure)
        if status in FINAL:
            self._ended(task)
        elif status == PENDING:  # paused and resumed while it ended
            self.task_ready(task)
        else:
            self._stats.drop_task(task.id)
            self._note_pause(task, is_paused=not self._is_stopping)

    def _ended(self, task: DownloadTask) -> None:
        self._maker.release_name(task, is_completed=task.status == COMPLETED)
        if task.status == COMPLETED:
            self._stats.complete_task(task.id)
        elif task.status == FAILED:
            self._stats.fail_task(task.id, task.error or "")
        elif task.status == CANCELLED:
            self._stats.drop_task(task.id)
            discard_partial_file(task)
        if self._session is not None:
            self._session.remove(task.id)
        if not self._keeps_ended:
            with self._lock:
                self._tasks.pop(task.id, None)
        self._tell_end(task)

    def _restore(self, task: DownloadTask, *, is_paused: bool) -> None:
        task.adopt(self)
        self._tasks[task.id] = task
        if is_paused:
            task.pause()
        else:
            self.task_ready(task)

    def _sample(self) -> bool:
        """Sample the progress of all tasks; return whether tasks are active or
        callbacks are pending."""
        active = self.get_active_tasks()
        for task in active:
            self._update(task)
        return not self._workers.is_idle or self._callbacks.has_pending

    def _update(self, task: DownloadTask) -> None:
        self._stats.update_active_task(task.id, *task.figures())

    def _note_pause(self, task: DownloadTask, *, is_paused: bool) -> None:
        if self._session is not None and not self._is_stopping:
            self._session.set_paused(task.id, is_paused=is_paused)

    def _check_usable(self) -> None:
        if self._is_closed:
            raise UsageError("the engine is shut down: make another one")
        if os.getpid() != self._pid:
            raise UsageError(
                "the engine belongs to the process that has forked: make another one"
            )
