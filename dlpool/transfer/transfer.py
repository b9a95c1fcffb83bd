"""One URL becomes one file: rounds until the file is published, or an error is
final."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlpool.config import TransferSettings
from dlpool.errors import Cancelled, DlpoolError, RestartFile, StreamBroken
from dlpool.scan.guard import Guard
from dlpool.transfer.attempt import TransferAttempt
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import RateLimit, RateLimits
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Source
from dlpool.transfer.job import Job, Notify, Progress, TransferResult, ignore_event
from dlpool.transfer.retry import RetryPolicy
from dlpool.transfer.scanning import check_configured
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.space_rules import ENTIRE_DISK, SpaceRules
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.protocol import Target, TargetOptions, TargetPresent

MAX_RESTARTS = 3


@dataclass
class TransferCounters:
    """What the rounds of a download add up to."""

    received: int = 0
    retries: int = 0
    restarts: int = 0
    broken_streams: int = 0


class Transfer:
    """A download. ``run`` is called once; ``cancel`` and ``progress`` by any thread.

    ``client`` is shared by the transfers of a process. The lock guards the present
    round, whether the tally has it, and the wish to cancel.
    """

    def __init__(
        self,
        job: Job,
        settings: TransferSettings,
        client: HttpClient,
        notify: Notify = ignore_event,
        check_target: Callable[[Path], None] = lambda _: None,
        authorize_publish: Callable[[], None] = lambda: None,
        guard: Guard | None = None,
        space: SpaceRules = ENTIRE_DISK,
    ) -> None:
        """``admit`` is called for each target that is tried, and may refuse it. Raises
        UsageError for a bad URL.

        ``permit`` is called when the file is verified and locked, before it is
        published: it may take its time, and raises what forbids it. ``guard`` checks
        the file before that, if ``scan`` is set. ``space``: how much of its disk it may
        take.
        """
        self._job = job
        self._settings = settings
        self._client = client
        self._notify = notify
        self._admit = check_target
        self._permit = authorize_publish
        self._guard = guard
        self._space = space
        self._source = Source(client, job.url, job.headers, job.user)
        self._rate = RateLimits(
            RateLimit(settings.limit_rate, time.monotonic), client.rate_limit
        )
        self._tally = TransferCounters()
        self._lock = threading.Lock()
        self._cancelled: DlpoolError | None = None
        self._target: Target | None = None
        self._round: TransferAttempt | None = None
        self._earlier: RemoteResource | None = (
            None  # the resource that the last round found
        )
        self._is_counted = False  # the present round, in the tally
        self._board = ChunkScheduler(time.monotonic)
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Transfer {self._job.target} {self.progress().phase}: {self._board!r}>"

    def run(self) -> TransferResult:
        """Download, verify, publish.

        Raises Cancelled, FailJob, LocalFault, or the RetryRange or RestartFile that
        outlasted its retries. What was fetched is committed then, for the next run to
        go on from, unless it is known to be wrong.
        """
        self._began = time.monotonic()
        check_configured(self._settings, self._guard)
        try:
            if not self._job.is_folder:
                self._open_target("")
            return self._run_rounds()
        except TargetPresent as there:
            self._notify(
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
        """End it within a second, committed so that the next run goes on; ``run``
        raises Cancelled, or ``error``."""
        with self._lock:
            self._cancelled = (
                self._cancelled or error or Cancelled("the download was cancelled")
            )
            current = self._round
        if current is not None:
            current.stop(self._cancelled)

    def progress(self) -> Progress:
        """Where it is now."""
        current, target = self._round, self._target
        path = target.path if target else self._job.target
        if current is None:
            return Progress(path, 0, None, 0, "connecting")
        active = sum(lane.exchange is not None for lane in current.workers.all)
        plan, done = current.plan, self._board.written()
        size = plan.resource.size if plan else None
        has_blocks = plan is None or plan.target.is_preallocated
        missing = (
            0 if has_blocks or size is None else self._missing(current, size, done)
        )
        return Progress(
            path,
            done,
            size,
            active,
            current.phase,
            missing,
            plan is None or plan.has_ranges,
        )

    @staticmethod
    def _missing(current: TransferAttempt, size: int, done: int) -> int:
        """Return how many bytes of the disk count as taken for it: no more than it has
        brought already."""
        reserved = sum(lane.reserved for lane in current.workers.all)
        return max(0, min(size - done, done) - reserved)

    @property
    def received(self) -> int:
        """Bytes of body that came over the network until now, in all rounds."""
        with self._lock:
            current = None if self._is_counted else self._round
            return self._tally.received + (
                current.received if current is not None else 0
            )

    @property
    def may_leave_state(self) -> bool:
        """Whether a state may be left beside the target. After the end of ``run``."""
        return self._target is None or self._target.has_state

    def _run_rounds(self) -> TransferResult:
        delay_s = 0.0
        while True:
            current = self._next_round(delay_s)
            try:
                plan = current.run()
                break
            except RestartFile as error:
                self._count(current)
                if current.plan is not None:
                    self._earlier = current.plan.resource
                delay_s = self._prepare_restart(error)
        self._count(current)
        return self._outcome(plan, current)

    def _next_round(self, delay_s: float) -> TransferAttempt:
        board = ChunkScheduler(time.monotonic, self._client.settings.low_speed_limit)
        context = TransferContext(
            self._job,
            self._settings,
            self._client,
            self._source,
            board,
            self._rate,
            self._notify,
            self._permit,
            previous_resource=self._earlier,
            guard=self._guard,
            space=self._space,
        )
        limit = self._settings.deadline
        current = TransferAttempt(
            context,
            self._target,
            self._open_target,
            deadline=None if limit is None else self._began + limit,
            is_single=self._tally.restarts >= MAX_RESTARTS,
            delay_s=delay_s,
        )
        with self._lock:
            if self._cancelled is not None:
                raise self._cancelled
            self._board, self._round, self._is_counted = board, current, False
        return current

    def _prepare_restart(self, error: RestartFile) -> float:
        """Forget the bytes, and return the seconds to wait before beginning anew.

        A changed file may restart so often, a broken stream as often as a range may be
        retried. The last restart asks for one body instead of ranges: that can only be
        one version.
        """
        tally, delay_s = self._tally, 0.0
        if isinstance(error, StreamBroken):
            tally.broken_streams += 1
            policy = RetryPolicy.of(self._settings)
            final = policy.final_error(error.cause, tally.broken_streams)
            if final is not None:
                raise final from error
            delay_s = policy.backoff_s(tally.broken_streams, random.random())
        elif tally.restarts >= MAX_RESTARTS:
            raise error
        else:
            tally.restarts += 1
        if self._target is not None:
            self._target.restart(str(error))
        return delay_s

    def _open_target(self, name: str) -> Target:
        target = self._job.target / name if self._job.is_folder else self._job.target
        settings = self._settings
        options = TargetOptions(settings.if_exists, settings.resume, settings.sync)
        self._target = FileOutput(
            self._job, target, options, notify=self._notify, check_target=self._admit
        )
        return self._target

    def _count(self, current: TransferAttempt) -> None:
        with self._lock:
            self._tally.received += current.received
            self._tally.retries += self._board.retries
            self._is_counted = True

    def _outcome(self, plan: DownloadPlan, current: TransferAttempt) -> TransferResult:
        tally = self._tally
        outcome = TransferResult(
            path=plan.target.path,
            size=self._board.written(),
            received=tally.received,
            resumed_from=plan.resumed_from,
            seconds=round(time.monotonic() - self._began, 3),
            retries=tally.retries + tally.broken_streams,
            restarts=tally.restarts + tally.broken_streams,
            connections=current.workers.most_at_once,
            checksum=str(current.verified_checksum)
            if current.verified_checksum
            else None,
        )
        self._notify("job_succeeded", **vars(outcome))
        return outcome
