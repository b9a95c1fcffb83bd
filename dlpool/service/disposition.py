"""What becomes of a job that has left its worker. Pure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dlpool.config import SupervisorSettings
from dlpool.errors import InternalError
from dlpool.jobs.client_records import CANCELLED, failure_record, success_record
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import MAX_JOB_BYTES, BadJob, Malformed, PushedJob
from dlpool.jobs.transitions import ClaimedJob, FinishRequest
from dlpool.service.wire.frames import EndedFrame


@dataclass(frozen=True)
class DispositionPolicy:
    """Turns endings into transitions. ``now`` in seconds since 1970; ``chance`` gives
    numbers from 0 to 1."""

    keys: QueueKeys
    settings: SupervisorSettings
    now: Callable[[], float]
    random: Callable[[], float]

    def admit(
        self, claimed: ClaimedJob
    ) -> tuple[PushedJob | None, FinishRequest | None]:
        """The job, and the transition that comes instead of running it now, if any."""
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
        return job, self._refused(claimed, job) or self._put_off(claimed, job)

    def _put_off(self, claimed: ClaimedJob, job: PushedJob) -> FinishRequest | None:
        """What a job from the intake asks for: another time, another priority, or to be
        one with its equals."""
        delay_s = (job.not_before or 0.0) - self.now()
        if delay_s > 0:
            return FinishRequest(
                claimed.lease, "release", delay_s=delay_s, priority=job.priority
            )
        if job.priority == "low" != claimed.priority:
            return FinishRequest(claimed.lease, "release", priority="low")
        if job.dedupe:
            return FinishRequest(claimed.lease, "follow", digest=job.digest)
        return None

    def for_stop_request(
        self, claimed: ClaimedJob, url: str, action: str
    ) -> FinishRequest:
        """The transition for a job that an operator wants to ``cancel`` or
        ``pause``."""
        if action == "pause":
            return FinishRequest(
                claimed.lease,
                "pause",
                note={"label": "paused", "message": "the job was paused"},
            )
        record = failure_record(self.keys, url, claimed.raw, CANCELLED, self.now())
        return FinishRequest(
            claimed.lease,
            "cancelled",
            record,
            note={"label": "cancelled", "message": CANCELLED},
        )

    def for_attempt(
        self,
        claimed: ClaimedJob,
        job: PushedJob,
        frame: EndedFrame,
        verb: str | None = None,
        yielding: str | None = None,
    ) -> FinishRequest | None:
        """The transition for what a worker said; None where the job is another's.

        ``verb``: what an operator wanted meanwhile; it comes too late for a file that
        is there already. ``yielding``: why the job was to give its slot to others.
        """
        note = {"label": frame.label, "message": frame.message}
        ticket = claimed.lease
        if frame.attempt_result == "succeeded":
            size, seconds = (
                int(frame.statistics["size"]),
                float(frame.statistics["seconds"]),
            )
            record = success_record(self.keys, job, size, seconds, self.now())
            return FinishRequest(
                ticket,
                "success",
                record,
                note={"path": frame.path, **_figures(frame.statistics)},
            )
        if (
            verb is not None
            and frame.attempt_result != "lost"
            and (verb == "cancel" or frame.attempt_result == "released")
        ):
            return self.for_stop_request(claimed, job.url, verb)
        if claimed.attempts < self._most_attempts(job, frame.attempt_result):
            least_s = (
                self._room_s(claimed.attempts)
                if frame.attempt_result == "no_room"
                else frame.retry_after_s or 0.0
            )
            return FinishRequest(
                ticket,
                "retry",
                note=note,
                delay_s=self._backoff_s(claimed.attempts, least_s),
            )
        if frame.attempt_result in ("node_fault", "locked", "released"):
            return self._given_back(claimed, frame, yielding)
        if frame.attempt_result == "lost":
            return None
        return self.failure(claimed, job.url, frame.label, frame.message)

    def failure(
        self, claimed: ClaimedJob, url: str | None, label: str, message: str
    ) -> FinishRequest:
        """The final failure; without a URL there is no record that clients could
        find."""
        record = (
            None
            if url is None
            else failure_record(self.keys, url, claimed.raw, message, self.now())
        )
        return FinishRequest(
            claimed.lease, "failed", record, note={"label": label, "message": message}
        )

    def for_internal_error(
        self, claimed: ClaimedJob, error: InternalError
    ) -> FinishRequest:
        """The end of a job at which we broke ourselves; with its record, if its URL can
        be told at all."""
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
        """The transition for a job that was aboard when its worker died."""
        deaths = claimed.crashes + 1
        if deaths >= self.settings.max_crashes:
            return self.failure(
                claimed,
                url,
                "poison",
                f"the job was aboard {deaths} workers when they died: {how}",
            )
        return FinishRequest(
            claimed.lease, "crash", note={"label": "worker_died", "message": how}
        )

    def for_bystander(self, claimed: ClaimedJob, how: str) -> FinishRequest:
        """The transition for a job whose worker was killed for what another job did: it
        counts nothing."""
        message = f"another job held up the worker: {how}"
        return FinishRequest(
            claimed.lease, "release", note={"label": "released", "message": message}
        )

    def _refused(self, claimed: ClaimedJob, job: PushedJob) -> FinishRequest | None:
        """The end of a job that must not be run again."""
        if (
            claimed.takeovers <= self.settings.max_takeovers
            and claimed.crashes < self.settings.max_crashes
        ):
            return None
        message = (
            f"the job was aboard {claimed.takeovers} supervisors and {claimed.crashes} "
            f"workers when they died"
        )
        return self.failure(claimed, job.url, "poison", message)

    def is_quarantined(self, claimed: ClaimedJob) -> bool:
        """Whether one more death would condemn it: then nobody else shall be aboard."""
        return 0 < claimed.crashes >= self.settings.max_crashes - 1

    def _pause_s(self, ending: str) -> float:
        """How long a job waits that could not run here and now."""
        fault_s, locked_s = self.settings.fault_delay, self.settings.locked_delay
        return {"node_fault": fault_s, "locked": locked_s}.get(ending, 0.0)

    def _given_back(
        self, claimed: ClaimedJob, frame: EndedFrame, yielding: str | None
    ) -> FinishRequest:
        """Return the transition for a job that did not end by itself: this run does not
        count.

        One that gives its slot to others waits from ``job_retry_delay`` on, twice as
        long each time.
        """
        if yielding is None or frame.attempt_result != "released":
            note = {"label": frame.label, "message": frame.message}
            return FinishRequest(
                claimed.lease,
                "release",
                note=note,
                delay_s=self._pause_s(frame.attempt_result),
            )
        settings = self.settings
        delay_s = min(
            settings.job_retry_max_delay,
            settings.job_retry_delay * 2.0 ** min(claimed.yields, 30),
        )
        note = {"label": yielding, "message": frame.message}
        return FinishRequest(
            claimed.lease, "yield", note=note, delay_s=max(0.001, delay_s)
        )

    def _most_attempts(self, job: PushedJob, ending: str) -> int:
        """How many runs a job may have that ended so; 0 where no other one follows.

        A job may ask for more of them than the settings, but not of those that fill a
        disk.
        """
        most = self.settings.max_attempts
        own = job.max_attempts or most
        return {"retry": own, "no_room": min(own, most)}.get(ending, 0)

    def _room_s(self, attempts: int) -> float:
        """How long a job waits at least that did not fit on its disk: doubling, from
        ``fault_delay`` on."""
        first_s, longest_s = (
            self.settings.fault_delay,
            self.settings.job_retry_max_delay,
        )
        return max(first_s, min(longest_s, first_s * 2.0 ** min(attempts - 1, 30)))

    def _backoff_s(self, attempts: int, at_least_s: float) -> float:
        """Doubling, with full jitter, and never earlier than the server asked for."""
        settings = self.settings
        longest = min(
            settings.job_retry_max_delay,
            settings.job_retry_delay * 2.0 ** min(attempts - 1, 30),
        )
        return max(at_least_s, self.random() * longest, 0.001)


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {
        name: result[name]
        for name in ("size", "seconds", "received", "resumed_from", "retries")
        if name in result
    }
