"""Frames between the supervisor and its workers.

They are frozen dataclasses, sent as JSON of less than 64 KiB.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, ClassVar, NamedTuple

from dlpool import jsontext
from dlpool.config import Settings
from dlpool.config.owned_paths import owned_paths
from dlpool.dataclass import dataclass
from dlpool.errors import InternalError
from dlpool.service.wire.results import AttemptResult

MAX_FRAME = 64 * 1024 - 1  # bytes


def lease_clock() -> float:
    """Return the seconds since this machine was booted, including suspended time.

    The clock is the same in all processes of the machine.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Frame:
    """Base of all frames; ``kind`` names the class on the wire."""

    kind: ClassVar[str]


# --- from the supervisor to a worker ---


@dataclass(frozen=True)
class JobFrame(Frame):
    """Run this job.

    ``lease_id``: job id and fencing token. ``leased_until``: the time by
    ``lease_clock`` before which no other supervisor can hold the lease. ``claim_id``:
    the random id of the job's first claim. ``trace_id`` and ``user_id``: for log lines.
    """

    kind = "job"
    lease_id: str
    job_id: str
    fence: int
    leased_until: float
    attempt: int
    url: str
    save_path: str
    trace_id: str
    user_id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    checksum: str | None = None
    if_exists: str | None = None
    limit_rate: int | None = None
    scan: bool = False
    claim_id: str = ""


@dataclass(frozen=True)
class CancelFrame(Frame):
    """Checkpoint this job and stop it; ``reason`` is logged."""

    kind = "cancel"
    lease_id: str
    reason: str


@dataclass(frozen=True)
class RecallFrame(Frame):
    """Give this job back if it still waits for a slot of the worker.

    The worker then sends an EndedFrame. A job that has begun continues.
    """

    kind = "recall"
    lease_id: str


@dataclass(frozen=True)
class PublishFrame(Frame):
    """Publish the file of this job, because the supervisor still holds the lease."""

    kind = "publish"
    lease_id: str


@dataclass(frozen=True)
class LostFrame(Frame):
    """Stop this job and publish nothing: the supervisor does not hold the lease now."""

    kind = "lost"
    lease_id: str


@dataclass(frozen=True)
class CleanFrame(Frame):
    """Remove the stale files of these jobs, which have ended.

    Each job is a ``CleanupEntry``, converted to a list.
    """

    kind = "clean"
    jobs: list[list[Any]]


class CleanupEntry(NamedTuple):
    """The data to find the files that a job may leave behind.

    ``path``: the target file, None if ``save_path`` alone determines it. ``fence``
    distinguishes the attempts of a job. The URL may contain a password, so only its
    digest is kept. ``trace_id``: for log lines.
    """

    job_id: str
    url_sha256: str
    save_path: str
    path: str | None
    has_failed: bool
    fence: int = 0
    trace_id: str = ""


@dataclass(frozen=True)
class ConfigFrame(Frame):
    """Use these settings for new jobs.

    Each dict is a settings dataclass, converted by ``dataclasses.asdict``. ``owned``:
    the files and folders to which jobs must not write.
    """

    kind = "config"
    transfer: dict[str, Any]
    network: dict[str, Any]
    paths: dict[str, Any]
    logging: dict[str, Any]
    owned: list[dict[str, str]]


@dataclass(frozen=True)
class HoldFrame(Frame):
    """Send no requests to ``host`` for ``seconds``.

    A worker sends this frame to report a new hold. The supervisor sends it to all
    workers.
    """

    kind = "hold"
    host: str
    seconds: float


@dataclass(frozen=True)
class RateFrame(Frame):
    """Limit all jobs of the worker together to ``rate`` bytes/s.

    ``rate``: None for no limit. The limit applies to new and running jobs.
    """

    kind = "rate"
    rate: int | None


@dataclass(frozen=True)
class SpaceFrame(Frame):
    """Disk space that jobs must leave free, in bytes.

    ``min_free``: the setting. ``reserved``: the bytes that running jobs have yet to
    allocate, by device number in decimal.
    """

    kind = "space"
    min_free: int | None
    reserved: dict[str, int]


@dataclass(frozen=True)
class PingFrame(Frame):
    """The supervisor is alive. Sent every second."""

    kind = "ping"


@dataclass(frozen=True)
class RetireFrame(Frame):
    """Exit after the present jobs."""

    kind = "retire"


# --- from a worker to the supervisor ---


@dataclass(frozen=True)
class HelloFrame(Frame):
    """The worker is ready for jobs."""

    kind = "hello"
    pid: int


@dataclass(frozen=True)
class StatusFrame(Frame):
    """The worker's heartbeat, sent every second.

    ``jobs``: progress by lease id. ``counters``: the counts of ``WorkerCounters``.
    ``missing_bytes``: how many bytes each job must still allocate on its disk, by lease
    id, without jobs that need none. ``unresumable``: lease ids of jobs whose next
    attempt must start from the beginning, because their servers do not support ranges.
    """

    kind = "status"
    jobs: dict[str, dict[str, Any]]
    counters: dict[str, float]
    missing_bytes: dict[str, int] = field(default_factory=dict)
    unresumable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VerifiedFrame(Frame):
    """The file is complete and verified, and the worker holds the file's lock.

    The job waits for PublishFrame, LostFrame or CancelFrame.
    """

    kind = "verified"
    lease_id: str


@dataclass(frozen=True)
class EndedFrame(Frame):
    """An attempt has ended.

    ``statistics``: set after a success. ``label`` and ``message``: the error, if the
    attempt did not succeed. ``retry_after_s``: the delay that the server asked for, or
    None. ``needs_cleanup``: whether files must be removed once Redis has recorded the
    result. ``stack``: the stack of the error, for the log.
    """

    kind = "ended"
    lease_id: str
    attempt_result: AttemptResult
    path: str | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    message: str = ""
    retry_after_s: float | None = None
    needs_cleanup: bool = True
    stack: str = ""

    def __post_init__(self) -> None:
        result = self.attempt_result
        if type(result) is not AttemptResult:  # a str, from JSON
            object.__setattr__(self, "attempt_result", AttemptResult(result))


@dataclass(frozen=True)
class CleanedFrame(Frame):
    """The stale files of these jobs have been removed, or cannot be removed."""

    kind = "cleaned"
    job_ids: list[str]


FRAMES: Mapping[str, type[Frame]] = {
    frame.kind: frame
    for frame in (
        JobFrame,
        CancelFrame,
        RecallFrame,
        PublishFrame,
        LostFrame,
        CleanFrame,
        ConfigFrame,
        RateFrame,
        PingFrame,
        RetireFrame,
        SpaceFrame,
        HoldFrame,
        HelloFrame,
        StatusFrame,
        VerifiedFrame,
        EndedFrame,
        CleanedFrame,
    )
}


def encode(frame: Frame) -> bytes:
    """Return a frame as JSON. Raises InternalError if it is too large."""
    data = jsontext.dumps({"kind": frame.kind, **vars(frame)})
    if len(data) > MAX_FRAME:
        raise InternalError(
            f"a {frame.kind} frame of {len(data)} bytes is longer than {MAX_FRAME}"
        )
    return data


def decode(data: bytes) -> Frame:
    """Return the frame that ``encode`` converted to ``data``."""
    fields = jsontext.loads(data)
    return FRAMES[fields.pop("kind")](**fields)


def config_frame(settings: Settings) -> ConfigFrame:
    """Return a frame with the reloaded settings that workers need."""
    return ConfigFrame(
        asdict(settings.transfer),
        asdict(settings.network),
        asdict(settings.paths),
        asdict(settings.logging),
        [asdict(one) for one in owned_paths(settings)],
    )
