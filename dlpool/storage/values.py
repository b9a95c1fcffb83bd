"""Values that storage returns: results, tasks, counters, volumes and events.

All are immutable; ``web/`` converts them to JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dlpool.config import UploadSettings
from dlpool.storage.digests import MD5, SHA256, Digest

MAX_PAGE = 1000  # tasks on a page of a list
HEALTHY, WARNING, UNHEALTHY = "healthy", "warning", "unhealthy"
STARTED_EVENT, COMPLETED_EVENT, FAILED_EVENT = (
    "upload_started",
    "upload_completed",
    "upload_failed",
)
PAUSED_EVENT, RESUMED_EVENT = "upload_paused", "upload_resumed"
DELETED_EVENT, EXPIRED_EVENT = "upload_deleted", "upload_expired"


@dataclass(frozen=True)
class ChunkResult:
    """A chunk that has been stored.

    ``size`` in bytes; ``md5_checked``: the client sent an md5 and it matched.
    """

    chunk_index: int
    md5_checked: bool
    relative_path: str
    size: int


@dataclass(frozen=True)
class MergeResult:
    """A file that has been published.

    ``size`` in bytes, ``merge_time`` in nanoseconds. One of the digests ``md5`` and
    ``composite_sha256`` may be empty.
    """

    path: str
    md5: str
    relative_path: str
    size: int
    merge_time: int
    composite_sha256: str = ""


@dataclass(frozen=True)
class StoredChunk:
    """A complete chunk. ``size`` in bytes, ``stored_at`` in seconds since the epoch.

    It has one of the digests ``md5`` and ``sha256``, in hexadecimal; the other is
    empty. ``is_unmodified``: its file has not been written, copied or restored since
    the bytes were received, and the machine has not been restarted. ``placed_size``: if
    its bytes are in the assembled file, the chunk size of that file, else 0.
    """

    index: int
    size: int
    md5: str
    stored_at: float
    sha256: str = ""
    is_unmodified: bool = field(default=False, compare=False)
    placed_size: int = field(default=0, compare=False)

    @property
    def digest(self) -> Digest:
        """The digest that was computed while the chunk was received."""
        algorithm = SHA256 if self.sha256 else MD5
        return Digest(algorithm, bytes.fromhex(self.sha256 or self.md5))


@dataclass(frozen=True)
class TaskTotals:
    """The totals that clients state for a file.

    ``total_chunks``: 0 if unknown. ``file_size``: in bytes, -1 if unknown.
    ``relative_path``: empty if unknown.
    """

    total_chunks: int = 0
    file_size: int = -1
    relative_path: str = ""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task in a list. Times are in seconds since the epoch, sizes in bytes.

    - ``file_size``: -1 while it is unknown
    - ``chunks``, ``stored``: number and bytes of the complete chunks; for a completed
      task, of the merged chunks
    - ``used_at``: the time of the last change of the record or the folder
    - ``files``: number of entries of the task's folder
    - ``needs_recovery``: the next sweep must recover the task, regardless of its age: a
      merge may have been interrupted, or a tus upload is complete but not merged, or
      has bytes outside of a chunk
    - ``is_final``: a tus upload that is concatenated from parts
    """

    file_id: str
    owner: str | None
    status: str
    created_at: float
    updated_at: float
    filename: str
    relative_path: str
    total_chunks: int
    file_size: int
    chunks: int
    stored: int
    completion_rate: float
    failed_merges: int
    used_at: float = 0.0
    files: int = 0
    needs_recovery: bool = False
    is_final: bool = False

    def is_visible_to(self, owner: str | None) -> bool:
        """Return whether ``owner`` may see the task; None may see all tasks."""
        return owner is None or self.owner == owner


@dataclass(frozen=True)
class TaskDetail:
    """One task with its chunks by index.

    ``file_md5``, ``file_composite_sha256``: empty if unknown. ``failure``: why the last
    merge failed, else empty. ``retries``: for each chunk index, how often the chunk was
    sent again or had a wrong digest. ``declared_md5s``: for each chunk index, an md5
    that the client sent and the server did not compare.
    """

    summary: TaskSummary
    chunks: Mapping[int, StoredChunk]
    file_md5: str = ""
    file_composite_sha256: str = ""
    failure: str = ""
    retries: Mapping[str, int] = field(default_factory=dict)
    declared_md5s: Mapping[str, str] = field(default_factory=dict)


class TaskPage(NamedTuple):
    """A page of a list of tasks, sorted by id.

    ``total``: the number of tasks on all pages. ``next_cursor``: the cursor of the next
    page, empty on the last page.
    """

    tasks: Sequence[TaskSummary]
    total: int
    next_cursor: str


class TaskCounts(NamedTuple):
    """What a set of tasks uses.

    - ``bytes``: sizes of the chunks; for completed tasks, of the merged files
    - ``files``: number of the task folders and of the entries in them
    - ``chunks``, ``file_size``: the sums of these fields of ``TaskSummary``
    - ``declared_bytes``: the sum of the announced sizes, or of the actual sizes of
      completed tasks
    - ``unknown_sizes``: the number of uncompleted tasks that announced no size
    - ``expected_chunks``: the sum over uncompleted tasks of the announced number of
      chunks; without one, of the number of stored chunks, rounded up

    While a final tus upload is concatenated, the last three fields count its parts, not
    the final upload.
    """

    tasks: int = 0
    bytes: int = 0
    files: int = 0
    chunks: int = 0
    file_size: int = 0
    declared_bytes: int = 0
    unknown_sizes: int = 0
    expected_chunks: int = 0

    @classmethod
    def sum_of(cls, counts: Iterable[TaskCounts]) -> TaskCounts:
        """Return the sum of the counts."""
        return cls(*map(sum, zip(cls(), *counts, strict=True)))


@dataclass(frozen=True)
class TusUploadState:
    """The progress of a tus upload.

    ``length`` in bytes, -1 if it is unknown; ``metadata`` as the client sent it.
    ``expires_at``: in seconds since the epoch, None for a completed upload.
    ``is_ready_to_merge``: all bytes are stored and ``TusUploads.finish`` has not
    published the file yet.
    """

    offset: int
    length: int
    metadata: str
    concat: str
    expires_at: float | None
    is_ready_to_merge: bool


class SweepResult(NamedTuple):
    """What a sweep did.

    ``removed``: the number of removed files and tasks. ``failures``: a message for each
    task that could not be swept.
    """

    removed: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class VolumeCapacity:
    """The space of a file system.

    ``total`` and ``free`` in bytes; ``used_share`` from 0 to 1, as df(1) computes it.
    ``free_files``: the number of files that can be created, None if it is not limited.
    """

    folder: str
    total: int
    free: int
    used_share: float
    free_files: int | None = None


@dataclass(frozen=True)
class Volume:
    """A folder of the backend and its file system, at the time of the call.

    ``name``: the name of the setting. ``device``: equal for folders on one file system,
    None if unknown. ``capacity``: None if the file system does not report it.
    ``capacity_error``: why the capacity could not be read, else empty. ``status``:
    HEALTHY, WARNING (the folder is missing) or UNHEALTHY (not usable). ``message``: the
    reason for a status other than HEALTHY, else empty.
    """

    name: str
    folder: str
    device: int | None
    capacity: VolumeCapacity | None
    capacity_error: str
    status: str
    message: str


def health_of(capacity: VolumeCapacity | None, settings: UploadSettings) -> str:
    """Return the health of a volume by the thresholds of the settings.

    An unknown capacity is healthy.
    """
    if capacity is None:
        return HEALTHY
    if capacity.used_share >= settings.disk_refuse:
        return UNHEALTHY
    return WARNING if capacity.used_share >= settings.disk_warn else HEALTHY


@dataclass(frozen=True)
class UploadEvent:
    """A change of one upload. ``size`` in bytes, -1 while it is unknown.

    ``details`` depends on the change:

    - completed: ``path`` below merged_dir, ``size``, ``md5`` or ``composite_sha256``,
      and ``seconds`` of the merge
    - failed: ``label`` and ``message`` of the error
    - deleted, expired: ``status``, the last state
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
