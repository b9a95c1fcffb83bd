"""Run one download to the published file or to its final error."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from dlpool.cancel import CancelScope
from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
from dlpool.errors import Cancelled, DlpoolError, RestartFile, StreamBroken
from dlpool.transfer.attempt import TransferAttempt
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import RateLimit, RateLimits
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Source
from dlpool.transfer.job import Job, Progress, TransferCallbacks, TransferResult
from dlpool.transfer.retry import RetryPolicy
from dlpool.transfer.scanning import check_configured
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.space_rules import ENTIRE_DISK, SpaceRules
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.protocol import Target, TargetOptions, TargetPresent

if TYPE_CHECKING:
    from dlpool.scan.guard import Guard

MAX_RESTARTS = 3
NO_CALLBACKS = TransferCallbacks()


@dataclass
class TransferCounters:
    """Totals over the attempts of a download; ``received`` in bytes."""

    received: int = 0
    retries: int = 0
    restarts: int = 0
    broken_streams: int = 0


class Transfer:
    """One download, with all its attempts.

    One thread calls ``run`` once; any thread may call ``cancel``, ``progress`` and
    ``received``. The transfers of a process share ``client``. The lock guards the
    current attempt and the counters.
    """

    def __init__(
        self,
        job: Job,
        settings: TransferSettings,
        client: HttpClient,
        callbacks: TransferCallbacks = NO_CALLBACKS,
        guard: Guard | None = None,
        space: SpaceRules = ENTIRE_DISK,
    ) -> None:
        """Prepare the download. Raises UsageError for an invalid URL or header.

        ``guard`` scans the file before it is published, if ``scan`` is set. ``space``:
        the disk space that the download may use.
        """
        self._job = job
        self._settings = settings
        self._client = client
        self._callbacks = callbacks
        self._guard = guard
        self._space = space
        self._source = Source(client, job.url, job.headers, job.user)
        self._rate = RateLimits(
            RateLimit(settings.limit_rate, time.monotonic), client.rate_limit
        )
        self._counters = TransferCounters()
        self._lock = threading.Lock()
        self._scope = CancelScope()
        self._target: Target | None = None
        self._attempt: TransferAttempt | None = None
        # what the previous attempt found
        self._previous_resource: RemoteResource | None = None
        self._is_counted = False  # whether the counters include the current attempt
        self._scheduler = ChunkScheduler(time.monotonic)
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return (
            f"<Transfer {self._job.target} {self.progress().phase}: "
            f"{self._scheduler!r}>"
        )

    def run(self) -> TransferResult:
        """Download, verify and publish the file.

        Raises the error given to ``cancel``, FailJob, LocalFault, or the RetryRange or
        RestartFile that exhausted its retries. If the download can be resumed, first
        commits the received bytes for the next run, except bytes known to be wrong.
        """
        self._began = time.monotonic()
        check_configured(self._settings, self._guard)
        try:
            if not self._job.is_folder:
                self._open_target("")
            return self._run_attempts()
        except TargetPresent as there:
            self._callbacks.notify(
                "target_skipped", path=str(there.path), is_published=there.is_published
            )
            return TransferResult(
                there.path,
                there.size,
                resumed_from=there.size,
                is_skipped=not there.is_published,
            )
        finally:
            if self._target is not None:
                self._target.close()

    def cancel(self, error: DlpoolError | None = None) -> None:
        """Cancel the download: ``run`` raises ``error``, by default Cancelled."""
        self._scope.cancel(error or Cancelled("the download was cancelled"))

    def progress(self) -> Progress:
        """Return the present progress."""
        attempt, target = self._attempt, self._target
        path = target.path if target else self._job.target
        if attempt is None:
            return Progress(path, 0, None, 0, "connecting")
        active = sum(worker.exchange is not None for worker in attempt.workers.all)
        plan, done = attempt.plan, self._scheduler.written()
        size = plan.resource.size if plan else None
        has_blocks = plan is None or plan.target.is_preallocated
        missing = (
            0
            if has_blocks or size is None
            else self._unreserved_bytes(attempt, size, done)
        )
        return Progress(
            path,
            done,
            size,
            active,
            attempt.phase,
            missing,
            plan is None or plan.has_ranges,
        )

    @staticmethod
    def _unreserved_bytes(attempt: TransferAttempt, size: int, done: int) -> int:
        """Return the disk space to set aside for bytes without reserved blocks.

        See ``Progress.unreserved_bytes``. ``size``: bytes of the file; ``done``: bytes
        written.
        """
        reserved = sum(worker.reserved for worker in attempt.workers.all)
        return max(0, min(size - done, done) - reserved)

    @property
    def received(self) -> int:
        """Return the bytes of body received over the network, in all attempts."""
        with self._lock:
            attempt = None if self._is_counted else self._attempt
            return self._counters.received + (
                attempt.received if attempt is not None else 0
            )

    @property
    def may_leave_state(self) -> bool:
        """Return whether a state file may remain beside the target.

        Valid after ``run`` has returned or raised.
        """
        return self._target is None or self._target.has_state

    def _run_attempts(self) -> TransferResult:
        delay_s = 0.0
        while True:
            attempt = self._next_attempt(delay_s)
            try:
                plan = attempt.run()
                break
            except RestartFile as error:
                self._add_to_counters(attempt)
                if attempt.plan is not None:
                    self._previous_resource = attempt.plan.resource
                delay_s = self._prepare_restart(error)
            finally:
                self._scope.discard(attempt.scope)
        self._add_to_counters(attempt)
        return self._result(plan, attempt)

    def _next_attempt(self, delay_s: float) -> TransferAttempt:
        scheduler = ChunkScheduler(
            time.monotonic, self._client.settings.low_speed_limit
        )
        context = TransferContext(
            self._job,
            self._settings,
            self._client,
            self._source,
            scheduler,
            self._rate,
            self._callbacks.notify,
            self._callbacks.authorize_publish,
            previous_resource=self._previous_resource,
            guard=self._guard,
            space=self._space,
        )
        limit = self._settings.deadline
        attempt = TransferAttempt(
            context,
            self._target,
            self._open_target,
            deadline=None if limit is None else self._began + limit,
            is_single=self._counters.restarts >= MAX_RESTARTS,
            delay_s=delay_s,
        )
        self._scope.add(attempt.scope)
        with self._lock:
            self._scheduler, self._attempt, self._is_counted = scheduler, attempt, False
        return attempt

    def _prepare_restart(self, error: RestartFile) -> float:
        """Discard the received bytes, and return the seconds until the next attempt.

        After too many restarts, raises the final error instead. For a changed file, the
        limit is ``MAX_RESTARTS``; for a broken stream, it is the number of retries that
        a range has. The last attempt for a changed file requests one body instead of
        ranges, because one body contains only one version.
        """
        counters, delay_s = self._counters, 0.0
        if isinstance(error, StreamBroken):
            counters.broken_streams += 1
            policy = RetryPolicy.of(self._settings)
            final = policy.final_error(error.cause, counters.broken_streams)
            if final is not None:
                raise final from error
            delay_s = policy.backoff_s(counters.broken_streams, random.random())
        elif counters.restarts >= MAX_RESTARTS:
            raise error
        else:
            counters.restarts += 1
        if self._target is not None:
            self._target.restart(str(error))
        return delay_s

    def _open_target(self, name: str) -> Target:
        target = self._job.target / name if self._job.is_folder else self._job.target
        settings = self._settings
        options = TargetOptions(settings.if_exists, settings.resume, settings.sync)
        self._target = FileOutput(
            self._job,
            target,
            options,
            notify=self._callbacks.notify,
            check_target=self._callbacks.check_target,
        )
        return self._target

    def _add_to_counters(self, attempt: TransferAttempt) -> None:
        with self._lock:
            self._counters.received += attempt.received
            self._counters.retries += self._scheduler.retries
            self._is_counted = True

    def _result(self, plan: DownloadPlan, attempt: TransferAttempt) -> TransferResult:
        counters = self._counters
        result = TransferResult(
            path=plan.target.path,
            size=self._scheduler.written(),
            received=counters.received,
            resumed_from=plan.resumed_from,
            seconds=round(time.monotonic() - self._began, 3),
            retries=counters.retries + counters.broken_streams,
            restarts=counters.restarts + counters.broken_streams,
            connections=attempt.workers.most_at_once,
            checksum=str(attempt.verified_checksum)
            if attempt.verified_checksum
            else None,
        )
        self._callbacks.notify("job_succeeded", **vars(result))
        return result
