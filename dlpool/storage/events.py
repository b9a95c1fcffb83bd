"""Events of uploads for other programs, announced under the task's lock, so that they
are in the order of changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

STARTED, COMPLETED, FAILED = "upload_started", "upload_completed", "upload_failed"
PAUSED, RESUMED = "upload_paused", "upload_resumed"
DELETED, EXPIRED = "upload_deleted", "upload_expired"


@dataclass(frozen=True)
class UploadEvent:
    """A change of one upload. ``size`` in bytes, -1 while it is unknown; ``note`` has
    details.

    ``note`` of a completed one: ``path`` below merged_dir, ``size``, ``md5``,
    ``seconds`` of the merge; of a failed one ``label`` and ``message``; of a deleted
    one ``status``, its last state.
    """

    name: str
    upload_id: str
    protocol: str
    owner: str | None
    filename: str
    size: int
    details: Mapping[str, Any] = field(default_factory=dict)


UploadEventListener = Callable[[UploadEvent], None]  # neither blocks nor raises


def ignore_event(_event: UploadEvent) -> None:
    """Ignore the event."""
