"""One task at the server: ask what it has, send the rest, merge; again, until the whole
file is there."""

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
from dlpool.upload.api_client import IncompleteUpload, MergedFile, UploadTarget
from dlpool.upload.connection_worker import UploadWorker
from dlpool.upload.context import ServerTask, UploadContext
from dlpool.upload.file_hash import FileHashThread
from dlpool.upload.localfile import new_buffer, new_md5
from dlpool.upload.plan import UploadPlan
from dlpool.upload.retrying import RequestRetrier
from dlpool.upload.scheduler import UploadScheduler

MERGE_POLL_S = 1.0
MAX_REPAIRS = 5  # merges that found chunks missing or wrong
MAX_CONFLICTS = 3  # merges that were refused for another that had ended by then


class UploadAttempt:
    """``run`` by one thread, once; ``board`` and ``phase`` are for any."""

    def __init__(
        self,
        context: UploadContext,
        plan: UploadPlan,
        target: UploadTarget,
        connections: int,
    ) -> None:
        self.connections = min(connections, plan.count)
        self.scheduler = UploadScheduler(
            plan, context.scope, time.monotonic, self.connections
        )
        self.task = ServerTask(context, plan, target, self.scheduler)
        self.phase = "connecting"
        self.resumed_from = 0
        self._context = context
        self._asker = RequestRetrier(context)
        self._repairs = self._conflicts = 0

    def run(self) -> MergedFile:
        """Upload the file. Raises MergedGone and ChunkTooLarge where it is to begin
        anew, and what ends it."""
        context, whole = self._context, None
        try:
            was_completed = self._begin()
            whole = FileHashThread(self.task)
            self._send()
            merged = self._merged(whole)
            if was_completed and not self.scheduler.accepted_bytes:
                self._look_for(merged)
            return merged
        except BaseException as error:
            context.scope.cancel(
                error
                if isinstance(error, DlpoolError)
                else Cancelled("the upload was interrupted")
            )
            raise
        finally:
            if whole is not None:
                whole.join()  # it reads the file, too

    def _begin(self) -> bool:
        """Learn what the server has; returns whether that is the whole file."""
        context, plan, target = self._context, self.task.plan, self.task.target
        status = self._asker.request(
            lambda exchange: context.server.status(exchange, target)
        )
        if status.state == "paused":
            raise Conflict(
                f"the upload is paused at the server: resume its task {target.file_id} "
                f"there"
            )
        is_closed = status.state in ("merging", "completed")  # the merge tells
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

    def _send(self) -> None:
        """Send what is missing, over all lanes."""
        self.phase = "uploading"
        lanes = [UploadWorker(self.task) for _ in range(self.connections)]
        started = _started(lanes)
        if not started:
            lanes[0].run()
        for thread in started:
            thread.join()
        self._context.scope.raise_if_cancelled()

    def _merged(self, whole: FileHashThread) -> MergedFile:
        """The file at the server. Chunks that turn out to be bad or missing are sent
        again."""
        context, size = self._context, self.task.plan.size
        while True:
            self.phase = "hashing"
            md5 = whole.hexdigest()
            context.file.check_unchanged()
            self.phase = "merging"
            answer = self._merge(md5)
            if isinstance(answer, MergedFile):
                if (answer.size, answer.md5) != (size, md5):
                    raise ChecksumMismatch(
                        f"the file at the server has md5 {answer.md5}, the one here "
                        f"{md5}"
                    )
                return answer
            missing = self.scheduler.reset(answer.chunks)
            context.notify("chunks_missing", chunks=missing)
            self._repairs += 1
            if not missing:
                raise ChecksumMismatch(
                    f"the server cannot make the file, although it has all of its "
                    f"chunks ({md5})"
                )
            if self._repairs > MAX_REPAIRS:
                raise answer.reason
            self._send()

    def _merge(self, md5: str) -> MergedFile | IncompleteUpload:
        """Ask for the merge, and wait where another request is at it already."""
        server, target, count = (
            self._context.server,
            self.task.target,
            self.task.plan.count,
        )
        while True:
            try:
                return self._asker.request(
                    lambda exchange: server.merge(exchange, target, count, md5),
                    is_final=lambda error: isinstance(error, Garbled),
                )
            except Garbled as error:
                return IncompleteUpload(self._right_chunks(), error)
            except NoTask as error:
                return IncompleteUpload((), error)
            except Conflict as error:
                if not self._may_merge_again(error):
                    raise

    def _may_merge_again(self, error: Conflict) -> bool:
        """Wait a moment while another request is at it. When none is any more, one more
        merge gives its result."""
        context = self._context
        status = self._asker.request(
            lambda exchange: context.server.status(exchange, self.task.target)
        )
        if status.state == "merging":
            context.scope.sleep(MERGE_POLL_S)
            return True
        self._conflicts += 1
        return isinstance(error, TaskClosed) and self._conflicts <= MAX_CONFLICTS

    def _right_chunks(self) -> tuple[int, ...]:
        """Those of the server's chunks that have the md5 of what is in the file."""
        context, plan, buffer, right = self._context, self.task.plan, new_buffer(), []
        try:
            md5s = self._asker.request(
                lambda exchange: context.server.chunk_md5s(exchange, self.task.target)
            )
        except NoTask:
            return ()
        for index in range(plan.count):
            digest = new_md5()
            context.file.hash(
                digest, plan.span(index), buffer, context.scope.raise_if_cancelled
            )
            if md5s.get(index) == digest.hexdigest():
                right.append(index)
        return tuple(right)

    def _look_for(self, merged: MergedFile) -> None:
        """Nothing was sent: see whether what an earlier run has sent is still there.
        Raises MergedGone."""
        try:
            length = self._asker.request(
                lambda exchange: self._context.server.merged_size(exchange, merged)
            )
        except NotFound:
            length = -1
        if length not in (None, merged.size):
            raise MergedGone(
                f"the server calls the upload complete, but its file is not at "
                f"{merged.location}"
            )


def _started(lanes: Sequence[UploadWorker]) -> list[threads.DaemonThread]:
    """Start a thread for each lane, up to the limit of threads; return them."""
    started: list[threads.DaemonThread] = []
    with suppress(NoThread):
        for lane in lanes:
            started.append(threads.start_thread(lane.run, "dlpool-upload"))
    return started
