"""Many downloads as one: fed to an engine a few at a time, however long the list; one failure stops no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dlpool.engine.donelist import DoneList
from dlpool.engine.engine import DownloadEngine
from dlpool.engine.task import DownloadTask
from dlpool.errors import Cancelled, DlpoolError, LocalFault
from dlpool.transfer.job import Job, Outcome, Progress


@dataclass(frozen=True)
class Item:
    """One thing to fetch, or what is wrong with its line. ``line`` is 0 where there is no list."""

    url: str
    job: Job | None
    error: DlpoolError | None = None
    line: int = 0


@dataclass(frozen=True)
class Result:
    """How one item ended: with an outcome or an error."""

    item: Item
    outcome: Outcome | None
    error: DlpoolError | None


@dataclass(frozen=True)
class View:
    """A moment of the whole batch. ``ended_bytes``: of files that are done; ``earlier``: done by other runs."""

    active: dict[int, Progress] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    ended_bytes: int = 0
    earlier: int = 0


class Batch:
    """Feeds ``items`` to ``engine``, which is its own and keeps no ended task. The lock guards everything below it.

    ``ahead``: how many tasks the engine has at once. ``earlier``: what other runs have done.
    """

    def __init__(
        self, engine: DownloadEngine, items: Iterator[Item], ahead: int, earlier: DoneList | None = None
    ) -> None:
        self._engine = engine
        self._items = items
        self._places = threading.Semaphore(ahead)
        self._earlier = earlier
        self._lock = threading.Lock()
        self._open: dict[str, Item] = {}
        self._numbers: dict[str, int] = {}
        self._results: list[Result] = []
        self._done = self._failed = self._ended_bytes = self._skipped = 0
        self._is_fed = self._is_cancelled = False
        self._count = 0
        self.finished = threading.Event()
        self.stopped = threading.Event()  # after cancel: nothing runs any more, though a line may still be waited for
        engine.register_completion_callback(self._ended)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._feed, name="dlpool-feeder", daemon=True).start()

    def cancel(self) -> None:
        """Take no further item, and end those that run, resumably; does not wait for that."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
        self._places.release()
        threading.Thread(target=self._stop, name="dlpool-stopper", daemon=True).start()

    def view(self) -> View:
        """Where everything is."""
        with self._lock:
            numbers = dict(self._numbers)
            done, failed, ended, earlier = self._done, self._failed, self._ended_bytes, self._skipped
        active = {numbers[task.id]: task.moment() for task in self._engine.get_active_tasks() if task.id in numbers}
        return View(active, done, failed, ended, earlier)

    def ended(self) -> list[Result]:
        """What has ended since the last call; nothing is kept, however long the list."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def _feed(self) -> None:
        try:
            for item in self._items:
                if self._is_cancelled:
                    break
                self._submit(item)
        except OSError as error:
            failure = LocalFault(f"the list cannot be read further: {error.strerror}")
            self._record(Result(Item("", None, failure), None, failure))
        with self._lock:
            self._is_fed = True
        self._look_for_end()

    def _submit(self, item: Item) -> None:
        if item.job is None:
            self._record(Result(item, None, item.error))
            return
        if self._earlier is not None and self._earlier.has(item.job):
            with self._lock:
                self._skipped += 1
            return
        self._places.acquire()
        task = DownloadTask.of(item.job, label=f"line {item.line}" if item.line else "")
        with self._lock:
            if self._is_cancelled:
                return
            self._count += 1
            self._open[task.id], self._numbers[task.id] = item, self._count
        try:
            self._engine.submit(task)
        except DlpoolError as error:
            self._close(task, None, error)

    def _ended(self, task: DownloadTask) -> None:
        self._close(task, task.outcome, task.failure)

    def _close(self, task: DownloadTask, outcome: Outcome | None, error: DlpoolError | None) -> None:
        with self._lock:
            item = self._open.pop(task.id, None)
            self._numbers.pop(task.id, None)
        if item is None:
            return
        if outcome is None and error is None:
            error = Cancelled("the download was cancelled")
        if outcome is not None and self._earlier is not None and item.job is not None:
            self._earlier.add(item.job)
        self._record(Result(item, outcome, error))
        self._places.release()
        self._look_for_end()

    def _record(self, result: Result) -> None:
        with self._lock:
            self._results.append(result)
            self._done += result.error is None
            self._failed += result.error is not None
            self._ended_bytes += result.outcome.size if result.outcome else 0

    def _look_for_end(self) -> None:
        with self._lock:
            is_over = self._is_fed and not self._open
        if is_over:
            self.finished.set()

    def _stop(self) -> None:
        self._engine.shutdown(wait=False)
        with self._lock:
            stopped = list(self._open.values())
            self._open.clear()
            self._numbers.clear()
        for item in stopped:
            self._record(Result(item, None, Cancelled("the download was cancelled")))
        self.stopped.set()
        self._look_for_end()


@dataclass(frozen=True)
class Failed:
    """A URL of a batch that has no file, and why."""

    url: str
    error: str


@dataclass(frozen=True)
class BatchSummary:
    """How a batch ended. ``size`` in bytes of all files done, ``seconds`` of wall; ``earlier``: done by other runs."""

    done: int
    failed: tuple[Failed, ...]
    size: int
    seconds: float
    earlier: int = 0

    @property
    def speed(self) -> float:
        """Bytes a second, on average."""
        return self.size / self.seconds if self.seconds > 0 else 0.0


def summary(batch: Batch, began: float, failed: list[Failed]) -> BatchSummary:
    """The summary of a batch that has ended; ``began`` by ``time.monotonic``."""
    view = batch.view()
    return BatchSummary(view.done, tuple(failed), view.ended_bytes, time.monotonic() - began, view.earlier)
