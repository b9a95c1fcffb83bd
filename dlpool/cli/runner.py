"""Runs downloads, some at a time, on threads of their own, while the main thread draws."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dlpool.cli.items import Item
from dlpool.errors import Cancelled, DlpoolError, InternalError, LocalFault, TargetExists
from dlpool.transfer.job import Job, Outcome, Progress
from dlpool.transfer.transfer import Transfer


@dataclass(frozen=True)
class Result:
    """How one item ended: with an outcome or an error."""

    item: Item
    outcome: Outcome | None
    error: DlpoolError | None


@dataclass(frozen=True)
class View:
    """A moment of the whole run. ``ended_bytes`` are those of files that are done."""

    active: dict[int, Progress] = field(default_factory=dict)
    done: int = 0
    failed: int = 0
    ended_bytes: int = 0


class Runner:
    """Slots that take item after item. The lock guards everything below it."""

    def __init__(
        self, items: Iterator[Item], make: Callable[[Job, Callable[[Path], None]], Transfer], slots: int
    ) -> None:
        self._items = items
        self._make = make
        self._slots = slots
        self._lock = threading.Lock()
        self._items_lock = threading.Lock()  # reading the list may block; nothing else waits for it
        self._active: dict[int, Transfer] = {}
        self._results: list[Result] = []
        self._done = self._failed = self._ended_bytes = 0
        self._running = 0
        self._is_cancelled = False
        self._owners: dict[str, Item] = {}
        self._next = 0
        self.finished = threading.Event()

    def start(self) -> None:
        """Start the slots."""
        self._running = self._slots
        for number in range(self._slots):
            threading.Thread(target=self._work, name=f"dlpool-slot-{number + 1}", daemon=True).start()

    def cancel(self) -> None:
        """Take no further item, and end those that run, resumably."""
        with self._lock:
            self._is_cancelled = True
            active = list(self._active.values())
        for transfer in active:
            transfer.cancel()

    def view(self) -> View:
        """Where everything is."""
        with self._lock:
            active = dict(self._active)
            done, failed, ended = self._done, self._failed, self._ended_bytes
        return View({number: transfer.progress() for number, transfer in active.items()}, done, failed, ended)

    def ended(self) -> list[Result]:
        """What has ended since the last call; nothing is kept, however long the list."""
        with self._lock:
            results, self._results = self._results, []
        return results

    def _work(self) -> None:
        try:
            while (item := self._take()) is not None:
                self._record(self._fetch(item))
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self.finished.set()

    def _take(self) -> Item | None:
        with self._items_lock:
            try:
                return None if self._is_cancelled else next(self._items, None)
            except OSError as error:
                failure = LocalFault(f"the list cannot be read further: {error.strerror}")
                return Item("", None, failure)

    def _fetch(self, item: Item) -> Result:
        if item.job is None:
            return Result(item, None, item.error)
        number = None
        try:
            transfer = self._make(item.job, lambda path: self._admit(item, path))
            number = self._enter(transfer)
            return Result(item, transfer.run(), None)
        except DlpoolError as error:
            return Result(item, None, error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            return Result(item, None, InternalError.of(error))
        finally:
            with self._lock:
                self._active.pop(-1 if number is None else number, None)

    def _enter(self, transfer: Transfer) -> int:
        with self._lock:
            if self._is_cancelled:
                raise Cancelled("the download was cancelled")
            self._next += 1
            self._active[self._next] = transfer
            return self._next

    def _admit(self, item: Item, path: Path) -> None:
        """Two lines of one list must not write one file: the second would silently replace the first."""
        real = os.path.realpath(path)
        with self._lock:
            owner = self._owners.setdefault(real, item)
        if owner.url != item.url:
            raise TargetExists(f"line {item.line} would overwrite {path}, the file of line {owner.line}")

    def _record(self, result: Result) -> None:
        with self._lock:
            self._results.append(result)
            self._done += result.error is None
            self._failed += result.error is not None
            self._ended_bytes += result.outcome.size if result.outcome else 0
