"""Calls the callbacks of a program: on one thread, in order, without a lock."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dlpool import threads

if TYPE_CHECKING:
    from dlpool.engine.task import DownloadTask

Callback = Callable[["DownloadTask"], object]


class Callbacks:
    """Registered callbacks and the thread that calls them. Thread-safe.

    The thread starts when the first callback is added. The lock guards the lists, the
    counter and the thread.
    """

    def __init__(
        self, active: Callable[[], list[DownloadTask]], interval_s: float
    ) -> None:
        """Create the object without a thread.

        ``active`` returns the running tasks. Their progress is reported every
        ``interval_s`` seconds.
        """
        self._active = active
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._progress: list[Callback] = []
        self._completion: list[Callback] = []
        self._ended: queue.SimpleQueue[DownloadTask | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._pending = 0  # completions whose callbacks have not returned

    def add_progress_callback(self, callback: Callback) -> None:
        """Call ``callback`` repeatedly with each running task that has progressed.

        Raises NoThread.
        """
        with self._lock:
            self._progress.append(callback)
            self._start()

    def add_completion_callback(self, callback: Callback) -> None:
        """Call ``callback`` once with each task that ends from now on.

        Raises NoThread.
        """
        with self._lock:
            self._completion.append(callback)
            self._start()

    def notify_completion(self, task: DownloadTask) -> None:
        """Report a task that is completed, failed or cancelled."""
        with self._lock:
            if self._thread is not None and not self._is_closed:
                self._pending += 1
                self._ended.put(task)

    @property
    def has_pending(self) -> bool:
        """Whether a completion callback is pending or running."""
        return self._pending > 0

    def close(self) -> None:
        """Call the pending callbacks, and stop the thread.

        Waits until the thread has ended. If a callback calls ``close``, it does not
        wait, because callbacks run on that thread.
        """
        with self._lock:
            thread, self._is_closed = self._thread, True
        self._ended.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threads.start_thread(self._serve, "dlpool-callbacks")

    def _serve(self) -> None:
        reported: dict[str, int] = {}
        due = time.monotonic() + self._interval_s
        while True:
            try:
                task = self._ended.get(timeout=max(0.0, due - time.monotonic()))
                if task is None:
                    return
                reported.pop(task.id, None)
                self._call(self._completion, task)
                with self._lock:
                    self._pending -= 1
            except queue.Empty:
                pass
            if time.monotonic() >= due:
                reported = self._report_progress(reported)
                due = time.monotonic() + self._interval_s

    def _report_progress(self, reported: dict[str, int]) -> dict[str, int]:
        """Report each task whose number of downloaded bytes has changed.

        ``reported`` is the result of the previous call. Returns the current number of
        downloaded bytes of each running task, by task id.
        """
        if not self._progress:
            return reported
        current: dict[str, int] = {}
        for task in self._active():
            current[task.id] = task.downloaded_size
            if current[task.id] != reported.get(task.id):
                self._call(self._progress, task)
        return current

    def _call(self, callbacks: list[Callback], task: DownloadTask) -> None:
        with self._lock:
            registered = list(callbacks)
        for callback in registered:
            try:
                callback(task)
            except BaseException:
                import logging  # few programs need it

                logging.getLogger("dlpool").exception(
                    "a callback of dlpool has raised an exception"
                )
