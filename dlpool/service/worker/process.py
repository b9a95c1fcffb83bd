"""The worker process: runs jobs in threads and reports to the supervisor.

The main thread receives frames. The process exits when the supervisor has exited or
hangs: the socket is closed, no frame arrives, or the kernel sends SIGTERM. Before it
exits, it checkpoints its jobs and unlocks their files, within seconds.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from dlpool import threads
from dlpool.affinity import Affinity
from dlpool.config import (
    LoggingSettings,
    NetworkSettings,
    OtelSettings,
    PathSettings,
    ScanSettings,
    TransferSettings,
)
from dlpool.config.owned_paths import OwnedPath
from dlpool.dataclass import dataclass
from dlpool.errors import Cancelled, DlpoolError, Locked, NoThread, PolicyRefused
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.observe.tracing import open_traces
from dlpool.scan import open_guard
from dlpool.service.node.disk_rules import NodeSpaceRules
from dlpool.service.node.hung_jobs import stacks_file
from dlpool.service.node.launch import die_with_parent, tune_garbage_collector
from dlpool.service.node.node import hold_worker_lock
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import LOG_DROPPED, RECEIVED, WorkerCounters
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    CleanFrame,
    CleanupEntry,
    ConfigFrame,
    EndedFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    JobFrame,
    LostFrame,
    PingFrame,
    PublishFrame,
    RateFrame,
    RecallFrame,
    RetireFrame,
    SpaceFrame,
    StatusFrame,
)
from dlpool.service.worker.job_run import (
    JobRun,
    JobRunContext,
    lost_job_error,
    remove_stale_files,
    with_traceparent,
)
from dlpool.threads import raise_open_file_limit
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit

SILENCE_S = 10.0  # the supervisor pings every second
# the longest wait for a frame, after which signals and silence are checked
RECEIVE_S = 0.5
# after a longer wait this process was suspended, and the silence says nothing
FROZEN_S = 2.0
STATUS_S = 1.0
STOP_S = 4.0  # for checkpoints, of the 5 s within which a worker exits
ALARM_S = 5
STATUS_JOBS = 150  # in one frame


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of a worker when it starts. ``slots``: number of jobs at once.
    ``cpu``: the CPU for small jobs, None for all CPUs."""

    node_id: str
    state_dir: Path
    log_dir: Path
    slots: int
    transfer: TransferSettings
    network: NetworkSettings
    paths: PathSettings
    logging: LoggingSettings
    otel: OtelSettings
    owned: tuple[OwnedPath, ...] = ()
    scan: ScanSettings = field(default_factory=ScanSettings)
    min_free: int | None = None
    cpu: int | None = None


def main(sock: socket.socket, parent_pid: int, settings: WorkerSettings) -> None:
    """Run a worker. Called in a new interpreter; never returns."""
    # a terminal sends it to all processes: the supervisor decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    affinity = Affinity(settings.cpu)
    affinity.pin()  # before any thread is started
    with stacks_file(settings.state_dir, os.getpid()).open(
        "w", encoding="utf-8"
    ) as stacks:
        faulthandler.enable(stacks)
        try:
            worker = WorkerProcess(sock, settings, affinity)
            signal.signal(
                signal.SIGTERM, lambda *_: worker.request_stop("it received SIGTERM")
            )
            die_with_parent(parent_pid)
            raise_open_file_limit()
            hold_worker_lock(settings.state_dir)
            tune_garbage_collector()
            worker.serve()
        except BaseException as error:
            # for the supervisor's log
            print(f"{type(error).__name__}: {error}", file=stacks, flush=True)
            if isinstance(error, NoThread):
                os._exit(error.exit_code)
            raise
        stacks_file(settings.state_dir, os.getpid()).unlink(missing_ok=True)
    os._exit(0)  # a thread that resolves a host name cannot be interrupted


class WorkerProcess:
    """Handles frames, and runs jobs in a thread for each slot.

    Only the main thread handles frames. The lock guards the table of runs.
    """

    def __init__(
        self, sock: socket.socket, settings: WorkerSettings, affinity: Affinity
    ) -> None:
        self._settings = settings
        self._affinity = affinity
        self._paths = Confinement(settings.paths, settings.owned)
        self._transfer = settings.transfer
        self._logging = settings.logging
        # with a timeout to send: a stopped supervisor must not block this process
        self._channel = FrameChannel.of_worker(
            sock, receive_s=RECEIVE_S, send_s=SILENCE_S
        )
        self._log = Log(
            settings.log_dir,
            settings.logging,
            LogOrigin("dlpool-worker", settings.node_id),
            is_required=False,
        )
        self._logger = self._log.logger("worker")
        self._traces = open_traces(settings.otel, settings.node_id, self._logger)
        self._space = NodeSpaceRules(settings.min_free)
        # without a limit until the supervisor sends this worker's share
        self._rate_limit = RateLimit(None, time.monotonic)
        self._client = self._make_client(settings.network)
        self._lock = threading.Lock()
        self._runs: dict[str, JobRun] = {}  # by lease id
        self._cleanup: queue.SimpleQueue[list[CleanupEntry]] = queue.SimpleQueue()
        self._cleanup_thread = threads.DaemonThread(self._clean_up, "clean")
        self._waiting: queue.SimpleQueue[JobRun] = queue.SimpleQueue()
        self._counters = WorkerCounters()
        self._guard = open_guard(settings.scan)
        self._stop_reason: str | None = None
        self._is_retiring = False
        self._frame_handlers: Mapping[type[Frame], Callable[[Any], None]] = {
            JobFrame: self._handle_job,
            CancelFrame: self._handle_cancel,
            RecallFrame: self._handle_recall,
            PublishFrame: self._handle_publish,
            LostFrame: self._handle_lost,
            CleanFrame: self._handle_clean,
            ConfigFrame: self._handle_config,
            HoldFrame: self._handle_hold,
            RateFrame: self._handle_rate,
            SpaceFrame: self._handle_space,
            RetireFrame: self._handle_retire,
            PingFrame: lambda _: None,  # any frame shows that it is alive
        }

    def __repr__(self) -> str:
        return (
            f"<Worker {os.getpid()} {len(self._runs)} of {self._settings.slots} slots>"
        )

    def request_stop(self, reason: str) -> None:
        """Have ``serve`` checkpoint the jobs and return.

        May be called in a signal handler.
        """
        self._stop_reason = self._stop_reason or reason

    def serve(self) -> None:
        """Run jobs until the supervisor retires this worker, or until a stop is
        requested."""
        threads.start_thread(self._report, "report")
        self._cleanup_thread.start()
        self._start_slots()
        self._channel.send(HelloFrame(os.getpid()))
        heard_at = time.monotonic()
        while self._stop_reason is None and not (self._is_retiring and not self._runs):
            waiting_since = time.monotonic()
            try:
                frame = self._channel.receive()
            except BlockingIOError:
                now = time.monotonic()
                if now - waiting_since > FROZEN_S:
                    heard_at = now
                elif now - heard_at > SILENCE_S:
                    self.request_stop(f"the supervisor was silent for {SILENCE_S:g} s")
                continue
            heard_at = time.monotonic()
            if frame is None:
                self.request_stop("the supervisor has exited")
            else:
                self._handle_frame(frame)
        self._shut_down()

    def _start_slots(self) -> None:
        """Start a thread for each slot. If some threads cannot be started, the other
        threads run all jobs. Raises NoThread if no thread can be started."""
        for number in range(self._settings.slots):
            try:
                threads.start_thread(self._run_jobs, f"slot-{number}")
            except NoThread as error:
                if number == 0:
                    raise
                self._logger.warning("slots_limited", count=number, error=error)
                return

    # --- frames ---

    def _handle_frame(self, frame: Frame) -> None:
        self._frame_handlers[type(frame)](frame)

    def _handle_job(self, frame: JobFrame) -> None:
        if self._logging.traceparent:
            frame = with_traceparent(frame)
        context = JobRunContext(
            transfer=self._transfer,
            paths=self._paths,
            client=self._client,
            log=self._logger,
            send=self._channel.send,
            affinity=self._affinity,
            counters=self._counters,
            space=self._space,
            traces=self._traces,
            guard=self._guard,
        )
        run = JobRun(frame, context)
        with self._lock:
            self._runs[frame.lease_id] = run
        self._waiting.put(run)

    def _handle_cancel(self, frame: CancelFrame) -> None:
        if (run := self._runs.get(frame.lease_id)) is not None:
            self._stop(run, Cancelled(frame.reason))

    def _handle_recall(self, frame: RecallFrame) -> None:
        if (run := self._runs.get(frame.lease_id)) is not None:
            self._give_back(run, Cancelled("no slot of the worker became free"))

    def _handle_publish(self, frame: PublishFrame) -> None:
        if (run := self._runs.get(frame.lease_id)) is not None:
            run.publish()

    def _handle_lost(self, frame: LostFrame) -> None:
        if (run := self._runs.get(frame.lease_id)) is not None:
            self._stop(run, lost_job_error())

    def _handle_clean(self, frame: CleanFrame) -> None:
        self._cleanup.put([CleanupEntry(*entry) for entry in frame.jobs])

    def _handle_config(self, frame: ConfigFrame) -> None:
        """Use reloaded settings for new jobs. Running jobs keep their settings."""
        self._transfer = TransferSettings(**frame.transfer)
        self._paths = Confinement(
            PathSettings(**frame.paths), [OwnedPath(**one) for one in frame.owned]
        )
        self._logging = LoggingSettings(**frame.logging)
        self._log.apply(self._logging)
        network = NetworkSettings(**frame.network)
        if network != self._client.settings:
            self._client = self._make_client(network)

    def _handle_hold(self, frame: HoldFrame) -> None:
        self._client.host_holds.record(frame.host, frame.seconds)

    def _handle_rate(self, frame: RateFrame) -> None:
        self._rate_limit.rate = frame.rate

    def _handle_space(self, frame: SpaceFrame) -> None:
        self._space.update(
            frame.min_free,
            {int(device): size for device, size in frame.reserved.items()},
        )

    def _handle_retire(self, _: RetireFrame) -> None:
        self._is_retiring = True

    def _make_client(self, network: NetworkSettings) -> HttpClient:
        connections = self._transfer.pool_size(self._settings.slots)
        holds = HostHolds(
            time.monotonic,
            lambda host, seconds: self._channel.send(HoldFrame(host, seconds)),
        )
        return HttpClient(
            network,
            connections,
            holds,
            NetworkMonitor(time.monotonic),
            self._rate_limit,
        )

    # --- jobs ---

    def _run_jobs(self) -> None:
        """Run one job after another: the loop of a slot's thread."""
        while True:
            run = self._waiting.get()
            if run.begin():
                self._end(run, run.run())

    def _end(self, run: JobRun, ended: EndedFrame) -> None:
        """Report the result of a run, before the slot begins another job: the
        supervisor concludes from the results which jobs have begun."""
        job = run.frame
        if not self._channel.send(ended):
            # the next attempt continues from the files on disk
            self._logger.warning(
                "result_not_delivered",
                job_id=job.job_id,
                trace_id=job.trace_id,
                attempt_result=ended.attempt_result,
            )
        with self._lock:
            del self._runs[job.lease_id]
            self._counters.add(RECEIVED, run.received_bytes)

    def _stop(self, run: JobRun, error: DlpoolError) -> None:
        """Stop a run with ``error``; if it waits for a slot, end it at once."""
        if not self._give_back(run, error):
            run.cancel(error)

    def _give_back(self, run: JobRun, error: DlpoolError) -> bool:
        """End a run that waits for a slot. Return False if the run has begun."""
        if (ended := run.give_back(error)) is not None:
            self._end(run, ended)
        return ended is not None

    # --- status ---

    def _report(self) -> None:
        """Send status and log progress: the loop of the report thread."""
        logged_at = time.monotonic()
        while True:
            runs = self._send_status()
            if time.monotonic() - logged_at >= self._logging.progress_interval:
                logged_at = time.monotonic()
                for run in runs:
                    run.log_progress()
            self._log.reopen()
            time.sleep(STATUS_S)

    def _send_status(self) -> list[JobRun]:
        """Send the progress of all jobs and the counters. Return the runs."""
        with self._lock:
            # under one lock, so that each job's bytes count in ``runs`` or ``counters``
            runs = list(self._runs.items())
            counters = self._counters.snapshot()
        counters[RECEIVED] = counters.get(RECEIVED, 0) + sum(
            run.received_bytes for _, run in runs
        )
        counters[LOG_DROPPED] = self._log.dropped
        for start in range(0, max(1, len(runs)), STATUS_JOBS):
            some = runs[start : start + STATUS_JOBS]
            missing = {
                lease_id: size for lease_id, run in some if (size := run.missing_bytes)
            }
            unresumable = [lease_id for lease_id, run in some if run.is_unresumable]
            progress = {lease_id: run.progress() for lease_id, run in some}
            self._channel.send(StatusFrame(progress, counters, missing, unresumable))
        return [run for _, run in runs]

    # --- clean-up ---

    def _clean_up(self) -> None:
        """Remove stale files: the loop of the clean-up thread.

        An empty list of entries ends the loop.
        """
        while entries := self._cleanup.get():
            for entry in entries:
                self._remove_stale_files(entry)
            self._channel.send(CleanedFrame([entry.job_id for entry in entries]))

    def _remove_stale_files(self, entry: CleanupEntry) -> None:
        try:
            remove_stale_files(entry, self._paths)
        except (Locked, PolicyRefused):
            # another job writes to the target, or the path was never allowed, so that
            # no job wrote there
            pass
        except DlpoolError as error:
            self._logger.warning(
                "stale_file_not_removed",
                job_id=entry.job_id,
                trace_id=entry.trace_id,
                error=error,
            )

    def _shut_down(self) -> None:
        """Checkpoint the jobs and unlock their files within ``STOP_S`` seconds.

        If this method hangs, SIGALRM kills the process.
        """
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ALARM_S)
        with self._lock:
            runs = list(self._runs.values())
        if runs:
            self._logger.info(
                "worker_stopping", reason=self._stop_reason, running=len(runs)
            )
        for run in runs:
            self._stop(run, Cancelled(f"the worker stops: {self._stop_reason}"))
        deadline = time.monotonic() + STOP_S
        while self._runs and time.monotonic() < deadline:
            time.sleep(0.01)
        self._cleanup.put([])
        self._cleanup_thread.join(STOP_S)
        self._send_status()  # the last counters
        if self._traces is not None:
            self._traces.close(deadline - time.monotonic())
        self._log.close()
