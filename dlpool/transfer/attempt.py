"""Make one attempt at a download, up to the published file or an error.

The thread that calls ``run`` makes the first request and fetches a small file. For a
larger file it starts connection threads (``ConnectionWorker``) and commits checkpoints
while they work. Finally it verifies and publishes the file. Another thread ends the
attempt by cancelling ``scope``, which shuts down the sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from dlpool.dataclass import dataclass
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
from dlpool.transfer.preconnect import Preconnector
from dlpool.transfer.probe import Probe
from dlpool.transfer.sample_check import SampleCheck
from dlpool.transfer.scanning import scan_output
from dlpool.transfer.speed_monitor import SpeedMonitor
from dlpool.transfer.target.protocol import Target, TargetPresent
from dlpool.transfer.worker import ConnectionWorker
from dlpool.transfer.workers import ConnectionWorkers

SMALL_FILE_BYTES = 1024 * 1024  # a smaller file is fetched on the calling thread
CHECKPOINT_POLL_S = 0.25  # between two checks whether a checkpoint is due
CHECKPOINT_S = 2.0
CHECKPOINT_BYTES = 64 * 1024 * 1024
COALESCE_S = 1.0  # least interval between checkpoints for finished chunks
STOP_TIMEOUT_S = 0.9  # for connection threads to stop


@dataclass
class Checkpoint:
    """What the latest checkpoint contains.

    ``at``: its time by the attempt's clock. ``written``: the number of written bytes.
    ``ended_chunks``: the number of finished chunks.
    """

    at: float
    written: int = 0
    ended_chunks: int = 0

    def is_next_due(self, written: int, ended_chunks: int, now: float) -> bool:
        """Return whether the next checkpoint is due, by time, bytes or finished chunks.

        A checkpoint is due only if bytes were written since the latest one.
        """
        fresh, age = written - self.written, now - self.at
        has_ended = ended_chunks > self.ended_chunks
        is_due = (
            age >= CHECKPOINT_S
            or fresh >= CHECKPOINT_BYTES
            or (has_ended and age >= COALESCE_S)
        )
        return is_due and fresh > 0


class TransferAttempt:
    """One attempt. One thread calls ``run``; any thread may cancel ``scope``.

    ``target``: None until the file's name is known; then ``open_target`` opens the
    target of that name. ``deadline``: by the context's clock, None for no limit.
    ``is_single``: request one body instead of ranges. ``delay_s``: seconds to wait
    before the first request.
    """

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
        self.scope = context.scope
        self.plan: DownloadPlan | None = None
        self.workers = ConnectionWorkers(context)
        self.phase = "connecting"
        self.verified_checksum: Checksum | None = None
        self._context = context
        self._deadline = deadline
        self._delay_s = delay_s
        self._is_single = is_single
        self._speed_monitor = SpeedMonitor(context)
        self._hash: FollowingHash | None = None
        self._sample_check: SampleCheck | None = None
        self._ticks_inline = False  # the timer thread could not be started
        self._committed = Checkpoint(context.clock())
        self._probe = Probe(context, target, open_target, is_single=is_single)

    @property
    def received(self) -> int:
        """Return the bytes of body received over the network."""
        check = self._sample_check
        return self.workers.received + (check.received if check is not None else 0)

    def run(self) -> DownloadPlan:
        """Download, verify and publish.

        Raises the error that ended the attempt, after committing the bytes that are
        usable.
        """
        try:
            with self._context.client.timer.calling(self._check_limits) as is_ticking:
                self._ticks_inline = not is_ticking
                plan = self._download()
                self._finish(plan)
        except DlpoolError as error:
            self._finish_failed(error)
            raise
        except TargetPresent:  # no connection thread is running
            raise
        except Exception as error:
            failure = InternalError.of(error)
            self._finish_failed(failure)
            raise failure from error
        except BaseException:
            # KeyboardInterrupt in a caller's main thread: the writers must stop
            self._finish_failed(Cancelled("the download was interrupted"))
            raise
        return plan

    def _download(self) -> DownloadPlan:
        scheduler = self._context.scheduler
        scheduler.sleep(self._delay_s)
        first = self.workers.add(ConnectionWorker(self._context))
        preconnector = Preconnector(self._context)
        if not self._is_single:
            self._probe.on_exchange = preconnector.watch
        probed = first.run_probe(self._probe)
        plan = probed.plan
        most = self._most_connections(plan)
        connections = min(most, self._context.initial_connections()) if most > 1 else 1
        # for a small file, a thread would cost more than it gains
        is_small = (
            connections == 1
            and (plan.resource.size or SMALL_FILE_BYTES) < SMALL_FILE_BYTES
        )
        preconnector.remember(connections)
        self._announce(plan, is_small=is_small)
        if is_small or not self.workers.start_first(first, lambda: first.run(probed)):
            connections = most = 1
            first.after_write = lambda: self._do_periodic_work(plan)
            writer = plan.target.main_writer()
            rest = first.run_at_once(probed, writer) if is_small else probed
            if rest is None:
                return plan
            first.run(rest, writer)
        try:
            preconnector.wait()
            self.workers.start(plan, connections, most)
            while not scheduler.wait_until_over(CHECKPOINT_POLL_S):
                self._do_periodic_work(plan)
                self.workers.adapt(plan)
        finally:
            self.workers.release_share()
        self.scope.raise_if_cancelled()
        return plan

    def _do_periodic_work(self, plan: DownloadPlan) -> None:
        """Commit a checkpoint if it is due.

        If there is no timer thread, this method first checks the limits.
        """
        if self._ticks_inline:
            self._check_limits()
        self._checkpoint_if_due(plan)

    def _announce(self, plan: DownloadPlan, *, is_small: bool) -> None:
        """Report that the download has started, and start to hash the file.

        The checksum of a small file is computed when the file is complete.
        """
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
        expected = context.expected_checksum(plan.resource)
        if expected is not None:
            self._hash = FollowingHash(
                expected.algorithm,
                context.scheduler,
                plan.target.reader,
                follows=not is_small,
            )

    def _most_connections(self, plan: DownloadPlan) -> int:
        """Return how many connections are useful for the missing bytes."""
        if not plan.has_ranges or plan.resource.refuses_ranges:
            return 1
        return max(1, plan.missing_bytes // self._context.settings.min_split_size)

    def _check_limits(self) -> bool:
        """Check deadline, speeds and timeouts.

        The timer thread calls this several times a second. Returns whether the speeds
        are to be checked again soon.
        """
        is_hurried = False
        try:
            if self._deadline is not None and self._context.clock() >= self._deadline:
                self.scope.cancel(
                    DeadlineExceeded("the download took longer than its deadline")
                )
            is_hurried = self._speed_monitor.check(self.workers.all)
            if self.plan is not None and self.phase == "downloading":
                self.workers.add_second(self.plan)
            if self._sample_check is not None:
                self._sample_check.abort_if_overdue()
        except Exception as error:  # noqa: BLE001 - all downloads share the timer thread
            self.scope.cancel(InternalError.of(error))
        return is_hurried

    def _checkpoint_if_due(self, plan: DownloadPlan) -> None:
        if not plan.has_ranges:
            return
        scheduler = self._context.scheduler
        if self._committed.is_next_due(
            scheduler.written(), scheduler.finished_chunks, self._context.clock()
        ):
            self._checkpoint(plan)

    def _checkpoint(self, plan: DownloadPlan, error: DlpoolError | None = None) -> None:
        scheduler = self._context.scheduler
        ended, snapshot = scheduler.finished_chunks, scheduler.snapshot()
        try:
            plan.target.checkpoint(snapshot, error)
        except LocalFault as fault:
            if isinstance(fault, OutOfFiles) and error is None:
                # retry at the next checkpoint, when files may have been closed
                self._committed.at = self._context.clock()
            else:
                self.scope.cancel(fault)
            return
        self._committed = Checkpoint(self._context.clock(), snapshot.written, ended)

    def _finish(self, plan: DownloadPlan) -> None:
        self.phase = "verifying"
        context = self._context
        context.notify("body_complete", size=context.scheduler.written())
        self._verify(plan)
        context.scheduler.wait_for_writes(STOP_TIMEOUT_S)
        if self.verified_checksum is None:
            self._check_samples(plan)
        plan.target.prepare(plan.resource, remote_time=context.settings.remote_time)
        if context.settings.scan:
            self._scan(plan)
        self.phase = "publishing"
        context.authorize_publish()
        self.scope.seal()
        plan.target.publish(plan.resource, context.scheduler.snapshot())

    def _scan(self, plan: DownloadPlan) -> None:
        """Scan the file for malware.

        A scan may take minutes. For a large file a checkpoint is committed first, so
        that after a kill the next run resumes with the scan.
        """
        self.phase = "scanning"
        if plan.has_ranges and self._context.scheduler.written() >= SMALL_FILE_BYTES:
            self._checkpoint(plan)
        scan_output(self._context, plan)

    def _verify(self, plan: DownloadPlan) -> None:
        written = self._context.scheduler.written()
        length = plan.target.length
        if plan.resource.size not in (None, written) or length != written:
            raise InternalError(f"{length} bytes in the part file, {written} written")
        expected = self._context.expected_checksum(plan.resource)
        if expected is None or self._hash is None:
            return
        if (
            self._context.job.checksum is None
            and self._context.evidence.has_wrong_digest
        ):
            return
        digest = self._hash.digest()
        if digest != expected.digest:
            raise ChecksumMismatch(
                f"the {expected.algorithm} of the file is {digest}, wanted is "
                f"{expected.digest}"
            )
        self.verified_checksum = expected
        self._context.notify("checksum_verified", checksum=str(expected))

    def _check_samples(self, plan: DownloadPlan) -> None:
        """Compare samples of the file with the server's bytes.

        Does nothing if a validator proves that all bytes are of one version.
        """
        check = SampleCheck(self._context, plan)
        if check.is_needed:
            self._sample_check = check
            check.run()

    def _finish_failed(self, error: DlpoolError) -> None:
        """Stop the attempt with ``error``; commit the bytes that a later run can use.

        The caller reports ``error``, even if the commit fails.
        """
        self.scope.cancel(error)
        self.workers.join(STOP_TIMEOUT_S)
        self._context.scheduler.wait_for_writes(STOP_TIMEOUT_S)
        plan = self.plan
        if plan is None or isinstance(error, RestartFile):
            return
        if isinstance(error, ChecksumMismatch | Infected):
            plan.target.discard()
        elif (
            plan.has_ranges
            and not plan.target.has_failed
            and self._has_uncommitted_bytes()
        ):
            self._checkpoint(plan, error)

    def _has_uncommitted_bytes(self) -> bool:
        return self._context.scheduler.written() > self._committed.written
