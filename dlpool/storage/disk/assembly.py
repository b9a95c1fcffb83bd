"""The assembly of the chunks of a task into one file.

The kernel copies the bytes while other threads hash them. A chunk is trusted if its
bytes were received and hashed in the last ``TRUSTED_S`` seconds and its file is
unmodified since then. Its bytes are probably still in the page cache, so reading them
again would not check the disk.

- The composite SHA-256 of a file follows from the digests of its chunks. Only chunks
  that are not trusted, or have an MD5, are read.
- For the MD5 of a file, one thread must read all bytes in order; this takes longer than
  the copy. If the client stated the MD5 and it matches, the chunks are correct as well.
  If it does not match, each chunk is then compared with its own digest. If the client
  stated no MD5, a second thread makes this comparison during the copy, for the chunks
  that are not trusted.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dlpool.dataclass import dataclass
from dlpool.disk import write_all
from dlpool.disk_errors import CANNOT_COPY_RANGE
from dlpool.storage.digests import (
    MD5,
    SHA256,
    Digest,
    FileDigests,
    composite_sha256,
    new_hash,
)
from dlpool.storage.disk.assembled_file import assembled_path
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, chunk_path
from dlpool.storage.disk.file_locks import release, release_on_error
from dlpool.storage.disk.safe_open import READ_FLAGS
from dlpool.storage.values import StoredChunk

TRUSTED_S = 600.0
T = TypeVar("T")
_BUFFER = 256 * 1024


class CorruptChunks(Exception):
    """Chunks that are missing, truncated or changed; ``indexes`` are their indexes."""

    def __init__(self, indexes: Iterable[int]) -> None:
        super().__init__(f"corrupt chunks {sorted(indexes)}")
        self.indexes = frozenset(indexes)


@dataclass(frozen=True)
class ChunkAssembly:
    """The chunks of one file in their order, all in one folder.

    ``is_in_place``: the target of ``write`` is the assembled file of the folder.
    """

    folder: Path
    chunks: Sequence[StoredChunk]
    is_in_place: bool = False

    def write(
        self, target: int, *, expected: FileDigests, is_checked: bool
    ) -> FileDigests:
        """Copy all chunks to the open file ``target`` and return a digest of the file.

        Chunks that are in the target already are not copied.

        The digest is the composite SHA-256 if ``expected`` has one, else the MD5.
        ``is_checked``: compare chunks with their own digests where that is necessary.
        Raises CorruptChunks, OSError.
        """
        write = self._with_composite if expected.composite_sha256 else self._with_md5
        with ThreadPoolExecutor(2) as pool:
            digests, corrupt = write(pool, target, expected, is_checked)
        if corrupt:
            raise CorruptChunks(corrupt)
        return digests

    def _with_composite(
        self,
        pool: ThreadPoolExecutor,
        target: int,
        _expected: FileDigests,
        is_checked: bool,
    ) -> tuple[FileDigests, Sequence[int]]:
        """Copy all chunks. Return the composite SHA-256 and the indexes of corrupt
        chunks."""
        read = _start(pool, self._sha256_digests)
        self._copy(target)
        digests, corrupt = read()
        composite = composite_sha256(digests)
        return FileDigests(composite_sha256=composite), corrupt if is_checked else ()

    def _sha256_digests(self) -> tuple[Sequence[bytes], Sequence[int]]:
        """Return the SHA-256 of each chunk and the indexes of corrupt chunks."""
        digests, corrupt = [], []
        for chunk in self.chunks:
            if _is_trusted(chunk) and chunk.sha256:
                digests.append(chunk.digest.value)
                continue
            found = self._digests(chunk, {SHA256, chunk.digest.algorithm})
            if chunk.digest not in found:
                corrupt.append(chunk.index)
            digests += [one.value for one in found if one.algorithm == SHA256]
        return digests, corrupt

    def _with_md5(
        self,
        pool: ThreadPoolExecutor,
        target: int,
        expected: FileDigests,
        is_checked: bool,
    ) -> tuple[FileDigests, Sequence[int]]:
        """Copy all chunks. Return the MD5 of the file and the indexes of corrupt
        chunks."""
        proof = expected.md5 or (self.chunks[0].md5 if len(self.chunks) == 1 else "")
        file_md5 = _start(pool, self._file_md5)
        untrusted = [chunk for chunk in self.chunks if not _is_trusted(chunk)]
        corrupt: Callable[[], Sequence[int]] = tuple
        if is_checked and not proof:
            corrupt = _start(pool, lambda: self._corrupt_indexes(untrusted))
        self._copy(target)
        md5, indexes = file_md5(), corrupt()
        if is_checked and proof and md5 != proof:
            indexes = self._corrupt_indexes(self.chunks)
        return FileDigests(md5=md5), indexes

    def _file_md5(self) -> str:
        digest = new_hash(MD5)
        for chunk in self.chunks:
            self._hash(chunk, [digest])
        return digest.hexdigest()

    def _corrupt_indexes(self, chunks: Iterable[StoredChunk]) -> Sequence[int]:
        return [chunk.index for chunk in chunks if not self._is_correct(chunk)]

    def _is_correct(self, chunk: StoredChunk) -> bool:
        try:
            return chunk.digest in self._digests(chunk, {chunk.digest.algorithm})
        except CorruptChunks:
            return False

    def _digests(
        self, chunk: StoredChunk, algorithms: Iterable[str]
    ) -> Sequence[Digest]:
        """Read a chunk, and return its digests by these algorithms."""
        hashes = {algorithm: new_hash(algorithm) for algorithm in algorithms}
        self._hash(chunk, list(hashes.values()))
        return [Digest(name, value.digest()) for name, value in hashes.items()]

    def _hash(self, chunk: StoredChunk, hashes: Sequence[hashlib._Hash]) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        descriptor, left = self._open(chunk), chunk.size
        try:
            while left:
                count = os.readv(descriptor, [buffer[: min(left, _BUFFER)]])
                if count == 0:
                    raise CorruptChunks([chunk.index])
                for digest in hashes:
                    digest.update(buffer[:count])
                left -= count
        finally:
            release(descriptor)

    def _copy(self, target: int) -> None:
        start = 0
        for chunk in self.chunks:
            start += chunk.size
            if self.is_in_place:
                if chunk.placed_size:
                    continue
                os.lseek(target, start - chunk.size, os.SEEK_SET)
            descriptor = self._open(chunk)
            try:
                _copy_chunk(descriptor, target, chunk)
            finally:
                release(descriptor)

    def _open(self, chunk: StoredChunk) -> int:
        """Open the file with the bytes of a chunk at the first of these bytes.

        Raises OSError, and CorruptChunks if the file is missing or has a wrong size.
        """
        start = chunk.index * chunk.placed_size
        path = (
            assembled_path(self.folder, chunk.placed_size)
            if chunk.placed_size
            else chunk_path(self.folder, chunk.index)
        )
        try:
            descriptor = os.open(path, READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptChunks([chunk.index]) from error
        with release_on_error(descriptor):
            size = os.fstat(descriptor).st_size
            if (
                size < start + chunk.size
                if chunk.placed_size
                else size != chunk.size + TRAILER_SIZE
            ):
                raise CorruptChunks([chunk.index])
            if start:
                os.lseek(descriptor, start, os.SEEK_SET)
        return descriptor


def _is_trusted(chunk: StoredChunk) -> bool:
    """Return whether the chunk was hashed recently and its file is unmodified since
    then."""
    age_s = abs(time.time() - chunk.stored_at)
    return chunk.is_unmodified and age_s < TRUSTED_S


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
    """Copy the bytes of a chunk to the present position of ``target``.

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
