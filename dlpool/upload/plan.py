"""How a file is cut, and what its upload is called. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from dlpool.errors import UsageError
from dlpool.transfer.http.answer import ByteRange

MIB = 1 << 20
LEAST = 64 * 1024  # bytes of a chunk, but for the last
USUAL = 8 * MIB
MOST = 48 * MIB  # that auto chooses: what servers take by default is twice as much
MAX_CHUNKS = 100_000
_PARTS, _CHUNKS = 8, 1024  # that auto makes of a small file, and of a large one


@dataclass(frozen=True)
class LocalFileIdentity:
    """Which file it is, in which state. ``path`` is absolute, without links."""

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class UploadPlan:
    """``size`` bytes in chunks of ``chunk_size``, the last one shorter; an empty file
    is one empty chunk."""

    size: int
    chunk_size: int

    @property
    def count(self) -> int:
        """How many chunks."""
        return max(1, -(-self.size // self.chunk_size))

    def span(self, index: int) -> ByteRange:
        """The bytes of one chunk."""
        start = index * self.chunk_size
        return ByteRange(start, min(self.size, start + self.chunk_size))

    def length(self, index: int) -> int:
        """Bytes of one chunk."""
        start, end = self.span(index)
        return end - start


def make_plan(size: int, chunk_size: int) -> UploadPlan:
    """The plan for a file. Raises UsageError for more chunks than a server should
    keep."""
    made = UploadPlan(size, chunk_size)
    if made.count > MAX_CHUNKS:
        raise UsageError(
            f"{size} bytes would be {made.count} chunks, more than {MAX_CHUNKS}: use a "
            f"larger --chunk-size"
        )
    return made


def auto_chunk_size(size: int, most: int | None = None) -> int:
    """8 MiB; less for a small file, so that connections share it, more for a large one;
    never above ``most``.

    By the size alone: the next run must cut alike.
    """
    wanted = size // _PARTS if size < _PARTS * USUAL else max(USUAL, size // _CHUNKS)
    return min(most or MOST, max(MIB, min(MOST, -(-wanted // MIB) * MIB)))


def smaller_chunk_size(refused: int, most: int | None = None) -> int | None:
    """What to try where chunks of that size are too large; None: there is no smaller
    one."""
    wanted = most if most is not None and most < refused else max(LEAST, refused // 2)
    return wanted if wanted < refused else None


def file_id(
    identity: LocalFileIdentity, chunk_size: int, name: str, relative_path: str | None
) -> str:
    """The id of an upload: the same for the same file, cut alike, to the same place;
    another one if it has changed."""
    known = (
        identity.path,
        identity.size,
        identity.mtime_ns,
        identity.inode,
        chunk_size,
        name,
        relative_path,
    )
    digest = blake2b(
        repr(known).encode(errors="surrogateescape"), digest_size=16
    ).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:40]}-{digest}"
