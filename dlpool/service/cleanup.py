"""The clean-up after ended jobs: workers remove the stale part files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from dlpool.errors import DlpoolError, LocalFault
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Logger
from dlpool.service.journal import CleanupJournal
from dlpool.service.pool import WorkerPool
from dlpool.service.wire.frames import CleanFrame, CleanupEntry
from dlpool.service.worker.job_run import remove_stale_files
from dlpool.service.worker_handle import WorkerHandle

SEND_INTERVAL_S = 0.25
MAX_FRAME_CHARACTERS = 8192  # of the paths in one frame


class CleanupDispatcher:
    """The sender of clean-up requests to workers, and the owner of the clean-up
    journal.

    Used by the main thread only. The entry of a job stays in the journal until its
    files are removed.
    """

    def __init__(self, pool: WorkerPool, journal: CleanupJournal, log: Logger) -> None:
        self._pool = pool
        self._journal = journal
        self._log = log
        # by pid of the worker that ran the job, 0 if unknown
        self._pending: dict[int, list[CleanupEntry]] = {}
        self._sent_at = 0.0

    def record_start(self, *entries: CleanupEntry) -> None:
        """Add entries to the journal: for jobs that start, and for jobs whose paths
        have become known."""
        try:
            self._journal.add(*entries)
        except LocalFault as error:
            for entry in entries:
                self._log.warning(
                    "journal_write_failed",
                    job_id=entry.job_id,
                    trace_id=entry.trace_id,
                    error=error,
                )

    def enqueue(self, entries: Iterable[CleanupEntry], pid: int = 0) -> None:
        """Queue clean-up requests for ended jobs. Call this after Redis has recorded
        the results of the jobs.

        ``pid``: process id of the worker that ran the jobs, 0 if unknown.
        """
        self._pending.setdefault(pid, []).extend(entries)

    def forget(self, entries: Iterable[CleanupEntry]) -> None:
        """Remove ``entries`` from the journal: their jobs need no clean-up."""
        try:
            self._journal.remove(entries)
        except LocalFault as error:
            self._log.warning("journal_write_failed", error=error)

    def send_requests(self, *, now: bool = False) -> None:
        """Send each pending entry to the worker that ran the job, or to another worker
        if that worker accepts no requests. If no worker accepts requests, keep the
        entries.

        Without ``now``, send at most once in ``SEND_INTERVAL_S`` seconds.
        """
        ready = [one for one in self._pool.workers.values() if one.is_accepting]
        if not ready or not (
            now or time.monotonic() - self._sent_at >= SEND_INTERVAL_S
        ):
            return
        self._sent_at = time.monotonic()
        for pid, entries in self._pending.items():
            worker = next((one for one in ready if one.pid == pid), ready[0])
            for part in split_into_frames(entries):
                worker.cleanup_requests |= {one.job_id: one for one in part}
                worker.send(CleanFrame([list(one) for one in part]))
        self._pending.clear()

    def confirm(self, worker: WorkerHandle, job_ids: Sequence[str]) -> None:
        """Remove from the journal the entries that a worker has processed."""
        self.forget(
            [
                worker.cleanup_requests.pop(job_id)
                for job_id in job_ids
                if job_id in worker.cleanup_requests
            ]
        )

    def reassign(self, worker: WorkerHandle) -> None:
        """Enqueue again the entries that a dead worker received and did not confirm."""
        self.enqueue(worker.cleanup_requests.values())
        worker.cleanup_requests.clear()

    def clean_up_here(self, paths: Confinement) -> None:
        """In this process, remove the files of pending entries; then compact the
        journal.

        Called when all workers have exited.
        """
        pending = [entry for entries in self._pending.values() for entry in entries]
        self._pending.clear()
        for entry in pending:
            try:
                remove_stale_files(entry, paths)
            except DlpoolError as error:
                self._log.warning(
                    "stale_file_not_removed",
                    job_id=entry.job_id,
                    trace_id=entry.trace_id,
                    error=error,
                )
        self.forget(pending)
        try:
            self._journal.compact()
        except LocalFault as error:
            self._log.warning("journal_write_failed", error=error)


def split_into_frames(entries: Sequence[CleanupEntry]) -> Iterator[list[CleanupEntry]]:
    """Yield the entries in portions that fit into one frame each."""
    portion: list[CleanupEntry] = []
    size = 0
    for entry in entries:
        length = len(entry.url_sha256) + len(entry.save_path) + len(entry.path or "")
        if portion and size + length > MAX_FRAME_CHARACTERS:
            yield portion
            portion, size = [], 0
        portion.append(entry)
        size += length
    if portion:
        yield portion
