"""The worker threads of an engine; they exit when no task is left."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dlpool import threads
from dlpool.engine.task import DownloadTask, execution_of
from dlpool.engine.task_queue import DownloadQueue
from dlpool.errors import NoThread

# The descriptors of a download with one connection: part file, lock, state file,
# folder, the socket and its duplicate, and two spare ones.
DESCRIPTORS = 8

TaskSource = Callable[[], "DownloadTask | None"]


class EngineWorkers:
    """The threads that run the tasks of ``queue``.

    After ``pull_from`` they run the tasks of a source, too. Thread-safe; the lock
    guards all counters. At most ``max_threads`` threads are busy at the same time. A
    thread that has called ``release`` does not count as busy, even while it reports the
    end of its task.
    """

    def __init__(self, max_threads: int, run: Callable[[DownloadTask], None]) -> None:
        """Create the workers without a thread.

        ``run`` runs a task that has begun. It must call ``release`` and must not raise.
        """
        self.queue = DownloadQueue()
        self.max_threads = max_threads
        self._run = run
        self._lock = threading.Condition()
        self._threads = 0
        self._busy = 0  # threads with a task, and threads that wait for the source
        self._pulling = 0  # threads that wait for the source
        self._source: TaskSource | None = None
        # Tasks that have begun, but for which no thread could be started.
        self._begun: deque[DownloadTask] = deque()
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<EngineWorkers {self._threads} of {self.max_threads}>"

    def add(self, task: DownloadTask) -> DownloadTask | None:
        """Queue a task, and begin the next task if a thread can run it.

        If there is no thread and none can be started, returns a task that has begun but
        that no thread will run: the caller must end this task. Otherwise returns None.
        """
        with self._lock:
            if self._is_stopping:
                return None
            self.queue.add_task(task)
            if self._threads > 0 and not threads.has_free_descriptors(DESCRIPTORS):
                return None
            first = self._next()
            if first is None or self._start_thread(first):
                return None
            return self._leave_to_others(first)

    def release(self) -> None:
        """Count the calling thread as free, so that another task can begin."""
        with self._lock:
            self._busy -= 1

    def pull_from(self, source: TaskSource) -> None:
        """Make all threads take tasks from ``source`` in addition to the queue.

        Starts threads until there are ``max_threads``; fewer if threads or file
        descriptors are scarce. Raises NoThread if there is no thread at all. ``source``
        can block; it returns None when no task is left.
        """
        with self._lock:
            self._source = source
            while (
                self._threads < self.max_threads
                and self._has_descriptors()
                and self._start_thread(None)
            ):
                pass
            if self._threads == 0:
                raise NoThread(
                    "cannot start a thread for downloads: raise the limit of processes "
                    "(ulimit -u, pids.max)"
                )

    def run_in_caller(self) -> None:
        """Run tasks on the calling thread, after ``pull_from`` has raised NoThread.

        Returns when no task is left.
        """
        with self._lock:
            self._threads += 1
        self._work(None)

    @property
    def is_idle(self) -> bool:
        """Whether no thread is left, or ``stop`` was called."""
        with self._lock:
            return self._threads == 0 or self._is_stopping

    def wait_until_idle(self) -> None:
        """Wait until no thread is left, or until ``stop`` is called."""
        with self._lock:
            self._lock.wait_for(lambda: self._threads == 0 or self._is_stopping)

    def stop(self) -> None:
        """Prevent further tasks from beginning."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()

    def wait_until_stopped(self, timeout_s: float | None = None) -> None:
        """Clear the queue and wait until all threads have exited.

        Does not wait for threads that wait for the source. Waits at most ``timeout_s``
        seconds; None: no limit.
        """
        self.queue.clear()
        with self._lock:
            self._lock.wait_for(lambda: self._threads == self._pulling, timeout_s)

    def _has_descriptors(self) -> bool:
        """Return whether enough file descriptors are free for one more thread.

        Returns True for the first thread without a check.
        """
        return self._threads == 0 or threads.has_free_descriptors(
            DESCRIPTORS * (self._threads + 1)
        )

    def _start_thread(self, first: DownloadTask | None) -> bool:
        """Start a thread that begins with the task ``first``; return False if that
        fails.

        With None, the thread begins with a task of the source. The caller holds the
        lock.
        """
        self._threads += 1
        try:
            threads.start_thread(lambda: self._work(first), "dlpool-worker")
        except NoThread:
            self._threads -= 1
            return False
        return True

    def _leave_to_others(self, first: DownloadTask) -> DownloadTask | None:
        """Leave ``first`` to the existing threads and return None.

        If there are no threads, returns ``first``.
        """
        self._busy -= 1
        if self._threads == 0:
            return first
        self._begun.append(first)
        return None

    def _work(self, task: DownloadTask | None) -> None:
        """Run tasks until none is left. Each worker thread executes this method."""
        while task is not None or (task := self._next_of_source()) is not None:
            self._run(task)
            with self._lock:
                task = self._next()
                if task is None and self._source is None:
                    self._count_exit()
                    return

    def _next(self) -> DownloadTask | None:
        """Begin the next task of the queue and return it; None if no task can begin.

        The caller holds the lock.
        """
        if self._begun and not self._is_stopping and self._busy < self.max_threads:
            self._busy += 1
            return self._begun.popleft()
        while (
            not self._is_stopping
            and self._busy < self.max_threads
            and (task := self.queue.get_next_task()) is not None
        ):
            if execution_of(task).begin():
                self._busy += 1
                return task
        return None

    def _next_of_source(self) -> DownloadTask | None:
        """Begin the next task of the source and return it.

        Returns None if the source has no task left or the workers stop. After None the
        calling thread must exit.
        """
        while (source := self._begin_pull()) is not None:
            task = None
            try:
                task = source()
            finally:
                is_continued = self._end_pull(has_task=task is not None)
            if is_continued and task is not None and execution_of(task).begin():
                return task
            self.release()
        return None

    def _begin_pull(self) -> TaskSource | None:
        with self._lock:
            if self._is_stopping or self._source is None:
                self._count_exit()
                return None
            self._pulling += 1
            self._busy += 1
            return self._source

    def _end_pull(self, *, has_task: bool) -> bool:
        """Record that a call of the source has ended; return False after ``stop``.

        ``has_task``: whether the source returned a task. If not, the source is not
        called again.
        """
        with self._lock:
            self._pulling -= 1
            self._lock.notify_all()
            if not has_task or self._is_stopping:
                self._source = None
            return not self._is_stopping

    def _count_exit(self) -> None:
        self._threads -= 1
        self._lock.notify_all()
