"""The states of an upload task and the transitions between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from dlpool.storage.errors import ErrorCode, UploadError

PENDING, UPLOADING, PAUSED = "pending", "uploading", "paused"
MERGING, COMPLETED, FAILED = "merging", "completed", "failed"
STATES = (COMPLETED, FAILED, MERGING, PAUSED, PENDING, UPLOADING)
NEXT: dict[str, frozenset[str]] = {
    PENDING: frozenset({UPLOADING}),
    UPLOADING: frozenset({PAUSED, MERGING}),
    PAUSED: frozenset({UPLOADING}),
    MERGING: frozenset({COMPLETED, FAILED}),
    FAILED: frozenset({UPLOADING}),
    COMPLETED: frozenset(),
}
_ERRORS: Mapping[str, tuple[ErrorCode, str]] = {
    PAUSED: ("task_paused", "it is paused: resume it first"),
    MERGING: ("task_merging", "it is being merged: wait for the merge"),
    COMPLETED: (
        "task_completed",
        "it is completed: use another file_id for another file",
    ),
    PENDING: ("task_pending", "it has no chunks yet: send some"),
    FAILED: ("task_failed", "its merge failed: send its chunks or merge it again"),
    UPLOADING: ("task_uploading", "it is being uploaded already"),
}


def effective_state(recorded: str, *, has_chunks: bool, is_merging: bool) -> str:
    """Return the state of a task from its recorded state and its chunks.

    The record may be out of date: a killed process records nothing. ``is_merging``: a
    running process merges the task.
    """
    if recorded == MERGING and not is_merging:
        return UPLOADING if has_chunks else PENDING
    return UPLOADING if recorded == PENDING and has_chunks else recorded


def check_transition(state: str, wanted: str) -> str:
    """Return ``wanted`` if it may follow ``state``. Raises UploadError."""
    if wanted not in NEXT[state]:
        raise wrong_state(state)
    return wanted


def state_after_chunk(state: str) -> str:
    """Return the state that a task in ``state`` has after it stores a chunk.

    Raises UploadError if a task in ``state`` accepts no chunks.
    """
    if state == PAUSED:  # only resuming leaves this state
        raise wrong_state(state)
    return state if state == UPLOADING else check_transition(state, UPLOADING)


def wrong_state(state: str) -> UploadError:
    """Return the error for a request that the state of the task forbids."""
    code, reason = _ERRORS[state]
    return UploadError(
        code, f"the state of the task forbids this request: {reason}", task_status=state
    )


def completion_rate(
    state: str, chunks: int, total_chunks: int, size: int, file_size: int
) -> float:
    """Return how much of a file is stored, in percent.

    The result is the share of the chunks that are stored. If ``total_chunks`` is 0
    (unknown), it is the share of the bytes.
    """
    if state == COMPLETED:
        return 100.0
    stored, total = (chunks, total_chunks) if total_chunks else (size, file_size)
    return round(min(100.0, 100.0 * stored / total), 2) if total > 0 else 0.0
