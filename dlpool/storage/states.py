"""The states of an upload task, and which may follow which. Pure."""

from __future__ import annotations

from dlpool.storage.errors import UploadError

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
_WHY = {
    PAUSED: "it is paused: resume it first",
    MERGING: "it is being merged: wait for the merge",
    COMPLETED: "it is completed: use another file_id for another file",
    PENDING: "it has no chunks yet: send some",
    FAILED: "its merge failed: send its chunks or merge it again",
    UPLOADING: "it is being uploaded already",
}


def effective_state(recorded: str, *, has_chunks: bool, is_merging: bool) -> str:
    """The state that a record means, given what the disk says: a killed process records
    nothing.

    ``is_merging``: a living process merges it.
    """
    if recorded == MERGING and not is_merging:
        return UPLOADING if has_chunks else PENDING
    return UPLOADING if recorded == PENDING and has_chunks else recorded


def check_transition(state: str, wanted: str) -> str:
    """``wanted``, if it may follow ``state``. Raises Refusal (409)."""
    if wanted not in NEXT[state]:
        raise wrong_state(state)
    return wanted


def state_after_chunk(state: str) -> str:
    """The state after a chunk. Raises Refusal (409) where a task takes none."""
    if state == PAUSED:  # only resuming ends that
        raise wrong_state(state)
    return state if state == UPLOADING else check_transition(state, UPLOADING)


def wrong_state(state: str) -> UploadError:
    """That a task's state does not allow what is asked for."""
    return UploadError(
        409,
        f"task_{state}",
        f"the task does not allow that: {_WHY[state]}",
        task_status=state,
    )


def completion_rate(
    state: str, chunks: int, total_chunks: int, size: int, file_size: int
) -> float:
    """Percent of the chunks, or else of the bytes, that are there: 0 to 100 whatever is
    known."""
    if state == COMPLETED:
        return 100.0
    have, of = (chunks, total_chunks) if total_chunks else (size, file_size)
    return round(min(100.0, 100.0 * have / of), 2) if of > 0 else 0.0
