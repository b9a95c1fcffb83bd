"""Jobs as clients push them: the parser and validators of their JSON texts. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.errors import UsageError
from dlpool.jobs.keys import PRIORITIES
from dlpool.kinds import KIB, parse_size
from dlpool.transfer.http.urls import check_header, split_credentials
from dlpool.transfer.job import Checksum

MAX_JOB_BYTES = 1024 * 1024
# Lengths as ASCII JSON, the form in which a job is sent to its worker. Together they
# stay below the 64 KiB of a frame.
MAX_URL = 16 * 1024
MAX_PATH = 8 * 1024
MAX_HEADERS = 16 * 1024  # of all headers together
MAX_VALUES = 10_000  # JSON values of a job, including unknown fields
IF_EXISTS = ("overwrite", "skip", "fail", "rename")
FIELDS = (
    "id",
    "priority",
    "not_before",
    "max_attempts",
    "checksum",
    "headers",
    "if_exists",
    "user_id",
    "trace_id",
    "dedupe",
    "limit_rate",
    "scan",
)


class Malformed(UsageError):
    """The text of a job is invalid, and no URL can be read from it. Clients see no
    record of this job."""


class BadJob(UsageError):
    """The URL of the job is known, but the job cannot run. The job fails, with a
    failure record."""

    def __init__(self, message: str, url: str) -> None:
        super().__init__(message)
        self.url = url


@dataclass(frozen=True)
class PushedJob:
    """A valid job.

    ``not_before``: earliest start in seconds since 1970; None: at once. ``limit_rate``:
    bytes per second. ``raw``: the text as it was pushed, which goes into the failure
    record unchanged.
    """

    raw: bytes
    url: str
    save_path: str
    id: str | None = None
    priority: str = "normal"
    not_before: float | None = None
    max_attempts: int | None = None
    checksum: Checksum | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    if_exists: str | None = None
    user_id: str | None = None
    trace_id: str | None = None
    dedupe: bool = False
    limit_rate: int | None = None
    scan: bool = False

    @property
    def digest(self) -> str:
        """Digest of URL, path and ``scan`` (whether to scan for malware). Jobs with the
        same digest are equal."""
        same = [self.url, self.save_path, *(["scan"] if self.scan else [])]
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()

    @classmethod
    def parse(cls, raw: bytes) -> PushedJob:
        """Parse and validate a job. Raises Malformed, or BadJob if the URL is known."""
        fields = _object(raw)
        url = _required(fields, "url", MAX_URL)
        try:
            own = {} if fields.get("dlpool") is None else fields["dlpool"]
            if not isinstance(own, dict):
                raise UsageError("dlpool is not an object")
            _check_url(url)
            return cls(
                raw=raw,
                url=url,
                save_path=_required(fields, "save_path", MAX_PATH),
                **_own(own),
            )
        except UsageError as error:
            raise BadJob(f"the job cannot be run: {error}", url) from error


def parse_valid_job(raw: bytes) -> PushedJob:
    """Parse a job that is about to be pushed. Raises UsageError if the service would
    refuse it."""
    try:
        job = PushedJob.parse(raw)
    except BadJob as error:
        raise UsageError(str(error.__cause__)) from error
    split_credentials(job.url)
    return job


def compose_job(url: str, save_path: str, **own: Any) -> bytes:
    """Return the text of a job. ``own``: values of dlpool's own fields; None omits the
    field. Raises UsageError for text that is not Unicode."""
    given = {name: value for name, value in own.items() if value is not None}
    job: dict[str, Any] = {"url": url, "save_path": save_path}
    if given:
        job["dlpool"] = given
    try:
        return json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError("the job is not Unicode text") from error


def _object(raw: bytes) -> Mapping[str, Any]:
    if len(raw) > MAX_JOB_BYTES:
        raise Malformed(f"the job is longer than {MAX_JOB_BYTES} bytes")
    try:
        jsontext.check_bounds(raw, values=MAX_VALUES)
    except ValueError as error:
        raise Malformed(f"the job is too large: {error}") from error
    try:
        fields = _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Malformed("the job is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise Malformed("the job is not JSON") from error
    if not isinstance(fields, dict):
        raise Malformed("the job is not a JSON object")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def _required(fields: Mapping[str, Any], name: str, most: int) -> str:
    value = fields.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Malformed(f"{name} is {'missing' if value is None else 'not a text'}")
    if len(value) > most // 12 and len(json.dumps(value)) - 2 > most:
        raise Malformed(
            f"{name} is longer than {most} characters (other than ASCII counts as 6 or "
            f"12)"
        )
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise Malformed(f"{name} is not Unicode text")
    return value


def _check_url(url: str) -> None:
    """Raise UsageError unless ``urlsplit`` accepts the URL; later code relies on this
    check."""
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError("url cannot be read as a URL") from error


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known fields of the object "dlpool" in a job, validated and
    converted."""
    return {
        name: _VALIDATORS[name](given[name])
        for name in FIELDS
        if given.get(name) is not None
    }


def _id(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise UsageError("dlpool.id is not 1 to 64 of A-Z a-z 0-9 _ . -")
    return value


def parse_priority(value: object) -> str:
    """Return ``high``, ``normal`` or ``low`` for one of these names or for an integer.

    A negative integer means high, 0 normal, a positive one low. Raises UsageError.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return "high" if value < 0 else "low" if value > 0 else "normal"
    if value not in PRIORITIES:
        raise UsageError("dlpool.priority is neither high, normal, low nor an integer")
    return str(value)


def parse_time(value: object) -> float:
    """Return seconds since 1970 from RFC 3339 or epoch seconds. Raises UsageError."""
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value < 2**40
    ):
        return float(value)
    text = str(value)
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", text):
        return float(text)
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)",
        text,
        re.ASCII,
    )
    try:
        if match is None:
            raise ValueError(text)
        zone = "+00:00" if match[4] in "Zz" else match[4]
        return datetime.fromisoformat(
            f"{match[1]}T{match[2]}{zone}"
        ).timestamp() + float(match[3] or 0)
    except (ValueError, OverflowError):
        raise UsageError(
            "dlpool.not_before is neither RFC 3339 nor epoch seconds"
        ) from None


def _attempts(value: object) -> int:
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not 1 <= value <= 1_000_000
    ):
        raise UsageError("dlpool.max_attempts is not a whole number from 1 to 1000000")
    return value


def _checksum(value: object) -> Checksum:
    if not isinstance(value, str):
        raise UsageError("dlpool.checksum is not a text")
    return Checksum.parse(value)


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in value.values()
    ):
        raise UsageError("dlpool.headers is not an object of texts")
    if len(json.dumps(value)) > MAX_HEADERS:
        raise UsageError(f"dlpool.headers is longer than {MAX_HEADERS} characters")
    for name, text in value.items():
        check_header(name, text)
    return dict(value)


def _if_exists(value: object) -> str:
    if value not in IF_EXISTS:
        raise UsageError(f"dlpool.if_exists is none of {', '.join(IF_EXISTS)}")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(
        r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}", value
    ):
        raise UsageError(
            "dlpool.user_id or dlpool.trace_id is not a text of 1 to 200 characters"
        )
    return value


def _switch(name: str) -> Callable[[object], bool]:
    """Return a function that validates the boolean field ``name``."""

    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise UsageError(f"dlpool.{name} is neither true nor false")
        return value

    return check


def _rate(value: object) -> int:
    try:
        rate = parse_size(value) if isinstance(value, str) else value
    except ValueError:
        rate = None
    if not isinstance(rate, int) or isinstance(rate, bool) or not KIB <= rate < 2**63:
        raise UsageError(
            "dlpool.limit_rate is not a rate of at least 1024 bytes per second, "
            'as a number or a text such as "1.5M"'
        )
    return rate


_VALIDATORS = {
    "id": _id,
    "priority": parse_priority,
    "not_before": parse_time,
    "max_attempts": _attempts,
    "checksum": _checksum,
    "headers": _headers,
    "if_exists": _if_exists,
    "user_id": _text,
    "trace_id": _text,
    "dedupe": _switch("dedupe"),
    "limit_rate": _rate,
    "scan": _switch("scan"),
}
