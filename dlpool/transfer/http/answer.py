"""Judge a response by its status and header fields. Pure.

``error_for_status`` maps a status to an error. ``read_answer`` returns an ``Answer``,
which says which bytes of which version the body holds. ``check_same_version`` prevents
bytes of two versions from being joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from dlpool.dataclass import dataclass
from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    ContradictoryAnswer,
    DlpoolError,
    HttpRefused,
    NotFound,
    ProtocolBroken,
    RemoteChanged,
    ServerBusy,
    ServerTrouble,
    UnexpectedContent,
)
from dlpool.transfer.http.headers import (
    ContentRange,
    content_length,
    content_range,
    http_date,
    retry_after_s,
)
from dlpool.transfer.http.media_types import is_page, is_same_family, names_binary
from dlpool.transfer.http.remote_resource import RemoteResource, ValidatorMatch

ALLOW_CHANGE = " (--allow-change fetches the new one)"
MAX_CLOCK_OFFSET = timedelta(days=1)  # between a server's clock and ours

# temporary failures: a later request may succeed
_PASSING = {408, 425, 500, 502, 504, 511, *range(520, 525)}
_BUSY = {429, 503}
_AWAY = {502, 504, *_BUSY}
_DENIED = {401, 403, 407}
_GONE = {404, 410}
# with these and Retry-After, some servers refuse an additional connection
_MAY_WAIT = {400, 403}

# After one of these statuses to a ranged GET, a plain GET may succeed.
RANGE_REFUSALS = {400, 405, 416, 501}


class ByteRange(NamedTuple):
    """A range of bytes of the file; ``end`` is exclusive."""

    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """A successful response: its body begins at byte ``start`` of ``resource``.

    ``length``: bytes of the body that belong to the file; None means up to the end of
    the body. ``is_partial``: the status is 206.
    """

    resource: RemoteResource
    start: int
    length: int | None
    is_partial: bool


def error_for_status(
    status: int, headers: Mapping[str, str], now: datetime
) -> DlpoolError:
    """Return the error for a status other than 200, 203 and 206."""
    message = f"the server answered {status}"
    wait = requested_wait_s(headers, now)
    if status in _BUSY or (status in _MAY_WAIT and wait is not None):
        return ServerBusy(message, retry_after_s=wait, is_away=True)
    if status in _PASSING:
        return ServerTrouble(message, retry_after_s=wait, is_away=status in _AWAY)
    if status in _DENIED:
        return AccessDenied(message)
    if status in _GONE:
        return NotFound(message)
    return (
        HttpRefused(message)
        if status >= 400
        else ProtocolBroken(f"{message}, which carries no file")
    )


def requested_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that ``Retry-After`` requests, None without a valid one.

    If ``Retry-After`` is a date, the wait is counted from the response's ``Date`` (RFC
    9110 section 6.6.1). But a ``Date`` that differs from ``now`` by more than a day may
    come from a cache or never change. In that case the wait is counted from ``Date``
    and from ``now``; if both are positive, the shorter one is returned.
    """
    requested, sent = headers.get("Retry-After"), http_date(headers.get("Date"))
    ours = retry_after_s(requested, now)
    theirs = ours if sent is None else retry_after_s(requested, sent)
    if sent is not None and abs(sent - now) > MAX_CLOCK_OFFSET and ours and theirs:
        return min(ours, theirs)
    return theirs


def refuses_ranges(status: int, headers: Mapping[str, str], now: datetime) -> bool:
    """Return whether a plain GET may succeed after this response to a ranged GET.

    False for a 400 with ``Retry-After``, which asks for a later request.
    """
    return status in RANGE_REFUSALS and not (
        status in _MAY_WAIT and requested_wait_s(headers, now) is not None
    )


def read_answer(
    status: int,
    headers: Mapping[str, str],
    requested: ByteRange | None,
    now: datetime,
    host: str | None = None,
) -> Answer:
    """Return the answer that a response to a GET contains.

    ``requested``: the requested range, None for the complete file. ``host``: the host
    that responded. Raises the error of ``error_for_status``, BadAnswer for a violation
    of RFC 9110 section 14 or 15.3.7, and ContradictoryAnswer for a 200 or 203 whose
    ``Content-Range`` does not cover the complete file.
    """
    if status == 206:
        if requested is None:
            raise BadAnswer(
                "the server sent a part (206) although the complete file was requested"
            )
        return _read_partial(headers, requested, now, host)
    if status in (200, 203):
        return _read_complete(status, headers, now, host)
    raise error_for_status(status, headers, now)


def is_empty_file(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a 416 states a size of 0 (RFC 9110 section 15.5.17)."""
    if status != 416:
        return False
    unsatisfied = content_range(headers.get("Content-Range") or "")
    return (
        unsatisfied is not None and unsatisfied.start is None and unsatisfied.total == 0
    )


def check_unsatisfied(
    status: int, headers: Mapping[str, str], known: RemoteResource
) -> None:
    """Raise RemoteChanged if a 416 states a size other than the known size.

    See RFC 9110 section 15.5.17.
    """
    unsatisfied = (
        content_range(headers.get("Content-Range") or "") if status == 416 else None
    )
    if (
        unsatisfied is not None
        and unsatisfied.start is None
        and unsatisfied.total != known.size
    ):
        raise RemoteChanged("the remote file has another size than at the beginning")


def check_same_version(
    known: RemoteResource,
    answer: Answer,
    *,
    is_conditional: bool = False,
    allows_change: bool = False,
) -> None:
    """Raise RemoteChanged if the answer is of another version than ``known``.

    Raises BadAnswer if that cannot be decided or if the content coding differs, and
    UnexpectedContent like ``check_replacement`` and ``check_family``.
    ``is_conditional``: the request had ``If-Range``. ``allows_change``: any content may
    replace the known version.
    """
    resource = answer.resource
    verdict = known.compare(resource, is_confirmed=is_conditional and answer.is_partial)
    if verdict is ValidatorMatch.CHANGED:
        check_replacement(known, resource, allows_change=allows_change)
        raise RemoteChanged("the remote file changed during the download")
    if verdict is ValidatorMatch.UNKNOWN:
        check_family(known, resource)
        raise BadAnswer(
            "the server's response lacks the validator that earlier responses had"
        )
    if known.content_encoding != resource.content_encoding:
        raise BadAnswer("the server's response has another content coding than before")


def check_replacement(
    known: RemoteResource, resource: RemoteResource, *, allows_change: bool
) -> None:
    """Raise UnexpectedContent unless ``resource`` may be a new version of the file.

    A new version has a media type of the same family and comes from the same host.
    Anything else is a login page, a captive portal or an error document, whatever its
    validators say. With ``allows_change`` any content is accepted.
    """
    if allows_change:
        return
    check_family(known, resource, ALLOW_CHANGE)
    if None not in (known.host, resource.host) and known.host != resource.host:
        raise UnexpectedContent(
            f"{resource.host} sent another file than {known.host} had begun to send: "
            f"what was fetched is kept "
            "(--allow-change fetches the new one)"
        )


def check_family(
    known: RemoteResource, resource: RemoteResource, hint: str = ""
) -> None:
    """Raise UnexpectedContent if the media types show two different files.

    ``hint`` is added to the error message.
    """
    if not is_same_family(known.content_type, resource.content_type):
        raise UnexpectedContent(
            f"the server sent {_kind(resource)} in place of the file, which is "
            f"{_kind(known)}: what was fetched is kept" + hint
        )


def check_expected_type(url: str, resource: RemoteResource) -> None:
    """Raise UnexpectedContent for an HTML page if ``url`` names a binary file."""
    if is_page(resource.content_type) and names_binary(url):
        raise UnexpectedContent(
            f"the server sent an HTML page ({resource.content_type}) in place of the "
            f"file: open the URL in a "
            "browser, it may require a login (--no-html-guard fetches the page)"
        )


def _kind(resource: RemoteResource) -> str:
    return resource.content_type or "without a media type"


def _read_complete(
    status: int, headers: Mapping[str, str], now: datetime, host: str | None
) -> Answer:
    size = None if _is_chunked(headers) else _length(headers)
    message = headers.get("Content-Range")
    if message is not None:
        told = content_range(message)
        if not _covers_complete_file(told, size):
            raise ContradictoryAnswer(
                f"the server answered {status}, which means the complete file, with "
                f"Content-Range {message[:80]!r}"
            )
        # so that a body without a length cannot end early
        size = told.total if told is not None else size
    resource = RemoteResource.from_headers(headers, size, host=host, seen_at=now)
    if status == 203:
        # a proxy transformed the content: the origin's validators do not apply (RFC
        # 9110 section 15.3.4)
        resource = RemoteResource(
            size=size,
            content_type=resource.content_type,
            content_encoding=resource.content_encoding,
            server_name=resource.server_name,
            refuses_ranges=True,
            host=host,
        )
    return Answer(resource, 0, size, is_partial=False)


def _covers_complete_file(message: ContentRange | None, size: int | None) -> bool:
    """Return whether the Content-Range of a 200 covers the complete file."""
    if message is None or message.total is None:
        return False
    return message.total == size or (
        size is None and (message.start, message.end) == (0, message.total)
    )


def _read_partial(
    headers: Mapping[str, str], requested: ByteRange, now: datetime, host: str | None
) -> Answer:
    if (headers.get("Content-Type") or "").lower().startswith("multipart/byteranges"):
        raise BadAnswer(
            "the server sent multipart/byteranges although one range was requested"
        )
    sent = content_range(headers.get("Content-Range") or "")
    if sent is None or sent.start is None or sent.end is None:
        message = headers.get("Content-Range")
        raise BadAnswer(
            f"the server sent a part with Content-Range {message and message[:80]!r}"
        )
    if sent.start > requested.start or sent.end <= requested.start:
        raise BadAnswer(
            f"the server sent bytes {sent.start}-{sent.end - 1}, requested was "
            f"{requested.start}"
        )
    length = sent.end - sent.start
    announced = None if _is_chunked(headers) else _length(headers)
    if announced is not None:
        length = min(length, announced)
    is_complete = (sent.start, sent.end) == (0, sent.total)
    resource = RemoteResource.from_headers(
        headers, sent.total, is_complete=is_complete, host=host, seen_at=now
    )
    return Answer(resource, sent.start, length, is_partial=True)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return "chunked" in (headers.get("Transfer-Encoding") or "").lower()


def _length(headers: Mapping[str, str]) -> int | None:
    try:
        return content_length(headers.get("Content-Length"))
    except ValueError as error:
        raise BadAnswer(f"the server's {error}") from error
