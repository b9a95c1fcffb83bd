"""Parses the headers of tus requests. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from dlpool.dataclass import dataclass
from dlpool.storage.upload_requests import FINAL, PARTIAL, check_parts
from dlpool.web.errors import HttpError

ROOT = "/files"
ALGORITHMS = ("sha1", "md5", "sha256")
MAX_METADATA = 4096  # characters
_ID = re.compile(rf"(?:/[^?#,;]*)?{ROOT}/([0-9a-f]{{32}})/?")
_HUGE = 10**18  # replaces all larger numbers

GetHeader = Callable[[str], "str | None"]


@dataclass(frozen=True)
class ExpectedChecksum:
    """The expected checksum of a body."""

    algorithm: str
    digest: bytes


def parse_metadata(header: str) -> dict[str, str]:
    """Return the keys and the decoded values of ``Upload-Metadata``.

    A value may be empty. Raises HttpError (400).
    """
    found: dict[str, str] = {}
    if len(header) > MAX_METADATA:
        raise HttpError(
            400,
            "bad_metadata",
            f"Upload-Metadata is longer than {MAX_METADATA} characters",
        )
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key or key in found:
            raise HttpError(
                400,
                "bad_metadata",
                "Upload-Metadata has an empty or repeated key",
            )
        found[key] = _decoded(value.strip(), "Upload-Metadata").decode(errors="replace")
    return found


def parse_checksum(header: str | None) -> ExpectedChecksum | None:
    """Parse ``Upload-Checksum``; None if absent. Raises HttpError (400)."""
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    digest = _decoded(value.strip(), "Upload-Checksum")
    if algorithm not in ALGORITHMS:
        raise HttpError(
            400,
            "bad_checksum",
            f"the checksum algorithm is {algorithm[:40]!r}: it must be "
            f"{', '.join(ALGORITHMS)}",
        )
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise HttpError(
            400, "bad_checksum", f"the checksum does not have the length of {algorithm}"
        )
    return ExpectedChecksum(algorithm, digest)


def parse_length(get: GetHeader) -> int | None:
    """Return the length of a new upload. None if the length is deferred, or follows
    from the parts of the upload. Raises HttpError (400)."""
    length, later = parse_number(get, "Upload-Length"), get("Upload-Defer-Length")
    wanted = 0 if parse_concat(get).startswith(FINAL) else 1
    if later not in (None, "1") or [length, later].count(None) != 2 - wanted:
        text = (
            "either Upload-Length or Upload-Defer-Length: 1 is required, and neither "
            "with "
            "final"
        )
        raise HttpError(400, "bad_length", text)
    return length


def parse_concat(get: GetHeader) -> str:
    """Return ``Upload-Concat``: empty, ``partial``, or ``final;`` with URLs. Raises
    HttpError (400)."""
    concat = (get("Upload-Concat") or "").strip()
    if concat not in ("", PARTIAL) and not concat.startswith(f"{FINAL};"):
        raise HttpError(
            400,
            "bad_concat",
            f"Upload-Concat must be {PARTIAL}, or {FINAL}; and the URLs of the parts",
        )
    return concat


def parse_parts(concat: str) -> list[str]:
    """Return the upload ids in ``final;URL URL``. Each URL is a path or an absolute
    URL, as in ``Location``. Raises HttpError (400), UploadError."""
    urls = concat.partition(";")[2].split()
    parts = [_id_of(url) for url in urls]
    check_parts(parts)
    return parts


def _id_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    match = _ID.fullmatch(parts.path)
    if (
        match is None
        or parts.query
        or parts.fragment
        or parts.scheme not in ("", "http", "https")
    ):
        raise HttpError(
            400,
            "bad_concat",
            f"{url[:100]!r} is not a URL of an upload here; URLs are separated by "
            f"spaces",
        )
    return match[1]


def parse_number(get: GetHeader, name: str) -> int | None:
    """Return a header as a whole number, None if absent. Raises HttpError (400)."""
    text = get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise HttpError(
            400,
            "bad_field",
            f"{name} is {text[:40]!r}: it must be a whole number, 0 or more",
        )
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else _HUGE


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HttpError(
            400, "bad_base64", f"{what} has a value that is not Base64"
        ) from error
