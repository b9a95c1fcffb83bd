"""What ended jobs kept beside their targets for a next run goes when Redis knows how
they ended."""

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

CLEAN_S = 0.25
CLEAN_CHARACTERS = 8192  # of one frame


class CleanupDispatcher:
    """Used by the main thread only. What is not done when this process ends is on the
    trail."""

    def __init__(self, pool: WorkerPool, trail: CleanupJournal, log: Logger) -> None:
        self._pool = pool
        self._trail = trail
        self._log = log
        self._leftovers: dict[int, list[CleanupEntry]] = {}
        self._cleaned = 0.0

    def record_start(self, job: CleanupEntry) -> None:
        """A job is begun, or its path has become known."""
        try:
            self._trail.add(job)
        except LocalFault as error:
            self._log.warning(
                "trail_not_kept", job_id=job.job_id, trace_id=job.trace_id, error=error
            )

    def enqueue(self, ended: Iterable[CleanupEntry], pid: int = 0) -> None:
        """These jobs have ended, and Redis knows; ``pid`` is the worker that ran them,
        if it is known."""
        self._leftovers.setdefault(pid, []).extend(ended)

    def forget(self, ended: Iterable[CleanupEntry]) -> None:
        """Nothing of these jobs is left, but for later runs of them."""
        try:
            self._trail.remove(ended)
        except LocalFault as error:
            self._log.warning("trail_not_kept", error=error)

    def send_requests(self, *, now: bool = False) -> None:
        """Have workers remove what is left: a few at a time, the worker that ran
        them."""
        ready = [one for one in self._pool.workers.values() if one.is_accepting]
        if not ready or not (now or time.monotonic() - self._cleaned >= CLEAN_S):
            return
        self._cleaned = time.monotonic()
        for pid, leftovers in self._leftovers.items():
            handle = next((one for one in ready if one.pid == pid), ready[0])
            for part in split_into_frames(leftovers):
                handle.cleanup_requests |= {one.job_id: one for one in part}
                handle.send(CleanFrame([list(one) for one in part]))
        self._leftovers.clear()

    def confirm(self, handle: WorkerHandle, job_ids: Sequence[str]) -> None:
        """A worker has done it."""
        self.forget(
            [
                handle.cleanup_requests.pop(job_id)
                for job_id in job_ids
                if job_id in handle.cleanup_requests
            ]
        )

    def reassign(self, handle: WorkerHandle) -> None:
        """A worker has died: what it has not done is another's to do."""
        self.enqueue(handle.cleanup_requests.values())
        handle.cleanup_requests.clear()

    def clean_up_here(self, paths: Confinement) -> None:
        """All workers have ended: do here what they have not done."""
        rest = [ended for leftovers in self._leftovers.values() for ended in leftovers]
        self._leftovers.clear()
        for ended in rest:
            try:
                remove_stale_files(ended, paths)
            except DlpoolError as error:
                self._log.warning(
                    "leftover_not_removed",
                    job_id=ended.job_id,
                    trace_id=ended.trace_id,
                    error=error,
                )
        self.forget(rest)
        try:
            self._trail.compact()
        except LocalFault as error:
            self._log.warning("trail_not_kept", error=error)


def split_into_frames(
    leftovers: Sequence[CleanupEntry],
) -> Iterator[list[CleanupEntry]]:
    """As many of them as fit into one frame each."""
    portion: list[CleanupEntry] = []
    size = 0
    for one in leftovers:
        length = len(one.url_sha256) + len(one.save_path) + len(one.path or "")
        if portion and size + length > CLEAN_CHARACTERS:
            yield portion
            portion, size = [], 0
        portion.append(one)
        size += length
    if portion:
        yield portion
