"""Chunks become one file: the bytes are copied by the kernel while they are hashed
beside it.

The whole file's md5 needs a thread that goes through all bytes in their order; it takes
longer than the copy, which runs meanwhile. Where the client said what the md5 is to be
and it is, the chunks are right, too; otherwise each is compared with its own, by
another thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dlpool.disk import CANNOT_COPY_RANGE, write_all
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, StoredChunk, chunk_path
from dlpool.storage.disk.file_locks import release, released_on_error
from dlpool.storage.disk.safe_open import READ_FLAGS

T = TypeVar("T")
_BUFFER = 256 * 1024


class CorruptChunks(Exception):
    """Chunks that are gone, cut or changed, by index."""

    def __init__(self, indexes: Iterable[int]) -> None:
        super().__init__(f"bad chunks {sorted(indexes)}")
        self.indexes = frozenset(indexes)


@dataclass(frozen=True)
class ChunkAssembly:
    """The chunks of one file, in their order, in one folder."""

    folder: Path
    chunks: Sequence[StoredChunk]

    def write(self, target: int, *, expected_md5: str | None, is_checked: bool) -> str:
        """Copy all to the open file ``target`` and return their md5. Raises
        CorruptChunks, OSError.

        ``is_checked``: unless the md5 is the expected one, each chunk is compared with
        its own.
        """
        proof = expected_md5 or (self.chunks[0].md5 if len(self.chunks) == 1 else None)
        with ThreadPoolExecutor(2) as pool:
            whole = _begun(pool, self._whole_md5)
            bad = _begun(pool, self._bad) if is_checked and proof is None else None
            self._copy(target)
            md5 = whole()
            indexes = bad() if bad else ()
        if is_checked and proof is not None and md5 != proof:
            indexes = self._bad()
        if indexes:
            raise CorruptChunks(indexes)
        return md5

    def _whole_md5(self) -> str:
        found = hashlib.md5(usedforsecurity=False)
        for chunk in self.chunks:
            self._hash(chunk, found)
        return found.hexdigest()

    def _bad(self) -> tuple[int, ...]:
        return tuple(chunk.index for chunk in self.chunks if not self._is_right(chunk))

    def _is_right(self, chunk: StoredChunk) -> bool:
        found = hashlib.md5(usedforsecurity=False)
        try:
            self._hash(chunk, found)
        except CorruptChunks:
            return False
        return found.hexdigest() == chunk.md5

    def _hash(self, chunk: StoredChunk, found: hashlib._Hash) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        descriptor, left = self._open(chunk), chunk.size
        try:
            while left:
                count = os.readv(descriptor, [buffer[: min(left, _BUFFER)]])
                if count == 0:
                    raise CorruptChunks([chunk.index])
                found.update(buffer[:count])
                left -= count
        finally:
            release(descriptor)

    def _copy(self, target: int) -> None:
        for chunk in self.chunks:
            descriptor = self._open(chunk)
            try:
                _copy_bytes(descriptor, target, chunk)
            finally:
                release(descriptor)

    def _open(self, chunk: StoredChunk) -> int:
        """A descriptor of the chunk, which has its length. Raises CorruptChunks."""
        try:
            descriptor = os.open(chunk_path(self.folder, chunk.index), READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptChunks([chunk.index]) from error
        with released_on_error(descriptor):
            if os.fstat(descriptor).st_size != chunk.size + TRAILER_SIZE:
                raise CorruptChunks([chunk.index])
        return descriptor


def _begun(pool: ThreadPoolExecutor, work: Callable[[], T]) -> Callable[[], T]:
    """Start ``work`` on a thread of the pool, and return a function that waits for its
    result.

    If no thread can be started, that function does the work.
    """
    try:
        return pool.submit(work).result
    except RuntimeError:
        return work


def _copy_bytes(source: int, target: int, chunk: StoredChunk) -> None:
    """Append a chunk's bytes to the target, by copy_file_range(2) where the file
    systems can."""
    left = chunk.size
    while left:
        try:
            count = os.copy_file_range(source, target, left)
        except OSError as error:
            if error.errno not in CANNOT_COPY_RANGE:
                raise
            count = _copy_some(source, target, left)
        if count == 0:
            raise CorruptChunks([chunk.index])
        left -= count


def _copy_some(source: int, target: int, left: int) -> int:
    data = os.read(source, min(left, _BUFFER))
    write_all(target, data)
    return len(data)
