"""Statistics of many downloads together."""

from __future__ import annotations

import threading

from dlpool.dataclass import dataclass

MAX_ERRORS = 1000  # errors that are kept


@dataclass
class _TaskStats:
    done: int = 0
    total: int | None = None
    speed: float = 0.0


class DownloadStats:
    """The bytes and speeds of tasks, by task id. Thread-safe.

    Of completed tasks, only their number and the sum of their bytes are kept. Of failed
    tasks, only their number and the last thousand errors are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, _TaskStats] = {}
        self._completed_bytes = 0
        self._errors: dict[str, str] = {}
        self.completed = 0
        self.failed = 0

    def __repr__(self) -> str:
        return (
            f"<DownloadStats {len(self._active)} active, {self.completed} completed, "
            f"{self.failed} failed>"
        )

    def start_task(self, task_id: str) -> None:
        """Add a task that starts or resumes."""
        with self._lock:
            self._active.setdefault(task_id, _TaskStats())

    def update_task_progress(
        self, task_id: str, bytes_downloaded: int, total_bytes: int | None, speed: float
    ) -> None:
        """Set the progress of a task; add the task if it was not started.

        ``bytes_downloaded`` and ``total_bytes`` are in bytes, ``speed`` in bytes per
        second. ``total_bytes`` is None or 0 if the size is unknown.
        """
        with self._lock:
            self._active[task_id] = _TaskStats(
                bytes_downloaded, total_bytes or None, speed
            )

    def update_active_task(
        self, task_id: str, done: int, total: int | None, speed: float
    ) -> None:
        """Set the progress of an active task; do nothing for other tasks."""
        with self._lock:
            if task_id in self._active:
                self._active[task_id] = _TaskStats(done, total or None, speed)

    def complete_task(self, task_id: str) -> None:
        """Count a task as completed."""
        with self._lock:
            stats = self._active.pop(task_id, _TaskStats())
            self._completed_bytes += (
                stats.total if stats.total is not None else stats.done
            )
            self.completed += 1

    def fail_task(self, task_id: str, error: str) -> None:
        """Count a task as failed, and keep its error."""
        with self._lock:
            self._active.pop(task_id, None)
            self.failed += 1
            self._errors[task_id] = error
            if len(self._errors) > MAX_ERRORS:
                del self._errors[next(iter(self._errors))]

    def drop_task(self, task_id: str) -> None:
        """Remove a cancelled or paused task."""
        with self._lock:
            self._active.pop(task_id, None)

    @property
    def errors(self) -> dict[str, str]:
        """The errors of the last thousand failed tasks, by task id."""
        with self._lock:
            return dict(self._errors)

    def get_overall_speed(self) -> float:
        """Return the bytes per second of all active tasks together."""
        with self._lock:
            return sum(stats.speed for stats in self._active.values())

    def get_completed_bytes(self) -> int:
        """Return the downloaded bytes of active and completed tasks."""
        with self._lock:
            return self._done()

    def get_total_bytes(self) -> int:
        """Return the total bytes of active and completed tasks.

        A task of unknown size counts with its downloaded bytes.
        """
        with self._lock:
            return self._total()

    def get_overall_progress(self) -> float:
        """Return the downloaded fraction, from 0.0 to 1.0; 0.0 while the total is 0."""
        with self._lock:
            done, total = self._done(), self._total()
        return min(1.0, done / total) if total else 0.0

    def _done(self) -> int:
        return self._completed_bytes + sum(
            stats.done for stats in self._active.values()
        )

    def _total(self) -> int:
        return self._completed_bytes + sum(
            _total(stats) for stats in self._active.values()
        )


def _total(stats: _TaskStats) -> int:
    return stats.done if stats.total is None else max(stats.total, stats.done)
