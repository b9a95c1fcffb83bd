"""The mark that a file was published for a job of a queue: an extended attribute, where
the file system has them.

It travels with the file through its rename, and costs neither a file beside it nor a
place in the folder. It stays, also when the job is forgotten and its id is given to
another one: so it names the claim, the URL and the checksum, and counts only where all
of them are the same. See xattr(7).
"""

from __future__ import annotations

import os
from pathlib import Path

from dlpool.disk import HAS_NO_XATTR, translated
from dlpool.transfer.job import Job
from dlpool.transfer.target.state import url_digest

MARK_NAME = "user.dlpool.job"


def published_mark(job: Job) -> str | None:
    """Return the text of the mark for a job, None for a download that is none: id,
    claim, URL digest, checksum."""
    if job.id is None or not job.claim:
        return None
    return f"{job.id} {job.claim} {url_digest(job.url)} {job.checksum or '-'}"


def set_mark(descriptor: int, job: Job) -> bool:
    """Mark the open file; False where that is not possible."""
    mark = published_mark(job)
    if mark is None:
        return False
    try:
        os.setxattr(descriptor, MARK_NAME, mark.encode())
    except OSError:
        return False
    return True


def has_mark(target: Path, job: Job) -> bool:
    """Return whether the file was published for that job. Raises LocalFault."""
    mark = published_mark(job)
    return mark is not None and read_mark(target) == mark


def read_mark(target: Path) -> str:
    """Return the mark of a file, "" if it has none. Raises LocalFault."""
    with translated(f"look at {target}"):
        try:
            return os.getxattr(target, MARK_NAME).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in HAS_NO_XATTR:
                return ""
            raise
