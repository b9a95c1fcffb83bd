"""A worker process: slots that run jobs, a main thread that listens, a thread that
reports.

It ends when its supervisor does (the end of the socket, silence, or the kernel's
signal): its jobs are checkpointed and their files unlocked within seconds, whatever
state the supervisor is in.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from dlpool import __version__, threads
from dlpool.config import (
    LoggingSettings,
    NetworkSettings,
    OtelSettings,
    PathSettings,
    ScanSettings,
    TransferSettings,
)
from dlpool.config.owned_paths import OwnedPath
from dlpool.errors import Cancelled, DlpoolError, Locked, NoThread, PolicyRefused
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Log
from dlpool.observe.tracing import open_traces
from dlpool.scan.guard import open_guard
from dlpool.service.node.collector import tune_garbage_collector
from dlpool.service.node.disk_rules import NodeSpaceRules
from dlpool.service.node.launch import die_with_parent
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
    FinishingFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    JobFrame,
    LostFrame,
    PublishFrame,
    RateFrame,
    RetireFrame,
    SpaceFrame,
    StatusFrame,
)
from dlpool.service.worker.affinity import Affinity
from dlpool.service.worker.job_run import (
    JobRun,
    JobRunContext,
    lost_job_error,
    remove_stale_files,
)
from dlpool.service.worker.traceparent import with_traceparent
from dlpool.transfer.files import raise_open_file_limit
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit

SILENCE_S = 10.0  # the supervisor pings every second
LISTEN_S = 0.5  # between two looks for signals and silence
FROZEN_S = 2.0  # of one such look
STATUS_S = 1.0
STOP_S = 4.0  # for checkpoints, of the 5 s within which a worker ends
ALARM_S = 5
STATUS_JOBS = 150  # in one frame


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is given when it starts."""

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


def stacks_file(state_dir: Path, pid: int) -> Path:
    """Where a worker's stacks go when it is aborted, or dies of a fatal signal."""
    return state_dir / f"stacks-{pid}"


def main(sock: socket.socket, parent_pid: int, settings: WorkerSettings) -> None:
    """The process: called in a fresh interpreter."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to all: the supervisor decides
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    affinity = Affinity(settings.cpu)
    affinity.pin()  # before there are threads
    with stacks_file(settings.state_dir, os.getpid()).open(
        "w", encoding="utf-8"
    ) as stacks:
        faulthandler.enable(stacks)
        try:
            worker = WorkerProcess(sock, settings, affinity)
            signal.signal(
                signal.SIGTERM, lambda *_: worker.ask_to_stop("it was told to end")
            )
            die_with_parent(parent_pid)
            raise_open_file_limit()
            hold_worker_lock(settings.state_dir)
            tune_garbage_collector()
            worker.serve()
        except BaseException as error:
            print(
                f"{type(error).__name__}: {error}", file=stacks, flush=True
            )  # for the supervisor's log
            if isinstance(error, NoThread):
                os._exit(error.exit_code)
            raise
        stacks_file(settings.state_dir, os.getpid()).unlink(missing_ok=True)
    os._exit(0)  # threads in a name look-up cannot be waited for


class WorkerProcess:
    """The process's state. The main thread listens; the lock guards the table of
    runs."""

    def __init__(
        self, sock: socket.socket, settings: WorkerSettings, affinity: Affinity
    ) -> None:
        self._settings = settings
        self._affinity = affinity
        self._paths = Confinement(settings.paths, settings.owned)
        self._transfer = settings.transfer
        self._logging = settings.logging
        self._channel = FrameChannel.of_worker(
            sock, receive_s=LISTEN_S, send_s=SILENCE_S
        )  # a stopped supervisor blocks nobody
        self._log = Log(
            settings.log_dir,
            settings.logging,
            service="dlpool-worker",
            version=__version__,
            node_id=settings.node_id,
            is_required=False,
        )
        self._logger = self._log.logger("worker")
        self._traces = open_traces(settings.otel, settings.node_id, self._logger)
        self._space = NodeSpaceRules(settings.min_free)
        self._rate = RateLimit(
            None, time.monotonic
        )  # until the supervisor tells our share of the node's
        self._client = self._make_client(settings.network)
        self._lock = threading.Lock()
        self._runs: dict[str, JobRun] = {}
        self._leftovers: queue.SimpleQueue[list[CleanupEntry]] = queue.SimpleQueue()
        self._cleaner = threads.DaemonThread(self._keep_clean, "clean")
        self._waiting: queue.SimpleQueue[JobRun] = queue.SimpleQueue()
        self._tally = WorkerCounters()
        self._guard = open_guard(settings.scan)
        self._stop_reason: str | None = None
        self._is_retiring = False

    def __repr__(self) -> str:
        return (
            f"<Worker {os.getpid()} {len(self._runs)} of {self._settings.slots} slots>"
        )

    def ask_to_stop(self, reason: str) -> None:
        """End soon; safe in a signal handler."""
        self._stop_reason = self._stop_reason or reason

    def serve(self) -> None:
        """Run jobs until told to end, or alone."""
        threads.start_thread(self._report, "report")
        self._cleaner.start()
        self._start_slots()
        self._channel.send(HelloFrame(os.getpid()))
        heard = time.monotonic()
        while self._stop_reason is None and not (self._is_retiring and not self._runs):
            asked = time.monotonic()
            try:
                frame = self._channel.receive()
            except BlockingIOError:
                now = time.monotonic()
                if now - asked > FROZEN_S:
                    heard = now  # it was we who did not run
                elif now - heard > SILENCE_S:
                    self.ask_to_stop(f"the supervisor was silent for {SILENCE_S:g} s")
                continue
            heard = time.monotonic()
            if frame is None:
                self.ask_to_stop("the supervisor has ended")
            else:
                self._obey(frame)
        self._end()

    def _start_slots(self) -> None:
        """Start a thread for each slot; if some cannot be started, jobs wait for one.
        Raises NoThread if none can."""
        for number in range(self._settings.slots):
            try:
                threads.start_thread(self._slot, f"slot-{number}")
            except NoThread as error:
                if number == 0:
                    raise
                self._logger.warning("slots_limited", count=number, error=error)
                return

    def _obey(self, frame: Frame) -> None:
        if isinstance(frame, JobFrame):
            self._begin(frame)
        elif isinstance(frame, CleanFrame):
            self._leftovers.put([CleanupEntry(*ended) for ended in frame.jobs])
        elif isinstance(frame, ConfigFrame):
            self._configure(frame)
        elif isinstance(frame, RateFrame | SpaceFrame | HoldFrame):
            self._learn(frame)
        elif isinstance(frame, RetireFrame):
            self._is_retiring = True
        elif isinstance(frame, PublishFrame | LostFrame | CancelFrame):
            run = self._runs.get(frame.lease_id)
            if run is None:
                return
            if isinstance(frame, PublishFrame):
                run.publish()
            else:
                run.cancel(
                    lost_job_error()
                    if isinstance(frame, LostFrame)
                    else Cancelled(frame.reason)
                )

    def _learn(self, frame: RateFrame | SpaceFrame | HoldFrame) -> None:
        """Heed what concerns all jobs, also the running ones."""
        if isinstance(frame, RateFrame):
            self._rate.rate = frame.rate
        elif isinstance(frame, SpaceFrame):
            self._space.update(
                frame.min_free,
                {int(device): size for device, size in frame.reserved.items()},
            )
        else:
            self._client.host_holds.record(frame.host, frame.seconds)

    def _begin(self, frame: JobFrame) -> None:
        if self._logging.traceparent:
            frame = with_traceparent(frame)
        context = JobRunContext(
            transfer=self._transfer,
            paths=self._paths,
            client=self._client,
            log=self._logger,
            send=self._send,
            affinity=self._affinity,
            tally=self._tally,
            space=self._space,
            traces=self._traces,
            guard=self._guard,
        )
        run = JobRun(frame, context)
        with self._lock:
            self._runs[frame.lease_id] = run
        self._waiting.put(run)

    def _slot(self) -> None:
        while True:
            run = self._waiting.get()
            ended = run.run()
            self._say(ended, run.frame)
            with self._lock:
                del self._runs[run.frame.lease_id]
                self._tally.add(RECEIVED, run.received_bytes)

    def _send(self, frame: Frame) -> bool:
        """What a job says; that its slot is as good as free is no news while another
        one is."""
        if isinstance(frame, FinishingFrame) and len(self._runs) < self._settings.slots:
            return True
        return self._channel.send(frame)

    def _say(self, ended: EndedFrame, job: JobFrame) -> None:
        if not self._channel.send(
            ended
        ):  # nobody listens: the next claim of the job finds what we left on disk
            self._logger.warning(
                "outcome_unheard",
                job_id=job.job_id,
                trace_id=job.trace_id,
                ending=ended.attempt_result,
            )

    def _report(self) -> None:
        """The heartbeat, and the progress of long jobs in the log."""
        logged = time.monotonic()
        while True:
            runs = self._tell_status()
            if time.monotonic() - logged >= self._logging.progress_interval:
                logged = time.monotonic()
                for run in runs:
                    run.log_progress()
            self._log.follow_rename()
            time.sleep(STATUS_S)

    def _tell_status(self) -> list[JobRun]:
        """Send the progress of all jobs, and what was counted; returns those jobs."""
        with (
            self._lock
        ):  # together: what a job has received counts once, as it runs or as it ends
            runs = list(self._runs.items())
            counters = self._tally.snapshot()
        counters[RECEIVED] = counters.get(RECEIVED, 0) + sum(
            run.received_bytes for _, run in runs
        )
        counters[LOG_DROPPED] = self._log.dropped
        for start in range(0, max(1, len(runs)), STATUS_JOBS):
            some = runs[start : start + STATUS_JOBS]
            missing = {
                ticket: size for ticket, run in some if (size := run.missing_bytes)
            }
            whole = [ticket for ticket, run in some if run.is_unresumable]
            self._channel.send(
                StatusFrame(
                    {ticket: run.progress() for ticket, run in some},
                    counters,
                    missing,
                    whole,
                )
            )
        return [run for _, run in runs]

    def _keep_clean(self) -> None:
        while portion := self._leftovers.get():
            for ended in portion:
                self._clean(ended)
            self._channel.send(CleanedFrame([ended.job_id for ended in portion]))

    def _clean(self, ended: CleanupEntry) -> None:
        try:
            remove_stale_files(ended, self._paths)
        except (Locked, PolicyRefused):
            pass  # another job writes there already, or none ever could
        except DlpoolError as error:
            self._logger.warning(
                "leftover_not_removed",
                job_id=ended.job_id,
                trace_id=ended.trace_id,
                error=error,
            )

    def _configure(self, frame: ConfigFrame) -> None:
        """For the jobs to come; running ones keep their snapshot."""
        self._transfer = TransferSettings(**frame.transfer)
        self._paths = Confinement(
            PathSettings(**frame.paths), [OwnedPath(**one) for one in frame.owned]
        )
        self._logging = LoggingSettings(**frame.logging)
        self._log.apply(self._logging)
        network = NetworkSettings(**frame.network)
        if network != self._client.settings:
            self._client = self._make_client(network)

    def _make_client(self, network: NetworkSettings) -> HttpClient:
        connections = self._transfer.pool_size(self._settings.slots)
        gate = HostHolds(
            time.monotonic,
            lambda host, seconds: self._channel.send(HoldFrame(host, seconds)),
        )
        return HttpClient(
            network, connections, gate, NetworkMonitor(time.monotonic), self._rate
        )

    def _end(self) -> None:
        """Checkpoint and unlock within ``STOP_S``; the alarm ends what cannot be ended
        otherwise."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ALARM_S)
        with self._lock:
            runs = list(self._runs.values())
        if runs:
            self._logger.info(
                "worker_stopping", reason=self._stop_reason, running=len(runs)
            )
        for run in runs:
            run.cancel(Cancelled(f"the worker ends: {self._stop_reason}"))
        deadline = time.monotonic() + STOP_S
        while self._runs and time.monotonic() < deadline:
            time.sleep(0.01)
        self._leftovers.put([])
        self._cleaner.join(STOP_S)
        self._tell_status()  # what was counted since the last heartbeat
        if self._traces is not None:
            self._traces.close(deadline - time.monotonic())
        self._log.close()
