"""Many downloads as one: fed to an engine a few at a time, however long the list; one
failure stops no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dlpool import threads
from dlpool.engine.batch_session import BatchSession
from dlpool.engine.engine import DownloadEngine
from dlpool.engine.names import DuplicateItem
from dlpool.engine.task import DownloadTask
from dlpool.errors import Cancelled, DlpoolError, LocalFault, NoThread, UsageError
from dlpool.transfer.job import Job, Progress, TransferResult


class ListUnreadable(UsageError):
    """A list is not text: the rest of it is not read."""


@dataclass(frozen=True)
class BatchItem:
    """One thing to fetch, or what is wrong with its line. ``line`` is 0 where there is
    no list."""

    url: str
    job: Job | None
    error: DlpoolError | None = None
    line: int = 0


@dataclass(frozen=True)
class BatchResult:
    """How one item ended: with an outcome or an error."""

    item: BatchItem
    outcome: TransferResult | None
    error: DlpoolError | None

    @property
    def is_duplicate(self) -> bool:
        """Whether another item of the list fetches the same file, so that this one is
        skipped."""
        return isinstance(self.error, DuplicateItem)


@dataclass(frozen=True)
class BatchProgress:
    """A moment of the whole batch. ``ended_bytes``: of files that are done;
    ``earlier``: done by other runs."""

    active: dict[int, Progress] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    completed_bytes: int = 0
    earlier: int = 0


class Batch:
    """What ``engine``, which is its own and keeps no ended task, takes from ``items``,
    each when a worker is free.

    ``earlier``: what other runs have done. The lock guards everything below it.
    """

    def __init__(
        self,
        engine: DownloadEngine,
        items: Iterator[BatchItem],
        earlier: BatchSession | None = None,
    ) -> None:
        self._engine = engine
        self._items = items
        self._items_lock = (
            threading.Lock()
        )  # reading the list may block; nothing else waits for it
        self._earlier = earlier
        self._lock = threading.Lock()
        self._open: dict[
            str, tuple[int, BatchItem]
        ] = {}  # numbered, by the ids of their tasks
        self._results: list[BatchResult] = []
        self._done = self._failed = self._ended_bytes = self._skipped = self._count = 0
        self._unsettled = (
            0  # items that were read, and of which it is not known yet how they end
        )
        self._is_read = self._is_cancelled = False
        self.finished = threading.Event()
        self.stopped = (
            threading.Event()
        )  # after cancel: nothing runs any more, though a line may still be waited for

    def __repr__(self) -> str:
        return f"<Batch {self.progress()}>"

    def start(self) -> None:
        """Start the threads. Raises NoThread; then call ``run_here``."""
        self._engine.pull_from(self._next, self._ended)

    def run_in_caller(self) -> None:
        """Fetch all items on the calling thread, if ``start`` raised NoThread; return
        when all have ended."""
        self._engine.run_in_caller()

    def cancel(self) -> None:
        """Take no further item, and end those that run, resumably; does not wait for
        that."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
        try:
            threads.start_thread(self._stop, "dlpool-stopper")
        except NoThread:
            self._stop()

    def progress(self) -> BatchProgress:
        """Where everything is."""
        with self._lock:
            numbers = {task_id: number for task_id, (number, _) in self._open.items()}
            figures = (self._done, self._failed, self._ended_bytes, self._skipped)
        active = {
            numbers[task.id]: task.moment()
            for task in self._engine.get_active_tasks()
            if task.id in numbers
        }
        return BatchProgress(active, *figures)

    def take_results(self) -> list[BatchResult]:
        """What has ended since the last call; nothing is kept, however long the
        list."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def _next(self) -> DownloadTask | None:
        """The task of the next item that is to be fetched."""
        while (item := self._read()) is not None:
            if item.job is None:
                self._record(BatchResult(item, None, item.error))
            elif self._earlier is not None and self._earlier.is_done(item.job):
                self._skip()
            else:
                return self._opened(item, item.job)
        self._look_for_end()
        return None

    def _skip(self) -> None:
        with self._lock:
            self._skipped += 1
            self._unsettled -= 1

    def _opened(self, item: BatchItem, job: Job) -> DownloadTask | None:
        task = DownloadTask.of(job, label=f"line {item.line}" if item.line else "")
        with self._lock:
            if not self._is_cancelled:
                self._count += 1
                self._open[task.id] = self._count, item
                return task
        self._record(BatchResult(item, None, Cancelled("the download was cancelled")))
        return None

    def _read(self) -> BatchItem | None:
        with self._items_lock:
            item = None if self._is_read or self._is_cancelled else self._read_one()
            with self._lock:
                self._is_read = item is None
                self._unsettled += item is not None
            return item

    def _read_one(self) -> BatchItem | None:
        try:
            return next(self._items, None)
        except OSError as error:
            return BatchItem(
                "",
                None,
                LocalFault(f"the list cannot be read further: {error.strerror}"),
            )
        except LocalFault as failure:
            return BatchItem("", None, failure)

    def _ended(self, task: DownloadTask) -> None:
        with self._lock:
            _, item = self._open.pop(task.id, (0, None))
        if item is None:
            return
        outcome, error = task.outcome, task.failure
        if outcome is None and error is None:
            error = Cancelled("the download was cancelled")
        if outcome is not None and self._earlier is not None and item.job is not None:
            self._earlier.mark_done(item.job)
        self._record(BatchResult(item, outcome, error))
        self._look_for_end()

    def _record(self, result: BatchResult) -> None:
        with self._lock:
            self._results.append(result)
            self._unsettled -= 1
            self._done += result.error is None
            self._failed += result.error is not None and not result.is_duplicate
            self._ended_bytes += result.outcome.size if result.outcome else 0

    def _look_for_end(self) -> None:
        with self._lock:
            is_over = self._is_read and not self._unsettled
        if is_over:
            self.finished.set()

    def _stop(self) -> None:
        self._engine.shutdown(wait=False)
        with self._lock:
            stopped = [item for _, item in self._open.values()]
            self._open.clear()
        for item in stopped:
            self._record(
                BatchResult(item, None, Cancelled("the download was cancelled"))
            )
        self.stopped.set()
        self._look_for_end()


@dataclass(frozen=True)
class BatchFailure:
    """A URL of a batch that has no file, and why."""

    url: str
    error: str


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended. ``size`` in bytes of all files done, ``seconds`` of wall;
    ``earlier``: done by other runs."""

    done: int
    failed: tuple[BatchFailure, ...]
    size: int
    seconds: float
    earlier: int = 0

    @property
    def speed(self) -> float:
        """Bytes a second, on average."""
        return self.size / self.seconds if self.seconds > 0 else 0.0


def make_summary(
    batch: Batch, began: float, failed: list[BatchFailure]
) -> BatchSummary:
    """The summary of a batch that has ended; ``began`` by ``time.monotonic``."""
    view = batch.progress()
    return BatchSummary(
        view.done,
        tuple(failed),
        view.completed_bytes,
        time.monotonic() - began,
        view.earlier,
    )
