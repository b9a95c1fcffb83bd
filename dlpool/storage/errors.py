"""The errors of upload storage.

Each has a code and no HTTP status: ``web/errors.py`` maps the codes to statuses.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

ErrorCode = Literal[
    "bad_cleanup",
    "bad_concat",
    "bad_cursor",
    "bad_field",
    "bad_file_id",
    "bad_file_size",
    "bad_filename",
    "bad_index",
    "bad_length",
    "bad_md5",
    "bad_part",
    "bad_path",
    "bad_sha256",
    "bad_total_chunks",
    "busy",
    "chunk_too_large",
    "chunks_missing",
    "conflict",
    "content_not_allowed",
    "disk_full",
    "expired",
    "extension_not_allowed",
    "file_exists",
    "file_md5_mismatch",
    "file_sha256_mismatch",
    "file_too_large",
    "final",
    "infected",
    "locked",
    "md5_mismatch",
    "no_space",
    "no_such_task",
    "not_found",
    "not_scanned",
    "other_protocol",
    "over_quota",
    "part_gone",
    "part_taken",
    "permission",
    "read_only",
    "repeated_part",
    "sha256_mismatch",
    "scanner_away",
    "size_mismatch",
    "storage",
    "symbolic_link",
    "task_completed",
    "task_failed",
    "task_merging",
    "task_paused",
    "task_pending",
    "task_uploading",
    "too_large",
    "too_many_files",
    "wrong_offset",
]

TRANSIENT: frozenset[ErrorCode] = frozenset(
    {
        "busy",
        "disk_full",
        "no_space",
        "over_quota",
        "permission",
        "read_only",
        "scanner_away",
        "storage",
        "symbolic_link",
        "too_many_files",
    }
)
"""Codes of faults of the server: the same request may succeed later."""

TOO_LARGE: frozenset[ErrorCode] = frozenset(
    {"chunk_too_large", "file_too_large", "too_large"}
)
"""Codes of a body that has more bytes than were announced or are allowed."""


class UploadError(Exception):
    """The error for a request that storage refuses.

    ``code`` is stable. ``text`` tells the user what happened and what to do.
    ``retry_after_s``: seconds until the client may repeat the request, None if not
    stated. ``details``: values for the client's program, by name.
    """

    def __init__(
        self,
        code: ErrorCode,
        text: str,
        *,
        retry_after_s: int | None = None,
        **details: Any,
    ) -> None:
        super().__init__(text)
        self.code: ErrorCode = code
        self.text = text
        self.retry_after_s = retry_after_s
        self.details = details

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in TRANSIENT


class AlreadyComplete(UploadError):
    """The error for an upload that has all its bytes. ``offset`` is its size."""

    def __init__(self, offset: int) -> None:
        error = offset_mismatch(offset)
        super().__init__(error.code, error.text, **error.details)
        self.offset = offset


class UnlockRequested(Exception):
    """Tells the holder of the append lock that another request needs the lock."""


def offset_mismatch(offset: int) -> UploadError:
    """Return the error for a body that does not start at the end of the upload.

    ``offset``: the end of the upload, in bytes.
    """
    text = f"the upload continues at {offset}: ask for its offset and send from there"
    return UploadError("wrong_offset", text, offset=offset)


def too_large(offset: int, remaining: int) -> UploadError:
    """Return the error for a body with too many bytes.

    At most ``remaining`` bytes may follow ``offset``.
    """
    text = (
        f"the upload may have {offset + remaining} bytes: no more than {remaining} can "
        f"follow the first {offset}"
    )
    return UploadError("too_large", text)


def upload_locked() -> UploadError:
    """Return the error for an upload that another request is changing."""
    return UploadError(
        "locked",
        "another request is changing the upload: try again later",
        retry_after_s=1,
    )


def no_such_task() -> UploadError:
    """Return the error for an id that has no task, or only a task of another owner."""
    return UploadError("no_such_task", "there is no such task: send its first chunk")


def task_removed() -> UploadError:
    """Return the error for a task that was removed during the request."""
    return UploadError(
        "no_such_task", "the task was removed meanwhile: send all its chunks again"
    )


def chunks_missing(stored: Collection[int], total_chunks: int) -> UploadError:
    """Return the error for a merge whose chunks are incomplete.

    ``stored``: the indexes of the chunks that the task has.
    """
    return UploadError(
        "chunks_missing",
        f"{total_chunks - len(stored)} of {total_chunks} chunks are missing: send them",
        uploaded=len(stored),
        total_required=total_chunks,
        uploaded_chunks=sorted(stored),
    )
