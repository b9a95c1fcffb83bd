"""Classification of disk errors: whether one concerns the job alone, or all jobs of this node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dlpool.disk import known_space
from dlpool.errors import LocalFault, NoSpace, NotPermitted
from dlpool.service.endings import ending_of
from dlpool.transfer.partfile import SPACE_RESERVE

FILLED = "filled"  # a stream of unknown size has filled the disk; it cannot be resumed
_USABLE = os.W_OK | os.X_OK


def ending_on_disk(error: LocalFault, target: Path, size: int | None, done: int, roots: Sequence[str | Path]) -> str:
    """Return how a job ends (see EndedFrame) whose ``target`` met ``error``, or FILLED.

    ``size`` and ``done`` in bytes, of the file and of what was written; ``roots``: the folders of all downloads.
    """
    if type(error) is NoSpace:
        return _full(target, size, done)
    is_gone = type(error) is LocalFault and (
        isinstance(error.__cause__, FileNotFoundError) or not os.path.lexists(target.parent)
    )
    if not is_gone and not isinstance(error, NotPermitted):
        return ending_of(error)
    if not all(os.access(root, _USABLE) for root in roots if _holds(root, target)):
        return "node_fault"  # the folder of all downloads was removed, or is not writable
    if is_gone:
        return "retry"  # only the folder of this job was removed: the next attempt creates it
    # If the permissions are right, the file server refused the request, which may be temporary.
    return "node_fault" if os.access(target.parent, _USABLE) else ending_of(error)


def _full(target: Path, size: int | None, done: int) -> str:
    if size is None:
        return FILLED if done >= SPACE_RESERVE else "node_fault"
    space = known_space(target.parent)
    return "failed" if space is not None and size > space.usable else "node_fault"


def _holds(root: str | Path, target: Path) -> bool:
    return Path(os.path.realpath(root)) in Path(os.path.realpath(target)).parents
