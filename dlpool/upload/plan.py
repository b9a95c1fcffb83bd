"""The chunks of a file, and the id of its upload. Pure."""

from __future__ import annotations

import re
from hashlib import blake2b

from dlpool.dataclass import dataclass
from dlpool.errors import UsageError
from dlpool.transfer.http.answer import ByteRange

MIB = 1 << 20
MIN_SIZE = 64 * 1024  # bytes of a chunk, except for the last one
DEFAULT_SIZE = 8 * MIB
MAX_AUTO = 48 * MIB  # bytes of an automatic chunk: half of the servers' default limit
MAX_CHUNKS = 100_000
# The approximate number of chunks of a small file, and of a large one.
_SMALL_FILE_CHUNKS, _LARGE_FILE_CHUNKS = 8, 1024


@dataclass(frozen=True)
class LocalFileIdentity:
    """The attributes that identify one version of a local file.

    ``path`` is absolute and without symbolic links.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class UploadPlan:
    """The division of a file of ``size`` bytes into chunks of ``chunk_size`` bytes.

    The last chunk may be shorter. An empty file is one empty chunk.
    """

    size: int
    chunk_size: int

    @property
    def count(self) -> int:
        """The number of chunks."""
        return max(1, -(-self.size // self.chunk_size))

    def span(self, index: int) -> ByteRange:
        """Return the byte range of a chunk."""
        start = index * self.chunk_size
        return ByteRange(start, min(self.size, start + self.chunk_size))

    def length(self, index: int) -> int:
        """Return the number of bytes of a chunk."""
        start, end = self.span(index)
        return end - start


def make_plan(size: int, chunk_size: int) -> UploadPlan:
    """Return the plan for a file of ``size`` bytes.

    Raises UsageError if the file would have more than ``MAX_CHUNKS`` chunks.
    """
    plan = UploadPlan(size, chunk_size)
    if plan.count > MAX_CHUNKS:
        raise UsageError(
            f"{size} bytes would be {plan.count} chunks, more than {MAX_CHUNKS}: use a "
            f"larger --chunk-size"
        )
    return plan


def auto_chunk_size(size: int, limit: int | None = None) -> int:
    """Return the chunk size in bytes for a file of ``size`` bytes.

    The chunk size is 8 MiB for most files. It is smaller for a small file, so that
    several connections have chunks to send. It is larger for a large file, up to 48
    MiB. It never exceeds ``limit``, the server's limit in bytes (None if unknown). It
    depends only on ``size`` and ``limit``: to resume, a later run needs the same size.
    """
    if size < _SMALL_FILE_CHUNKS * DEFAULT_SIZE:
        chosen = size // _SMALL_FILE_CHUNKS
    else:
        chosen = max(DEFAULT_SIZE, size // _LARGE_FILE_CHUNKS)
    rounded_up = -(-chosen // MIB) * MIB
    return min(limit or MAX_AUTO, max(MIB, min(MAX_AUTO, rounded_up)))


def smaller_chunk_size(refused: int, limit: int | None = None) -> int | None:
    """Return the chunk size to try after the server has refused a chunk.

    ``refused`` is the size of that chunk in bytes, ``limit`` the server's limit in
    bytes, None if unknown. Returns ``limit`` if it is smaller than ``refused``, else
    half of ``refused``, but at least ``MIN_SIZE`` (64 KiB). Returns None if this is not
    smaller than ``refused``.
    """
    if limit is not None and limit < refused:
        return limit
    smaller = max(MIN_SIZE, refused // 2)
    return smaller if smaller < refused else None


def file_id(
    identity: LocalFileIdentity, chunk_size: int, name: str, relative_path: str | None
) -> str:
    """Return the id of an upload.

    A later run resumes an upload by its id. The id stays the same while the file, the
    chunk size, and the name and folder at the server are unchanged.
    """
    parts = (
        identity.path,
        identity.size,
        identity.mtime_ns,
        identity.inode,
        chunk_size,
        name,
        relative_path,
    )
    digest = blake2b(
        repr(parts).encode(errors="surrogateescape"), digest_size=16
    ).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:40]}-{digest}"
