"""Errors of HTTP requests, and the table that maps error codes of storage to
statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlpool.storage.errors import ErrorCode, UploadError

STATUSES: Mapping[ErrorCode, int] = {
    "bad_cleanup": 400,
    "bad_concat": 400,
    "bad_cursor": 400,
    "bad_field": 400,
    "bad_file_id": 400,
    "bad_file_size": 400,
    "bad_filename": 400,
    "bad_index": 400,
    "bad_length": 400,
    "bad_md5": 400,
    "bad_sha256": 400,
    "bad_part": 400,
    "bad_path": 400,
    "bad_total_chunks": 400,
    "busy": 503,
    "chunk_too_large": 413,
    "chunks_missing": 400,
    "conflict": 409,
    "content_not_allowed": 415,
    "disk_full": 507,
    "expired": 410,
    "extension_not_allowed": 415,
    "file_exists": 409,
    "file_md5_mismatch": 400,
    "file_sha256_mismatch": 400,
    "file_too_large": 413,
    "final": 403,
    "infected": 422,
    "locked": 423,
    "md5_mismatch": 400,
    "sha256_mismatch": 400,
    "no_space": 507,
    "no_such_task": 404,
    "not_found": 404,
    "not_scanned": 413,
    "other_protocol": 409,
    "over_quota": 507,
    "part_gone": 409,
    "part_taken": 409,
    "permission": 507,
    "read_only": 507,
    "repeated_part": 400,
    "scanner_away": 503,
    "size_mismatch": 400,
    "storage": 507,
    "symbolic_link": 507,
    "task_completed": 409,
    "task_failed": 409,
    "task_merging": 409,
    "task_paused": 409,
    "task_pending": 409,
    "task_uploading": 409,
    "too_large": 413,
    "too_many_files": 503,
    "wrong_offset": 409,
}
"""The HTTP status of each ``ErrorCode``."""


class HttpError(Exception):
    """An error that is the response to a request.

    ``code`` is a stable label and ``text`` a sentence for people. ``headers`` are
    header fields of the response, ``details`` further fields of its JSON.
    """

    def __init__(
        self,
        status: int,
        code: str,
        text: str,
        *,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = dict(headers or {})
        self.details = details

    def as_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        return error_json(self)


def http_error(error: UploadError) -> HttpError:
    """Return the HTTP error for an error of storage."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.code == "wrong_offset":
        headers["Upload-Offset"] = str(error.details["offset"])
    status = STATUSES[error.code]
    return HttpError(status, error.code, error.text, headers=headers, **error.details)


def error_json(error: HttpError | UploadError) -> dict[str, Any]:
    """Return the JSON of an error: ``error``, ``code`` and its details."""
    return {"error": error.text, "code": error.code, **error.details}
