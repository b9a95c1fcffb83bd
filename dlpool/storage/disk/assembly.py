"""Assembles the chunks of a task into one file.

The kernel copies the bytes while other threads hash them. One thread computes the md5
of the file, for which it must read all bytes in order; this takes longer than the copy.
If the client stated the md5 of the file and it matches, the chunks are correct as well.
If the md5 does not match, each chunk is then compared with the md5 that is stored with
the chunk. If the client stated no md5, a second thread makes this comparison during the
copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dlpool.dataclass import dataclass
from dlpool.disk import write_all
from dlpool.disk_errors import CANNOT_COPY_RANGE
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, chunk_path
from dlpool.storage.disk.file_locks import release, release_on_error
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.values import StoredChunk

T = TypeVar("T")
_BUFFER = 256 * 1024


class CorruptChunks(Exception):
    """Chunks that are missing, truncated or changed; ``indexes`` are their indexes."""

    def __init__(self, indexes: Iterable[int]) -> None:
        super().__init__(f"corrupt chunks {sorted(indexes)}")
        self.indexes = frozenset(indexes)


@dataclass(frozen=True)
class ChunkAssembly:
    """The chunks of one file in their order, all in one folder."""

    folder: Path
    chunks: Sequence[StoredChunk]

    def write(self, target: int, *, expected_md5: str | None, is_checked: bool) -> str:
        """Copy all chunks to the open file ``target`` and return the md5 of the file.

        ``is_checked``: compare each chunk with its own md5, unless the md5 of the file
        is ``expected_md5``. Raises CorruptChunks, OSError.
        """
        proof = expected_md5 or (self.chunks[0].md5 if len(self.chunks) == 1 else None)
        with ThreadPoolExecutor(2) as pool:
            file_md5 = _start(pool, self._file_md5)
            corrupt = (
                _start(pool, self._corrupt_indexes)
                if is_checked and proof is None
                else None
            )
            self._copy(target)
            md5 = file_md5()
            indexes = corrupt() if corrupt else ()
        if is_checked and proof is not None and md5 != proof:
            indexes = self._corrupt_indexes()
        if indexes:
            raise CorruptChunks(indexes)
        return md5

    def _file_md5(self) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in self.chunks:
            self._hash(chunk, digest)
        return digest.hexdigest()

    def _corrupt_indexes(self) -> tuple[int, ...]:
        return tuple(
            chunk.index for chunk in self.chunks if not self._is_correct(chunk)
        )

    def _is_correct(self, chunk: StoredChunk) -> bool:
        digest = hashlib.md5(usedforsecurity=False)
        try:
            self._hash(chunk, digest)
        except CorruptChunks:
            return False
        return digest.hexdigest() == chunk.md5

    def _hash(self, chunk: StoredChunk, digest: hashlib._Hash) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        descriptor, left = self._open(chunk), chunk.size
        try:
            while left:
                count = os.readv(descriptor, [buffer[: min(left, _BUFFER)]])
                if count == 0:
                    raise CorruptChunks([chunk.index])
                digest.update(buffer[:count])
                left -= count
        finally:
            release(descriptor)

    def _copy(self, target: int) -> None:
        for chunk in self.chunks:
            descriptor = self._open(chunk)
            try:
                _copy_chunk(descriptor, target, chunk)
            finally:
                release(descriptor)

    def _open(self, chunk: StoredChunk) -> int:
        """Open a chunk file, check its size, and return the descriptor.

        Raises CorruptChunks, OSError.
        """
        try:
            descriptor = os.open(chunk_path(self.folder, chunk.index), READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptChunks([chunk.index]) from error
        with release_on_error(descriptor):
            if os.fstat(descriptor).st_size != chunk.size + TRAILER_SIZE:
                raise CorruptChunks([chunk.index])
        return descriptor


def _start(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Callable[[], T]:
    """Start ``work`` on a thread of the pool.

    Returns a function that waits for the result of ``work``. If no thread can be
    started, returns ``work`` itself, which the caller's thread then runs.
    """
    try:
        return pool.submit(work).result
    except RuntimeError:
        return work


def _copy_chunk(source: int, target: int, chunk: StoredChunk) -> None:
    """Append the bytes of a chunk to the target.

    Uses copy_file_range(2) where the file system supports it.
    """
    left = chunk.size
    while left:
        try:
            count = os.copy_file_range(source, target, left)
        except OSError as error:
            if error.errno not in CANNOT_COPY_RANGE:
                raise
            count = _copy_block(source, target, left)
        if count == 0:
            raise CorruptChunks([chunk.index])
        left -= count


def _copy_block(source: int, target: int, left: int) -> int:
    data = os.read(source, min(left, _BUFFER))
    write_all(target, data)
    return len(data)
