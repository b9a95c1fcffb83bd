"""The digests of chunks and files. Pure.

A chunk has an MD5 or a SHA-256 digest. A file has the MD5 of all its bytes, or a
composite SHA-256: the SHA-256 of the SHA-256 digests of its chunks, in their order.
``dlpool upload`` uses the composite digest. It needs no pass over the complete file,
because each chunk is hashed once, when it is received.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

MD5, SHA256 = "md5", "sha256"
ALGORITHMS = (MD5, SHA256)  # of chunks
HEX_DIGITS = {MD5: 32, SHA256: 64}


class FileDigests(NamedTuple):
    """The digests of a file in hexadecimal; empty if unknown."""

    md5: str = ""
    composite_sha256: str = ""


class Digest(NamedTuple):
    """A digest of a chunk: an algorithm of ``ALGORITHMS`` and its value as bytes."""

    algorithm: str
    value: bytes

    def hex_of(self, algorithm: str) -> str:
        """Return the value in hexadecimal; empty if the digest has another
        algorithm."""
        return self.value.hex() if self.algorithm == algorithm else ""


def new_hash(algorithm: str) -> hashlib._Hash:
    """Return a hash object that works in FIPS mode: it is marked as not used for
    security."""
    return hashlib.new(algorithm, usedforsecurity=False)


def composite_sha256(digests: Iterable[bytes]) -> str:
    """Return the composite SHA-256 of chunks with these SHA-256 digests."""
    return hashlib.sha256(b"".join(digests), usedforsecurity=False).hexdigest()
