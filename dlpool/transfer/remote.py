"""What is known of the remote file: size, validators, name. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from dlpool.transfer.headers import content_disposition_name, http_date, repr_digest, strong_etag


class Sameness(Enum):
    """The verdict of comparing two answers for one URL."""

    SAME = "same"
    CHANGED = "changed"
    UNKNOWN = "unknown"  # a validator vanished: another answer may tell


@dataclass(frozen=True)
class Resource:
    """One version of a remote file as an answer described it. ``size`` in bytes; None is "not said"."""

    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    date: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    server_name: str | None = None
    digest: tuple[str, str] | None = None
    refuses_ranges: bool = False

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], size: int | None) -> Resource:
        """Read the representation's metadata (RFC 9110 section 8) of an answer whose total ``size`` is known."""
        return cls(
            size=size,
            etag=headers.get("ETag"),
            last_modified=headers.get("Last-Modified"),
            date=headers.get("Date"),
            content_type=(headers.get("Content-Type") or "").partition(";")[0].strip().lower() or None,
            content_encoding=_encoding(headers.get("Content-Encoding")),
            server_name=content_disposition_name(headers.get("Content-Disposition")),
            digest=repr_digest(headers.get("Repr-Digest")),
            refuses_ranges=(headers.get("Accept-Ranges") or "").strip().lower() == "none",
        )

    @property
    def strong_etag(self) -> str | None:
        """The entity tag, if byte ranges may be joined by it."""
        return strong_etag(self.etag)

    @property
    def has_validator(self) -> bool:
        """Whether another answer can be shown to be of the same version."""
        return self.strong_etag is not None or self.last_modified is not None

    @property
    def if_range(self) -> str | None:
        """The validator for ``If-Range`` (RFC 9110 section 13.1.5): never a weak one."""
        if self.etag is not None:
            return self.strong_etag
        modified, sent = http_date(self.last_modified), http_date(self.date)
        if modified is None or sent is None or sent - modified < timedelta(seconds=1):
            return None
        return self.last_modified

    def compare(self, other: Resource) -> Sameness:
        """Whether ``other``, seen later, is the version of ``self``.

        A strong entity tag decides, else the modification date with the size, else a weak tag with the size, else the
        size. Only a new validator of the same kind proves a change; one that vanished proves nothing.
        """
        for mine, theirs in ((self.strong_etag, other.strong_etag), (self.last_modified, other.last_modified)):
            if mine and not theirs:
                return Sameness.UNKNOWN
            if mine:
                return _verdict(mine == theirs and self._fits_size(other))
        if self.etag and other.etag:
            return _verdict(_opaque(self.etag) == _opaque(other.etag) and self._fits_size(other))
        if self.content_type and other.content_type and self.content_type != other.content_type:
            return Sameness.UNKNOWN
        return _verdict(self._fits_size(other))

    def _fits_size(self, other: Resource) -> bool:
        return None in (self.size, other.size) or self.size == other.size


def _verdict(is_same: bool) -> Sameness:
    return Sameness.SAME if is_same else Sameness.CHANGED


def _opaque(etag: str) -> str:
    """What weak comparison looks at (RFC 9110 section 8.8.3.2)."""
    return etag.strip().removeprefix("W/")


def _encoding(value: str | None) -> str | None:
    text = (value or "").strip().lower()
    return text if text not in ("", "identity") else None
