"""What the headers of tus requests say. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from dlpool.storage.upload_requests import FINAL, PARTIAL, check_parts
from dlpool.web.errors import HttpError

ROOT = "/files"
ALGORITHMS = ("sha1", "md5", "sha256")
MAX_METADATA = 4096  # characters
_ID = re.compile(rf"(?:/[^?#,;]*)?{ROOT}/([0-9a-f]{{32}})/?")
_HUGE = 10**18  # stands for all larger numbers

GetHeader = Callable[[str], "str | None"]


@dataclass(frozen=True)
class ExpectedChecksum:
    """What a body is to have."""

    algorithm: str
    digest: bytes


def parse_metadata(header: str) -> dict[str, str]:
    """What ``Upload-Metadata`` says: keys, and values in Base64; an empty one says
    nothing. Raises Refusal (400)."""
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
                "Upload-Metadata has a key that is empty or there twice",
            )
        found[key] = _decoded(value.strip(), "Upload-Metadata").decode(errors="replace")
    return found


def parse_checksum(header: str | None) -> ExpectedChecksum | None:
    """What ``Upload-Checksum`` says. Raises Refusal (400)."""
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    digest = _decoded(value.strip(), "Upload-Checksum")
    if algorithm not in ALGORITHMS:
        raise HttpError(
            400,
            "bad_checksum",
            f"checksums are of {', '.join(ALGORITHMS)}, not {algorithm[:40]!r}",
        )
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise HttpError(
            400, "bad_checksum", f"the checksum has not the length of {algorithm}"
        )
    return ExpectedChecksum(algorithm, digest)


def parse_length(get: GetHeader) -> int | None:
    """The length of a new upload; None if it is said later, or follows from its parts.
    Raises Refusal."""
    length, later = parse_number(get, "Upload-Length"), get("Upload-Defer-Length")
    wanted = 0 if parse_concat(get).startswith(FINAL) else 1
    if later not in (None, "1") or [length, later].count(None) != 2 - wanted:
        text = (
            "either Upload-Length or Upload-Defer-Length: 1 is to be given, and "
            "neither "
            "with final"
        )
        raise HttpError(400, "bad_length", text)
    return length


def parse_concat(get: GetHeader) -> str:
    """What ``Upload-Concat`` says: nothing, PARTIAL, or FINAL with parts. Raises
    Refusal (400)."""
    concat = (get("Upload-Concat") or "").strip()
    if concat not in ("", PARTIAL) and not concat.startswith(f"{FINAL};"):
        raise HttpError(
            400,
            "bad_concat",
            f"Upload-Concat is to be {PARTIAL}, or {FINAL}; and the URLs of the parts",
        )
    return concat


def parse_parts(concat: str) -> list[str]:
    """The ids in ``final;URL URL``: paths, or whole URLs, as ``Location`` gave them.
    Raises Refusal (400)."""
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
            f"{url[:100]!r} is no upload here: give URLs, with spaces between",
        )
    return match[1]


def parse_number(get: GetHeader, name: str) -> int | None:
    """A whole number; None if it is not given. Raises Refusal (400)."""
    text = get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise HttpError(
            400,
            "bad_field",
            f"{name} is {text[:40]!r}: it is to be a whole number, 0 or more",
        )
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else _HUGE


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HttpError(
            400, "bad_base64", f"{what} has a value that is no Base64"
        ) from error
