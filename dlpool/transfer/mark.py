"""The mark that a file was published for a job of a queue: an extended attribute, where the file system has them.

It travels with the file through its rename, and costs neither a file beside it nor a place in the folder. It stays: no
other job ever has that id. See xattr(7).
"""

from __future__ import annotations

import os
from pathlib import Path

from dlpool.disk import HAS_NO_XATTR, translated

NAME = "user.dlpool.job"


def set_mark(descriptor: int, job_id: str) -> bool:
    """Mark the open file; False where that is not possible."""
    try:
        os.setxattr(descriptor, NAME, job_id.encode())
    except OSError:
        return False
    return True


def has_mark(target: Path, job_id: str) -> bool:
    """Whether the file was published for that job. Raises LocalFault."""
    with translated(f"look at {target}"):
        try:
            return os.getxattr(target, NAME) == job_id.encode()
        except OSError as error:
            if error.errno in HAS_NO_XATTR:
                return False
            raise
