"""The findings of ``dlpool doctor``, and how severe each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dlpool.cli.units import size_text
from dlpool.config import Settings
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError
from dlpool.kinds import AUTO
from dlpool.redaction import without_secrets
from dlpool.service.scheduling import divide_slots
from dlpool.transfer.server_inspection import IfRange, InspectionReport

OK, WARNING, FAILED = "ok", "warning", "failed"
CONFIGURATION = "configuration"
# Response time of Redis that is slow: each claim, heartbeat and end of a job waits for
# a response.
SLOW_REDIS_S = 0.02
CLOCK_S = 2.0  # tolerance in seconds, for not_before and logs
DATE_S = 5.0  # tolerance for a clock that is read in full seconds, from Date
WRONG_CLOCK_S = 300.0  # an offset at which certificates and Retry-After fail
# Open files that a connection needs: the socket, its duplicate, the part file.
FILES_EACH = 3
FILES_BESIDE = 64  # open files of a worker without jobs


@dataclass(frozen=True)
class DoctorFinding:
    """One line of output: the check, its state, the finding, and advice."""

    check: str
    state: str
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", without_secrets(self.found))

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return asdict(self)


def verdict(findings: Sequence[DoctorFinding]) -> str:
    """Return the last line of the output: the overall result."""
    states = [finding.state for finding in findings]
    failed, warnings = states.count(FAILED), states.count(WARNING)
    counted = f"{warnings} warning{'s' * (warnings != 1)}"
    if failed:
        return f"{failed} of {len(states)} checks failed, {counted}"
    return f"all right, {counted}" if warnings else "all right"


def exit_code(findings: Sequence[DoctorFinding]) -> int:
    """Return the exit code of ``dlpool doctor``.

    It is 78 if the configuration check failed, 1 if only other checks failed, else 0.
    """
    failed = {finding.check for finding in findings if finding.state == FAILED}
    if CONFIGURATION in failed:
        return ConfigurationError.exit_code
    return 1 if failed else 0


def latency_finding(seconds: float) -> DoctorFinding:
    """Return the finding for ``seconds``, the response time of Redis."""
    found = f"{seconds * 1000:.2f} ms"
    if seconds <= SLOW_REDIS_S:
        return DoctorFinding("redis latency", OK, found)
    return DoctorFinding(
        "redis latency",
        WARNING,
        found,
        "see redis-cli --latency and SLOWLOG; jobs start and end late",
    )


def clock_finding(
    check: str, offset_s: float, *, is_proof: bool = True
) -> DoctorFinding:
    """Return the finding for the clock of another machine.

    ``offset_s`` is the number of seconds by which the other clock is ahead of this
    machine's clock.
    ``is_proof`` is False for the clock of a single foreign server, which cannot prove
    that this machine's clock is wrong.
    """
    tolerance_s = CLOCK_S if is_proof else DATE_S
    if abs(offset_s) <= tolerance_s:
        return DoctorFinding(check, OK, f"within {tolerance_s:g} s of ours")
    found = f"{abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    state = FAILED if is_proof and abs(offset_s) > WRONG_CLOCK_S else WARNING
    return DoctorFinding(
        check, state, found, "see timedatectl here, and the clock there"
    )


def files_needed(settings: Settings, cores: int) -> int:
    """Return the number of open files that the worker with the most slots needs.

    ``cores`` is the number of cores of the machine.
    """
    service, transfer = settings.supervisor, settings.transfer
    slots = service.max_concurrent_downloads
    slots = service.max_slots if isinstance(slots, str) else slots
    connections = (
        transfer.max_connections
        if transfer.connections == AUTO
        else int(transfer.connections)
    )
    return FILES_BESIDE + FILES_EACH * connections * max(
        divide_slots(slots, service.workers or cores)
    )


def open_files_finding(needed: int, hard: int | None) -> DoctorFinding:
    """Return the finding for ``hard``, the hard limit of open files (None: unlimited).

    ``needed`` is the number of open files that a worker needs.
    """
    if hard is None or hard >= needed:
        return DoctorFinding(
            "open files",
            OK,
            f"{'unlimited' if hard is None else hard}, {needed} needed for a worker",
        )
    found = (
        f"{hard} at most, {needed} needed for a worker with all slots and connections "
        f"in use"
    )
    return DoctorFinding(
        "open files",
        FAILED,
        found,
        "raise ulimit -Hn (LimitNOFILE in a unit), or lower connections",
    )


def origin_findings(
    report: InspectionReport, settings: Settings
) -> list[DoctorFinding]:
    """Return what a server supports, and how dlpool would download from it."""
    found = [
        _head(report, settings),
        _size(report, settings),
        _ranges(report),
        _validator(report),
        _if_range(report),
    ]
    found.append(_connections(report))
    if report.clock_offset_s is not None:
        found.append(
            clock_finding("origin clock", report.clock_offset_s, is_proof=False)
        )
    rate = size_text(report.received / max(report.seconds, 1e-3))
    speed = f"{rate}/s over one connection"
    found.append(
        DoctorFinding(
            "speed",
            OK,
            f"{speed}, {size_text(report.received)}, first answer in "
            f"{report.answer_s:.3f} s",
        )
    )
    return [*found, DoctorFinding("plan", OK, plan_of(report, settings))]


def plan_of(report: InspectionReport, settings: Settings) -> str:
    """Describe in one sentence how dlpool would download."""
    resource, transfer = report.resource, settings.transfer
    if not report.is_partial:
        return "one connection, one stream, not resumable: it restarts if it breaks"
    limit = (
        transfer.max_connections
        if transfer.connections == AUTO
        else int(transfer.connections)
    )
    number = (
        1
        if resource.refuses_ranges
        else max(1, min(limit, (resource.size or 0) // transfer.min_split_size))
    )
    how = (
        f"up to {number}, as many as raise the throughput"
        if transfer.connections == AUTO and number > 1
        else str(number)
    )
    validator = (
        "strong ETag"
        if resource.strong_etag
        else "Last-Modified"
        if resource.has_settled_date
        else ""
    )
    later = (
        f"resumable in a later run, by its {validator}"
        if validator
        else "not resumable in a later run"
    )
    admitted = (
        f" ({report.connections} are admitted and fetch all ranges)"
        if report.refusals
        else ""
    )
    return (
        f"{how} connection{'s' * (number > 1)}{admitted}, ranges retried one by one, "
        f"{later}"
    )


def _head(report: InspectionReport, settings: Settings) -> DoctorFinding:
    if isinstance(report.head, int) and report.head < 400:
        return DoctorFinding("head", OK, f"answered {report.head}")
    found = f"answered {report.head}" if isinstance(report.head, int) else report.head
    if settings.transfer.probe == "head":
        return DoctorFinding(
            "head", WARNING, found, "probe = range in [transfer] saves this request"
        )
    return DoctorFinding("head", OK, f"{found}; dlpool does not need it")


def _size(report: InspectionReport, settings: Settings) -> DoctorFinding:
    size, limit = report.resource.size, settings.transfer.max_file_size
    if size is None:
        return DoctorFinding(
            "size", WARNING, "unknown", "a checksum shows whether the file is complete"
        )
    if limit is not None and size > limit:
        return DoctorFinding(
            "size",
            FAILED,
            f"{size} bytes, max_file_size is {limit}",
            "raise max_file_size in [transfer]",
        )
    if report.resource.content_encoding:
        advice = (
            "content_encoding in [transfer] decides whether it is decoded; decoding "
            "uses one connection"
        )
        return DoctorFinding(
            "size",
            WARNING,
            f"{size} bytes, encoded as {report.resource.content_encoding}",
            advice,
        )
    return DoctorFinding(
        "size", OK, f"{size} bytes ({size_text(size)}), from {report.host}"
    )


def _ranges(report: InspectionReport) -> DoctorFinding:
    if report.is_partial:
        return DoctorFinding("ranges", OK, "supported")
    return DoctorFinding(
        "ranges",
        WARNING,
        "not supported",
        "nothing to do; for a large file use another mirror",
    )


def _validator(report: InspectionReport) -> DoctorFinding:
    resource = report.resource
    if resource.strong_etag:
        return DoctorFinding("validator", OK, f"strong ETag {resource.strong_etag}")
    if resource.has_settled_date:
        return DoctorFinding("validator", OK, f"Last-Modified {resource.last_modified}")
    found = "only a weak ETag" if resource.etag else "none"
    if resource.last_modified:
        found = (
            f"Last-Modified {resource.last_modified!r}, which is invalid, or less than "
            f"60 "
            f"s older than the answer"
        )
    return DoctorFinding(
        "validator",
        WARNING,
        found,
        "give a checksum: without it a later run cannot resume",
    )


def _if_range(report: InspectionReport) -> DoctorFinding:
    if report.if_range is IfRange.IGNORED:
        advice = "nothing to do: dlpool compares the validators of each response"
        return DoctorFinding("if-range", WARNING, report.if_range.value, advice)
    if report.if_range is IfRange.REFUSED:
        advice = "nothing to do: dlpool resumes without it, after one more request"
        return DoctorFinding("if-range", WARNING, report.if_range.value, advice)
    return DoctorFinding("if-range", OK, report.if_range.value)


def _connections(report: InspectionReport) -> DoctorFinding:
    if not report.refusals:
        return DoctorFinding(
            "connections", OK, f"{report.connections_tried} at once answered"
        )
    found = (
        f"{report.connections} of {report.connections_tried} at once answered; else: "
        f"{report.refusals[0]}"
    )
    advice = f"set connections = auto, or {max(1, report.connections)}, in [transfer]"
    return DoctorFinding("connections", WARNING, found, advice)
