"""What a task's status may become. Pure."""

from __future__ import annotations

PENDING, DOWNLOADING, PAUSED = "pending", "downloading", "paused"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
FINAL = frozenset({COMPLETED, FAILED, CANCELLED})

MOVES: dict[str, frozenset[str]] = {
    PENDING: frozenset({DOWNLOADING, PAUSED, FAILED, CANCELLED}),
    DOWNLOADING: frozenset({PAUSED, COMPLETED, FAILED, CANCELLED}),
    PAUSED: frozenset({PENDING, CANCELLED}),
    COMPLETED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}
