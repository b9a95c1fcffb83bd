"""How a job ends in its worker, by the error it ended with. Workers import it: it needs
no Redis client."""

from __future__ import annotations

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

_ENDINGS: tuple[tuple[type[DlpoolError], str], ...] = (
    (LostJob, "lost"),
    (Cancelled, "released"),
    (TooLarge, "failed"),
    (NoRoom, "no_room"),
    (NodeFault, "node_fault"),
    (Locked, "locked"),
    (RetryRange, "retry"),
    (RestartFile, "retry"),
    (InternalError, "retry"),
    (DlpoolError, "failed"),
)


def attempt_result_of(error: DlpoolError) -> str:
    """Return the ending of a job that ended with ``error`` in its worker: see
    EndedFrame."""
    return next(ending for kind, ending in _ENDINGS if isinstance(error, kind))
