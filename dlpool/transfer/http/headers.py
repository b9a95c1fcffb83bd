"""Parsers of the header fields that a download depends on. Pure.

Each returns None for a value that it cannot parse, except that ``content_length``
raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.parse import unquote_to_bytes

from dlpool.dataclass import dataclass
from dlpool.transfer.http.digests import Digest, strongest, structured

MAX_DIGITS = 18  # of a byte count: 10**18 bytes fit a signed 64-bit offset
MAX_DATE = 100  # characters; the longest form has 33
_SHOWN = 80  # characters of a value in an error


@dataclass(frozen=True)
class ContentRange:
    """A ``Content-Range`` in bytes; ``end`` is exclusive (RFC 9110 section 14.4).

    ``start`` and ``end`` are None in an unsatisfied range (``bytes */1234``).
    """

    start: int | None
    end: int | None
    total: int | None


_CONTENT_RANGE = re.compile(
    rf"bytes[ "
    rf"\t]+(?:([0-9]{{1,{MAX_DIGITS}}})-([0-9]{{1,{MAX_DIGITS}}})|\*)/(?:([0-9]{{1,{MAX_DIGITS}}})|\*)",
    re.IGNORECASE,
)


def content_range(value: str) -> ContentRange | None:
    """Parse a ``Content-Range``.

    None if invalid, inverted, beyond its total, or not in bytes.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = (int(group) if group else None for group in match.groups())
    if first is None or last is None:
        return ContentRange(None, None, total) if total is not None else None
    if last < first or (total is not None and last >= total):
        return None
    return ContentRange(first, last + 1, total)


def content_length(value: str | None) -> int | None:
    """Parse a ``Content-Length``; None without the field.

    Repeated equal values count once (RFC 9110 section 8.6). Raises ValueError for
    different or malformed values.
    """
    if value is None:
        return None
    values = {part.strip() for part in value.split(",")}
    text = values.pop()
    if values or not re.fullmatch(rf"[0-9]{{1,{MAX_DIGITS}}}", text):
        raise ValueError(f"Content-Length is {value[:_SHOWN]!r}")
    return int(text)


def http_date(value: str | None) -> datetime | None:
    """Parse an HTTP-date (RFC 9110 section 5.6.7) and return it in UTC."""
    if not value or len(value) > MAX_DATE:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return (
            moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        ).astimezone(timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_HTTP_DATES = re.compile(
    r"[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [1-9][0-9]{3} [0-9]{2}:[0-9]{2}:[0-9]{2} "
    r"(?:GMT|UTC|[+-]0000)"
    r"|[A-Z][a-z]{5,8}, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [1-9][0-9]{3}"
)


def exact_date(value: str | None) -> datetime | None:
    """Parse an HTTP-date strictly (RFC 9110 section 5.6.7) and return it in UTC.

    Returns None for a wrong day of the week and for the year 1. Go sends the year 1 for
    an unset time, and ``email.utils`` would read it as 2001.
    """
    text = (value or "").strip()
    moment = http_date(text) if _HTTP_DATES.fullmatch(text) else None
    return (
        moment
        if moment is not None and text.startswith(_DAYS[moment.weekday()])
        else None
    )


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Parse ``Retry-After`` (RFC 9110 section 10.2.3) as seconds from ``now``.

    The result for a date in the past is 0.
    """
    if not value:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    moment = http_date(text)
    return None if moment is None else max(0.0, (moment - now).total_seconds())


def strong_etag(value: str | None) -> str | None:
    """Return the entity tag if it is strong (RFC 9110 section 8.8.3), else None."""
    if value is None:
        return None
    text = value.strip()
    return text if re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', text) else None


def repr_digest(value: str | None) -> Digest | None:
    """Return the strongest digest of a ``Repr-Digest`` (RFC 9530).

    The result is a hashlib name and the digest in hex. ``Content-Digest`` has the same
    format.
    """
    return strongest(structured(value))


def content_disposition_name(value: str | None) -> str | None:
    """Return the file name of a ``Content-Disposition`` (RFC 6266), None without one.

    ``filename*`` (RFC 8187) takes precedence over ``filename``. The name is as the
    server sent it: make it safe before use.
    """
    if not value:
        return None
    parameters = _parameters(value)
    return _extended_value(parameters.get("filename*")) or _plain_value(
        parameters.get("filename")
    )


_PARAMETER = re.compile(
    r';\s*([A-Za-z0-9!#$&+.^_`|~*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"]*)', re.DOTALL
)


def _parameters(value: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, text in _PARAMETER.findall(";" + value.partition(";")[2]):
        found.setdefault(name.lower(), text.strip())
    return found


def _extended_value(text: str | None) -> str | None:
    charset, _, rest = (text or "").partition("'")
    _, quote, encoded = rest.partition("'")
    if not quote or charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(encoded).decode(charset)
    except UnicodeError:
        return None


def _plain_value(text: str | None) -> str | None:
    if not text:
        return None
    if text.startswith('"'):
        text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    decode: Callable[[bytes], str] = bytes.decode
    try:  # http.client decodes as latin-1; most servers mean UTF-8
        return decode(text.encode("latin-1"))
    except (UnicodeEncodeError, UnicodeDecodeError):
        return text
