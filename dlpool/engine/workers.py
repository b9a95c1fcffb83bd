"""The threads of an engine: so many at most, started when there is work, ended when
there is none."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dlpool import threads
from dlpool.engine.task import DownloadTask
from dlpool.engine.task_queue import DownloadQueue
from dlpool.errors import NoThread

# of a download with one connection: part, lock, state and folder, the socket and its
# duplicate
DESCRIPTORS = 8

TaskSource = Callable[[], "DownloadTask | None"]


class EngineWorkers:
    """Run the tasks of ``queue``, then those of a source. Thread-safe; the lock guards
    the numbers.

    A thread that has released its task may still tell of its end; it is not one of the
    ``most`` then.
    """

    def __init__(self, max_threads: int, run: Callable[[DownloadTask], None]) -> None:
        """``run`` runs one task, which is downloading already, calls ``release``, and
        raises nothing."""
        self.queue = DownloadQueue()
        self._most = max_threads
        self._run = run
        self._lock = threading.Condition()
        self._threads = self._busy = self._pulling = (
            0  # those with a task, and those that wait for the source
        )
        self._source: TaskSource | None = None
        self._begun: deque[DownloadTask] = (
            deque()
        )  # tasks for which no thread could be started
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Workers {self._threads} of {self._most}>"

    def add(self, task: DownloadTask) -> DownloadTask | None:
        """Queue a task; if a thread is free, it is downloading when this returns.

        Where this process may have no further thread, those that there are take it.
        Returns a task that was begun and that no thread will ever run, as there is none
        at all.
        """
        with self._lock:
            if self._is_stopping:
                return None
            self.queue.add_task(task)
            if self._threads > 0 and not threads.has_free_descriptors(DESCRIPTORS):
                return None
            first = self._next()
            return (
                None
                if first is None or self._spawned(first)
                else self._left_over(first)
            )

    def _has_room(self) -> bool:
        """Return whether all threads are busy and descriptors are left for another one;
        True if there is no thread."""
        return self._threads == 0 or threads.has_free_descriptors(
            DESCRIPTORS * (self._threads + 1)
        )

    def _spawned(self, first: DownloadTask | None) -> bool:
        """Start a thread that begins with ``first``; return False if that fails. Called
        under the lock."""
        self._threads += 1
        try:
            threads.start_thread(lambda: self._work(first), "dlpool-worker")
        except NoThread:
            self._threads -= 1
            return False
        return True

    def _left_over(self, first: DownloadTask) -> DownloadTask | None:
        """Leave ``first`` to the existing threads; return it if there are none."""
        self._busy -= 1
        if self._threads == 0:
            return first
        self._begun.append(first)
        return None

    def release(self) -> None:
        """The calling thread's task is about to end: another one may begin."""
        with self._lock:
            self._busy -= 1

    def pull_from(self, source: TaskSource) -> None:
        """Make all threads take tasks from ``source`` too; it may block, and returns
        None at the end.

        There are fewer threads than ``most`` where this process may have no more, or
        too few descriptors for them. Raises NoThread if it may have none.
        """
        with self._lock:
            self._source = source
            while (
                self._threads < self._most and self._has_room() and self._spawned(None)
            ):
                pass
            if self._threads == 0:
                raise NoThread(
                    "cannot start a thread for downloads: raise the limit of processes "
                    "(ulimit -u, pids.max)"
                )

    def run_in_caller(self) -> None:
        """Run tasks on the calling thread, after a ``pull`` that could start none;
        return when none is left."""
        with self._lock:
            self._threads += 1
        self._work(None)

    @property
    def is_idle(self) -> bool:
        """Whether no task runs or is queued; True after ``stop``."""
        with self._lock:
            return self._threads == 0 or self._is_stopping

    def wait_until_idle(self) -> None:
        """Until there is nothing to do, or ``stop`` is called."""
        with self._lock:
            self._lock.wait_for(lambda: self._threads == 0 or self._is_stopping)

    def stop(self) -> None:
        """Begin no further task."""
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()

    def wait_until_stopped(self, timeout_s: float | None = None) -> None:
        """Wait until no thread runs a task, or for ``timeout_s``; threads that wait for
        the source are ignored."""
        self.queue.clear()
        with self._lock:
            self._lock.wait_for(lambda: self._threads == self._pulling, timeout_s)

    def _work(self, task: DownloadTask | None) -> None:
        while task is not None or (task := self._pulled()) is not None:
            self._run(task)
            with self._lock:
                task = self._next()
                if task is None and self._source is None:
                    self._leave()
                    return

    def _next(self) -> DownloadTask | None:
        """The next task of the queue, which is downloading from now on."""
        if self._begun and not self._is_stopping and self._busy < self._most:
            self._busy += 1
            return self._begun.popleft()
        while (
            not self._is_stopping
            and self._busy < self._most
            and (task := self.queue.get_next_task()) is not None
        ):
            if task.begin():
                self._busy += 1
                return task
        return None

    def _pulled(self) -> DownloadTask | None:
        """The same from the source; without one this thread is none of ours any
        more."""
        while (source := self._begin_pull()) is not None:
            task = None
            try:
                task = source()
            finally:
                is_wanted = self._end_pull(has_task=task is not None)
            if is_wanted and task is not None and task.begin():
                return task
            self.release()
        return None

    def _begin_pull(self) -> TaskSource | None:
        with self._lock:
            if self._is_stopping or self._source is None:
                self._leave()
                return None
            self._pulling += 1
            self._busy += 1
            return self._source

    def _end_pull(self, *, has_task: bool) -> bool:
        with self._lock:
            self._pulling -= 1
            self._lock.notify_all()
            if not has_task or self._is_stopping:
                self._source = None
            return not self._is_stopping

    def _leave(self) -> None:
        self._threads -= 1
        self._lock.notify_all()
