"""Records of a publish, by which a later run of the same job recognizes the file.

If the download has a state, the record is ``publishing`` in the state file: the inode
number and the size of the published file.

Without a state, only a queue's job has a record: an extended attribute of the file
(xattr(7)). The attribute follows the file through its rename and needs no second file.
It outlives the job, whose id may be reused. So it contains the id, the claim, the URL
and the checksum, and counts only if all of them match the job. If the file system has
no extended attributes, a state is written for the record.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dlpool import disk
from dlpool.disk_errors import HAS_NO_XATTR, translated
from dlpool.transfer.job import Job
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.file.targetpath import target_present
from dlpool.transfer.target.names import PART_SUFFIX
from dlpool.transfer.target.state import SavedState, StateUnusable, url_digest

MARK_NAME = "user.dlpool.job"


def published_mark(job: Job) -> str | None:
    """Return the value of the attribute for a job: id, claim, URL digest, checksum.

    None for a download without a queue.
    """
    if job.id is None or not job.claim:
        return None
    return f"{job.id} {job.claim} {url_digest(job.url)} {job.checksum or '-'}"


def set_mark(descriptor: int, job: Job) -> bool:
    """Set the job's attribute on an open file; return False if that is not possible."""
    mark = published_mark(job)
    if mark is None:
        return False
    try:
        os.setxattr(descriptor, MARK_NAME, mark.encode())
    except OSError:
        return False
    return True


def has_mark(target: Path, job: Job) -> bool:
    """Return whether the file was published for this job. Raises LocalFault."""
    mark = published_mark(job)
    return mark is not None and read_mark(target) == mark


def read_mark(target: Path) -> str:
    """Return the attribute of a file, ``""`` if it has none. Raises LocalFault."""
    with translated(f"access {target}"):
        try:
            return os.getxattr(target, MARK_NAME).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in HAS_NO_XATTR:
                return ""
            raise


def check_unpublished(
    job: Job, path: Path, *, sync: bool, part_of: Path | None = None
) -> None:
    """Raise TargetPresent if an earlier run of ``job`` has published ``path``.

    If the record is in a state, first does the last steps of a killed run: removes the
    part file's name and, for a download without a queue, the state. ``part_of``: the
    path after which the part file is named; None means ``path``. The two differ if
    another file took ``part_of`` before that run published, so that the run chose
    ``path``. Raises LocalFault.
    """
    if has_mark(path, job):
        raise target_present(path, is_published=True)
    part_of = part_of or path
    state_file = StateFile.for_target(part_of, sync=sync)
    if not state_file.exists:
        return
    with (
        suppress(StateUnusable),
        translated(f"access {path}"),
        suppress(FileNotFoundError),
    ):
        saved, status = state_file.load(), os.stat(path)
        if saved is None or not _was_published_by(job, saved, status):
            return
        part = part_of.with_name(part_of.name + PART_SUFFIX)
        if disk.is_name_of(part, disk.identity_of(status)):
            disk.remove(part)
        if sync:
            disk.sync_folder(path.parent)
        if job.id is None:
            state_file.remove_published()
        raise target_present(path, is_published=True)


def _was_published_by(job: Job, saved: SavedState, status: os.stat_result) -> bool:
    """Return whether ``saved`` records that ``job`` published the file.

    ``status``: the stat result of the published file.
    """
    record = saved.publishing
    if record is None or saved.url_sha256 != url_digest(job.url):
        return False
    is_of_claim = job.id is None or (
        bool(job.claim)
        and saved.checksum == (str(job.checksum) if job.checksum else None)
    )
    expected = (status.st_ino, status.st_size, job.id, job.claim)
    return (
        is_of_claim
        and (record.inode, record.size, record.job, record.claim) == expected
    )
