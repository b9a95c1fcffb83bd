"""The file that is sent: read in place, and watched for changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

from dlpool.disk import translated
from dlpool.errors import FileChanged, UsageError
from dlpool.transfer.http.answer import ByteRange
from dlpool.upload.plan import LocalFileIdentity

BLOCK = 256 * 1024  # bytes of one read


class LocalFile:
    """An open file; a context. Thread-safe: reads name their place, and nothing else
    changes. Raises LocalFault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated("read the file"):
            self._descriptor = os.open(
                path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )  # a FIFO must not block
            found = os.fstat(self._descriptor)
        self.identity = LocalFileIdentity(
            os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ino
        )
        if not stat.S_ISREG(found.st_mode) or (
            not found.st_size and self._has_more()
        ):  # as those of /proc
            self.close()
            raise UsageError(
                "this is not a file with a length, and only such can be uploaded"
            )

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, span: ByteRange, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of ``span``, each block in ``buffer``, where the next one replaces
        it. Raises FileChanged."""
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
        """Take the bytes of ``span`` into ``digest``; ``check`` is called between
        blocks, to raise what ends it."""
        for block in self.blocks(span, buffer):
            digest.update(block)
            check()

    def check_unchanged(self) -> None:
        """Raise FileChanged if the file was written to since it was opened."""
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
        """Close it; nobody may read any more."""
        os.close(self._descriptor)

    def _has_more(self) -> bool:
        """Whether there are bytes behind its end: some file systems do not tell the
        size that a file has."""
        with translated("read the file"):
            return bool(os.pread(self._descriptor, 1, self.identity.size))


def new_md5() -> Any:
    """A hash for telling transfer errors, which is allowed where MD5 is forbidden for
    security."""
    return md5(usedforsecurity=False)


def new_buffer() -> memoryview:
    """Room for one block."""
    return memoryview(bytearray(BLOCK))
