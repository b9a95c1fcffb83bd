"""What a server's answer to one request is worth, judged before a byte of it is written. Pure.

A status becomes an error (``error_for_status``), or an ``Answer`` that says which bytes of which version the body
holds (``read_answer``); ``check_same_version`` guards that bytes of two versions never meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from dlpool.errors import (
    AccessDenied,
    BadAnswer,
    DlpoolError,
    HttpRefused,
    NotFound,
    ProtocolBroken,
    RemoteChanged,
    ServerBusy,
    ServerTrouble,
)
from dlpool.transfer.headers import content_length, content_range, http_date, retry_after_s
from dlpool.transfer.remote import Resource, Sameness

MAX_CLOCK_OFFSET = timedelta(days=1)  # of a server's clock from ours

_PASSING = {408, 425, 500, 502, 504, 511, *range(520, 525)}
_BUSY = {429, 503}
_AWAY = {502, 504, *_BUSY}
_DENIED = {401, 403, 407}
_GONE = {404, 410}
_MAY_WAIT = {400, 403}  # some servers refuse a further connection so, and say when it may come

# A server that answers a ranged GET so may still answer a plain one.
RANGE_REFUSALS = {400, 405, 416, 501}


class Span(NamedTuple):
    """A range of bytes, ``end`` exclusive."""

    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The body that follows: its first byte is byte ``start`` of ``resource``.

    ``length`` is how many bytes belong to it, None: up to the end of the body. ``is_partial`` tells a 206.
    """

    resource: Resource
    start: int
    length: int | None
    is_partial: bool


def error_for_status(status: int, headers: Mapping[str, str], now: datetime) -> DlpoolError:
    """The error that a status other than 200, 203 and 206 is."""
    said = f"the server answered {status}"
    wait = waiting_s(headers, now)
    if status in _BUSY or (status in _MAY_WAIT and wait is not None):
        return ServerBusy(said, retry_after_s=wait, is_away=True)
    if status in _PASSING:
        return ServerTrouble(said, retry_after_s=wait, is_away=status in _AWAY)
    if status in _DENIED:
        return AccessDenied(said)
    if status in _GONE:
        return NotFound(said)
    return HttpRefused(said) if status >= 400 else ProtocolBroken(f"{said}, which is no file")


def waiting_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """For how long an answer asks to wait, in seconds: a date in ``Retry-After`` is one of the server's clock.

    That clock is what the answer's ``Date`` says (RFC 9110 section 6.6.1). A ``Date`` that is days off comes from a
    cache or is a constant; then ``now``, our own clock, counts if it leads to a shorter wait.
    """
    asked, sent = headers.get("Retry-After"), http_date(headers.get("Date"))
    ours = retry_after_s(asked, now)
    theirs = ours if sent is None else retry_after_s(asked, sent)
    if sent is not None and abs(sent - now) > MAX_CLOCK_OFFSET and ours and theirs:
        return min(ours, theirs)
    return theirs


def read_answer(status: int, headers: Mapping[str, str], asked: Span | None, now: datetime) -> Answer:
    """Judge an answer to a GET for ``asked`` (None: the whole file).

    Raises the error of ``error_for_status``, or BadAnswer for what breaks RFC 9110 section 14 or 15.3.7.
    """
    if status == 206:
        if asked is None:
            raise BadAnswer("the server sent a part (206) although the whole file was asked for")
        return _read_partial(headers, asked)
    if status in (200, 203):
        return _read_whole(status, headers)
    raise error_for_status(status, headers, now)


def is_empty_file(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a 416 says that the file has no bytes at all (RFC 9110 section 15.5.17)."""
    if status != 416:
        return False
    unsatisfied = content_range(headers.get("Content-Range") or "")
    return unsatisfied is not None and unsatisfied.start is None and unsatisfied.total == 0


def check_unsatisfied(status: int, headers: Mapping[str, str], known: Resource) -> None:
    """Raise RemoteChanged if a 416 says that the file has another size by now (RFC 9110 section 15.5.17)."""
    unsatisfied = content_range(headers.get("Content-Range") or "") if status == 416 else None
    if unsatisfied is not None and unsatisfied.start is None and unsatisfied.total != known.size:
        raise RemoteChanged("the remote file has another size than at the beginning")


def check_same_version(known: Resource, answer: Answer) -> None:
    """Raise RemoteChanged if the answer is of another version, BadAnswer if it does not say enough to tell."""
    verdict = known.compare(answer.resource)
    if verdict is Sameness.CHANGED:
        raise RemoteChanged("the remote file changed during the download")
    if verdict is Sameness.UNKNOWN:
        raise BadAnswer("the server's answer lacks the validator that it had before")
    if known.content_encoding != answer.resource.content_encoding:
        raise BadAnswer("the server's answer is encoded otherwise than before")


def _read_whole(status: int, headers: Mapping[str, str]) -> Answer:
    size = None if _is_chunked(headers) else _length(headers)
    resource = Resource.from_headers(headers, size)
    if status == 203:  # a proxy transformed it: its validators are not the origin's (section 15.3.4)
        resource = Resource(size=size, server_name=resource.server_name, refuses_ranges=True)
    return Answer(resource, 0, size, is_partial=False)


def _read_partial(headers: Mapping[str, str], asked: Span) -> Answer:
    if (headers.get("Content-Type") or "").lower().startswith("multipart/byteranges"):
        raise BadAnswer("the server sent multipart/byteranges although one range was asked for")
    sent = content_range(headers.get("Content-Range") or "")
    if sent is None or sent.start is None or sent.end is None:
        raise BadAnswer(f"the server sent a part with Content-Range {headers.get('Content-Range')!r}")
    if sent.start > asked.start or sent.end <= asked.start:
        raise BadAnswer(f"the server sent bytes {sent.start}-{sent.end - 1}, asked was for {asked.start}")
    length = sent.end - sent.start
    announced = None if _is_chunked(headers) else _length(headers)
    if announced is not None:
        length = min(length, announced)
    return Answer(Resource.from_headers(headers, sent.total), sent.start, length, is_partial=True)


def _is_chunked(headers: Mapping[str, str]) -> bool:
    return "chunked" in (headers.get("Transfer-Encoding") or "").lower()


def _length(headers: Mapping[str, str]) -> int | None:
    try:
        return content_length(headers.get("Content-Length"))
    except ValueError as error:
        raise BadAnswer(f"the server's {error}") from error
