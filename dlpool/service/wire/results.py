"""Results of attempts: how an attempt of a job ended in its worker.

Workers import this module, so it must not import a Redis client.
"""

from __future__ import annotations

from enum import Enum

from dlpool.errors import (
    Cancelled,
    DlpoolError,
    InternalError,
    Locked,
    LostJob,
    NodeFault,
    NoRoom,
    RestartFile,
    RetryRange,
    TooLarge,
)


class AttemptResult(str, Enum):
    """How an attempt ended.

    The supervisor's disposition policy decides what then happens to the job.
    """

    SUCCEEDED = "succeeded"
    RETRY = "retry"
    """The server or the network failed; another attempt may succeed."""
    FAILED = "failed"
    """Another attempt would fail too."""
    NODE_FAULT = "node_fault"
    """No job can run on this node, for example because its disk is read-only."""
    NO_ROOM = "no_room"
    """The file did not fit on the disk; it may once other files have been removed."""
    LOCKED = "locked"
    """Another job writes to the same target."""
    RELEASED = "released"
    """The attempt was interrupted and checkpointed."""
    LOST = "lost"
    """Another supervisor holds the lease."""

    __str__ = str.__str__


# the first match counts
_RESULTS: tuple[tuple[type[DlpoolError], AttemptResult], ...] = (
    (LostJob, AttemptResult.LOST),
    (Cancelled, AttemptResult.RELEASED),
    (TooLarge, AttemptResult.FAILED),
    (NoRoom, AttemptResult.NO_ROOM),
    (NodeFault, AttemptResult.NODE_FAULT),
    (Locked, AttemptResult.LOCKED),
    (RetryRange, AttemptResult.RETRY),
    (RestartFile, AttemptResult.RETRY),
    (InternalError, AttemptResult.RETRY),
    (DlpoolError, AttemptResult.FAILED),
)


def attempt_result_of(error: DlpoolError) -> AttemptResult:
    """Return the result of an attempt that ended with ``error``."""
    return next(result for kind, result in _RESULTS if isinstance(error, kind))
