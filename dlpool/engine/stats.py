"""The figures of many downloads together."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MAX_ERRORS = 1000  # that are remembered


@dataclass
class _Figures:
    done: int = 0
    total: int | None = None
    speed: float = 0.0


class DownloadStats:
    """Bytes and speeds of tasks, by id. Thread-safe; the lock guards all of it.

    Of completed tasks only the sums are kept. A failed one counts nowhere any more, but
    for its error.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, _Figures] = {}
        self._completed_bytes = 0
        self._errors: dict[str, str] = {}
        self.completed = 0  # tasks
        self.failed = 0

    def __repr__(self) -> str:
        return (
            f"<DownloadStats {len(self._active)} active, {self.completed} completed, "
            f"{self.failed} failed>"
        )

    def start_task(self, task_id: str) -> None:
        """A task begins, or goes on."""
        with self._lock:
            self._active.setdefault(task_id, _Figures())

    def update_task_progress(
        self, task_id: str, bytes_downloaded: int, total_bytes: int | None, speed: float
    ) -> None:
        """Where a task is: bytes, bytes in all (None or 0: unknown), bytes a second. It
        need not have been started."""
        with self._lock:
            self._active[task_id] = _Figures(
                bytes_downloaded, total_bytes or None, speed
            )

    def update_active_task(
        self, task_id: str, done: int, total: int | None, speed: float
    ) -> None:
        """The same, unless it has ended meanwhile."""
        with self._lock:
            if task_id in self._active:
                self._active[task_id] = _Figures(done, total or None, speed)

    def complete_task(self, task_id: str) -> None:
        """All of it is there."""
        with self._lock:
            figures = self._active.pop(task_id, _Figures())
            self._completed_bytes += (
                figures.total if figures.total is not None else figures.done
            )
            self.completed += 1

    def fail_task(self, task_id: str, error: str) -> None:
        """It has ended without its file."""
        with self._lock:
            self._active.pop(task_id, None)
            self.failed += 1
            self._errors[task_id] = error
            if len(self._errors) > MAX_ERRORS:
                del self._errors[next(iter(self._errors))]

    def drop_task(self, task_id: str) -> None:
        """It was cancelled: it counts nowhere."""
        with self._lock:
            self._active.pop(task_id, None)

    @property
    def errors(self) -> dict[str, str]:
        """Why tasks failed, by id; the last thousand."""
        with self._lock:
            return dict(self._errors)

    def get_overall_speed(self) -> float:
        """Bytes a second of all tasks that are active."""
        with self._lock:
            return sum(figures.speed for figures in self._active.values())

    def get_completed_bytes(self) -> int:
        """Bytes that are there, of active and of completed tasks."""
        with self._lock:
            return self._done()

    def get_total_bytes(self) -> int:
        """Bytes that active and completed tasks will have, as far as it is known; of
        unknown ones what is there."""
        with self._lock:
            return self._total()

    def get_overall_progress(self) -> float:
        """From 0.0 to 1.0, by bytes; 0.0 while there is nothing."""
        with self._lock:
            done, total = self._done(), self._total()
        return min(1.0, done / total) if total else 0.0

    def _done(self) -> int:
        return self._completed_bytes + sum(
            figures.done for figures in self._active.values()
        )

    def _total(self) -> int:
        return self._completed_bytes + sum(
            _total(figures) for figures in self._active.values()
        )


def _total(figures: _Figures) -> int:
    return figures.done if figures.total is None else max(figures.total, figures.done)
