"""Classification of disk errors: whether one concerns the job alone, or all jobs of
this node.

A fault is the job's own as long as a second, small write succeeds where all jobs write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dlpool.disk import space_or_none
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
from dlpool.service.node.disk_rules import can_write
from dlpool.service.wire.results import attempt_result_of
from dlpool.transfer.space_rules import SPACE_RESERVE
from dlpool.transfer.target.file.cleanup import remove_part_files

_USABLE = os.W_OK | os.X_OK


@dataclass(frozen=True)
class EndedRun:
    """A run that a fault of the disk has ended, after it has unlocked its files.

    ``size`` and ``done`` in bytes, of the file (None: unknown) and of what was written;
    ``roots``: the folders of all downloads; ``can_write`` tells whether a small write
    in a folder succeeds.
    """

    url: str
    target: Path
    size: int | None
    written: int
    roots: Sequence[str | Path]
    can_write: Callable[[str | Path], bool] = can_write

    @property
    def is_node_writable(self) -> bool:
        """Whether a small write succeeds in the folder of all downloads that has the
        target."""
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
        """Remove what it has written, if that is much: it may be what fills the disk.
        Return whether it was."""
        if self.written < SPACE_RESERVE:
            return False
        with suppress(DlpoolError):
            remove_part_files(self.target, self.url)
        return True


def classify_disk_error(error: LocalFault, run: EndedRun) -> str:
    """Return how a job ends (see EndedFrame) that met ``error``."""
    if isinstance(error, TooLarge | NoThread):
        return attempt_result_of(error)
    if isinstance(error, NoRoom):
        run.discard_large_part()
        return "no_room"
    if type(error) is NoSpace:
        return _full(run)
    return _failed(error, run)


def _failed(error: LocalFault, run: EndedRun) -> str:
    """Return how a job ends that met any other fault: it counts as the node's only if a
    small write fails, too."""
    is_gone = type(error) is LocalFault and (
        isinstance(error.__cause__, FileNotFoundError)
        or not os.path.lexists(run.target.parent)
    )
    if not is_gone and not isinstance(error, NodeFault | NotPermitted):
        return attempt_result_of(error)
    if not run.is_node_writable:
        return "node_fault"
    is_forbidden = isinstance(error, NotPermitted) and not os.access(
        run.target.parent, _USABLE
    )
    return attempt_result_of(error) if is_forbidden else "retry"


def _full(run: EndedRun) -> str:
    """Return how a job ends for which there was no space: first the job is judged, and
    then the disk without it."""
    space = space_or_none(run.target.parent)
    if run.size is not None and space is not None and run.size > space.usable:
        return "failed"
    if run.is_node_writable or (run.discard_large_part() and run.is_node_writable):
        return "no_room"
    return "node_fault"
