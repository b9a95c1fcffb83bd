"""One job in a slot of a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlpool.config import TransferSettings
from dlpool.errors import DlpoolError, InternalError, LocalFault, LostJob, RetryRange
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Logger
from dlpool.observe.processors import stack_of
from dlpool.scan.guard import Guard
from dlpool.service.node import hung_jobs
from dlpool.service.node.disk_faults import EndedRun, classify_disk_error
from dlpool.service.node.disk_rules import NodeSpaceRules
from dlpool.service.wire.counters import WorkerCounters
from dlpool.service.wire.frames import (
    CleanupEntry,
    EndedFrame,
    FinishingFrame,
    Frame,
    JobFrame,
    VerifiedFrame,
    lease_clock,
)
from dlpool.service.wire.results import attempt_result_of
from dlpool.service.worker.affinity import Affinity
from dlpool.service.worker.traceparent import span_id
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.job import Checksum, Job
from dlpool.transfer.target.file.cleanup import (
    remove_part_files_by_digest,
    remove_published_state,
)
from dlpool.transfer.transfer import Transfer

if TYPE_CHECKING:
    from dlpool.observe.spans import JobSpan, Traces

Send = Callable[[Frame], object]
_LEVELS: Mapping[str, str] = {
    "range_retry": "warning",
    "download_restarted": "warning",
    "state_unusable": "warning",
    "folder_not_synced": "warning",
    "connections_limited": "warning",
    "file_infected": "warning",
    "file_unscanned": "warning",
    "file_scanned": "debug",
    "job_started": "info",
    "checksum_verified": "info",
    "target_skipped": "info",
    "job_succeeded": "debug",
}
_SCANNED = {
    "file_scanned": "clean",
    "file_infected": "infected",
    "file_unscanned": "",
}  # outcomes; "": its own

MAX_STACK = 8 * 1024  # bytes of a frame
STACK_FRAMES = (
    3  # of each cause: a refused connection has six of them, through the libraries
)
SMALL = (
    1024 * 1024
)  # bytes: fetched by one thread, and to make them durable takes no time that matters


@dataclass(frozen=True)
class JobRunContext:
    """What a worker gives to the run of a job. A reload of the settings does not change
    it."""

    transfer: TransferSettings
    paths: Confinement
    client: HttpClient
    log: Logger
    send: Send
    affinity: Affinity
    tally: WorkerCounters
    space: NodeSpaceRules
    traces: Traces | None = None
    guard: Guard | None = None


class JobRun:
    """A job from its frame to its end. ``run`` by the slot's thread, all else by
    any.

    The lock guards the transfer and the error that shall end it, which may come before
    the transfer is made.
    """

    def __init__(self, frame: JobFrame, context: JobRunContext) -> None:
        self.frame = frame
        self._context = context
        self._settings = settings_for_job(context.transfer, frame)
        self._span: JobSpan | None = None
        user = {"user_id": frame.user_id} if frame.user_id is not None else {}
        self._log = context.log.bind(
            job_id=frame.job_id,
            trace_id=frame.trace_id,
            **user,
            attempt=frame.attempt,
            url=frame.url,
        )
        self._lock = threading.Lock()
        self._transfer: Transfer | None = None
        self._error: DlpoolError | None = None
        self._answered = threading.Event()
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<JobRun {self.frame.lease_id} {self._transfer or 'not begun'}>"

    def run(self) -> EndedFrame:
        """Download and publish; never raises."""
        frame = self.frame
        hung_jobs.name_thread(frame.lease_id)
        if (traces := self._context.traces) is not None:
            self._span = traces.start_job_span(
                frame.trace_id,
                span_id(frame),
                frame.url,
                frame.job_id,
                frame.user_id,
                frame.attempt,
            )
        ended = self._run()
        if self._span is not None:
            self._span.end(
                ended.attempt_result,
                ended.path,
                ended.statistics,
                ended.label,
                ended.message,
            )
        hung_jobs.unname_thread()
        return ended

    def _run(self) -> EndedFrame:
        ticket = self.frame.lease_id
        self._context.affinity.pin()
        try:
            transfer = self._make()
            outcome = transfer.run()
        except DlpoolError as error:
            return self._ended(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            self._log.error("worker_failed", error=error)
            return self._ended(InternalError.of(error))
        seconds = round(time.monotonic() - self._began, 3)
        return EndedFrame(
            ticket,
            "succeeded",
            str(outcome.path),
            outcome.as_json() | {"seconds": seconds},
            needs_cleanup=transfer.may_leave_state,
        )

    def cancel(self, error: DlpoolError) -> None:
        """Checkpoint and end with ``error``, within a second."""
        with self._lock:
            self._error = self._error or error
            transfer = self._transfer
        if transfer is not None:
            transfer.cancel(error)
        self._answered.set()

    def publish(self) -> None:
        """The fence stands."""
        self._answered.set()

    def progress(self) -> dict[str, Any]:
        """Where it is now, for people."""
        transfer = self._transfer
        if transfer is None:
            return {"done": 0, "size": None, "phase": "connecting"}
        now = transfer.progress()
        return {
            "done": now.done,
            "size": now.size,
            "phase": now.phase,
            "connections": now.connections,
        }

    @property
    def missing_bytes(self) -> int:
        """Bytes that it will yet take of its disk, as far as that is known."""
        transfer = self._transfer
        return 0 if transfer is None else transfer.progress().unreserved_bytes

    @property
    def is_unresumable(self) -> bool:
        """Whether its next run has to begin anew."""
        transfer = self._transfer
        return transfer is not None and not transfer.progress().is_resumable

    @property
    def received_bytes(self) -> int:
        """Bytes of body that have come over the network."""
        transfer = self._transfer
        return 0 if transfer is None else transfer.received

    def log_progress(self) -> None:
        """A line about where it is."""
        self._log.info("download_progress", **self.progress())

    def _make(self) -> Transfer:
        frame, context = self.frame, self._context
        target = context.paths.target(frame.save_path)
        job = Job(
            frame.url,
            target.path,
            target.is_folder,
            frame.headers,
            checksum=Checksum.parse(frame.checksum) if frame.checksum else None,
            id=frame.job_id,
            fence=frame.fence,
            owner=frame.user_id,
            claim=frame.claim,
        )
        admit: Callable[[Path], None] = (
            context.paths.check_resolved_name if target.is_folder else lambda _: None
        )
        transfer = Transfer(
            job,
            self._settings,
            context.client,
            self._notify,
            admit,
            self._permit,
            context.guard,
            context.space,
        )
        with self._lock:
            if self._error is not None:
                raise self._error
            self._transfer = transfer
        return transfer

    def _permit(self) -> None:
        """Wait until it is known that the job is still ours; the part file stays locked
        meanwhile.

        Within the lease that came with the claim it is. Later Redis is asked, by way of
        the supervisor.
        """
        if lease_clock() < self.frame.leased_until:
            return
        self._context.send(VerifiedFrame(self.frame.lease_id))
        self._answered.wait()
        with self._lock:
            if self._error is not None:
                raise self._error

    def _notify(self, event: str, /, **fields: object) -> None:
        if event == "job_started" and (fields["size"] or SMALL) >= SMALL:  # type: ignore[operator]
            self._context.affinity.unpin()  # its connections' threads come after this
        if event == "body_complete":
            if fields["size"] < SMALL and not self._settings.scan:  # type: ignore[operator]
                self._context.send(FinishingFrame(self.frame.lease_id))
            return
        if self._span is not None and event in ("range_fetched", "range_retry"):
            self._span.add_range(fields)
        if event == "range_fetched":
            self._context.tally.count_range(fields["seconds"])  # type: ignore[arg-type]
            return
        if event == "range_retry":
            self._context.tally.count_retry(str(fields["label"]))
        elif event == "download_restarted":
            self._context.tally.count_retry("restart")
        elif event in _SCANNED:
            self._context.tally.count_scan(_SCANNED[event] or str(fields["verdict"]))
        getattr(self._log, _LEVELS.get(event, "info"))(event, **fields)

    def _ending(self, error: DlpoolError) -> str:
        """Return how the job ends: a fault of the disk is the job's own, unless it is
        confirmed for all."""
        transfer = self._transfer
        if transfer is None or not isinstance(error, LocalFault):
            return attempt_result_of(error)
        now = transfer.progress()
        run = EndedRun(
            self.frame.url, now.path, now.size, now.done, self._context.paths.roots
        )
        return classify_disk_error(error, run)

    def _ended(self, error: DlpoolError) -> EndedFrame:
        path = None if self._transfer is None else str(self._transfer.progress().path)
        retry_after_s = error.retry_after_s if isinstance(error, RetryRange) else None
        return EndedFrame(
            self.frame.lease_id,
            self._ending(error),
            path,
            label=error.label,
            message=str(error)[:2000],
            retry_after_s=retry_after_s,
            stack=_stack(error),
        )


def _stack(error: DlpoolError) -> str:
    """Return the end of the stack of an error and its causes, for the log."""
    return (
        stack_of(error, STACK_FRAMES)
        .encode("utf-8", "backslashreplace")[-MAX_STACK:]
        .decode("utf-8", "ignore")
    )


def settings_for_job(transfer: TransferSettings, frame: JobFrame) -> TransferSettings:
    """The settings with what the job asks for: of two rate limits the lower one, and a
    scan if either wants one."""
    if frame.if_exists is None and frame.limit_rate is None and not frame.scan:
        return transfer
    rates = [
        rate for rate in (transfer.limit_rate, frame.limit_rate) if rate is not None
    ]
    return replace(
        transfer,
        if_exists=frame.if_exists or transfer.if_exists,
        limit_rate=min(rates, default=None),
        scan=transfer.scan or frame.scan,
    )


def lost_job_error() -> LostJob:
    """What ends a job that another supervisor has by now."""
    return LostJob("the job is another supervisor's by now")


def remove_stale_files(ended: CleanupEntry, paths: Confinement) -> None:
    """Remove what an ended job kept for a next run.

    Raises PolicyRefused, LocalFault; Locked while another job writes there.
    """
    target = Path(ended.path) if ended.path else paths.target(ended.save_path).path
    remove_published_state(target, ended.job_id)
    if ended.has_failed:  # or it is not known how it ended
        remove_part_files_by_digest(target, ended.url_sha256)
