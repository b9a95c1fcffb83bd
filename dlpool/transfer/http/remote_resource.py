"""The remote resource as a response describes it: size, validators, name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta, timezone
from enum import Enum

from dlpool.dataclass import dataclass
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
    """The result of comparing two responses for one URL."""

    SAME = "same"
    CHANGED = "changed"
    UNKNOWN = "unknown"  # a validator is missing: another response may have it


@dataclass(frozen=True)
class RemoteResource:
    """One version of a remote file as a response described it.

    ``size`` in bytes, None while unknown. ``host``: host and port that responded, after
    redirects. ``seen_at``: when the response came, by the local clock.
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
        """Return the resource that header fields describe (RFC 9110 section 8).

        ``size``: the total size in bytes, None while unknown. ``is_complete``: the
        response has all bytes of the file, so that a digest of the response's content
        is a digest of the file.
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
        """Return the strong entity tag, which permits joining byte ranges.

        None if the server sent a weak tag, an empty tag or no tag.
        """
        tag = strong_etag(self.etag)
        return tag if tag != '""' else None

    @property
    def has_settled_date(self) -> bool:
        """Return whether the modification date identifies one version.

        The date must be at least 60 s before the ``Date`` of the response (RFC 9110
        section 8.8.2.2), at least 60 s before the response came (if that time is
        known), and not before ``FIRST_DATE``. Any other date can only prove that two
        versions differ.
        """
        modified, sent = exact_date(self.last_modified), http_date(self.date)
        if modified is None or sent is None:
            return False
        latest = sent if self.seen_at is None else min(sent, self.seen_at)
        return FIRST_DATE <= modified <= latest - MIN_DATE_AGE

    @property
    def has_validator(self) -> bool:
        """Return whether there is a strong entity tag or a settled date."""
        return self.strong_etag is not None or self.has_settled_date

    @property
    def if_range(self) -> str | None:
        """Return the strong validator for ``If-Range``, None if there is none.

        See RFC 9110 section 13.1.5.
        """
        if self.etag is not None:
            return self.strong_etag
        modified, sent = exact_date(self.last_modified), http_date(self.date)
        if modified is None or sent is None or sent - modified < timedelta(seconds=1):
            return None
        return self.last_modified

    def compare(
        self, other: RemoteResource, *, is_confirmed: bool = False
    ) -> ValidatorMatch:
        """Compare with ``other``, which a later response described.

        Compares entity tags, digests, dates, sizes and media types. SAME means that no
        difference was found; ``proves_same`` returns whether the versions are certainly
        the same. CHANGED means that the versions differ. UNKNOWN means that this cannot
        be decided, for example because ``other`` lacks a validator that ``self`` has.
        ``is_confirmed``: ``other`` came in a 206 to ``If-Range``, so that the server
        has compared the versions (RFC 9110 section 15.3.7). Missing validators and a
        different media type are then ignored.
        """
        mine, theirs = self.strong_etag, other.strong_etag
        if mine and theirs:
            return _match_of(mine == theirs and self._fits_size(other))
        if self.etag and other.etag and _opaque(self.etag) != _opaque(other.etag):
            # weak comparison, section 8.8.3.2
            return ValidatorMatch.CHANGED
        has_other_date = None not in (
            self.last_modified,
            other.last_modified,
        ) and not self._has_date_of(other)
        has_digest = self.has_digest_of(other)
        if has_digest is not None and not has_other_date:
            return _match_of(has_digest and self._fits_size(other))
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
        return _match_of(not has_other_date and self._fits_size(other))

    def proves_same(self, other: RemoteResource) -> bool:
        """Return whether the later ``other`` is certainly the same version.

        The proof is a strong entity tag, a digest, or a settled date together with the
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
        """Return a copy with the missing fields taken from ``known``.

        ``known`` must be the same version of the file.
        """
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
        """Return whether ``other`` lacks a validator that ``self`` has.

        If both have a strong entity tag, the caller must compare the tags instead.
        """
        if self.strong_etag:
            return True  # with strong tags on both sides the tags would have decided
        if exact_date(self.last_modified) is not None:
            return other.last_modified is None
        return self.etag is not None and other.etag is None

    def has_digest_of(self, other: RemoteResource) -> bool | None:
        """Return whether ``other`` has the same digest as this resource.

        None if they have no digest of the same algorithm.
        """
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


def _match_of(is_same: bool) -> ValidatorMatch:
    return ValidatorMatch.SAME if is_same else ValidatorMatch.CHANGED


def _opaque(etag: str) -> str:
    """Return an entity tag without ``W/``, for weak comparison.

    See RFC 9110 section 8.8.3.2.
    """
    return etag.strip().removeprefix("W/")


def _media_type(value: str | None) -> str | None:
    """Return the first media type of a ``Content-Type``, without parameters.

    A proxy may have added a second media type.
    """
    return re.split("[;,]", value or "", maxsplit=1)[0].strip().lower() or None


def _encoding(value: str | None) -> str | None:
    text = (value or "").strip().lower()
    return text if text not in ("", "identity") else None
