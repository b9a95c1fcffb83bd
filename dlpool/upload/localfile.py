"""The local file of an upload: read at given positions, and checked for changes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dlpool.disk_errors import translated
from dlpool.errors import FileChanged, UsageError
from dlpool.transfer.http.answer import ByteRange
from dlpool.upload.plan import LocalFileIdentity

MD5, SHA256 = "md5", "sha256"  # digests of chunks
BLOCK = 256 * 1024  # bytes of one read


class LocalFile:
    """An open file, as a context manager.

    Thread-safe: each read is at its own position (preadv). Methods that use the file
    raise LocalFault. The constructor raises UsageError if ``path`` is not a regular
    file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated("read the file"):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not block
            self._descriptor = os.open(path, flags)
            found = os.fstat(self._descriptor)
        self.identity = LocalFileIdentity(
            os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ino
        )
        # Files in /proc have the size 0.
        if not stat.S_ISREG(found.st_mode) or (not found.st_size and self._has_more()):
            self.close()
            raise UsageError(
                "this is not a regular file with a size, and only such can be uploaded"
            )

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, span: ByteRange, buffer: memoryview) -> Iterator[memoryview]:
        """Yield the bytes of ``span`` in blocks.

        Each block is a part of ``buffer``; the next block overwrites it. Raises
        FileChanged if the file ends before the end of ``span``.
        """
        position = span.start
        while position < span.end:
            with translated("read the file"):
                size = os.preadv(
                    self._descriptor, [buffer[: span.end - position]], position
                )
            if not size:
                raise FileChanged(
                    "the file became shorter while it was sent: run the command again"
                )
            yield buffer[:size]
            position += size

    def hash(
        self,
        digest: Any,
        span: ByteRange,
        buffer: memoryview,
        check: Callable[[], None],
    ) -> None:
        """Update ``digest`` with the bytes of ``span``.

        ``check`` is called after each block; an exception that it raises stops the
        hashing.
        """
        for block in self.blocks(span, buffer):
            digest.update(block)
            check()

    def check_unchanged(self) -> None:
        """Raise FileChanged if the file was modified since it was opened."""
        with translated("read the file"):
            found = os.fstat(self._descriptor)
        is_same = (found.st_size, found.st_mtime_ns) == (
            self.identity.size,
            self.identity.mtime_ns,
        )
        if not is_same or self._has_more():
            raise FileChanged(
                "the file changed while it was sent: run the command again to send "
                "what it is now"
            )

    def close(self) -> None:
        """Close the file. The caller ensures that no thread still reads the file."""
        os.close(self._descriptor)

    def _has_more(self) -> bool:
        """Return whether the file exceeds its reported size, as files of /proc do."""
        with translated("read the file"):
            return bool(os.pread(self._descriptor, 1, self.identity.size))


def new_hash(algorithm: str) -> Any:
    """Return a hash object for the detection of transfer errors.

    FIPS mode permits it, because it is not for security.
    """
    return hashlib.new(algorithm, usedforsecurity=False)


def new_buffer() -> memoryview:
    """Return a buffer for one block."""
    return memoryview(bytearray(BLOCK))
