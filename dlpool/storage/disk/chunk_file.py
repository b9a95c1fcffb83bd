"""The format of chunk files.

``INDEX.chunk`` has the bytes of the chunk, then a trailer with their number and md5.
The trailer is written before the file gets the name ``INDEX.chunk``. So a file with
this name is complete if its trailer agrees with its size, and truncated otherwise.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path

from dlpool.disk import close_quietly
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.values import StoredChunk

_TRAILER = struct.Struct(">8sQ16s")
_MAGIC = b"dlpchnk1"
_SUFFIX = ".chunk"
_CACHED_TRAILERS = 20_000
TRAILER_SIZE = _TRAILER.size


def trailer(size: int, md5: bytes) -> bytes:
    """Return the trailer that follows the ``size`` bytes of a chunk."""
    return _TRAILER.pack(_MAGIC, size, md5)


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
        md5 = _md5_of(entry.path, status.st_ino, status.st_mtime_ns, status.st_size)
    except (FileNotFoundError, ValueError):
        return None  # removed meanwhile, or incomplete
    return StoredChunk(index, status.st_size - TRAILER_SIZE, md5, status.st_mtime)


@lru_cache(maxsize=_CACHED_TRAILERS)
def _md5_of(path: str, _inode: int, _modified_ns: int, length: int) -> str:
    """Return the md5 in the trailer of a chunk file. Cached until the file changes.

    Raises ValueError for an incomplete file, OSError.
    """
    descriptor = os.open(path, READ_FLAGS)
    try:
        data = os.pread(descriptor, TRAILER_SIZE, max(0, length - TRAILER_SIZE))
    finally:
        close_quietly(descriptor)
    if len(data) != TRAILER_SIZE:
        raise ValueError(path)
    magic, size, md5 = _TRAILER.unpack(data)
    if magic != _MAGIC or size != length - TRAILER_SIZE:
        raise ValueError(path)
    return bytes(md5).hex()
