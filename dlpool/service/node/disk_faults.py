"""The classification of disk errors of a job: does the error concern the job alone, or
all jobs of this node?

If the kind of the error does not tell, a small write in the folder of all downloads
decides: if the write succeeds, the error concerns the job alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dlpool.dataclass import dataclass
from dlpool.errors import (
    DlpoolError,
    LocalFault,
    NodeFault,
    NoRoom,
    NoSpace,
    NoThread,
    NotPermitted,
    TooLarge,
)
from dlpool.freespace import space_or_none
from dlpool.service.node.disk_rules import can_write
from dlpool.service.wire.results import AttemptResult, attempt_result_of
from dlpool.transfer.space_rules import SPACE_RESERVE
from dlpool.transfer.target.file.cleanup import remove_part_files

_USABLE = os.W_OK | os.X_OK


@dataclass(frozen=True)
class EndedRun:
    """A run of a job that a disk error has ended. The job no longer holds locks on its
    files.

    ``size``: the size of the file in bytes, None if unknown. ``written``: number of
    bytes of the file that are on disk. ``roots``: the folders of all downloads.
    ``can_write`` returns whether a small write in a folder succeeds.
    """

    url: str
    target: Path
    size: int | None
    written: int
    roots: Sequence[str | Path]
    can_write: Callable[[str | Path], bool] = can_write

    @property
    def is_node_writable(self) -> bool:
        """Return whether a small write succeeds in the folder of ``roots`` that
        contains the target; if there is none, in the target's own folder."""
        folder = os.path.realpath(self.target)
        root = next(
            (
                one
                for one in self.roots
                if Path(os.path.realpath(one)) in Path(folder).parents
            ),
            None,
        )
        return self.can_write(self.target.parent if root is None else root)

    def discard_large_part(self) -> bool:
        """Remove the part file if it is large, because it may fill the disk. Return
        whether it was large."""
        if self.written < SPACE_RESERVE:
            return False
        with suppress(DlpoolError):
            remove_part_files(self.target, self.url)
        return True


def classify_disk_error(error: LocalFault, run: EndedRun) -> AttemptResult:
    """Return the result of an attempt that failed with the disk error ``error``.

    If space is missing, this function may remove a large part file of the job.
    """
    if isinstance(error, TooLarge | NoThread):
        return attempt_result_of(error)
    if isinstance(error, NoRoom):
        run.discard_large_part()
        return AttemptResult.NO_ROOM
    if type(error) is NoSpace:
        return _classify_full_disk(run)
    return _classify_other(error, run)


def _classify_other(error: LocalFault, run: EndedRun) -> AttemptResult:
    """Return the attempt result for an error other than a lack of space or threads.

    The result is NODE_FAULT only if a small write fails as well.
    """
    is_gone = type(error) is LocalFault and (
        isinstance(error.__cause__, FileNotFoundError)
        or not os.path.lexists(run.target.parent)
    )
    if not is_gone and not isinstance(error, NodeFault | NotPermitted):
        return attempt_result_of(error)
    if not run.is_node_writable:
        return AttemptResult.NODE_FAULT
    is_forbidden = isinstance(error, NotPermitted) and not os.access(
        run.target.parent, _USABLE
    )
    return attempt_result_of(error) if is_forbidden else AttemptResult.RETRY


def _classify_full_disk(run: EndedRun) -> AttemptResult:
    """Return the attempt result of a job that met a full disk.

    The job fails if its file is larger than the disk. Otherwise this function tries a
    small write. If the write fails and the part file of the job is large, the function
    removes the part file and tries again.
    """
    space = space_or_none(run.target.parent)
    if run.size is not None and space is not None and run.size > space.usable:
        return AttemptResult.FAILED
    if run.is_node_writable or (run.discard_large_part() and run.is_node_writable):
        return AttemptResult.NO_ROOM
    return AttemptResult.NODE_FAULT
