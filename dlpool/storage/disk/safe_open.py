"""What somebody may plant among the store's own files: no link leads out of it, and no
FIFO keeps anybody waiting."""

from __future__ import annotations

import errno
import os
from pathlib import Path

READ_FLAGS = (
    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
)  # how a file of ours is opened to be read


def refuse_symlink(path: Path) -> Path:
    """``path``. Raises OSError if a symbolic link is there."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return path
