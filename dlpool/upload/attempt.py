"""One attempt at an upload: ask the server for its chunks, send missing ones, merge.

Missing or damaged chunks are sent again until the file at the server is complete.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from dlpool import threads
from dlpool.errors import (
    Cancelled,
    ChecksumMismatch,
    Conflict,
    DlpoolError,
    Garbled,
    MergedGone,
    NoTask,
    NotFound,
    NoThread,
    TaskClosed,
)
from dlpool.upload.api_client import (
    FileDigest,
    IncompleteUpload,
    UploadedFile,
    UploadTarget,
)
from dlpool.upload.connection_worker import UploadWorker
from dlpool.upload.context import ServerTask, UploadContext
from dlpool.upload.file_hash import FileHashThread
from dlpool.upload.localfile import new_buffer, new_hash
from dlpool.upload.plan import UploadPlan
from dlpool.upload.retrying import RequestRetrier
from dlpool.upload.scheduler import UploadScheduler

MERGE_POLL_S = 1.0  # between requests while another merge is running
MAX_REPAIRS = 5  # merges that may find chunks missing or damaged
MAX_CONFLICTS = 3  # merges that may be refused when no merge is running


class UploadAttempt:
    """One attempt with one chunk size. ``run`` is called once, by one thread.

    Other threads may read ``scheduler`` and ``phase``.
    """

    def __init__(
        self,
        context: UploadContext,
        plan: UploadPlan,
        target: UploadTarget,
        connections: int,
        algorithm: str,
    ) -> None:
        """Prepare the attempt; ``algorithm`` is that of the chunks' digests."""
        self.connections = min(connections, plan.count)
        self.scheduler = UploadScheduler(
            plan, context.scope, time.monotonic, self.connections
        )
        self.task = ServerTask(context, plan, target, self.scheduler)
        self.phase = "connecting"
        self.resumed_from = 0
        self._context = context
        self._retrier = RequestRetrier(context)
        self._algorithm = algorithm
        self._repairs = self._conflicts = 0

    def run(self) -> UploadedFile:
        """Upload the file.

        Raises ChunkTooLarge or MergedGone if another attempt is necessary, and any
        other error if the upload has failed. An error cancels the scope of the attempt.
        """
        context, file_hash = self._context, None
        try:
            was_completed = self._begin()
            stored = self.scheduler.stored_indexes()
            file_hash = FileHashThread(self.task, self._algorithm, stored)
            self._send(file_hash)
            merged = self._complete(file_hash)
            if was_completed and not self.scheduler.accepted_bytes:
                self._check_merged_file(merged)
            return merged
        except BaseException as error:
            context.scope.cancel(
                error
                if isinstance(error, DlpoolError)
                else Cancelled("the upload was interrupted")
            )
            raise
        finally:
            if file_hash is not None:
                file_hash.join()  # its thread reads the file, which the caller closes

    def _begin(self) -> bool:
        """Request the list of stored chunks.

        Returns True if the server says that it has merged the file already. Raises
        Conflict for a paused upload.
        """
        context, plan, target = self._context, self.task.plan, self.task.target
        status = self._retrier.request(
            lambda exchange: context.server.status(exchange, target)
        )
        if status.state == "paused":
            raise Conflict(
                f"the upload is paused at the server: resume its task {target.file_id} "
                f"there"
            )
        is_closed = status.state in ("merging", "completed")  # nothing to send
        self.scheduler.reset(range(plan.count) if is_closed else status.chunks)
        self.resumed_from = self.scheduler.stored_bytes
        context.notify(
            "upload_started",
            file_id=target.file_id,
            size=plan.size,
            chunks=plan.count,
            resumed_from=self.resumed_from,
        )
        return status.state == "completed"

    def _send(self, file_hash: FileHashThread) -> None:
        """Send the missing chunks over all connections."""
        self.phase = "uploading"
        workers = [UploadWorker(self.task, file_hash) for _ in range(self.connections)]
        started = _start_threads(workers)
        if not started:
            workers[0].run()
        for thread in started:
            thread.join()
        self._context.scope.raise_if_cancelled()

    def _complete(self, file_hash: FileHashThread) -> UploadedFile:
        """Merge the chunks; send missing and damaged chunks again."""
        context, size = self._context, self.task.plan.size
        while True:
            self.phase = "hashing"
            digest = FileDigest(self._algorithm, file_hash.hexdigest())
            context.file.check_unchanged()
            self.phase = "merging"
            answer = self._merge(digest)
            if isinstance(answer, UploadedFile):
                if (answer.size, answer.digest) != (size, digest):
                    raise ChecksumMismatch(
                        f"the file at the server has {answer.digest}, the one here "
                        f"{digest}"
                    )
                return answer
            missing = self.scheduler.reset(answer.chunks)
            context.notify("chunks_missing", chunks=missing)
            self._repairs += 1
            if not missing:
                raise ChecksumMismatch(
                    f"the server cannot merge the file, although it has all of its "
                    f"chunks ({digest})"
                )
            if self._repairs > MAX_REPAIRS:
                raise answer.reason
            self._send(file_hash)

    def _merge(self, digest: FileDigest) -> UploadedFile | IncompleteUpload:
        """Request the merge; wait while another client's merge is running."""
        server, target = self._context.server, self.task.target
        count = self.task.plan.count
        while True:
            try:
                return self._retrier.request(
                    lambda exchange: server.merge(exchange, target, count, digest),
                    is_final=lambda error: isinstance(error, Garbled),
                )
            except Garbled as error:
                return IncompleteUpload(self._intact_chunks(), error)
            except NoTask as error:
                return IncompleteUpload((), error)
            except Conflict as error:
                if not self._may_merge_again(error):
                    raise

    def _may_merge_again(self, error: Conflict) -> bool:
        """Return whether to request the merge again after a conflict.

        While another client's merge is running, sleeps before it returns True: after
        that merge, a new request returns the result.
        """
        context = self._context
        status = self._retrier.request(
            lambda exchange: context.server.status(exchange, self.task.target)
        )
        if status.state == "merging":
            context.scope.sleep(MERGE_POLL_S)
            return True
        self._conflicts += 1
        return isinstance(error, TaskClosed) and self._conflicts <= MAX_CONFLICTS

    def _intact_chunks(self) -> tuple[int, ...]:
        """Return the indexes of stored chunks whose digest matches the local file."""
        server, target = self._context.server, self.task.target
        try:
            stored = self._retrier.request(
                lambda exchange: server.chunk_digests(exchange, target)
            )
        except NoTask:
            return ()
        buffer, intact = new_buffer(), []
        for index in stored.keys() & range(self.task.plan.count):
            algorithm, expected = stored[index]
            digest = new_hash(algorithm)
            self.task.hash_chunk(digest, index, buffer)
            if digest.hexdigest() == expected:
                intact.append(index)
        return tuple(intact)

    def _check_merged_file(self, merged: UploadedFile) -> None:
        """Check that the server still has the file that an earlier run merged.

        Raises MergedGone.
        """
        try:
            size = self._retrier.request(
                lambda exchange: self._context.server.merged_size(exchange, merged)
            )
        except NotFound:
            size = -1
        if size not in (None, merged.size):
            raise MergedGone(
                f"the server calls the upload complete, but its file is not at "
                f"{merged.location}"
            )


def _start_threads(workers: Sequence[UploadWorker]) -> list[threads.DaemonThread]:
    """Start a thread for each worker and return the threads.

    Returns fewer threads if the process reaches its limit of threads.
    """
    started: list[threads.DaemonThread] = []
    with suppress(NoThread):
        for worker in workers:
            started.append(threads.start_thread(worker.run, "dlpool-upload"))
    return started
