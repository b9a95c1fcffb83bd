"""A batch of downloads that an engine pulls from a list of any length.

The engine reads the list as workers become free. A download that fails does not stop
the other downloads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import field
from itertools import count

from dlpool import threads
from dlpool.dataclass import dataclass
from dlpool.engine.batch_session import BatchSession
from dlpool.engine.engine import DownloadEngine, core_of
from dlpool.engine.names import DuplicateItem
from dlpool.engine.task import DownloadTask, execution_of, task_of_job
from dlpool.errors import Cancelled, DlpoolError, LocalFault, NoThread, UsageError
from dlpool.transfer.job import Job, Progress, TransferResult


class ListUnreadable(UsageError):
    """The list is not text. Its remaining lines are not read."""


@dataclass(frozen=True)
class BatchItem:
    """One download of a batch, or the error of an invalid line.

    ``job`` is None if the line is invalid. ``line`` is the line number, 0 if the item
    is not from a list.
    """

    url: str
    job: Job | None
    error: DlpoolError | None = None
    line: int = 0


@dataclass(frozen=True)
class BatchResult:
    """The result of one item.

    After a success ``error`` is None; after a failure ``outcome`` is None.
    """

    item: BatchItem
    outcome: TransferResult | None
    error: DlpoolError | None

    @property
    def is_duplicate(self) -> bool:
        """Whether the item was skipped because another item fetches the same file."""
        return isinstance(self.error, DuplicateItem)


@dataclass(frozen=True)
class BatchProgress:
    """The state of a batch at one moment.

    ``active`` maps the number of each running download to its progress; downloads are
    numbered from 1 in the order in which they start. ``completed_bytes`` is the number
    of bytes of the completed files, ``earlier`` the number of items that earlier runs
    completed.
    """

    active: dict[int, Progress] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    completed_bytes: int = 0
    earlier: int = 0


class Batch:
    """Feeds the items of a list to an engine. Thread-safe.

    The engine must serve this batch alone and be created with ``keeps_ended=False``.
    ``earlier`` is a session file; the batch skips items that the file records as done.
    The event ``finished`` is set when all items have ended. After ``cancel`` the event
    ``stopped`` is set as soon as no download runs, even if a thread still waits for a
    line of the list.
    """

    def __init__(
        self,
        engine: DownloadEngine,
        items: Iterator[BatchItem],
        earlier: BatchSession | None = None,
    ) -> None:
        self._core = core_of(engine)
        self._items = items
        # Held while a line is read, which may block.
        self._items_lock = threading.Lock()
        self._earlier = earlier
        self._numbers = count(1)
        self._lock = threading.Lock()  # guards all attributes below
        # The running items with their numbers, by the ids of their tasks.
        self._running: dict[str, tuple[int, BatchItem]] = {}
        self._results: list[BatchResult] = []
        self._done = self._failed = self._completed_bytes = 0
        self._skipped = 0
        self._unfinished = 0  # items that were read and have no result
        self._is_read = self._is_cancelled = False
        self.finished = threading.Event()
        self.stopped = threading.Event()

    def __repr__(self) -> str:
        return f"<Batch {self.progress()}>"

    def start(self) -> None:
        """Start the threads.

        If this method raises NoThread, the caller must call ``run_in_caller``.
        """
        self._core.pull_from(self._next_task, self._handle_end)

    def run_in_caller(self) -> None:
        """Fetch all items on the calling thread after ``start`` has raised NoThread."""
        self._core.run_in_caller()

    def cancel(self) -> None:
        """Stop all downloads so that they can be resumed, and read no further item.

        The downloads are stopped by another thread, if one can be started; this method
        does not wait for that thread.
        """
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
        try:
            threads.start_thread(self._stop, "dlpool-stopper")
        except NoThread:
            self._stop()

    def progress(self) -> BatchProgress:
        """Return the current progress."""
        with self._lock:
            numbers = {task: number for task, (number, _) in self._running.items()}
            counts = (self._done, self._failed, self._completed_bytes, self._skipped)
        active = {
            numbers[task.id]: execution_of(task).transfer_progress()
            for task in self._core.active_tasks()
            if task.id in numbers
        }
        return BatchProgress(active, *counts)

    def take_results(self) -> list[BatchResult]:
        """Return the results since the last call, and forget them."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def _next_task(self) -> DownloadTask | None:
        """Return the task of the next item to fetch.

        Returns None if no item is left or the batch was cancelled.
        """
        while (item := self._next_item()) is not None:
            if item.job is None:
                self._record(BatchResult(item, None, item.error))
            elif self._earlier is not None and self._earlier.is_done(item.job):
                self._skip()
            else:
                return self._task_of(item, item.job)
        self._set_finished()
        return None

    def _next_item(self) -> BatchItem | None:
        with self._items_lock:
            item = None if self._is_read or self._is_cancelled else self._read_item()
            with self._lock:
                self._is_read = item is None
                self._unfinished += item is not None
            return item

    def _read_item(self) -> BatchItem | None:
        try:
            return next(self._items, None)
        except OSError as error:
            message = f"the list cannot be read further: {error.strerror}"
            return BatchItem("", None, LocalFault(message))
        except LocalFault as failure:
            return BatchItem("", None, failure)

    def _skip(self) -> None:
        with self._lock:
            self._skipped += 1
            self._unfinished -= 1

    def _task_of(self, item: BatchItem, job: Job) -> DownloadTask | None:
        """Return a new task for an item; None if the batch was cancelled."""
        number = next(self._numbers)
        label = f"line {item.line}" if item.line else ""
        task = task_of_job(job, label=label, task_id=str(number))
        with self._lock:
            if not self._is_cancelled:
                self._running[task.id] = number, item
                return task
        self._record_cancelled(item)
        return None

    def _handle_end(self, task: DownloadTask) -> None:
        """Record the result of a task that has ended."""
        with self._lock:
            _, item = self._running.pop(task.id, (0, None))
        if item is None:
            return
        outcome, error = task.outcome, task.failure
        if outcome is None and error is None:
            error = Cancelled("the download was cancelled")
        if outcome is not None and self._earlier is not None and item.job is not None:
            self._earlier.mark_done(item.job)
        self._record(BatchResult(item, outcome, error))
        self._set_finished()

    def _record(self, result: BatchResult) -> None:
        with self._lock:
            self._results.append(result)
            self._unfinished -= 1
            self._done += result.error is None
            self._failed += result.error is not None and not result.is_duplicate
            self._completed_bytes += result.outcome.size if result.outcome else 0

    def _record_cancelled(self, item: BatchItem) -> None:
        error = Cancelled("the download was cancelled")
        self._record(BatchResult(item, None, error))

    def _set_finished(self) -> None:
        """Set ``finished`` if all items have ended."""
        with self._lock:
            is_finished = self._is_read and not self._unfinished
        if is_finished:
            self.finished.set()

    def _stop(self) -> None:
        self._core.shutdown(wait=False)
        with self._lock:
            stopped = [item for _, item in self._running.values()]
            self._running.clear()
        for item in stopped:
            self._record_cancelled(item)
        self.stopped.set()
        self._set_finished()
