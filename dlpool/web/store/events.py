"""What happens to uploads, for other programs: told under the task's lock, so that the order is that of the changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

STARTED, COMPLETED, FAILED = "upload_started", "upload_completed", "upload_failed"
PAUSED, RESUMED = "upload_paused", "upload_resumed"
DELETED, EXPIRED = "upload_deleted", "upload_expired"


@dataclass(frozen=True)
class UploadEvent:
    """A change of one upload. ``size`` in bytes, -1 while it is unknown; ``note`` is what there is to say besides.

    ``note`` of a completed one: ``path`` below merged_dir, ``size``, ``md5``, ``seconds`` of the merge; of a failed one
    ``label`` and ``message``; of one that was removed ``status``, its last state.
    """

    name: str
    upload_id: str
    protocol: str
    owner: str | None
    filename: str
    size: int
    note: Mapping[str, Any] = field(default_factory=dict)


Announce = Callable[[UploadEvent], None]  # does not wait, and does not raise


def silent(_event: UploadEvent) -> None:
    """Tell nobody."""
