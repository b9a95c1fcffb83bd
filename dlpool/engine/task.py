"""One download of a program: what it may look at, and what it may ask for."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from dlpool.engine.arguments import check_priority, job_of
from dlpool.engine.owner import TaskOwner
from dlpool.engine.progress import TaskProgress
from dlpool.engine.status import (
    CANCELLED,
    COMPLETED,
    DOWNLOADING,
    FAILED,
    FINAL,
    MOVES,
    PAUSED,
    PENDING,
)
from dlpool.errors import Cancelled, DlpoolError, UsageError
from dlpool.transfer.job import Job, Progress, TransferResult
from dlpool.transfer.transfer import Transfer


class DownloadTask:
    """One URL to one file. Thread-safe; the lock guards all of it.

    ``output_path`` is a folder, made if it is missing; without ``filename`` the server
    or the URL names the file. ``headers`` go to the URL's origin only. A smaller
    ``priority`` is taken sooner. ``checksum`` is ``ALGO:HEX``. Raises UsageError for
    what could never be downloaded.
    """

    def __init__(
        self,
        url: str,
        output_path: str | PathLike[str],
        filename: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        *,
        checksum: str | None = None,
    ) -> None:
        self._set_up(
            job_of(url, output_path, filename, headers, checksum), priority, ""
        )
        self._output_path = os.fspath(output_path)

    @classmethod
    def of(
        cls, job: Job, *, priority: int = 0, label: str = "", task_id: str = ""
    ) -> DownloadTask:
        """A task for a job as it stands; ``label`` names it in messages instead of its
        URL."""
        task = cls.__new__(cls)
        task._set_up(job, priority, label, task_id)
        return task

    def _set_up(self, job: Job, priority: int, label: str, task_id: str = "") -> None:
        check_priority(priority)
        self._id = task_id or uuid.uuid4().hex
        self.priority, self.url, self.label, self.job = priority, job.url, label, job
        self._output_path = str(job.target if job.is_folder else job.target.parent)
        self._start_time: float | None = None
        self._end_time: float | None = None
        self._changed = threading.Condition()
        self._owner: TaskOwner | None = None
        self._status = PENDING
        self._is_running = False  # a thread has it, whatever its status is by now
        self._is_publishing = False
        self._is_abandoned = False  # the engine is shut down
        self._transfer: Transfer | None = None
        self._outcome: TransferResult | None = None
        self._failure: DlpoolError | None = None
        self._gauge = TaskProgress(None if self.job.is_folder else self.job.target)

    def __repr__(self) -> str:
        return f"<DownloadTask {self._id} {self._status} {self.url!r}>"

    # --- looking ---

    @property
    def id(self) -> str:
        """What it is called by."""
        return self._id

    @property
    def start_time(self) -> float | None:
        """When it began, in seconds since 1970."""
        return self._start_time

    @property
    def end_time(self) -> float | None:
        """When it ended, in seconds since 1970."""
        return self._end_time

    @property
    def status(self) -> str:
        """pending, downloading, paused, completed, failed or cancelled."""
        return self._status

    @property
    def progress(self) -> float:
        """From 0.0 to 1.0; never backwards but after a restart, which the log of events
        announces."""
        with self._looking() as gauge:
            return 1.0 if self._status == COMPLETED else gauge.fraction

    @property
    def speed(self) -> float:
        """Bytes a second over the last seconds; 0.0 unless it is downloading."""
        with self._looking() as gauge:
            return gauge.speed if self._status == DOWNLOADING else 0.0

    @property
    def downloaded_size(self) -> int:
        """Bytes that are in the file."""
        with self._looking() as gauge:
            return gauge.done

    @property
    def total_size(self) -> int:
        """The size of the complete file in bytes; 0 while unknown."""
        with self._looking() as gauge:
            return gauge.total or 0

    @property
    def eta(self) -> int | None:
        """Seconds left at the present speed; None if that cannot be told."""
        with self._looking() as gauge:
            return gauge.eta_s if self._status == DOWNLOADING else None

    @property
    def file_path(self) -> str | None:
        """Where the file is, or will be; None while its name is unknown."""
        with self._looking() as gauge:
            return None if gauge.path is None else str(gauge.path)

    @property
    def output_path(self) -> str:
        """The folder of the file, as given."""
        return self._output_path

    @property
    def filename(self) -> str | None:
        """The requested file name; None if the server or the URL names the file."""
        return None if self.job.is_folder else self.job.target.name

    @property
    def headers(self) -> dict[str, str]:
        """A copy of the headers that are sent to the URL's origin."""
        return dict(self.job.headers)

    @property
    def error(self) -> str | None:
        """Why it failed."""
        return None if self._failure is None else str(self._failure)

    @property
    def failure(self) -> DlpoolError | None:
        """The same as an exception, with its label."""
        return self._failure

    @property
    def outcome(self) -> TransferResult | None:
        """The figures of a completed download."""
        return self._outcome

    def figures(self) -> tuple[int, int | None, float]:
        """Bytes done, bytes in all, bytes a second."""
        with self._looking() as gauge:
            return (
                gauge.done,
                gauge.total,
                gauge.speed if self._status == DOWNLOADING else 0.0,
            )

    def moment(self) -> Progress:
        """Where it is, as its transfer sees it."""
        with self._changed:
            transfer = self._transfer
        return (
            Progress(self.job.target, 0, None, 0, "connecting")
            if transfer is None
            else transfer.progress()
        )

    # --- asking ---

    def cancel(self) -> bool:
        """End it for good, and remove what it has fetched. False if it has ended or is
        about to, or its engine has."""
        return self._stop(CANCELLED, "the download was cancelled")

    def pause(self) -> bool:
        """Give its place to another; what it has fetched stays. False unless it is
        pending or downloading."""
        return self._stop(PAUSED, "the download was paused")

    def resume(self) -> bool:
        """Queue it again, behind those of its priority. False unless it is paused."""
        with self._changed:
            owner = self._owner
            if self._status != PAUSED or owner is None or self._is_abandoned:
                return False
            self._move(PENDING)
            is_idle = (
                not self._is_running
            )  # else its thread sees that when it has ended
        if is_idle:
            owner.task_ready(self)
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for ``timeout`` seconds at most. False if it has
        not, or its engine is shut down."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or self._is_abandoned, timeout)
            return self.is_over

    def result(self, timeout: float | None = None) -> Path:
        """The path of the file, when it is there.

        Raises TimeoutError, Cancelled, or what the download failed with.
        """
        if not self.wait(timeout):
            if self._is_abandoned:
                raise Cancelled("the engine was shut down before the download ended")
            raise TimeoutError(f"the download has not ended within {timeout} s")
        if self._outcome is not None:
            return self._outcome.path
        raise self._failure or Cancelled("the download was cancelled")

    def update_progress(self, progress: float) -> None:
        """Tell how much is done, from 0.0 to 1.0, of a task whose size nobody knows.
        Never backwards."""
        with self._changed:
            if progress > self._gauge.reported:  # not if it is no number
                self._gauge.reported = min(1.0, progress)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and nothing runs for it any more."""
        return self._status in FINAL and not self._is_running

    # --- for the engine ---

    def adopt(self, owner: TaskOwner) -> bool:
        """Become a task of an engine, also after another one was shut down; False if it
        is that engine's, or has ended.

        Raises UsageError while it is another engine's.
        """
        with self._changed:
            if self._owner is owner or self._status in FINAL:
                return False
            if self._owner is not None and not self._is_abandoned:
                raise UsageError("the task is another engine's")
            self._owner, self._is_abandoned = owner, False
            self._move(PENDING)  # if it was paused
            return True

    def begin(self) -> bool:
        """A thread takes it; False if it is not pending any more."""
        with self._changed:
            if self._is_running or not self._move(DOWNLOADING):
                return False
            self._is_running, self._is_publishing = True, False
            self._start_time = self._start_time or time.time()
            self._gauge.begin_attempt()
            return True

    def run(self, make: Callable[[DownloadTask], Transfer]) -> TransferResult:
        """Download; called by the thread that has begun it. Raises what ended it
        without a file."""
        transfer = make(self)
        with self._changed:
            if self._status != DOWNLOADING:
                raise Cancelled("it was stopped before it began")
            self._transfer = transfer
        return transfer.run()

    def end_run(
        self, outcome: TransferResult | None, failure: DlpoolError | None
    ) -> str:
        """The thread lets go of it; returns its status. What was stopped on demand has
        not failed."""
        with self._looking() as gauge:
            self._transfer, self._is_running = None, False
            if outcome is not None and self._move(COMPLETED):
                self._outcome = outcome
                gauge.complete(outcome)
            elif failure is not None and self._status == DOWNLOADING:
                self._failure = failure
                self._move(FAILED)
            if self._status in FINAL:
                self._end_time = time.time()
            self._changed.notify_all()
            return self._status

    def abandon(self, owner: TaskOwner) -> None:
        """Its engine is shut down: what has not ended is paused, and nobody waits for
        it."""
        if self._owner is not owner:
            return  # another one has taken it over
        self._stop(PAUSED, "the engine is shut down")
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()

    def permit(self) -> None:
        """May the verified file be published? From now on it is too late to stop it.
        Raises Cancelled."""
        with self._changed:
            if self._status != DOWNLOADING:
                raise Cancelled("it was stopped before it was published")
            self._is_publishing = True

    def hear(self, event: str, /, **fields: object) -> None:
        """What happens in its transfer: a Notify."""
        with self._changed:
            self._gauge.handle_event(event, fields)

    def _stop(self, status: str, reason: str) -> bool:
        with self._changed:
            if self._is_publishing or self._is_abandoned or not self._move(status):
                return False
            owner, transfer, is_idle = self._owner, self._transfer, not self._is_running
            if is_idle and status in FINAL:
                self._end_time = time.time()
            self._changed.notify_all()
        if transfer is not None:
            transfer.cancel(Cancelled(reason))
        if is_idle and owner is not None:
            owner.task_withdrawn(self)
        return True

    def _move(self, status: str) -> bool:
        if status not in MOVES[self._status]:
            return False
        self._status = status
        return True

    @contextmanager
    def _looking(self) -> Iterator[TaskProgress]:
        """The lock, and where it is now."""
        with self._changed:
            self._gauge.sample(self._transfer)
            yield self._gauge
