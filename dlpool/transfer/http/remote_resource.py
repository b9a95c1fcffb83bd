"""What is known of the remote file: size, validators, name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from enum import Enum

from dlpool.transfer.http.digests import file_digest
from dlpool.transfer.http.headers import (
    content_disposition_name,
    exact_date,
    http_date,
    strong_etag,
)

# RFC 9110 section 8.8.2.2: a file may change twice within the resolution of its date,
# or be dated by another clock.
MIN_DATE_AGE = timedelta(seconds=60)
# Build systems and archives set a constant date from before HTTP: it is the same in all
# versions.
FIRST_DATE = datetime(1990, 1, 1, tzinfo=timezone.utc)


class ValidatorMatch(Enum):
    """The verdict of comparing two answers for one URL."""

    SAME = "same"
    CHANGED = "changed"
    UNKNOWN = "unknown"  # a validator vanished: another answer may tell


@dataclass(frozen=True)
class RemoteResource:
    """One version of a remote file as an answer described it. ``size`` in bytes; None
    means unknown.

    ``host``: host and port that answered, after redirects. ``seen_at``: by our clock,
    when it answered.
    """

    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    date: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    server_name: str | None = None
    digest: tuple[str, str] | None = None
    refuses_ranges: bool = False
    host: str | None = None
    seen_at: datetime | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_headers(
        cls,
        headers: Mapping[str, str],
        size: int | None,
        *,
        is_complete: bool = True,
        host: str | None = None,
        seen_at: datetime | None = None,
    ) -> RemoteResource:
        """Read the representation's metadata (RFC 9110 section 8) of an answer whose
        total ``size`` is known.

        ``is_whole``: the answer has all bytes of the file, so that a digest of its
        content is one of the file.
        """
        return cls(
            size=size,
            etag=headers.get("ETag") or None,
            last_modified=headers.get("Last-Modified") or None,
            date=headers.get("Date"),
            content_type=_media_type(headers.get("Content-Type")),
            content_encoding=_encoding(headers.get("Content-Encoding")),
            server_name=content_disposition_name(headers.get("Content-Disposition")),
            digest=file_digest(headers, is_complete=is_complete),
            refuses_ranges=(headers.get("Accept-Ranges") or "").strip().lower()
            == "none",
            host=host,
            seen_at=seen_at,
        )

    @property
    def strong_etag(self) -> str | None:
        """The entity tag, if byte ranges may be joined by it; an empty one is of a
        server that has none."""
        tag = strong_etag(self.etag)
        return tag if tag != '""' else None

    @property
    def has_settled_date(self) -> bool:
        """True if the modification date is valid and so old that no second version can
        have it.

        That is at least 60 s before the answer's ``Date`` (RFC 9110 section 8.8.2.2),
        and before now. Any other date may contradict, as another one is another
        version, but proves nothing.
        """
        modified, sent = exact_date(self.last_modified), http_date(self.date)
        if modified is None or sent is None:
            return False
        latest = sent if self.seen_at is None else min(sent, self.seen_at)
        return FIRST_DATE <= modified <= latest - MIN_DATE_AGE

    @property
    def has_validator(self) -> bool:
        """Whether another answer can be shown to be of the same version."""
        return self.strong_etag is not None or self.has_settled_date

    @property
    def if_range(self) -> str | None:
        """The validator for ``If-Range`` (RFC 9110 section 13.1.5): never a weak
        one."""
        if self.etag is not None:
            return self.strong_etag
        modified, sent = exact_date(self.last_modified), http_date(self.date)
        if modified is None or sent is None or sent - modified < timedelta(seconds=1):
            return None
        return self.last_modified

    def compare(
        self, other: RemoteResource, *, is_confirmed: bool = False
    ) -> ValidatorMatch:
        """Whether ``other``, seen later, is the version of ``self``.

        A strong entity tag decides; else any other tag, digest, date or size is another
        version. One that vanished proves nothing, unless ``is_confirmed``: the answer
        is a 206 to ``If-Range``, by which the server itself has compared (RFC 9110
        section 15.3.7). SAME is no proof: that is ``proves_same``.
        """
        mine, theirs = self.strong_etag, other.strong_etag
        if mine and theirs:
            return _verdict(mine == theirs and self._fits_size(other))
        if (
            self.etag and other.etag and _opaque(self.etag) != _opaque(other.etag)
        ):  # weak comparison, section 8.8.3.2
            return ValidatorMatch.CHANGED
        has_other_date = None not in (
            self.last_modified,
            other.last_modified,
        ) and not self._has_date_of(other)
        has_digest = self.has_digest_of(other)
        if has_digest is not None and not has_other_date:
            return _verdict(has_digest and self._fits_size(other))
        if not is_confirmed and self._misses_validator_in(other):
            return ValidatorMatch.UNKNOWN
        is_other_type = (
            None not in (self.content_type, other.content_type)
            and self.content_type != other.content_type
        )
        if (
            is_other_type
            and not has_other_date
            and not is_confirmed
            and not self.has_settled_date
        ):
            return ValidatorMatch.UNKNOWN
        return _verdict(not has_other_date and self._fits_size(other))

    def proves_same(self, other: RemoteResource) -> bool:
        """Return whether ``other``, seen later, is certainly the same version.

        By a strong entity tag, by a digest, or by a settled date together with the
        size.
        """
        if self.compare(other) is not ValidatorMatch.SAME:
            return False
        if self.strong_etag or self.has_digest_of(other):
            return True
        return (
            self.has_settled_date
            and self._has_date_of(other)
            and None is not self.size == other.size
        )

    def completed_by(self, known: RemoteResource) -> RemoteResource:
        """Return a copy whose unknown fields are those of ``known``, which is proven to
        be the same version."""
        is_dated = self.last_modified is not None
        return replace(
            self,
            size=known.size if self.size is None else self.size,
            etag=self.strong_etag or known.strong_etag or self.etag or known.etag,
            last_modified=self.last_modified if is_dated else known.last_modified,
            date=self.date if is_dated else known.date,
            seen_at=self.seen_at if is_dated else known.seen_at,
            content_type=self.content_type or known.content_type,
            digest=self.digest or known.digest,
        )

    def _misses_validator_in(self, other: RemoteResource) -> bool:
        """Return whether ``other`` lacks the validators of ``self``, so that the two
        cannot be compared."""
        if self.strong_etag:
            return True  # with strong tags on both sides the tags would have decided
        if exact_date(self.last_modified) is not None:
            return other.last_modified is None
        return self.etag is not None and other.etag is None

    def has_digest_of(self, other: RemoteResource) -> bool | None:
        """Return whether both have the same digest; None if they have none of the same
        algorithm."""
        if (
            self.digest is None
            or other.digest is None
            or self.digest[0] != other.digest[0]
        ):
            return None
        return self.digest == other.digest

    def _has_date_of(self, other: RemoteResource) -> bool:
        return (
            self.last_modified is not None and self.last_modified == other.last_modified
        )

    def _fits_size(self, other: RemoteResource) -> bool:
        return None in (self.size, other.size) or self.size == other.size


def _verdict(is_same: bool) -> ValidatorMatch:
    return ValidatorMatch.SAME if is_same else ValidatorMatch.CHANGED


def _opaque(etag: str) -> str:
    """What weak comparison looks at (RFC 9110 section 8.8.3.2)."""
    return etag.strip().removeprefix("W/")


def _media_type(value: str | None) -> str | None:
    """The media type without its parameters; the first one, where a proxy has added
    another."""
    return re.split("[;,]", value or "", maxsplit=1)[0].strip().lower() or None


def _encoding(value: str | None) -> str | None:
    text = (value or "").strip().lower()
    return text if text not in ("", "identity") else None
