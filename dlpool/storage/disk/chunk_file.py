"""The format of chunk files.

``INDEX.chunk`` has the bytes of the chunk, then a trailer with their number and digest.
The trailer is written before the file gets the name ``INDEX.chunk``. So a file with
this name is complete if its trailer agrees with its size, and truncated otherwise.

If the bytes are in the assembled file of the task (``assembled_file``), the chunk file
has only the trailer, which then contains the chunk size of the assembled file.

Three more values in the trailer show changes by other programs: the inode number and
modification time of the file with the bytes, and the boot id of the machine. If all
three still match, the bytes are unmodified since they were hashed. An assembled file
has the modification time of the last received chunk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from dlpool.disk import close_quietly
from dlpool.lock_files import boot_id
from dlpool.storage.digests import ALGORITHMS, HEX_DIGITS, MD5, SHA256, Digest
from dlpool.storage.disk.assembled_file import assembled_path
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.values import StoredChunk

_TRAILER = struct.Struct(">8sQ8s32sQQ36sQ")
_MAGIC = b"dlpchnk2"
_SUFFIX = ".chunk"
_CACHED_TRAILERS = 20_000
TRAILER_SIZE = _TRAILER.size


class _Trailer(NamedTuple):
    """The values in a trailer. ``modified_ns``: in nanoseconds since the epoch."""

    size: int
    digest: Digest
    inode: int
    modified_ns: int
    boot_id: str
    placed_size: int

    def is_of_file(self, inode: int) -> bool:
        """Return whether the bytes were received into the file ``inode`` since the last
        boot."""
        return (self.inode, self.boot_id) == (inode, _boot_id() or None)


def trailer(
    size: int, digest: Digest, inode: int, modified_ns: int, placed_size: int = 0
) -> bytes:
    """Return the trailer of a chunk of ``size`` bytes.

    ``inode``: the inode number of the file with the bytes. ``modified_ns``: the
    modification time that the caller sets after it has written the trailer.
    ``placed_size``: the chunk size of the assembled file, 0 if the bytes precede the
    trailer.
    """
    return _TRAILER.pack(
        _MAGIC,
        size,
        digest.algorithm.encode(),
        digest.value,
        inode,
        modified_ns,
        _boot_id().encode(),
        placed_size,
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
            read = [entry for entry in map(_read_entry, entries) if entry is not None]
    except FileNotFoundError:
        return {}
    assembled = _AssembledFiles(folder, [found for _, _, found in read])
    chunks = (_chunk_of(*entry, assembled) for entry in read)
    found = [chunk for chunk in chunks if chunk is not None]
    return {
        chunk.index: chunk for chunk in sorted(found, key=lambda chunk: chunk.index)
    }


class _AssembledFiles:
    """The assembled files in the folder of a task; normally there is at most one."""

    def __init__(self, folder: Path, trailers: Iterable[_Trailer]) -> None:
        self._status: dict[int, os.stat_result | None] = {}
        self._sealed_ns: dict[int, int] = {}  # when the last chunk was received
        for found in trailers:
            size = found.placed_size
            if size and size not in self._status:
                with suppress(FileNotFoundError):
                    self._status[size] = assembled_path(folder, size).lstat()
            self._sealed_ns[size] = max(found.modified_ns, self._sealed_ns.get(size, 0))

    def has(self, index: int, found: _Trailer) -> bool:
        """Return whether an assembled file is long enough to have the bytes of a
        chunk."""
        status = self._status.get(found.placed_size)
        end = index * found.placed_size + found.size
        return status is not None and status.st_size >= end

    def is_unmodified(self, found: _Trailer) -> bool:
        """Return whether nothing was written to the file since the last chunk was
        received."""
        status = self._status.get(found.placed_size)
        return (
            status is not None
            and found.is_of_file(status.st_ino)
            and status.st_mtime_ns <= self._sealed_ns[found.placed_size]
        )


def stored_size(path: Path) -> int | None:
    """Return the size of a chunk in bytes, without its trailer.

    None if the file does not exist, 0 if it has no complete trailer. The bytes are not
    checked. Raises OSError.
    """
    try:
        status = path.lstat()
        if status.st_size == TRAILER_SIZE:  # empty, or in the assembled file
            return _trailer_of(str(path), status).size
        return max(0, status.st_size - TRAILER_SIZE)
    except FileNotFoundError:
        return None
    except ValueError:
        return 0


def _read_entry(
    entry: os.DirEntry[str],
) -> tuple[int, os.stat_result, _Trailer] | None:
    """Return index, status and trailer of a complete chunk file; None for any other
    entry."""
    index = index_of(entry.name)
    if index is None:
        return None
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        status = entry.stat(follow_symlinks=False)
        return index, status, _trailer_of(entry.path, status)
    except (FileNotFoundError, ValueError):
        return None  # removed meanwhile, or incomplete


def _chunk_of(
    index: int, status: os.stat_result, found: _Trailer, assembled: _AssembledFiles
) -> StoredChunk | None:
    """Return the chunk, None if its bytes are missing in the assembled file."""
    if not found.placed_size:
        is_unmodified = (
            found.is_of_file(status.st_ino) and found.modified_ns == status.st_mtime_ns
        )
    elif assembled.has(index, found):
        is_unmodified = assembled.is_unmodified(found)
    else:
        return None
    return StoredChunk(
        index,
        found.size,
        found.digest.hex_of(MD5),
        status.st_mtime,
        found.digest.hex_of(SHA256),
        is_unmodified,
        found.placed_size,
    )


def _trailer_of(path: str, status: os.stat_result) -> _Trailer:
    """Return the trailer of a chunk file. Raises ValueError, OSError."""
    return _read_trailer(path, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_CACHED_TRAILERS)
def _read_trailer(path: str, _inode: int, _modified_ns: int, length: int) -> _Trailer:
    """Return the trailer of a chunk file. Cached until the file changes.

    Raises OSError, and ValueError if the file is incomplete.
    """
    descriptor = os.open(path, READ_FLAGS)
    try:
        data = os.pread(descriptor, TRAILER_SIZE, max(0, length - TRAILER_SIZE))
    finally:
        close_quietly(descriptor)
    if len(data) != TRAILER_SIZE:
        raise ValueError(path)
    magic, size, name, value, inode, modified_ns, boot, placed = _TRAILER.unpack(data)
    algorithm = name.rstrip(b"\0").decode(errors="replace")
    if (
        magic != _MAGIC
        or (0 if placed else size) != length - TRAILER_SIZE
        or algorithm not in ALGORITHMS
    ):
        raise ValueError(path)
    digest = Digest(algorithm, value[: HEX_DIGITS[algorithm] // 2])
    boot_text = boot.rstrip(b"\0").decode(errors="replace")
    return _Trailer(size, digest, inode, modified_ns, boot_text, placed)
