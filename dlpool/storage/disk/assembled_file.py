"""The assembled file of a task: chunks are received at their final positions.

``SIZE.assembled`` in the folder of a task has room for the complete file, which is
divided into chunks of ``SIZE`` bytes. If all chunks are in it, a merge needs no copy:
it gives the file a second name in merged_dir, and publishes that name.

A chunk is received into the assembled file only on three conditions: its position
follows from the sizes that the client states, no chunk with its index is stored, and no
other request receives it. The receiver holds a lock of the byte whose offset is the
index of the chunk. Any other chunk gets a file of its own, and the merge copies it to
its position. The bytes in the assembled file count as a chunk when their chunk file
exists. This chunk file has only the trailer. So bytes of a killed or refused request
are never a part of a chunk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from dlpool.dataclass import dataclass
from dlpool.storage.disk.file_locks import release, release_on_error
from dlpool.storage.values import StoredChunk, TaskTotals
from dlpool.syscalls import lock_byte

MAX_CHUNKS = 10_000  # more chunks are so small that each has a file of its own
_SUFFIX = ".assembled"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Placement:
    """The position of a chunk in an open assembled file.

    ``descriptor`` holds the lock of the chunk; the caller releases it. ``start`` and
    ``size`` are in bytes.
    """

    descriptor: int
    chunk_size: int
    start: int
    size: int


def assembled_path(folder: Path, chunk_size: int) -> Path:
    """Return the path of the assembled file with chunks of ``chunk_size`` bytes."""
    return folder / f"{chunk_size}{_SUFFIX}"


def chunk_size_of(index: int, size: int, totals: TaskTotals) -> int | None:
    """Return the size of all chunks except the last, computed from one chunk.

    ``index`` and ``size`` describe this chunk. None if the totals of the file are
    unknown, or do not agree with equal chunks.
    """
    count, file_size = totals.total_chunks, totals.file_size
    if not (2 <= count <= MAX_CHUNKS and 0 < size <= file_size and index < count):
        return None
    before_last = count - 1
    is_last = index == before_last
    chunk_size = (file_size - size) // before_last if is_last else size
    last = file_size - chunk_size * before_last
    is_equal = 0 < last <= chunk_size and (not is_last or last == size)
    return chunk_size if is_equal else None


def open_placement(
    folder: Path, index: int, size: int, totals: TaskTotals
) -> Placement | None:
    """Lock the position of a chunk that is not stored, and return the position.

    None if the chunk must be received into a file of its own. The caller holds the lock
    of the task. Errors are ignored, because writing to another file reports them.
    """
    chunk_size = chunk_size_of(index, size, totals)
    if chunk_size is None:
        return None
    with suppress(OSError):
        descriptor = _open_or_create(folder, chunk_size)
        if descriptor is None:
            return None
        with release_on_error(descriptor):
            if lock_byte(descriptor, index):
                return Placement(descriptor, chunk_size, index * chunk_size, size)
        release(descriptor)
    return None


def _open_or_create(folder: Path, chunk_size: int) -> int | None:
    """Open the assembled file, which is created if it is missing, and return its
    descriptor.

    None if the task has an assembled file with chunks of another size, or if the path
    is not a regular file. Raises OSError.
    """
    path = assembled_path(folder, chunk_size)
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        if _assembled_files(folder):
            return None
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    release(descriptor)
    return None


def open_assembled(folder: Path, chunks: Sequence[StoredChunk]) -> int | None:
    """Lock the assembled file of a complete task, and return its descriptor.

    None if the caller has to copy the chunks to another file: no chunk is in the
    assembled file, the sizes of the chunks do not fit, a request is still writing to
    it, or an error occurs.
    """
    sizes = {chunk.placed_size for chunk in chunks} - {0}
    if len(sizes) != 1:
        return None
    chunk_size = sizes.pop()
    if any(chunk.size != chunk_size for chunk in chunks[:-1]):
        return None
    if chunks[-1].size > chunk_size:
        return None
    with suppress(OSError):
        descriptor = os.open(assembled_path(folder, chunk_size), _FLAGS)
        with release_on_error(descriptor):
            if all(lock_byte(descriptor, chunk.index) for chunk in chunks):
                _cut(descriptor, sum(chunk.size for chunk in chunks))
                return descriptor
        release(descriptor)
    return None


def _cut(descriptor: int, size: int) -> None:
    """Truncate the file to at most ``size`` bytes: another program may have appended
    bytes.

    Raises OSError.
    """
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)


def remove_assembled(folder: Path) -> None:
    """Remove the assembled files of a task. Raises OSError."""
    for path in _assembled_files(folder):
        path.unlink(missing_ok=True)


def _assembled_files(folder: Path) -> Iterable[Path]:
    return [folder / name for name in os.listdir(folder) if name.endswith(_SUFFIX)]
