"""Calls what a program has registered: on one thread, in order, under no lock."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dlpool import threads

if TYPE_CHECKING:
    from dlpool.engine.task import DownloadTask

Callback = Callable[["DownloadTask"], object]
_log = logging.getLogger("dlpool")


class Callbacks:
    """Thread-safe; the lock guards lists, count and thread, which starts with the first
    callback."""

    def __init__(
        self, active: Callable[[], list[DownloadTask]], interval_s: float
    ) -> None:
        """``active``: the tasks whose progress is told, every ``interval_s`` seconds at
        most."""
        self._active = active
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._progress: list[Callback] = []
        self._completion: list[Callback] = []
        self._ended: queue.SimpleQueue[DownloadTask | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._owed = 0  # completions whose callbacks have not returned

    def add_progress_callback(self, callback: Callback) -> None:
        """Call it with each active task that has made progress. Raises NoThread."""
        with self._lock:
            self._progress.append(callback)
            self._start()

    def add_completion_callback(self, callback: Callback) -> None:
        """Call it once with each task that ends later. Raises NoThread."""
        with self._lock:
            self._completion.append(callback)
            self._start()

    def notify_completion(self, task: DownloadTask) -> None:
        """A task is completed, failed or cancelled."""
        with self._lock:
            if self._thread is not None and not self._is_closed:
                self._owed += 1
                self._ended.put(task)

    @property
    def has_pending(self) -> bool:
        """Whether a completion callback is pending or running."""
        return self._owed > 0

    def close(self) -> None:
        """Call what is due, and end; does not wait for itself."""
        with self._lock:
            thread, self._is_closed = self._thread, True
        self._ended.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threads.start_thread(self._serve, "dlpool-callbacks")

    def _serve(self) -> None:
        told: dict[str, int] = {}
        due = time.monotonic() + self._interval_s
        while True:
            try:
                task = self._ended.get(timeout=max(0.0, due - time.monotonic()))
                if task is None:
                    return
                told.pop(task.id, None)
                self._call(self._completion, task)
                with self._lock:
                    self._owed -= 1
            except queue.Empty:
                pass
            if time.monotonic() >= due:
                told = self._tell_progress(told)
                due = time.monotonic() + self._interval_s

    def _tell_progress(self, told: dict[str, int]) -> dict[str, int]:
        """``told``: bytes of each task when it was told of last; returns it anew."""
        if not self._progress:
            return told
        now: dict[str, int] = {}
        for task in self._active():
            now[task.id] = task.downloaded_size
            if now[task.id] != told.get(task.id):
                self._call(self._progress, task)
        return now

    def _call(self, callbacks: list[Callback], task: DownloadTask) -> None:
        with self._lock:
            present = list(callbacks)
        for callback in present:
            try:
                callback(task)
            except BaseException:  # noqa: BLE001 - it is the program's own code that fails; the others are still to be told
                _log.exception("a callback of dlpool has raised")
