"""What supervisor and worker say to each other: values, as JSON frames below 64 KiB."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

from dlpool import jsontext
from dlpool.config import Settings
from dlpool.config.owned_paths import owned_paths
from dlpool.errors import InternalError

MAX_FRAME = 64 * 1024 - 1  # bytes


def lease_clock() -> float:
    """Seconds since this machine has started, also those in which it slept: one clock
    for all of its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Frame:
    """Base of all frames; ``kind`` names it on the wire."""

    kind: ClassVar[str]


# --- down: to the worker ---


@dataclass(frozen=True)
class JobFrame(Frame):
    """Run this job. ``ticket`` is its id and fence; ``user_id`` and ``trace_id`` go
    into its log lines.

    Until ``leased_until`` (``lease_clock``) it is certainly ours: nobody takes a job
    before its lease has passed. ``claim``: the random id of the job's first claim.
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
    claim: str = ""


@dataclass(frozen=True)
class CancelFrame(Frame):
    """Checkpoint this job and give it back; ``reason`` for the log."""

    kind = "cancel"
    lease_id: str
    reason: str


@dataclass(frozen=True)
class PublishFrame(Frame):
    """The fence stands: publish."""

    kind = "publish"
    lease_id: str


@dataclass(frozen=True)
class LostFrame(Frame):
    """The job is another's by now: stop, and publish nothing."""

    kind = "lost"
    lease_id: str


@dataclass(frozen=True)
class CleanFrame(Frame):
    """The queue knows how these jobs ended: remove what they kept for a next run; each
    is an ``CleanupEntry`` as a list."""

    kind = "clean"
    jobs: list[list[Any]]


class CleanupEntry(NamedTuple):
    """A job that has ended. ``path`` is where it went, None if that was never known;
    ``fence`` tells its runs apart.

    ``trace_id`` is for the log. Of the URL only its digest is kept, as it may hold a
    password.
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
    """Settings for the jobs that come from now on, as the dicts of their
    dataclasses."""

    kind = "config"
    transfer: dict[str, Any]
    network: dict[str, Any]
    paths: dict[str, Any]
    logging: dict[str, Any]
    owned: list[dict[str, str]]


@dataclass(frozen=True)
class HoldFrame(Frame):
    """A host does not want to be asked for so many seconds: a worker was told so, or
    hears of it."""

    kind = "hold"
    host: str
    seconds: float


@dataclass(frozen=True)
class RateFrame(Frame):
    """The worker's share of the node's rate, in bytes/s; None is no limit. Running jobs
    obey it too."""

    kind = "rate"
    rate: int | None


@dataclass(frozen=True)
class SpaceFrame(Frame):
    """How many bytes stay free on each disk (the setting ``min_free``), and how many
    running jobs will take.

    ``taken`` is by device number, in decimal digits.
    """

    kind = "space"
    min_free: int | None
    reserved: dict[str, int]


@dataclass(frozen=True)
class PingFrame(Frame):
    """The supervisor lives."""

    kind = "ping"


@dataclass(frozen=True)
class RetireFrame(Frame):
    """End when the present jobs have ended."""

    kind = "retire"


# --- up: to the supervisor ---


@dataclass(frozen=True)
class HelloFrame(Frame):
    """The worker is ready."""

    kind = "hello"
    pid: int


@dataclass(frozen=True)
class StatusFrame(Frame):
    """The heartbeat, once a second: progress of running jobs by ticket, and a ``Tally``
    since the start.

    ``missing``: bytes that jobs will yet take of their disks, of those jobs where that
    is not 0. ``whole``: jobs whose next run has to begin anew, as their servers send no
    ranges.
    """

    kind = "status"
    jobs: dict[str, dict[str, Any]]
    counters: dict[str, float]
    missing_bytes: dict[str, int] = field(default_factory=dict)
    unresumable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FinishingFrame(Frame):
    """All bytes of a small file are there, only the disk is waited for: the slot is as
    good as free."""

    kind = "finishing"
    lease_id: str


@dataclass(frozen=True)
class VerifiedFrame(Frame):
    """The file is complete and right, its lock is held: may it be published?"""

    kind = "verified"
    lease_id: str


@dataclass(frozen=True)
class EndedFrame(Frame):
    """A job has left its slot.

    ``ending``: succeeded, retry, failed, node_fault, no_room, locked, released, lost.
    ``result`` are the figures of a success, else ``label`` and ``message`` say why.
    ``retry_after_s``: how long the server asked us to wait. ``leaves_state``: there is
    something to clean up when the queue knows. ``stack``: of an error with a cause, for
    the log.
    """

    kind = "ended"
    lease_id: str
    attempt_result: str
    path: str | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    message: str = ""
    retry_after_s: float | None = None
    needs_cleanup: bool = True
    stack: str = ""


@dataclass(frozen=True)
class CleanedFrame(Frame):
    """What was kept for these jobs is gone, or cannot be removed."""

    kind = "cleaned"
    job_ids: list[str]


FRAMES: Mapping[str, type[Frame]] = {
    frame.kind: frame
    for frame in (
        JobFrame,
        CancelFrame,
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
        FinishingFrame,
        VerifiedFrame,
        EndedFrame,
        CleanedFrame,
    )
}


def encode(frame: Frame) -> bytes:
    """The frame as it is sent. Raises InternalError if it is too large."""
    data = jsontext.dumps({"kind": frame.kind, **vars(frame)})
    if len(data) > MAX_FRAME:
        raise InternalError(
            f"a {frame.kind} frame of {len(data)} bytes is longer than {MAX_FRAME}"
        )
    return data


def decode(data: bytes) -> Frame:
    """The frame that was sent."""
    fields = jsontext.loads(data)
    return FRAMES[fields.pop("kind")](**fields)


def config_frame(settings: Settings) -> ConfigFrame:
    """Return what workers need of reloaded settings."""
    return ConfigFrame(
        asdict(settings.transfer),
        asdict(settings.network),
        asdict(settings.paths),
        asdict(settings.logging),
        [asdict(one) for one in owned_paths(settings)],
    )
