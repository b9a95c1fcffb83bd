"""One round of a download: from its first request to the published file, or to the
error that ends it.

The thread that calls ``run`` makes the first request and fetches what is small; for
anything larger it hands over to connection threads (``Lane``), commits checkpoints
meanwhile, and in the end verifies and publishes. ``stop`` ends them from outside by
breaking their sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlpool.errors import (
    Cancelled,
    ChecksumMismatch,
    DeadlineExceeded,
    DlpoolError,
    Infected,
    InternalError,
    LocalFault,
    OutOfFiles,
    RestartFile,
)
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.hashing import FollowingHash
from dlpool.transfer.job import Checksum
from dlpool.transfer.probe import Probe
from dlpool.transfer.sample_check import SampleCheck
from dlpool.transfer.scanning import scan_output
from dlpool.transfer.speed_monitor import SpeedMonitor
from dlpool.transfer.target.protocol import Target, TargetPresent
from dlpool.transfer.worker import ConnectionWorker
from dlpool.transfer.workers import ConnectionWorkers

SMALL_FILE_BYTES = (
    1024 * 1024
)  # bytes: what is smaller is fetched on the calling thread
CHECKPOINT_POLL_S = 0.25  # between two looks whether a checkpoint is due
CHECKPOINT_S = 2.0
CHECKPOINT_BYTES = 64 * 1024 * 1024
COALESCE_S = 1.0  # checkpoints for ended chunks are no closer than this
STOP_TIMEOUT_S = 0.9  # given to connection threads to notice the end


@dataclass
class Checkpoint:
    """What the last checkpoint covered, and when it was (in seconds of the round's
    clock)."""

    at: float
    written: int = 0
    ended_chunks: int = 0

    def is_next_due(self, written: int, ended_chunks: int, now: float) -> bool:
        """Return whether to commit again: after time, bytes, or ended chunks; never
        without a new byte."""
        fresh, age = written - self.written, now - self.at
        has_ended = ended_chunks > self.ended_chunks
        is_due = (
            age >= CHECKPOINT_S
            or fresh >= CHECKPOINT_BYTES
            or (has_ended and age >= COALESCE_S)
        )
        return is_due and fresh > 0


class TransferAttempt:
    """Lanes around a board. ``run`` by one thread, ``stop`` by any."""

    def __init__(
        self,
        context: TransferContext,
        target: Target | None,
        open_target: Callable[[str], Target],
        *,
        deadline: float | None,
        is_single: bool,
        delay_s: float,
    ) -> None:
        self.plan: DownloadPlan | None = None
        self.workers = ConnectionWorkers(context)
        self.phase = "connecting"
        self.verified_checksum: Checksum | None = None
        self._context = context
        self._deadline = deadline
        self._delay_s = delay_s
        self._watch = SpeedMonitor(context)
        self._follower: FollowingHash | None = None
        self._end_check: SampleCheck | None = None
        self._ticks_itself = False  # no thread could be started for the ticker
        self._committed = Checkpoint(context.clock())
        self._opening = Probe(context, target, open_target, is_single=is_single)

    @property
    def received(self) -> int:
        """Bytes of body that came over the network."""
        check = self._end_check
        return self.workers.received + (check.received if check is not None else 0)

    def run(self) -> DownloadPlan:
        """Download, verify and publish. Raises what ended it, after committing what is
        worth it."""
        try:
            with self._context.client.timer.calling(self._tick) as is_ticking:
                self._ticks_itself = not is_ticking
                plan = self._download()
                self._finish(plan)
        except DlpoolError as error:
            self._end(error)
            raise
        except TargetPresent:  # no connection works yet, or any more
            raise
        except Exception as error:
            failure = InternalError.of(error)
            self._end(failure)
            raise failure from error
        except (
            BaseException
        ):  # KeyboardInterrupt in a caller's main thread: nobody may write any more
            self._end(Cancelled("the download was interrupted"))
            raise
        return plan

    def _download(self) -> DownloadPlan:
        board = self._context.scheduler
        board.sleep(self._delay_s)
        first = self.workers.add(ConnectionWorker(self._context))
        opened = first.run_probe(self._opening)
        plan = opened.plan
        self._begin(plan)
        most = self._most_connections(plan)
        connections = min(most, self._context.initial_connections()) if most > 1 else 1
        is_small = (
            connections == 1
            and (plan.resource.size or SMALL_FILE_BYTES) < SMALL_FILE_BYTES
        )  # not worth a thread
        if is_small or not self.workers.start_first(first, lambda: first.run(opened)):
            connections = most = 1
            first.after_write = lambda: self._turn(plan)
            first.run(opened, plan.target.main_writer())
        try:
            self.workers.start(plan, connections, most)
            while not board.wait_until_over(CHECKPOINT_POLL_S):
                self._turn(plan)
                self.workers.adapt(plan)
        finally:
            self.workers.release_share()
        board.check()
        return plan

    def _turn(self, plan: DownloadPlan) -> None:
        """Do what is due from time to time."""
        if self._ticks_itself:
            self._tick()
        self._checkpoint_if_due(plan)

    def stop(self, error: DlpoolError) -> None:
        """End it: from now on nobody writes, and blocked reads return."""
        self._context.scheduler.stop(error)
        for lane in self.workers.all:
            exchange = lane.exchange
            if exchange is not None:
                exchange.cancel(error)
        check = self._end_check
        if check is not None and check.exchange is not None:
            check.exchange.cancel(error)

    def _begin(self, plan: DownloadPlan) -> None:
        """The plan is made: say so, and let a hash follow."""
        context = self._context
        self.plan = plan
        self.phase = "downloading"
        self._committed.written = plan.resumed_from
        context.notify(
            "job_started",
            path=str(plan.target.path),
            size=plan.resource.size,
            has_ranges=plan.has_ranges,
            resumed_from=plan.resumed_from,
        )
        wanted = context.expected_checksum(plan.resource)
        if wanted is not None:
            self._follower = FollowingHash(
                wanted.algorithm, context.scheduler, plan.target.reader
            )

    def _most_connections(self, plan: DownloadPlan) -> int:
        """How many the file is worth."""
        if not plan.has_ranges or plan.resource.refuses_ranges:
            return 1
        return max(1, plan.missing_bytes // self._context.settings.min_split_size)

    def _tick(self) -> None:
        """Called several times a second, from another thread."""
        try:
            if self._deadline is not None and self._context.clock() >= self._deadline:
                self.stop(
                    DeadlineExceeded("the download took longer than its deadline")
                )
            self._watch.check(self.workers.all)
            if self.plan is not None and self.phase == "downloading":
                self.workers.add_second(self.plan)
            if self._end_check is not None:
                self._end_check.abort_if_overdue()
        except Exception as error:  # noqa: BLE001 - the thread is everybody's
            self.stop(InternalError.of(error))

    def _checkpoint_if_due(self, plan: DownloadPlan) -> None:
        if not plan.has_ranges:
            return
        board = self._context.scheduler
        if self._committed.is_next_due(
            board.written(), board.finished_chunks, self._context.clock()
        ):
            self._checkpoint(plan)

    def _checkpoint(self, plan: DownloadPlan, error: DlpoolError | None = None) -> None:
        board = self._context.scheduler
        ended, snapshot = board.finished_chunks, board.snapshot()
        try:
            plan.target.checkpoint(snapshot, error)
        except LocalFault as fault:
            if isinstance(fault, OutOfFiles) and error is None:
                self._committed.at = (
                    self._context.clock()
                )  # other downloads may have closed files by the next commit
            else:
                self.stop(fault)
            return
        self._committed = Checkpoint(self._context.clock(), snapshot.written, ended)

    def _finish(self, plan: DownloadPlan) -> None:
        self.phase = "verifying"
        context = self._context
        context.notify("body_complete", size=context.scheduler.written())
        self._verify(plan)
        context.scheduler.wait_for_writes(STOP_TIMEOUT_S)
        if self.verified_checksum is None:
            self._check_end(plan)
        plan.target.prepare(plan.resource, remote_time=context.settings.remote_time)
        if context.settings.scan:
            self._scan(plan)
        self.phase = "publishing"
        context.authorize_publish()
        context.scheduler.seal()
        plan.target.publish(plan.resource, context.scheduler.snapshot())

    def _scan(self, plan: DownloadPlan) -> None:
        """Check the file for malware. It may take minutes: a run after a kill continues
        with the scan."""
        self.phase = "scanning"
        if plan.has_ranges and self._context.scheduler.written() >= SMALL_FILE_BYTES:
            self._checkpoint(plan)
        scan_output(self._context, plan)

    def _verify(self, plan: DownloadPlan) -> None:
        written = self._context.scheduler.written()
        length = plan.target.length
        if plan.resource.size not in (None, written) or length != written:
            raise InternalError(f"{length} bytes in the part file, {written} written")
        wanted = self._context.expected_checksum(plan.resource)
        if wanted is None or self._follower is None:
            return
        if (
            self._context.job.checksum is None
            and self._context.evidence.has_wrong_digest
        ):
            return
        digest = self._follower.digest()
        if digest != wanted.digest:
            raise ChecksumMismatch(
                f"the {wanted.algorithm} of the file is {digest}, wanted is "
                f"{wanted.digest}"
            )
        self.verified_checksum = wanted
        self._context.notify("checksum_verified", checksum=str(wanted))

    def _check_end(self, plan: DownloadPlan) -> None:
        """Compare samples with the server, if no validator shows that all bytes are of
        one version."""
        check = SampleCheck(self._context, plan)
        if check.is_needed:
            self._end_check = check
            check.run()

    def _end(self, error: DlpoolError) -> None:
        """Commit what a later run can use; the error that ends the round stays the one
        that is reported."""
        self.stop(error)
        self.workers.join(STOP_TIMEOUT_S)
        self._context.scheduler.wait_for_writes(STOP_TIMEOUT_S)
        plan = self.plan
        if plan is None or isinstance(error, RestartFile):
            return
        if isinstance(error, ChecksumMismatch | Infected):
            plan.target.discard()
        elif plan.has_ranges and not plan.target.has_failed and self._has_fresh_bytes():
            self._checkpoint(plan, error)

    def _has_fresh_bytes(self) -> bool:
        return self._context.scheduler.written() > self._committed.written
