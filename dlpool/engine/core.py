"""The engine behind ``DownloadEngine``: its table of tasks, threads and shutdown."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dlpool.affinity import Affinity, CpuReservation
from dlpool.engine.callbacks import Callback, Callbacks
from dlpool.engine.engine_session import EngineSession
from dlpool.engine.sampling import ProgressSampler, stop_at_exit
from dlpool.engine.stats import DownloadStats
from dlpool.engine.task import (
    CANCELLED,
    COMPLETED,
    DOWNLOADING,
    FAILED,
    FINAL,
    PAUSED,
    PENDING,
    DownloadTask,
    execution_of,
)
from dlpool.engine.task_queue import DownloadQueue
from dlpool.engine.transfers import (
    EngineSettings,
    TransferFactory,
    discard_partial_file,
)
from dlpool.engine.workers import EngineWorkers, TaskSource
from dlpool.errors import DlpoolError, InternalError, NoThread, UsageError
from dlpool.transfer.job import Job, TransferResult

# At the exit of the program: the longest wait, in seconds, for calls that cannot be
# interrupted, such as a name look-up.
EXIT_WAIT_S = 5.0


class EngineCore:
    """Runs tasks on threads. Thread-safe; the lock guards the table of tasks.

    This is the ``TaskOwner`` of the engine's tasks.
    """

    def __init__(self, settings: EngineSettings, session: Path | None) -> None:
        """Open the session file, if any, and restore its unfinished tasks.

        Raises ConfigurationError, LocalFault.
        """
        self._keeps_ended = settings.keeps_ended
        self._transfers = TransferFactory(settings)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tasks: dict[str, DownloadTask] = {}
        self._workers = EngineWorkers(settings.max_workers, self._run)
        self._cpu: CpuReservation | None = None  # for the small files of a batch
        self._stats = DownloadStats()
        self._is_closed = self._is_stopping = self._is_pulling = False
        self.callbacks = Callbacks(self.active_tasks, settings.progress_interval_s)
        self._notify_end: Callback = self.callbacks.notify_completion
        self._session = None if session is None else EngineSession(session)
        self._sampler = ProgressSampler(self._sample)
        stop_at_exit(self)
        for task, is_paused in self._session.unfinished() if self._session else ():
            self._restore(task, is_paused=is_paused)

    def __repr__(self) -> str:
        return f"<EngineCore {len(self._tasks)} tasks, {self._workers!r}>"

    # --- the table of tasks ---

    @property
    def queue(self) -> DownloadQueue:
        """The pending tasks."""
        return self._workers.queue

    @property
    def stats(self) -> DownloadStats:
        """The current statistics of all tasks."""
        self._sample()
        return self._stats

    def tasks(self) -> dict[str, DownloadTask]:
        """Return a copy of the table: the tasks by id, in the order of submission."""
        with self._lock:
            return dict(self._tasks)

    def task(self, task_id: str) -> DownloadTask | None:
        """Return the task with this id; None for an unknown id."""
        with self._lock:
            return self._tasks.get(task_id)

    def active_tasks(self) -> list[DownloadTask]:
        """Return the tasks that are downloading."""
        with self._lock:
            tasks = list(self._tasks.values())
        return [task for task in tasks if task.status == DOWNLOADING]

    def submit(self, task: DownloadTask) -> None:
        """Adopt a task and queue it, unless it is in the table or has ended.

        Raises UsageError for an invalid task, for a task that belongs to another active
        engine, and if this engine is shut down. Raises LocalFault if the session file
        cannot be written.
        """
        self._check_usable()
        execution = execution_of(task)
        self._transfers.create(execution)  # reports an invalid task to the caller
        if not execution.adopt(self):
            return
        with self._lock:
            is_late = self._is_closed
            if not is_late:
                self._tasks[task.id] = task
        if is_late:
            self._abandon(task)
            self._check_usable()
        if self._session is not None:
            self._session.add(task)
        self.task_ready(task)

    def look_up_target(self, job: Job) -> Path | None:
        """Ask the server for the path of a job's file; None if the request fails."""
        return self._transfers.look_up_target(job)

    # --- the owner of tasks ---

    def task_ready(self, task: DownloadTask) -> None:
        """Queue a task that is pending and that no thread runs."""
        self._record_pause(task, is_paused=False)
        stranded = self._workers.add(task)
        if stranded is not None:
            failure = NoThread(
                "cannot start a thread for the download: raise the limit of processes "
                "(ulimit -u)"
            )
            if execution_of(stranded).end_run(None, failure) in FINAL:
                self._finish(stranded)
        if not self._is_pulling:
            self._sampler.wake()

    def task_withdrawn(self, task: DownloadTask) -> None:
        """Remove a waiting task from the queue after it was paused or cancelled."""
        self._workers.queue.remove_task(task.id)
        if task.status in FINAL:
            self._finish(task)
        else:
            self._record_pause(task, is_paused=True)

    # --- a batch ---

    def pull_from(self, source: TaskSource, notify_end: Callback) -> None:
        """Run the tasks that ``source`` returns, on all workers.

        ``source`` may block; it returns None when no task is left. The engine calls
        ``notify_end`` with each task that has ended, instead of the registered
        callbacks. Raises NoThread if no thread can be started. In this case the caller
        must call ``run_in_caller``.
        """

        def adopted() -> DownloadTask | None:
            task = source()
            if task is not None and execution_of(task).adopt(self):
                with self._lock:
                    self._tasks[task.id] = task
            return task

        self._notify_end, self._is_pulling = notify_end, True
        if self._workers.max_threads > 1:
            self._cpu = CpuReservation()
            self._transfers.affinity = Affinity(self._cpu.cpu)
        self._workers.pull_from(adopted)

    def run_in_caller(self) -> None:
        """Run the tasks of ``source`` (see ``pull_from``) on the calling thread.

        Returns when no task is left.
        """
        self._workers.run_in_caller()

    # --- shutdown ---

    def shutdown(self, *, wait: bool) -> None:
        """Stop the engine; with ``wait``, first wait until no task is queued or runs.

        Repeated calls are allowed. A call in a forked child process does nothing.
        """
        if os.getpid() != self._pid:
            return  # the threads are those of the parent process
        with self._lock:
            self._is_closed = True
        if wait:
            self._workers.wait_until_idle()
        self._stop(None)

    def stop_at_exit(self) -> None:
        """Stop all tasks when the program exits, so that they can be resumed.

        Does nothing for an engine that runs a batch: the code that runs the batch stops
        the engine.
        """
        if os.getpid() != self._pid or self._is_pulling or self._is_closed:
            return
        self._is_closed = True
        unfinished = sum(
            task.status in (PENDING, DOWNLOADING) for task in self.tasks().values()
        )
        if unfinished:
            import logging  # few programs need it

            logging.getLogger("dlpool").warning(
                "the program ended before %d of its downloads; downloaded again, they "
                "resume",
                unfinished,
            )
        self._stop(EXIT_WAIT_S)

    def wait_at_exit(self) -> None:
        """When the program exits, wait until no task is pending or running."""
        if os.getpid() == self._pid:
            self._sampler.join()

    def _stop(self, timeout_s: float | None) -> None:
        self._workers.stop()
        self._is_stopping = True
        for task in self.tasks().values():
            self._abandon(task)
        self._workers.wait_until_stopped(timeout_s)
        self._sampler.close()
        self.callbacks.close()
        self._transfers.close()
        if self._cpu is not None:
            self._cpu.close()
        if self._session is not None:
            self._session.close()

    def _abandon(self, task: DownloadTask) -> None:
        """Pause and release an unfinished task, so that another engine can adopt it."""
        execution = execution_of(task)
        if not execution.is_owned_by(self):
            return  # another engine has adopted it
        _, owner = execution.stop(PAUSED, "the engine is shut down")
        if owner is not None:
            owner.task_withdrawn(task)
        execution.abandon()

    # --- the threads ---

    def _run(self, task: DownloadTask) -> None:
        """Run one task on the calling worker thread, and handle its result."""
        self._stats.start_task(task.id)
        execution = execution_of(task)
        outcome: TransferResult | None = None
        failure: DlpoolError | None = None
        self._transfers.affinity.pin()
        try:
            outcome = execution.run(self._transfers.create)
        except DlpoolError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - top of a thread
            failure = InternalError.of(error)
        if outcome is None:
            self._update(task)
        else:
            self._stats.update_active_task(task.id, outcome.size, outcome.size, 0.0)
        self._workers.release()
        status = execution.end_run(outcome, failure)
        if status in FINAL:
            self._finish(task)
        elif status == PENDING:  # paused and resumed while it was stopping
            self.task_ready(task)
        else:
            self._stats.drop_task(task.id)
            self._record_pause(task, is_paused=not self._is_stopping)

    def _finish(self, task: DownloadTask) -> None:
        """Release an ended task's name, delete its session entry, report the end."""
        self._transfers.release_name(task, is_completed=task.status == COMPLETED)
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
        self._notify_end(task)

    def _restore(self, task: DownloadTask, *, is_paused: bool) -> None:
        execution_of(task).adopt(self)
        self._tasks[task.id] = task
        if is_paused:
            task.pause()
        else:
            self.task_ready(task)

    def _sample(self) -> bool:
        """Sample the progress of all tasks; return whether work is left."""
        for task in self.active_tasks():
            self._update(task)
        return not self._workers.is_idle or self.callbacks.has_pending

    def _update(self, task: DownloadTask) -> None:
        self._stats.update_active_task(task.id, *execution_of(task).stats())

    def _record_pause(self, task: DownloadTask, *, is_paused: bool) -> None:
        if self._session is not None and not self._is_stopping:
            self._session.set_paused(task.id, is_paused=is_paused)

    def _check_usable(self) -> None:
        if self._is_closed:
            raise UsageError("the engine is shut down: make another one")
        if os.getpid() != self._pid:
            raise UsageError(
                "the engine belongs to the process that has forked: make another one"
            )
