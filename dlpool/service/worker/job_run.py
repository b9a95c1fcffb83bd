"""One attempt of a job, in a slot of a worker."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlpool.affinity import Affinity
from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
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
    Frame,
    JobFrame,
    VerifiedFrame,
    lease_clock,
)
from dlpool.service.wire.results import AttemptResult, attempt_result_of
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.job import Checksum, Job, TransferCallbacks
from dlpool.transfer.target.file.cleanup import (
    remove_part_files_by_digest,
    remove_published_state,
)
from dlpool.transfer.transfer import Transfer

if TYPE_CHECKING:
    from dlpool.observe.spans import JobSpan, Traces

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
# outcome of a scan by event; "": it is in the field ``verdict`` of the event
_SCANNED = {"file_scanned": "clean", "file_infected": "infected", "file_unscanned": ""}

MAX_STACK = 8 * 1024  # bytes of a stack in EndedFrame
STACK_FRAMES = 3  # of each cause: a refused connection has six of them in libraries
# bytes: a smaller file is fetched by one thread, and its sync takes little time
SMALL = 1024 * 1024
_TRACEPARENT = "traceparent"
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")


@dataclass(frozen=True)
class JobRunContext:
    """The objects and settings that a worker passes to the run of a job.

    The run keeps these settings when the worker's settings are reloaded.
    """

    transfer: TransferSettings
    paths: Confinement
    client: HttpClient
    log: Logger
    send: Callable[[Frame], object]
    affinity: Affinity
    counters: WorkerCounters
    space: NodeSpaceRules
    traces: Traces | None = None
    guard: Guard | None = None


class JobRun:
    """An attempt of a job.

    The slot's thread calls ``run``; any thread may call the other methods. The lock
    guards ``_is_waiting``, ``_transfer`` and ``_error``, the error that stops the run.
    ``cancel`` may set the error before ``run`` has created the transfer.
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
        self._is_waiting = True  # for a slot
        self._may_continue = threading.Event()  # to publish, or to raise ``_error``
        self._started_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<JobRun {self.frame.lease_id} {self._transfer or 'not started'}>"

    def begin(self) -> bool:
        """Begin the run in a slot. Return False if the job has been given back."""
        self._started_at = time.monotonic()
        with self._lock:
            begins, self._is_waiting = self._is_waiting, False
        return begins

    def give_back(self, error: DlpoolError) -> EndedFrame | None:
        """Give the job back if it waits for a slot, and return its result.

        Return None if the job has begun. ``error``: why the job is given back.
        """
        with self._lock:
            if not self._is_waiting:
                return None
            self._is_waiting = False
        return self._ended(error)

    def run(self) -> EndedFrame:
        """Download and publish the file. Never raises."""
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
        self._context.affinity.pin()
        try:
            transfer = self._make_transfer()
            result = transfer.run()
        except DlpoolError as error:
            return self._ended(error)
        except Exception as error:  # noqa: BLE001 - top of a thread
            self._log.error("worker_failed", error=error)
            return self._ended(InternalError.of(error))
        seconds = round(time.monotonic() - self._started_at, 3)
        return EndedFrame(
            self.frame.lease_id,
            AttemptResult.SUCCEEDED,
            str(result.path),
            result.as_json() | {"seconds": seconds},
            needs_cleanup=transfer.may_leave_state,
        )

    def cancel(self, error: DlpoolError) -> None:
        """Have the run checkpoint and end with ``error``. Later calls have no
        effect."""
        with self._lock:
            self._error = self._error or error
            transfer = self._transfer
        if transfer is not None:
            transfer.cancel(error)
        self._may_continue.set()

    def publish(self) -> None:
        """Let ``run`` publish the verified file.

        Called when the supervisor has confirmed that it holds the lease.
        """
        self._may_continue.set()

    def progress(self) -> dict[str, Any]:
        """Return the progress for display: done and total bytes, phase, connections."""
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
        """Return how many bytes of disk space the job still has to allocate.

        0 if the number is not known.
        """
        transfer = self._transfer
        return 0 if transfer is None else transfer.progress().unreserved_bytes

    @property
    def is_unresumable(self) -> bool:
        """Return whether the next attempt must start from the beginning."""
        transfer = self._transfer
        return transfer is not None and not transfer.progress().is_resumable

    @property
    def received_bytes(self) -> int:
        """Return the bytes of response bodies received over the network."""
        transfer = self._transfer
        return 0 if transfer is None else transfer.received

    def log_progress(self) -> None:
        """Log the progress."""
        self._log.info("download_progress", **self.progress())

    def _make_transfer(self) -> Transfer:
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
            claim=frame.claim_id,
        )
        check_target: Callable[[Path], None] = (
            context.paths.check_resolved_name if target.is_folder else lambda _: None
        )
        transfer = Transfer(
            job,
            self._settings,
            context.client,
            TransferCallbacks(self._notify, check_target, self._authorize_publish),
            context.guard,
            context.space,
        )
        with self._lock:
            if self._error is not None:
                raise self._error
            self._transfer = transfer
        return transfer

    def _authorize_publish(self) -> None:
        """Wait until the supervisor confirms that it holds the lease.

        Before ``leased_until`` there is no wait, because the lease cannot have expired
        yet. The part file stays locked during the wait. Raises the error that was
        passed to ``cancel``.
        """
        if lease_clock() < self.frame.leased_until:
            return
        self._context.send(VerifiedFrame(self.frame.lease_id))
        self._may_continue.wait()
        with self._lock:
            if self._error is not None:
                raise self._error

    def _notify(self, event: str, /, **fields: Any) -> None:
        if event == "job_started" and (fields["size"] or SMALL) >= SMALL:
            # before the threads of its connections are started
            self._context.affinity.unpin()
        if event == "body_complete":
            return
        if self._span is not None and event in ("range_fetched", "range_retry"):
            self._span.add_range(fields)
        if event == "range_fetched":
            self._context.counters.count_range(fields["seconds"])
            return
        if event == "range_retry":
            self._context.counters.count_retry(str(fields["label"]))
        elif event == "download_restarted":
            self._context.counters.count_retry("restart")
        elif event in _SCANNED:
            self._context.counters.count_scan(_SCANNED[event] or str(fields["verdict"]))
        getattr(self._log, _LEVELS.get(event, "info"))(event, **fields)

    def _classify(self, error: DlpoolError) -> AttemptResult:
        """Return the result of an attempt that ended with ``error``.

        A disk error counts as an error of this job, unless a check of the disk shows a
        fault of the node.
        """
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
            self._classify(error),
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
    """Return ``transfer`` with the values that the job itself asks for.

    The lower rate limit applies. The file is scanned if the settings or the job require
    it.
    """
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
    """Return the error that stops a job whose lease another supervisor holds."""
    return LostJob("another supervisor has taken over the job")


def remove_stale_files(entry: CleanupEntry, paths: Confinement) -> None:
    """Remove the files that an ended job has left.

    Raises PolicyRefused and LocalFault. Raises Locked while another job writes to the
    target.
    """
    target = Path(entry.path) if entry.path else paths.target(entry.save_path).path
    remove_published_state(target, entry.job_id)
    if entry.has_failed:  # or its result is unknown
        remove_part_files_by_digest(target, entry.url_sha256)


def with_traceparent(frame: JobFrame) -> JobFrame:
    """Return the frame with the header ``traceparent`` for the origin server.

    See W3C Trace Context, level 1. The frame is unchanged if it has that header, or if
    its trace id is not valid (section 3.2.2.3). The parent id is the span id of this
    attempt, so all requests of the attempt have the same parent id.
    """
    has_own = any(name.lower() == _TRACEPARENT for name in frame.headers)
    if has_own or _TRACE_ID.fullmatch(frame.trace_id) is None:
        return frame
    return replace(
        frame,
        headers={
            **frame.headers,
            _TRACEPARENT: f"00-{frame.trace_id}-{span_id(frame)}-01",
        },
    )


def span_id(frame: JobFrame) -> str:
    """Return the span id of an attempt, 16 hex digits.

    The origin server gets this id in the header ``traceparent``. The spans of the
    server become children of the attempt's span.
    """
    return hashlib.sha256(frame.lease_id.encode()).hexdigest()[:16]
