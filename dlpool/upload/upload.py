"""One upload: a file, and the task at the server that it becomes; anew, where the
server wants it otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, ChunkTooLarge, FailJob, MergedGone, PolicyRefused
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import RateLimit, RateLimits
from dlpool.transfer.job import Notify, Progress, ignore_event
from dlpool.upload.api_client import MergedFile, UploadApiClient, UploadTarget
from dlpool.upload.attempt import UploadAttempt
from dlpool.upload.cancel_scope import UploadCancelScope
from dlpool.upload.capabilities import ServerCapabilities
from dlpool.upload.context import UploadContext
from dlpool.upload.localfile import LocalFile
from dlpool.upload.plan import auto_chunk_size, file_id, make_plan, smaller_chunk_size
from dlpool.upload.retrying import RequestRetrier
from dlpool.upload.values import FileUploadRequest, UploadResult
from dlpool.upload.watch import UploadSpeedMonitor

LEAST_RATE = (
    16 * 1024
)  # bytes a second of one connection: more of them would only take turns


class FileUpload:
    """``run`` by one thread, once; ``cancel`` and ``moment`` by any. The lock guards
    the ending and the cancelling."""

    def __init__(
        self,
        wish: FileUploadRequest,
        server: UploadApiClient,
        client: HttpClient,
        settings: TransferSettings,
        notify: Notify = ignore_event,
        own: Collection[str] = (),
    ) -> None:
        """``own``: the settings that the server has no say in. Raises UsageError."""
        self._wish = wish
        self._name, self._path = wish.target()
        self._server = server
        self._client = client
        self._settings = settings
        self._notify = notify
        self._own = own
        self._rate = RateLimits(
            RateLimit(settings.limit_rate, time.monotonic), client.rate_limit
        )
        self._watch = UploadSpeedMonitor(client.settings, time.monotonic)
        self._lock = threading.Lock()
        self._cancelled: Cancelled | None = None
        self._ending = UploadCancelScope(time.monotonic)
        self._rounds: list[UploadAttempt] = []
        self._most_done = 0

    def cancel(self) -> None:
        """End it; the same upload goes on another time."""
        with self._lock:
            self._cancelled = Cancelled("the upload was cancelled")
            ending = self._ending
        ending.cancel(self._cancelled)

    def progress(self) -> Progress:
        """Where it is. What is sent again after a failure does not count again."""
        if not self._rounds:
            return Progress(self._wish.file, 0, None, 0, "connecting")
        current = self._rounds[-1]
        self._most_done = max(self._most_done, current.scheduler.done_bytes)
        return Progress(
            self._wish.file,
            self._most_done,
            current.task.plan.size,
            current.scheduler.sending_count,
            current.phase,
        )

    def run(self) -> UploadResult:
        """Upload the file. Raises DlpoolError."""
        began = time.monotonic()
        with LocalFile(self._wish.file) as file, self._client.timer.calling(self._look):
            merged = self._run(self._context(file))
        last = self._rounds[-1]
        return UploadResult(
            self._wish.file,
            merged.path,
            merged.location,
            merged.size,
            sum(each.scheduler.accepted_bytes for each in self._rounds),
            last.resumed_from,
            time.monotonic() - began,
            sum(each.scheduler.retries for each in self._rounds),
            last.connections,
            last.task.plan.chunk_size,
            merged.md5,
            last.task.target.file_id,
        )

    def _run(self, context: UploadContext) -> MergedFile:
        """Rounds, until one ends well: a task whose file is gone is begun anew once,
        chunks become smaller."""
        advice, size = (
            RequestRetrier(context).request(self._server.capabilities),
            context.file.identity.size,
        )
        if advice.max_file_size is not None and size > advice.max_file_size:
            text = (
                f"the file has {size} bytes, and the server takes at most "
                f"{advice.max_file_size}"
            )
            raise PolicyRefused(text)
        context = replace(context, settings=advice.apply_to(self._settings, self._own))
        chunk_size, has_begun_anew = self._first_chunk_size(size, advice), False
        while True:
            current = self._round(context, chunk_size, advice)
            try:
                return current.run()
            except ChunkTooLarge as error:
                chunk_size = self._next_chunk_size(error, min(chunk_size, size), advice)
                self._notify(
                    "chunk_size_reduced", error=str(error), chunk_size=chunk_size
                )
            except MergedGone as error:
                if has_begun_anew:
                    raise
                has_begun_anew = True
                self._notify("begun_anew", error=str(error))
            context = replace(context, scope=self._next_ending())
            self._forget(current.task.target, context)

    def _round(
        self, context: UploadContext, chunk_size: int, advice: ServerCapabilities
    ) -> UploadAttempt:
        identity, limit = context.file.identity, self._settings.limit_rate
        cut = make_plan(identity.size, chunk_size)
        target = UploadTarget(
            file_id(identity, chunk_size, self._name, self._path),
            self._name,
            self._path,
        )
        connections = self._wish.connections or advice.connections
        if limit is not None:
            connections = max(1, min(connections, limit // LEAST_RATE))
        current = UploadAttempt(context, cut, target, connections)
        self._rounds.append(current)
        return current

    def _first_chunk_size(self, size: int, advice: ServerCapabilities) -> int:
        wanted, most = self._wish.chunk_size, advice.max_chunk_size
        if wanted is None:
            return auto_chunk_size(size, most)
        if most is not None and min(wanted, size) > most:
            raise PolicyRefused(
                f"the server takes chunks of at most {most} bytes: use a smaller "
                f"--chunk-size"
            )
        return wanted

    def _next_chunk_size(
        self, error: ChunkTooLarge, refused: int, advice: ServerCapabilities
    ) -> int:
        """What to try after chunks were too large. Raises the error where nothing is
        left to try."""
        if self._wish.chunk_size is not None:
            raise ChunkTooLarge(f"{error}: use a smaller --chunk-size") from error
        smaller = smaller_chunk_size(refused, advice.max_chunk_size)
        if smaller is None:
            raise error
        return smaller

    def _forget(self, target: UploadTarget, context: UploadContext) -> None:
        """Have the server forget a task. It may not have it, or not let us: the next
        round tells."""
        with suppress(FailJob):
            RequestRetrier(context).request(
                lambda exchange: self._server.delete(exchange, target)
            )

    def _context(self, file: LocalFile) -> UploadContext:
        return UploadContext(
            file,
            self._settings,
            self._client,
            self._server,
            self._next_ending(),
            self._rate,
            self._notify,
        )

    def _next_ending(self) -> UploadCancelScope:
        """What ends from now on; an end that was asked for stands."""
        with self._lock:
            self._ending = UploadCancelScope(time.monotonic)
            if self._cancelled is not None:
                raise self._cancelled
            return self._ending

    def _look(self) -> None:
        self._watch.sample(self._ending.exchanges())
