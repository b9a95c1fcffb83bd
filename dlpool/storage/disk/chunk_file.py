"""The format of chunk files.

``INDEX.chunk`` has the bytes of the chunk, then a trailer with their number and digest.
The trailer is written before the file gets the name ``INDEX.chunk``. So a file with
this name is complete if its trailer agrees with its size, and truncated otherwise.

The trailer also has the inode number and the modification time of the file, and the
boot id of the machine. While all three still apply, no other program has changed the
bytes since they were hashed.
"""

from __future__ import annotations

import os
import struct
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from dlpool.disk import close_quietly
from dlpool.lock_files import boot_id
from dlpool.storage.digests import ALGORITHMS, HEX_DIGITS, MD5, SHA256, Digest
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.values import StoredChunk

_TRAILER = struct.Struct(">8sQ8s32sQQ36s")
_MAGIC = b"dlpchnk2"
_SUFFIX = ".chunk"
_CACHED_TRAILERS = 20_000
TRAILER_SIZE = _TRAILER.size


class _Trailer(NamedTuple):
    """The values in a trailer. ``modified_ns``: in nanoseconds since the epoch."""

    digest: Digest
    inode: int
    modified_ns: int
    boot_id: str

    def is_of(self, status: os.stat_result) -> bool:
        """Return whether the file is unmodified since its trailer was written."""
        return (self.inode, self.modified_ns, self.boot_id) == (
            status.st_ino,
            status.st_mtime_ns,
            _boot_id() or None,
        )


def trailer(size: int, digest: Digest, inode: int, modified_ns: int) -> bytes:
    """Return the trailer that follows the ``size`` bytes of a chunk.

    ``inode``: the inode number of the file. ``modified_ns``: the modification time that
    the caller sets after it has written the trailer.
    """
    return _TRAILER.pack(
        _MAGIC,
        size,
        digest.algorithm.encode(),
        digest.value,
        inode,
        modified_ns,
        _boot_id().encode(),
    )


@cache
def _boot_id() -> str:
    return boot_id()[:36]


def chunk_path(folder: Path, index: int) -> Path:
    """Return the path of a chunk in the folder of its task."""
    return folder / f"{index}{_SUFFIX}"


def index_of(name: str) -> int | None:
    """Return the index of the chunk with this file name.

    None for a name that no chunk has.
    """
    index = name.removesuffix(_SUFFIX)
    is_chunk = (
        index != name
        and index.isascii()
        and index.isdigit()
        and str(int(index)) == index
    )
    return int(index) if is_chunk else None


def list_chunks(folder: Path) -> dict[int, StoredChunk]:
    """Return the complete chunks in a folder, sorted by index.

    Empty if the folder does not exist. Raises OSError.
    """
    try:
        with os.scandir(folder) as entries:
            found = [chunk for chunk in map(_chunk_of, entries) if chunk is not None]
    except FileNotFoundError:
        return {}
    return {
        chunk.index: chunk for chunk in sorted(found, key=lambda chunk: chunk.index)
    }


def stored_size(path: Path) -> int | None:
    """Return the size of a chunk in bytes, without its trailer.

    None if the file does not exist. Raises OSError.
    """
    try:
        return max(0, path.lstat().st_size - TRAILER_SIZE)
    except FileNotFoundError:
        return None


def _chunk_of(entry: os.DirEntry[str]) -> StoredChunk | None:
    index = index_of(entry.name)
    if index is None:
        return None
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        status = entry.stat(follow_symlinks=False)
        found = _read_trailer(
            entry.path, status.st_ino, status.st_mtime_ns, status.st_size
        )
    except (FileNotFoundError, ValueError):
        return None  # removed meanwhile, or incomplete
    return StoredChunk(
        index,
        status.st_size - TRAILER_SIZE,
        found.digest.hex_of(MD5),
        status.st_mtime,
        found.digest.hex_of(SHA256),
        found.is_of(status),
    )


@lru_cache(maxsize=_CACHED_TRAILERS)
def _read_trailer(path: str, _inode: int, _modified_ns: int, length: int) -> _Trailer:
    """Return the trailer of a chunk file. Cached until the file changes.

    Raises ValueError for an incomplete file, OSError.
    """
    descriptor = os.open(path, READ_FLAGS)
    try:
        data = os.pread(descriptor, TRAILER_SIZE, max(0, length - TRAILER_SIZE))
    finally:
        close_quietly(descriptor)
    if len(data) != TRAILER_SIZE:
        raise ValueError(path)
    magic, size, name, value, inode, modified_ns, boot = _TRAILER.unpack(data)
    algorithm = name.rstrip(b"\0").decode(errors="replace")
    if magic != _MAGIC or size != length - TRAILER_SIZE or algorithm not in ALGORITHMS:
        raise ValueError(path)
    digest = Digest(algorithm, value[: HEX_DIGITS[algorithm] // 2])
    return _Trailer(digest, inode, modified_ns, boot.decode(errors="replace"))
