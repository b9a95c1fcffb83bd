"""The disposition policy: what happens to a claimed job before and after an attempt.
Pure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dlpool.config import SupervisorSettings
from dlpool.dataclass import dataclass
from dlpool.errors import InternalError
from dlpool.jobs.client_records import CANCELLED, failure_record, success_record
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, BadJob, Malformed, PushedJob
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest
from dlpool.service.wire.frames import EndedFrame
from dlpool.service.wire.results import AttemptResult

MAX_DOUBLINGS = 30
# statistics of a success that its note keeps
_STATISTICS = "size", "seconds", "received", "resumed_from", "retries"
# the job is released: another attempt may succeed, and this one does not count
_RELEASING = (AttemptResult.NODE_FAULT, AttemptResult.LOCKED, AttemptResult.RELEASED)


@dataclass(frozen=True)
class DispositionPolicy:
    """The rules that decide whether a claimed job may run, and what happens to the job
    after an attempt.

    Most methods return the request that records the decision in Redis. ``now`` returns
    seconds since 1970; ``random`` returns numbers from 0 to 1.
    """

    keys: QueueKeys
    settings: SupervisorSettings
    now: Callable[[], float]
    random: Callable[[], float]

    def admit(
        self, claimed: ClaimedJob
    ) -> tuple[PushedJob | None, FinishRequest | None]:
        """Parse a claimed job, and decide whether it may run now.

        Return two values. The first is the parsed job, or None if the job is invalid.
        The second is the request that postpones, pauses or ends the job, or None if the
        job may run.
        """
        try:
            if claimed.size > MAX_JOB_BYTES:
                raise Malformed(
                    f"the job is {claimed.size} bytes long, more than {MAX_JOB_BYTES}"
                )
            job = PushedJob.parse(claimed.raw)
        except BadJob as error:
            return None, self.failure(claimed, error.url, "bad_job", str(error))
        except Malformed as error:
            return None, self.failure(claimed, None, "malformed", str(error))
        if claimed.flag is not None:
            return job, self.for_stop_request(claimed, job.url, claimed.flag)
        return job, self._reject_poison(claimed, job) or self._postpone(claimed, job)

    def is_quarantined(self, claimed: ClaimedJob) -> bool:
        """Return whether a job must run in a worker without other jobs.

        A job is quarantined if workers died while they ran it, and one more death would
        make the job fail.
        """
        return 0 < claimed.crashes >= self.settings.max_crashes - 1

    def for_attempt(
        self,
        claimed: ClaimedJob,
        job: PushedJob,
        frame: EndedFrame,
        requested_action: str | None = None,
        yield_reason: str | None = None,
    ) -> FinishRequest | None:
        """Return the request that records the result of an attempt.

        Return None if another supervisor holds the lease. ``requested_action``: what an
        operator has requested, ``cancel`` or ``pause``, else None. If the file is
        complete, the job succeeds all the same. A pause takes effect only if the
        attempt was interrupted. ``yield_reason``: why the supervisor told the job to
        yield its slot, None if it did not.
        """
        result = frame.attempt_result
        if result is AttemptResult.SUCCEEDED:
            return self._success(claimed, job, frame)
        is_stopped = requested_action == "cancel" or result is AttemptResult.RELEASED
        if (
            requested_action is not None
            and is_stopped
            and result is not AttemptResult.LOST
        ):
            return self.for_stop_request(claimed, job.url, requested_action)
        if claimed.attempts < self._max_attempts(job, result):
            return self._retry(claimed, frame)
        if result in _RELEASING:
            return self._release(claimed, frame, yield_reason)
        if result is AttemptResult.LOST:
            return None
        return self.failure(claimed, job.url, frame.label, frame.message)

    def for_stop_request(
        self, claimed: ClaimedJob, url: str, action: str
    ) -> FinishRequest:
        """Return the request that cancels or pauses a job for an operator.

        ``action`` is ``cancel`` or ``pause``.
        """
        if action == "pause":
            return FinishRequest(
                claimed.lease,
                Disposition.PAUSE,
                note=_note("paused", "the job was paused"),
            )
        record = failure_record(self.keys, url, claimed.raw, CANCELLED, self.now())
        return FinishRequest(
            claimed.lease,
            Disposition.CANCEL,
            record,
            note=_note("cancelled", CANCELLED),
        )

    def for_internal_error(
        self, claimed: ClaimedJob, error: InternalError
    ) -> FinishRequest:
        """Return the request that fails a job because of a defect in dlpool.

        The request contains a record for clients if the URL of the job can be parsed.
        """
        url = None
        with suppress(Exception):
            try:
                url = PushedJob.parse(claimed.raw).url
            except BadJob as bad:
                url = bad.url
        return self.failure(claimed, url, error.label, str(error))

    def for_worker_death(
        self, claimed: ClaimedJob, url: str, how: str
    ) -> FinishRequest:
        """Return the request for a job that was running when its worker died.

        The request lets the job run again, or fails it after ``max_crashes`` deaths.
        """
        deaths = claimed.crashes + 1
        if deaths >= self.settings.max_crashes:
            return self.failure(
                claimed,
                url,
                "poison",
                f"the job was running in {deaths} workers that died: {how}",
            )
        return FinishRequest(
            claimed.lease, Disposition.CRASH, note=_note("worker_died", how)
        )

    def for_release(self, claimed: ClaimedJob, message: str) -> FinishRequest:
        """Return the request that requeues a job for a reason that the job has not
        caused.

        The attempt does not count. ``message``: the reason.
        """
        return FinishRequest(
            claimed.lease, Disposition.RELEASE, note=_note("released", message)
        )

    def failure(
        self, claimed: ClaimedJob, url: str | None, label: str, message: str
    ) -> FinishRequest:
        """Return the request that ends a job as failed.

        If ``url`` is None, clients get no record of the failure.
        """
        record = None
        if url is not None:
            record = failure_record(self.keys, url, claimed.raw, message, self.now())
        return FinishRequest(
            claimed.lease, Disposition.FAIL, record, note=_note(label, message)
        )

    def _postpone(self, claimed: ClaimedJob, job: PushedJob) -> FinishRequest | None:
        """Return the request that postpones a job because of its ``not_before``,
        ``priority`` or ``dedupe``; None if the job may run now."""
        delay_s = (job.not_before or 0.0) - self.now()
        if delay_s > 0:
            return FinishRequest(
                claimed.lease,
                Disposition.RELEASE,
                delay_s=delay_s,
                priority=job.priority,
            )
        if job.priority == "low" != claimed.priority:
            return FinishRequest(claimed.lease, Disposition.RELEASE, priority="low")
        if job.dedupe:
            return FinishRequest(claimed.lease, Disposition.FOLLOW, digest=job.digest)
        return None

    def _reject_poison(
        self, claimed: ClaimedJob, job: PushedJob
    ) -> FinishRequest | None:
        """Return the request that fails a job if too many processes died while they ran
        it.

        Return None if the job may run.
        """
        if (
            claimed.takeovers <= self.settings.max_takeovers
            and claimed.crashes < self.settings.max_crashes
        ):
            return None
        message = (
            f"the job was running in {claimed.takeovers} supervisors "
            f"and {claimed.crashes} workers that died"
        )
        return self.failure(claimed, job.url, "poison", message)

    def _success(
        self, claimed: ClaimedJob, job: PushedJob, frame: EndedFrame
    ) -> FinishRequest:
        statistics = frame.statistics
        size, seconds = int(statistics["size"]), float(statistics["seconds"])
        record = success_record(self.keys, job, size, seconds, self.now())
        note: dict[str, Any] = {
            name: statistics[name] for name in _STATISTICS if name in statistics
        }
        return FinishRequest(
            claimed.lease,
            Disposition.SUCCEED,
            record,
            note={"path": frame.path, **note},
        )

    def _retry(self, claimed: ClaimedJob, frame: EndedFrame) -> FinishRequest:
        least_s = frame.retry_after_s or 0.0
        if frame.attempt_result is AttemptResult.NO_ROOM:
            least_s = self._disk_full_delay_s(claimed.attempts)
        delay_s = self._backoff_s(claimed.attempts, least_s)
        return FinishRequest(
            claimed.lease,
            Disposition.RETRY,
            note=_note(frame.label, frame.message),
            delay_s=delay_s,
        )

    def _release(
        self, claimed: ClaimedJob, frame: EndedFrame, yield_reason: str | None
    ) -> FinishRequest:
        """Return the request that requeues a job whose attempt was interrupted.

        The attempt does not count. A job that yields its slot waits ``job_retry_delay``
        after its first yield. The delay doubles with each further yield, up to
        ``job_retry_max_delay``.
        """
        settings = self.settings
        if yield_reason is None or frame.attempt_result is not AttemptResult.RELEASED:
            delays_s = {
                AttemptResult.NODE_FAULT: settings.fault_delay,
                AttemptResult.LOCKED: settings.locked_delay,
            }
            delay_s = delays_s.get(frame.attempt_result, 0.0)
            return FinishRequest(
                claimed.lease,
                Disposition.RELEASE,
                note=_note(frame.label, frame.message),
                delay_s=delay_s,
            )
        delay_s = min(
            settings.job_retry_max_delay,
            _doubled(settings.job_retry_delay, claimed.yields),
        )
        note = _note(yield_reason, frame.message)
        return FinishRequest(
            claimed.lease, Disposition.YIELD, note=note, delay_s=max(0.001, delay_s)
        )

    def _max_attempts(self, job: PushedJob, result: AttemptResult) -> int:
        """Return how many attempts a job may have, given the result of its last
        attempt.

        Return 0 if no job is retried after such a result. The ``max_attempts`` of the
        job overrides the setting. If the disk was full, the smaller of these two
        numbers applies.
        """
        limit = self.settings.max_attempts
        chosen = job.max_attempts or limit
        return {
            AttemptResult.RETRY: chosen,
            AttemptResult.NO_ROOM: min(chosen, limit),
        }.get(result, 0)

    def _disk_full_delay_s(self, attempts: int) -> float:
        """Return the shortest delay, in seconds, before a retry of a job that met a
        full disk.

        The delay is ``fault_delay`` after the first attempt of the job. It doubles with
        each further attempt, up to ``job_retry_max_delay``.
        """
        first_s, longest_s = (
            self.settings.fault_delay,
            self.settings.job_retry_max_delay,
        )
        return max(first_s, min(longest_s, _doubled(first_s, attempts - 1)))

    def _backoff_s(self, attempts: int, at_least_s: float) -> float:
        """Return the delay before a retry, in seconds: exponential backoff with full
        jitter.

        ``at_least_s``: the shortest delay that the server or a full disk permits.
        """
        settings = self.settings
        longest_s = min(
            settings.job_retry_max_delay,
            _doubled(settings.job_retry_delay, attempts - 1),
        )
        return max(at_least_s, self.random() * longest_s, 0.001)


def _note(label: str, message: str) -> dict[str, Any]:
    return {"label": label, "message": message}


def _doubled(first_s: float, times: int) -> float:
    return first_s * 2.0 ** min(times, MAX_DOUBLINGS)
