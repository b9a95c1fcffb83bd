"""The upload of one file, from the first request to the merged file.

After a failed attempt, the upload makes a new attempt in two cases: with smaller chunks
if the server has refused the chunk size; with a new task if the merged file is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from dlpool.cancel import Cancellable, CancelScope
from dlpool.config import NetworkSettings, TransferSettings
from dlpool.errors import (
    Cancelled,
    ChunkTooLarge,
    DlpoolError,
    FailJob,
    MergedGone,
    PolicyRefused,
)
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange
from dlpool.transfer.http.limits import RateLimit, RateLimits
from dlpool.transfer.job import Notify, Progress, ignore_event
from dlpool.transfer.speed_monitor import (
    SpeedSamples,
    below_minimum,
    header_timed_out,
)
from dlpool.upload.api_client import UploadApiClient, UploadedFile, UploadTarget
from dlpool.upload.attempt import UploadAttempt
from dlpool.upload.capabilities import ServerCapabilities
from dlpool.upload.context import UploadContext
from dlpool.upload.localfile import MD5, SHA256, LocalFile
from dlpool.upload.plan import auto_chunk_size, file_id, make_plan, smaller_chunk_size
from dlpool.upload.retrying import RequestRetrier
from dlpool.upload.values import FileUploadRequest, UploadResult

# Bytes per second: a rate limit below this value per connection reduces the number of
# connections, which would only take turns.
MIN_CONNECTION_RATE = 16 * 1024


class FileUpload:
    """Uploads one file. ``run`` is called once, by one thread.

    ``cancel`` and ``progress`` may be called by any thread. The scope of the running
    attempt is a member of the upload's scope: cancelling the upload cancels both.
    """

    def __init__(
        self,
        request: FileUploadRequest,
        server: UploadApiClient,
        client: HttpClient,
        settings: TransferSettings,
        notify: Notify = ignore_event,
        user_settings: Collection[str] = (),
    ) -> None:
        """Prepare the upload without sending anything.

        ``user_settings``: the names of the settings that the user has set. The server's
        defaults do not replace them. Raises UsageError for a name or a folder that
        cannot be sent.
        """
        self._request = request
        self._name, self._path = request.target()
        self._server = server
        self._client = client
        self._settings = settings
        self._notify = notify
        self._user_settings = user_settings
        self._rate = RateLimits(
            RateLimit(settings.limit_rate, time.monotonic), client.rate_limit
        )
        self._monitor = UploadSpeedMonitor(client.settings, time.monotonic)
        self._scope = CancelScope()
        self._attempt_scope = CancelScope()
        self._attempts: list[UploadAttempt] = []
        self._most_done = 0

    def cancel(self) -> None:
        """Cancel the upload. A later upload of the same file can resume it."""
        self._scope.cancel(Cancelled("the upload was cancelled"))

    def progress(self) -> Progress:
        """Return the progress. Its number of bytes never decreases."""
        if not self._attempts:
            return Progress(self._request.file, 0, None, 0, "connecting")
        current = self._attempts[-1]
        self._most_done = max(self._most_done, current.scheduler.done_bytes)
        return Progress(
            self._request.file,
            self._most_done,
            current.task.plan.size,
            current.scheduler.sending_count,
            current.phase,
        )

    def run(self) -> UploadResult:
        """Upload the file. Raises DlpoolError."""
        began, file = time.monotonic(), self._request.file
        with LocalFile(file) as opened, self._client.timer.calling(self._sample):
            merged = self._run(self._context(opened))
        last = self._attempts[-1]
        return UploadResult(
            file,
            merged.path,
            merged.location,
            merged.size,
            sum(each.scheduler.accepted_bytes for each in self._attempts),
            last.resumed_from,
            time.monotonic() - began,
            sum(each.scheduler.retries for each in self._attempts),
            last.connections,
            last.task.plan.chunk_size,
            merged.digest.value_of(MD5),
            merged.digest.value_of(SHA256),
            last.task.target.file_id,
        )

    def _run(self, context: UploadContext) -> UploadedFile:
        """Make attempts until one succeeds or the upload fails.

        If the server refuses the chunk size, the next attempt uses smaller chunks. If
        the upload is complete but the server has lost the merged file, makes another
        attempt, once. All other errors are raised.
        """
        server = RequestRetrier(context).request(self._server.capabilities)
        size = context.file.identity.size
        if server.max_file_size is not None and size > server.max_file_size:
            raise PolicyRefused(
                f"the file has {size} bytes, and the server takes at most "
                f"{server.max_file_size}"
            )
        settings = server.apply_to(self._settings, self._user_settings)
        context = replace(context, settings=settings)
        chunk_size, has_restarted = self._first_chunk_size(size, server), False
        while True:
            attempt = self._new_attempt(context, chunk_size, server)
            try:
                return attempt.run()
            except ChunkTooLarge as error:
                chunk_size = self._next_chunk_size(error, min(chunk_size, size), server)
                self._notify(
                    "chunk_size_reduced", error=str(error), chunk_size=chunk_size
                )
            except MergedGone as error:
                if has_restarted:
                    raise
                has_restarted = True
                self._notify("upload_restarted", error=str(error))
            context = replace(context, scope=self._new_scope())
            self._delete(attempt.task.target, context)

    def _new_attempt(
        self, context: UploadContext, chunk_size: int, server: ServerCapabilities
    ) -> UploadAttempt:
        identity, limit = context.file.identity, self._settings.limit_rate
        target = UploadTarget(
            file_id(identity, chunk_size, self._name, self._path),
            self._name,
            self._path,
        )
        connections = self._request.connections or server.connections
        if limit is not None:
            connections = max(1, min(connections, limit // MIN_CONNECTION_RATE))
        plan = make_plan(identity.size, chunk_size)
        attempt = UploadAttempt(context, plan, target, connections, server.algorithm)
        self._attempts.append(attempt)
        return attempt

    def _first_chunk_size(self, size: int, server: ServerCapabilities) -> int:
        requested, limit = self._request.chunk_size, server.max_chunk_size
        if requested is None:
            return auto_chunk_size(size, limit)
        if limit is not None and min(requested, size) > limit:
            raise PolicyRefused(
                f"the server takes chunks of at most {limit} bytes: use a smaller "
                f"--chunk-size"
            )
        return requested

    def _next_chunk_size(
        self, error: ChunkTooLarge, refused: int, server: ServerCapabilities
    ) -> int:
        """Return the chunk size to try after the server has refused a chunk.

        ``refused``: the size of this chunk in bytes. Raises ChunkTooLarge if no
        smaller size is left, or if the user has set the size.
        """
        if self._request.chunk_size is not None:
            raise ChunkTooLarge(f"{error}: use a smaller --chunk-size") from error
        smaller = smaller_chunk_size(refused, server.max_chunk_size)
        if smaller is None:
            raise error
        return smaller

    def _delete(self, target: UploadTarget, context: UploadContext) -> None:
        """Delete the failed attempt's task at the server.

        FailJob is ignored: if the task still exists, the next attempt reports the
        error.
        """
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
            self._new_scope(),
            self._rate,
            self._notify,
        )

    def _new_scope(self) -> CancelScope:
        """Return the scope of a new attempt. Raises Cancelled if the upload was
        cancelled."""
        self._scope.discard(self._attempt_scope)
        self._attempt_scope = scope = CancelScope()
        self._scope.add(scope)
        return scope

    def _sample(self) -> None:
        """Check the speed of the requests in flight; called by the timer thread."""
        self._monitor.sample(self._attempt_scope.members())


class UploadSpeedMonitor:
    """Cancels slow requests. The limits are those of downloads.

    Used by the timer thread only.
    """

    def __init__(self, settings: NetworkSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._samples: dict[Exchange, SpeedSamples] = {}

    def sample(self, members: Iterable[Cancellable]) -> None:
        """Sample the speed of each request in flight, and cancel slow requests."""
        self._samples = {
            exchange: self._samples.get(exchange) or SpeedSamples()
            for exchange in members
            if isinstance(exchange, Exchange)
        }
        for exchange, samples in self._samples.items():
            samples.add(exchange.stats())
            error = self._error_of(exchange, samples)
            if error is not None:
                exchange.cancel(error)

    def _error_of(
        self, exchange: Exchange, samples: SpeedSamples
    ) -> DlpoolError | None:
        """Return the error for a request whose body is slow or whose answer is late.

        Returns None if the request is fast enough.
        """
        settings, sent_at = self._settings, exchange.sent_at
        if sent_at is not None and exchange.answered_at is None:
            waited_s = self._clock() - sent_at
            return header_timed_out(
                waited_s, settings.connect_timeout, settings.read_timeout
            )
        return below_minimum(samples, settings.low_speed_limit, settings.low_speed_time)
