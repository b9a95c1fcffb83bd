"""What a server's answer to one request is worth, judged before a byte of it is
written. Pure.

A status becomes an error (``error_for_status``), or an ``Answer`` that says which bytes
of which version the body holds (``read_answer``); ``check_same_version`` guards that
bytes of two versions never meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

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

_PASSING = {408, 425, 500, 502, 504, 511, *range(520, 525)}
_BUSY = {429, 503}
_AWAY = {502, 504, *_BUSY}
_DENIED = {401, 403, 407}
_GONE = {404, 410}
_MAY_WAIT = {
    400,
    403,
}  # some servers refuse a further connection like this, with Retry-After

# A server that answers a ranged GET so may still answer a plain one.
RANGE_REFUSALS = {400, 405, 416, 501}


class ByteRange(NamedTuple):
    """A range of bytes, ``end`` exclusive."""

    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The body that follows: its first byte is byte ``start`` of ``resource``.

    ``length`` is how many bytes belong to it, None: up to the end of the body.
    ``is_partial`` tells a 206.
    """

    resource: RemoteResource
    start: int
    length: int | None
    is_partial: bool


def error_for_status(
    status: int, headers: Mapping[str, str], now: datetime
) -> DlpoolError:
    """The error that a status other than 200, 203 and 206 is."""
    said = f"the server answered {status}"
    wait = requested_wait_s(headers, now)
    if status in _BUSY or (status in _MAY_WAIT and wait is not None):
        return ServerBusy(said, retry_after_s=wait, is_away=True)
    if status in _PASSING:
        return ServerTrouble(said, retry_after_s=wait, is_away=status in _AWAY)
    if status in _DENIED:
        return AccessDenied(said)
    if status in _GONE:
        return NotFound(said)
    return (
        HttpRefused(said)
        if status >= 400
        else ProtocolBroken(f"{said}, which is no file")
    )


def requested_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds of ``Retry-After``; a date in it is read by the server's
    clock.

    That clock is what the answer's ``Date`` says (RFC 9110 section 6.6.1). A ``Date``
    that is days off comes from a cache or is a constant; then ``now``, our own clock,
    counts if it leads to a shorter wait.
    """
    asked, sent = headers.get("Retry-After"), http_date(headers.get("Date"))
    ours = retry_after_s(asked, now)
    theirs = ours if sent is None else retry_after_s(asked, sent)
    if sent is not None and abs(sent - now) > MAX_CLOCK_OFFSET and ours and theirs:
        return min(ours, theirs)
    return theirs


def refuses_ranges(status: int, headers: Mapping[str, str], now: datetime) -> bool:
    """Whether a server that answers a ranged GET so may still answer a plain one; not
    if it asks to come later."""
    return status in RANGE_REFUSALS and not (
        status in _MAY_WAIT and requested_wait_s(headers, now) is not None
    )


def read_answer(
    status: int,
    headers: Mapping[str, str],
    asked: ByteRange | None,
    now: datetime,
    host: str | None = None,
) -> Answer:
    """Judge an answer of ``host`` to a GET for ``asked`` (None: the whole file).

    Raises the error of ``error_for_status``, BadAnswer for what breaks RFC 9110 section
    14 or 15.3.7, and ContradictoryAnswer for a 200 that says that it holds a part.
    """
    if status == 206:
        if asked is None:
            raise BadAnswer(
                "the server sent a part (206) although the whole file was asked for"
            )
        return _read_partial(headers, asked, now, host)
    if status in (200, 203):
        return _read_whole(status, headers, now, host)
    raise error_for_status(status, headers, now)


def is_empty_file(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a 416 says that the file has no bytes at all (RFC 9110 section
    15.5.17)."""
    if status != 416:
        return False
    unsatisfied = content_range(headers.get("Content-Range") or "")
    return (
        unsatisfied is not None and unsatisfied.start is None and unsatisfied.total == 0
    )


def check_unsatisfied(
    status: int, headers: Mapping[str, str], known: RemoteResource
) -> None:
    """Raise RemoteChanged if a 416 says that the file has another size by now (RFC 9110
    section 15.5.17)."""
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
    """Raise RemoteChanged if the answer is of another version, BadAnswer if that cannot
    be determined.

    ``is_conditional``: it was asked for with ``If-Range``. Raises UnexpectedContent for
    what may not replace what was fetched, as ``check_replacement`` says, and for a
    document in the file's place.
    """
    resource = answer.resource
    verdict = known.compare(resource, is_confirmed=is_conditional and answer.is_partial)
    if verdict is ValidatorMatch.CHANGED:
        check_replacement(known, resource, allows_change=allows_change)
        raise RemoteChanged("the remote file changed during the download")
    if verdict is ValidatorMatch.UNKNOWN:
        check_family(known, resource)
        raise BadAnswer("the server's answer lacks the validator that it had before")
    if known.content_encoding != resource.content_encoding:
        raise BadAnswer("the server's answer is encoded otherwise than before")


def check_replacement(
    known: RemoteResource, resource: RemoteResource, *, allows_change: bool
) -> None:
    """Raise UnexpectedContent unless ``resource`` may be a new version of what was
    fetched.

    It may be if it is of the same family of media types and comes from the same host:
    else it is the login page, the portal or the error document in its place that some
    other server has sent, whatever validators that has.
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
    """Raise UnexpectedContent if the answer's media type shows that it is not a version
    of the known file."""
    if not is_same_family(known.content_type, resource.content_type):
        raise UnexpectedContent(
            f"the server sent {_kind(resource)} in place of the file, which is "
            f"{_kind(known)}: what was fetched is kept" + hint
        )


def check_expected_type(url: str, resource: RemoteResource) -> None:
    """Raise UnexpectedContent for an HTML page if the URL has the file name extension
    of a binary file."""
    if is_page(resource.content_type) and names_binary(url):
        raise UnexpectedContent(
            f"the server sent an HTML page ({resource.content_type}) in place of the "
            f"file: look at the URL in a "
            "browser, it may want a login (--no-html-guard fetches the page)"
        )


def _kind(resource: RemoteResource) -> str:
    return resource.content_type or "without a media type"


def _read_whole(
    status: int, headers: Mapping[str, str], now: datetime, host: str | None
) -> Answer:
    size = None if _is_chunked(headers) else _length(headers)
    said = headers.get("Content-Range")
    if said is not None:
        told = content_range(said)
        if not _is_of_whole(told, size):
            raise ContradictoryAnswer(
                f"the server answered {status}, which is a whole file, with "
                f"Content-Range {said[:80]!r}"
            )
        size = (
            told.total if told is not None else size
        )  # a body without a length must not end before
    resource = RemoteResource.from_headers(headers, size, host=host, seen_at=now)
    if (
        status == 203
    ):  # a proxy transformed it: its validators are not the origin's (section 15.3.4)
        resource = RemoteResource(
            size=size,
            content_type=resource.content_type,
            content_encoding=resource.content_encoding,
            server_name=resource.server_name,
            refuses_ranges=True,
            host=host,
        )
    return Answer(resource, 0, size, is_partial=False)


def _is_of_whole(said: ContentRange | None, size: int | None) -> bool:
    """Return whether a Content-Range in a 200, where it has no meaning (section 14.4),
    covers the complete file."""
    if said is None or said.total is None:
        return False
    return said.total == size or (
        size is None and (said.start, said.end) == (0, said.total)
    )


def _read_partial(
    headers: Mapping[str, str], asked: ByteRange, now: datetime, host: str | None
) -> Answer:
    if (headers.get("Content-Type") or "").lower().startswith("multipart/byteranges"):
        raise BadAnswer(
            "the server sent multipart/byteranges although one range was asked for"
        )
    sent = content_range(headers.get("Content-Range") or "")
    if sent is None or sent.start is None or sent.end is None:
        said = headers.get("Content-Range")
        raise BadAnswer(
            f"the server sent a part with Content-Range {said and said[:80]!r}"
        )
    if sent.start > asked.start or sent.end <= asked.start:
        raise BadAnswer(
            f"the server sent bytes {sent.start}-{sent.end - 1}, asked was for "
            f"{asked.start}"
        )
    length = sent.end - sent.start
    announced = None if _is_chunked(headers) else _length(headers)
    if announced is not None:
        length = min(length, announced)
    is_whole = (sent.start, sent.end) == (0, sent.total)
    resource = RemoteResource.from_headers(
        headers, sent.total, is_complete=is_whole, host=host, seen_at=now
    )
    return Answer(resource, sent.start, length, is_partial=True)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return "chunked" in (headers.get("Transfer-Encoding") or "").lower()


def _length(headers: Mapping[str, str]) -> int | None:
    try:
        return content_length(headers.get("Content-Length"))
    except ValueError as error:
        raise BadAnswer(f"the server's {error}") from error
