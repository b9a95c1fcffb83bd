"""The priority queue of pending tasks."""

from __future__ import annotations

import heapq
import itertools
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlpool.engine.task import DownloadTask


class DownloadQueue:
    """A priority queue of tasks. Thread-safe.

    The smallest priority comes first; tasks with the same priority keep their order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heap: list[tuple[int, int, DownloadTask]] = []
        self._numbers: dict[str, int] = {}  # the position of each queued task, by id
        self._count = itertools.count()

    def __repr__(self) -> str:
        return f"<DownloadQueue of {len(self)} tasks>"

    def __len__(self) -> int:
        return len(self._numbers)

    def add_task(self, task: DownloadTask) -> None:
        """Add a task behind the tasks of the same priority.

        A task that is already queued keeps its position.
        """
        with self._lock:
            if task.id not in self._numbers:
                number = self._numbers[task.id] = next(self._count)
                heapq.heappush(self._heap, (task.priority, number, task))

    def get_next_task(self) -> DownloadTask | None:
        """Remove the first task and return it; None if the queue is empty."""
        with self._lock:
            while self._heap:
                entry = heapq.heappop(self._heap)
                if self._is_in(entry):
                    del self._numbers[entry[2].id]
                    return entry[2]
            return None

    def remove_task(self, task_id: str) -> bool:
        """Remove a task; return False if it is not in the queue."""
        with self._lock:
            if self._numbers.pop(task_id, None) is None:
                return False
            if len(self._heap) > 2 * len(self._numbers) + 16:
                self._heap = [entry for entry in self._heap if self._is_in(entry)]
                heapq.heapify(self._heap)
            return True

    def get_all_tasks(self) -> list[DownloadTask]:
        """Return the tasks in the order in which ``get_next_task`` will return them."""
        with self._lock:
            return [
                entry[2]
                for entry in sorted(self._heap, key=lambda entry: entry[:2])
                if self._is_in(entry)
            ]

    def clear(self) -> None:
        """Remove all tasks."""
        with self._lock:
            self._heap.clear()
            self._numbers.clear()

    def _is_in(self, entry: tuple[int, int, DownloadTask]) -> bool:
        return self._numbers.get(entry[2].id) == entry[1]
