"""The file that is scanned: open, complete, and without its final name."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dlpool import disk
from dlpool.dataclass import dataclass

_BUFFER = 1024 * 1024

# the extended attribute that names the owner of an uploaded file
OWNER_ATTRIBUTE = "user.dlpool.owner"


@dataclass(frozen=True)
class ScannedFile:
    """A complete file before it is published: with a temporary name, without writers.

    ``descriptor`` is open for reading. ``path``: the temporary name; it may be relative
    to ``dir_fd``, the descriptor of an open folder.
    """

    descriptor: int
    path: Path
    size: int
    dir_fd: int | None = None

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield the content in blocks of at most ``size`` bytes.

        Raises OSError, for example if the file was truncated.
        """
        position = 0
        while position < self.size:
            data = os.pread(self.descriptor, min(size, self.size - position), position)
            if not data:
                raise OSError(errno.EIO, "the file became shorter while it was checked")
            yield data
            position += len(data)

    def sha256(self) -> str:
        """Return the SHA-256 of the content in hexadecimal digits. Raises OSError."""
        digest = hashlib.sha256()
        for block in self.blocks(_BUFFER):
            digest.update(block)
        return digest.hexdigest()

    @property
    def identity(self) -> disk.Identity:
        """Return the device and inode number. Raises OSError."""
        return disk.identity_of(os.fstat(self.descriptor))

    def is_named(self) -> bool:
        """Return whether the temporary name still refers to this file.

        Raises OSError.
        """
        return disk.is_name_of(self.path, self.identity, self.dir_fd)

    def absolute_path(self) -> str:
        """Return the absolute path of the temporary name, for another program."""
        if self.dir_fd is None:
            return str(self.path.absolute())
        return str(Path(os.readlink(f"/proc/self/fd/{self.dir_fd}"), self.path))

    def remove(self) -> None:
        """Remove the temporary name if it still refers to this file.

        Errors are ignored.
        """
        try:
            if self.is_named():
                disk.remove_quietly(self.path, dir_fd=self.dir_fd)
        except OSError:
            return
