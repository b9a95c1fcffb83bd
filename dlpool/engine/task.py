"""One download: the public ``DownloadTask``, and its execution inside an engine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Protocol

from dlpool.engine.arguments import check_priority, job_of
from dlpool.engine.progress import PROGRESS_EVENTS, TaskProgress
from dlpool.errors import Cancelled, DlpoolError, UsageError
from dlpool.transfer.job import Job, Progress, TransferResult
from dlpool.transfer.transfer import Transfer

PENDING, DOWNLOADING, PAUSED = "pending", "downloading", "paused"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
FINAL = frozenset({COMPLETED, FAILED, CANCELLED})

# The statuses that may follow each status.
MOVES: dict[str, frozenset[str]] = {
    PENDING: frozenset({DOWNLOADING, PAUSED, FAILED, CANCELLED}),
    DOWNLOADING: frozenset({PAUSED, COMPLETED, FAILED, CANCELLED}),
    PAUSED: frozenset({PENDING, CANCELLED}),
    COMPLETED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}


class TaskOwner(Protocol):
    """The engine of a task. Tasks call its methods without holding a lock."""

    def task_ready(self, task: DownloadTask) -> None:
        """Queue a task that is pending and that no thread runs."""

    def task_withdrawn(self, task: DownloadTask) -> None:
        """Handle a task that was paused or cancelled while no thread ran it."""


class DownloadTask:
    """One URL that becomes one file. Thread-safe.

    ``output_path`` is a folder; the download creates it if it is missing. Without
    ``filename`` the server or the URL names the file. ``headers`` are sent only to the
    origin of the URL. A task with a smaller ``priority`` starts earlier. ``checksum``
    is ``ALGO:HEX``. Raises UsageError for invalid arguments.
    """

    def __init__(
        self,
        url: str,
        output_path: str | PathLike[str],
        filename: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        *,
        checksum: str | None = None,
    ) -> None:
        job = job_of(url, output_path, filename, headers, checksum)
        self._execution = TaskExecution(job, priority)
        self._output_path = os.fspath(output_path)

    def __repr__(self) -> str:
        return f"<DownloadTask {self.id} {self.status} {self.url!r}>"

    # --- its state ---

    @property
    def id(self) -> str:
        """The unique id of the task."""
        return self._execution.id

    @property
    def url(self) -> str:
        """The URL, as given."""
        return self._execution.job.url

    @property
    def priority(self) -> int:
        """The priority: a smaller number starts earlier."""
        return self._execution.priority

    @property
    def start_time(self) -> float | None:
        """The time of the first start, in seconds since 1970; None before the start."""
        return self._execution.start_time

    @property
    def end_time(self) -> float | None:
        """The time of the end, in seconds since 1970; None before the end."""
        return self._execution.end_time

    @property
    def status(self) -> str:
        """The status: pending, downloading, paused, completed, failed, cancelled."""
        return self._execution.status

    @property
    def progress(self) -> float:
        """The downloaded fraction, from 0.0 to 1.0.

        The fraction can decrease when the download resumes or restarts.
        """
        with self._execution.sampled() as progress:
            return 1.0 if self.status == COMPLETED else progress.fraction

    @property
    def speed(self) -> float:
        """The current bytes per second; 0.0 unless the task is downloading."""
        with self._execution.sampled() as progress:
            return progress.speed if self.status == DOWNLOADING else 0.0

    @property
    def downloaded_size(self) -> int:
        """The number of downloaded bytes."""
        with self._execution.sampled() as progress:
            return progress.done

    @property
    def total_size(self) -> int:
        """The size of the complete file in bytes; 0 while it is unknown."""
        with self._execution.sampled() as progress:
            return progress.total or 0

    @property
    def eta(self) -> int | None:
        """The remaining seconds at the current speed; None if unknown."""
        with self._execution.sampled() as progress:
            return progress.eta_s if self.status == DOWNLOADING else None

    @property
    def file_path(self) -> str | None:
        """The path of the file, complete or not; None while its name is unknown."""
        with self._execution.sampled() as progress:
            return None if progress.path is None else str(progress.path)

    @property
    def output_path(self) -> str:
        """The folder of the file, as given."""
        return self._output_path

    @property
    def filename(self) -> str | None:
        """The requested file name; None if the server or the URL names the file."""
        job = self._execution.job
        return None if job.is_folder else job.target.name

    @property
    def headers(self) -> dict[str, str]:
        """A copy of the headers that are sent to the origin of the URL."""
        return dict(self._execution.job.headers)

    @property
    def error(self) -> str | None:
        """The reason of the failure as a sentence; None unless the task has failed."""
        failure = self._execution.failure
        return None if failure is None else str(failure)

    @property
    def failure(self) -> DlpoolError | None:
        """The exception of the failure; None unless the task has failed."""
        return self._execution.failure

    @property
    def outcome(self) -> TransferResult | None:
        """The sizes, times and digests of a completed download; None before the
        completion."""
        return self._execution.outcome

    # --- requests ---

    def cancel(self) -> bool:
        """Cancel the download and delete its partial file.

        Returns False if the task has ended, if the complete file is being renamed to
        its final name, or if the engine is shut down.
        """
        return self._stop(CANCELLED, "the download was cancelled")

    def pause(self) -> bool:
        """Stop the download, keep its partial file, and free its worker.

        Returns False for a paused task, and when ``cancel`` would return False.
        """
        return self._stop(PAUSED, "the download was paused")

    def resume(self) -> bool:
        """Queue a paused task again, behind the queued tasks of the same priority.

        Returns False if the task is not paused, or if it has no running engine.
        """
        is_resumed, owner = self._execution.resume()
        if owner is not None:
            owner.task_ready(self)
        return is_resumed

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the task ends, at most ``timeout`` seconds (None: no limit).

        Returns False after a timeout, or if the engine shuts down before the end.
        """
        return self._execution.wait(timeout)

    def result(self, timeout: float | None = None) -> Path:
        """Wait for the file and return its path.

        Raises TimeoutError after ``timeout`` seconds. Raises Cancelled if the task was
        cancelled or its engine was shut down. Raises the error of a failed download.
        """
        return self._execution.result(timeout)

    def update_progress(self, progress: float) -> None:
        """Set the downloaded fraction, 0.0 to 1.0, of a task whose size is unknown.

        A value that is smaller than the last value is ignored.
        """
        self._execution.report_fraction(progress)

    def _stop(self, status: str, reason: str) -> bool:
        is_stopped, owner = self._execution.stop(status, reason)
        if owner is not None:
            owner.task_withdrawn(self)
        return is_stopped


class TaskExecution:
    """The state of a task and its execution by an engine. Thread-safe.

    The lock guards all changes of attributes. ``label``, if it is not empty, replaces
    the URL in messages.
    """

    def __init__(
        self, job: Job, priority: int, label: str = "", task_id: str = ""
    ) -> None:
        check_priority(priority)
        self.id = task_id or os.urandom(16).hex()
        self.priority, self.label, self.job = priority, label, job
        self.start_time: float | None = None
        self.end_time: float | None = None
        self.status = PENDING
        self.outcome: TransferResult | None = None
        self.failure: DlpoolError | None = None
        self._changed = threading.Condition()
        self._owner: TaskOwner | None = None
        self._is_running = False  # begun and not ended, whatever the status
        self._is_publishing = False
        self._is_abandoned = False  # the engine is shut down
        self._transfer: Transfer | None = None
        self._progress = TaskProgress(None if job.is_folder else job.target)

    def __repr__(self) -> str:
        return f"<TaskExecution {self.id} {self.status}>"

    @property
    def has_ended(self) -> bool:
        """Whether the status is final and no thread runs the task."""
        return self.status in FINAL and not self._is_running

    @contextmanager
    def sampled(self) -> Iterator[TaskProgress]:
        """Update the progress and yield it. The ``with`` block runs with the lock
        held."""
        with self._changed:
            self._progress.sample(self._transfer)
            yield self._progress

    def stats(self) -> tuple[int, int | None, float]:
        """Return the downloaded bytes, the total bytes, and the bytes per second."""
        with self.sampled() as progress:
            speed = progress.speed if self.status == DOWNLOADING else 0.0
            return progress.done, progress.total, speed

    def transfer_progress(self) -> Progress:
        """Return the progress of the running transfer; without a transfer, 0 bytes."""
        with self._changed:
            transfer = self._transfer
        if transfer is None:
            return Progress(self.job.target, 0, None, 0, "connecting")
        return transfer.progress()

    def report_fraction(self, fraction: float) -> None:
        """Increase the reported fraction; ignore a smaller value or NaN."""
        with self._changed:
            if fraction > self._progress.reported:
                self._progress.reported = min(1.0, fraction)

    def wait(self, timeout: float | None) -> bool:
        """Wait as ``DownloadTask.wait`` does; return whether the task has ended."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.has_ended or self._is_abandoned, timeout
            )
            return self.has_ended

    def result(self, timeout: float | None) -> Path:
        """Wait for the file and return its path, as ``DownloadTask.result`` does."""
        if not self.wait(timeout):
            if self._is_abandoned:
                raise Cancelled("the engine was shut down before the download ended")
            raise TimeoutError(f"the download has not ended within {timeout} s")
        if self.outcome is not None:
            return self.outcome.path
        raise self.failure or Cancelled("the download was cancelled")

    # --- the owner ---

    def adopt(self, owner: TaskOwner) -> bool:
        """Assign the task to ``owner``.

        Returns False if the task already belongs to ``owner`` or has ended. Raises
        UsageError if the task belongs to another engine that is not shut down.
        """
        with self._changed:
            if self._owner is owner or self.status in FINAL:
                return False
            if self._owner is not None and not self._is_abandoned:
                raise UsageError("the task is another engine's")
            self._owner, self._is_abandoned = owner, False
            self._move(PENDING)  # if it was paused
            return True

    def is_owned_by(self, owner: TaskOwner) -> bool:
        """Return whether the task belongs to the engine ``owner``."""
        return self._owner is owner

    def abandon(self) -> None:
        """Mark the task's engine as shut down, and wake the threads that wait for the
        task."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()

    def stop(self, status: str, reason: str) -> tuple[bool, TaskOwner | None]:
        """Set the status to ``status`` (paused or cancelled), and cancel the transfer.

        Returns whether the status has changed, and an engine. If the engine is not
        None, the caller must call its ``task_withdrawn``.
        """
        with self._changed:
            if self._is_publishing or self._is_abandoned or not self._move(status):
                return False, None
            transfer, is_idle = self._transfer, not self._is_running
            owner = self._owner if is_idle else None
            if is_idle and status in FINAL:
                self.end_time = time.time()
            self._changed.notify_all()
        if transfer is not None:
            transfer.cancel(Cancelled(reason))
        return True, owner

    def resume(self) -> tuple[bool, TaskOwner | None]:
        """Make a paused task pending.

        Returns whether the status has changed, and an engine. If the engine is not
        None, the caller must call its ``task_ready``.
        """
        with self._changed:
            owner = self._owner
            if self.status != PAUSED or owner is None or self._is_abandoned:
                return False, None
            self._move(PENDING)
            return True, None if self._is_running else owner

    # --- one run, by one thread ---

    def begin(self) -> bool:
        """Mark a pending task as downloading; return whether this was possible. After
        True, the caller must let one thread call ``run`` and then ``end_run``."""
        with self._changed:
            if self._is_running or not self._move(DOWNLOADING):
                return False
            self._is_running, self._is_publishing = True, False
            self.start_time = self.start_time or time.time()
            self._progress.begin_attempt()
            return True

    def run(self, create: Callable[[TaskExecution], Transfer]) -> TransferResult:
        """Download on the calling thread, after ``begin`` has returned True.
        Raises DlpoolError."""
        transfer = create(self)
        with self._changed:
            if self.status != DOWNLOADING:
                raise Cancelled("it was stopped before it began")
            self._transfer = transfer
        return transfer.run()

    def authorize_publish(self) -> None:
        """Allow the transfer to give the file its final name. After this call the task
        cannot be paused or cancelled. Raises Cancelled if the task has been stopped."""
        with self._changed:
            if self.status != DOWNLOADING:
                raise Cancelled("it was stopped before it was published")
            self._is_publishing = True

    def handle_event(self, event: str, /, **fields: object) -> None:
        """Update the progress from an event of the transfer.
        The method has the type ``Notify``."""
        if event in PROGRESS_EVENTS:
            with self._changed:
                self._progress.handle_event(event, fields)

    def end_run(
        self, outcome: TransferResult | None, failure: DlpoolError | None
    ) -> str:
        """Record the end of a run and return the task's status. A failure of a task
        that was paused or cancelled is ignored."""
        with self._changed:
            if outcome is None:
                self._progress.sample(self._transfer)
            self._transfer, self._is_running = None, False
            if outcome is not None and self._move(COMPLETED):
                self.outcome = outcome
                self._progress.complete(outcome)
            elif failure is not None and self.status == DOWNLOADING:
                self.failure = failure
                self._move(FAILED)
            if self.status in FINAL:
                self.end_time = time.time()
            self._changed.notify_all()
            return self.status

    def _move(self, status: str) -> bool:
        if status not in MOVES[self.status]:
            return False
        self.status = status
        return True


def execution_of(task: DownloadTask) -> TaskExecution:
    """Return the execution of a task, for the modules of the engine only."""
    return task._execution


def task_of_job(
    job: Job, *, priority: int = 0, label: str = "", task_id: str = ""
) -> DownloadTask:
    """Return a task for a job; ``label`` replaces the URL in messages."""
    task = DownloadTask.__new__(DownloadTask)
    task._execution = TaskExecution(job, priority, label, task_id)
    task._output_path = str(job.target if job.is_folder else job.target.parent)
    return task
