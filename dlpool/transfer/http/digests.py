"""Read the digests of a file from response header fields. Pure.

What each field covers:

- ``Repr-Digest``: the representation, also on a 206 (RFC 9530 section 3);
- ``Digest``: the instance, an older word for the representation (RFC 3230 section 4.1);
- ``x-goog-hash``: the object as it is stored, not a body that the server decompressed;
- ``x-amz-checksum-NAME``: the object; ``VALUE-N`` and ``COMPOSITE`` are digests of the
  digests of N parts and cannot be used;
- ``x-ms-blob-content-md5``: the blob, also on a 206;
- ``Content-Digest``: the content of this message, which is the file only if the message
  contains all of it (RFC 9530 section 2);
- ``Content-MD5``: as ``Content-Digest`` (RFC 2616 section 14.15).

CRC32C, Adler-32 and the Unix sums are ignored: hashlib has none of them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping

Digest = tuple[str, str]  # a name of hashlib, and the digest in hexadecimal digits

# bytes of a digest, strongest first
_SIZES = {
    "sha512": 64,
    "sha256": 32,
    "sha1": 20,
    "md5": 16,
}
_NAMES = {
    "sha-512": "sha512",
    "sha-256": "sha256",
    "sha": "sha1",
    "sha-1": "sha1",
    "md5": "md5",
}
_AMAZON = tuple((f"x-amz-checksum-{name}", name) for name in _SIZES)
_FIELDS = {
    "repr-digest",
    "digest",
    "x-goog-hash",
    "x-ms-blob-content-md5",
    "content-digest",
    "content-md5",
    *(field for field, _name in _AMAZON),
}
_MEMBER = re.compile(r"([a-z0-9-]+)=:([A-Za-z0-9+/=]*):")


def file_digest(headers: Mapping[str, str], *, is_complete: bool) -> Digest | None:
    """Return the strongest digest that the header fields give for the complete file.

    ``is_complete``: the message contains all bytes of the file. Malformed values are
    ignored.
    """
    # the usual case, and this runs for each response
    if _FIELDS.isdisjoint(map(str.lower, headers)):
        return None
    return strongest(_found(headers, is_whole=is_complete))


def _found(headers: Mapping[str, str], *, is_whole: bool) -> Iterator[Digest]:
    yield from structured(headers.get("Repr-Digest"))
    yield from _listed(headers.get("Digest"))
    if _is_as_stored(headers):
        yield from _listed(headers.get("x-goog-hash"))
    yield from _amazon(headers)
    yield from _single("md5", headers.get("x-ms-blob-content-md5"))
    if is_whole:
        yield from structured(headers.get("Content-Digest"))
        yield from _single("md5", headers.get("Content-MD5"))


def strongest(digests: Iterable[Digest]) -> Digest | None:
    """Return the first digest of the strongest algorithm, None without digests."""
    found: dict[str, str] = {}
    for algorithm, digest in digests:
        found.setdefault(algorithm, digest)
    return next(
        ((algorithm, found[algorithm]) for algorithm in _SIZES if algorithm in found),
        None,
    )


def structured(value: str | None) -> Iterator[Digest]:
    """Yield the digests of a dictionary of byte sequences (RFC 9530).

    An example is ``sha-256=:BASE64:, sha-512=:BASE64:``.
    """
    for member in re.split(r"[\s,]", value or ""):
        if match := _MEMBER.match(member):
            yield from _single(_NAMES.get(match[1]), match[2])


def _listed(value: str | None) -> Iterator[Digest]:
    """Yield the digests of a list such as ``SHA-256=BASE64,MD5=BASE64``.

    Names are case-insensitive (RFC 3230 section 4.3.2).
    """
    for member in (value or "").split(","):
        name, _, text = member.strip().partition("=")
        yield from _single(_NAMES.get(name.strip().lower()), text)


def _amazon(headers: Mapping[str, str]) -> Iterator[Digest]:
    is_of_parts = (
        headers.get("x-amz-checksum-type") or ""
    ).strip().upper() == "COMPOSITE"
    if is_of_parts or headers.get("x-amz-mp-parts-count"):
        return
    for field, algorithm in _AMAZON:
        yield from _single(algorithm, headers.get(field))


def _single(algorithm: str | None, text: str | None) -> Iterator[Digest]:
    """Yield the digest of a base64 text, if it has the length of its algorithm."""
    if algorithm is None or not text:
        return
    try:
        digest = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return
    if len(digest) == _SIZES[algorithm]:
        yield algorithm, digest.hex()


def _is_as_stored(headers: Mapping[str, str]) -> bool:
    """Return whether Google Cloud Storage sent the bytes as they are stored.

    The service decompresses some objects before it sends them ("transcoding").
    """
    stored = (
        (headers.get("x-goog-stored-content-encoding") or "identity").strip().lower()
    )
    sent = (headers.get("Content-Encoding") or "identity").strip().lower()
    return stored == sent
