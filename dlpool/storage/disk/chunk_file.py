"""Chunk files, ``INDEX.chunk``: the bytes, and behind them a trailer with their number
and md5.

The trailer is written before the file gets its name, so that whatever has the name and
fits its trailer is whole: a file that was cut has none, or one in the wrong place.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dlpool.storage.disk.file_locks import release
from dlpool.storage.disk.safe_open import READ_FLAGS

_TRAILER = struct.Struct(">8sQ16s")
_MAGIC = b"dlpchnk1"
_SUFFIX = ".chunk"
_REMEMBERED = 20_000
TRAILER_SIZE = _TRAILER.size


@dataclass(frozen=True)
class StoredChunk:
    """A whole chunk. ``size`` in bytes; ``stored_at``: when, in seconds since the
    epoch."""

    index: int
    size: int
    md5: str
    stored_at: float


def trailer(size: int, md5: bytes) -> bytes:
    """What stands behind the ``size`` bytes of a chunk."""
    return _TRAILER.pack(_MAGIC, size, md5)


def chunk_path(folder: Path, index: int) -> Path:
    """Where the chunk is."""
    return folder / f"{index}{_SUFFIX}"


def index_of(name: str) -> int | None:
    """The index of the chunk that a file of that name would be; None if it would be
    none."""
    index = name.removesuffix(_SUFFIX)
    is_one = (
        index != name
        and index.isascii()
        and index.isdigit()
        and str(int(index)) == index
    )
    return int(index) if is_one else None


def list_chunks(folder: Path) -> dict[int, StoredChunk]:
    """The whole chunks in a folder, in their order; none if it is gone. Raises
    OSError."""
    try:
        with os.scandir(folder) as entries:
            found = [chunk for chunk in map(_chunk_of, entries) if chunk is not None]
    except FileNotFoundError:
        return {}
    return {
        chunk.index: chunk for chunk in sorted(found, key=lambda chunk: chunk.index)
    }


def _chunk_of(entry: os.DirEntry[str]) -> StoredChunk | None:
    index = index_of(entry.name)
    if index is None:
        return None
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        status = entry.stat(follow_symlinks=False)
        sum_of_it = _md5_of(
            entry.path, status.st_ino, status.st_mtime_ns, status.st_size
        )
    except (FileNotFoundError, ValueError):
        return None  # removed meanwhile, or not whole
    return StoredChunk(index, status.st_size - TRAILER_SIZE, sum_of_it, status.st_mtime)


@lru_cache(maxsize=_REMEMBERED)
def _md5_of(path: str, _inode: int, _modified_ns: int, length: int) -> str:
    """The md5 in the trailer; of a file that has not changed it is read once. Raises
    ValueError if it is not whole."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        data = os.pread(descriptor, TRAILER_SIZE, max(0, length - TRAILER_SIZE))
    finally:
        release(descriptor)
    if len(data) != TRAILER_SIZE:
        raise ValueError(path)
    magic, size, md5 = _TRAILER.unpack(data)
    if magic != _MAGIC or size != length - TRAILER_SIZE:
        raise ValueError(path)
    return bytes(md5).hex()
