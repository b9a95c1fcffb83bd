"""Converts the values of storage to the JSON of the upload API. Pure.

The JSON has no null values, and its lists of chunk indexes are sorted.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from dlpool.storage.values import (
    ChunkResult,
    MergeResult,
    StoredChunk,
    TaskDetail,
    TaskPage,
    TaskSummary,
)

_DIGESTS = ("md5", "composite_sha256")  # fields of MergeResult
NOT_FOUND: dict[str, Any] = {
    "uploaded_chunks": [],
    "total_chunks": 0,
    "file_size": 0,
    "status": "not_found",
    "created_at": "",
    "updated_at": "",
    "completion_rate": 0.0,
}


def chunk_result_json(result: ChunkResult) -> dict[str, Any]:
    """Return the answer to ``POST /upload_chunk``."""
    return {"status": "ok", **asdict(result)}


def merge_result_json(result: MergeResult) -> dict[str, Any]:
    """Return the answer to ``POST /merge_chunks``."""
    body = {
        name: value for name, value in asdict(result).items() if name not in _DIGESTS
    }
    digests = {name: value for name in _DIGESTS if (value := getattr(result, name))}
    return {"status": "ok", "filePath": body.pop("path"), **digests, **body}


def status_json(task: TaskDetail | None) -> dict[str, Any]:
    """Return the answer to ``GET /upload_status``; None: the task does not exist."""
    if task is None:
        return {**NOT_FOUND, "uploaded_chunks": []}
    summary = task.summary
    return {
        "uploaded_chunks": sorted(task.chunks),
        "total_chunks": summary.total_chunks,
        "file_size": max(summary.file_size, 0),
        "status": summary.status,
        "created_at": rfc3339(summary.created_at),
        "updated_at": rfc3339(summary.updated_at),
        "completion_rate": summary.completion_rate,
    }


def summary_json(summary: TaskSummary) -> dict[str, Any]:
    """Return an entry of ``GET /tasks``. ``retry_count``: the number of failed
    merges."""
    return {
        "task_id": summary.file_id,
        "task_type": "file",
        "filename": summary.filename,
        "relative_path": summary.relative_path,
        "total_chunks": summary.total_chunks,
        "uploaded_chunks": summary.chunks,
        "file_size": max(summary.file_size, 0),
        "status": summary.status,
        "created_at": rfc3339(summary.created_at),
        "updated_at": rfc3339(summary.updated_at),
        "completion_rate": summary.completion_rate,
        "retry_count": summary.failed_merges,
    }


def page_json(page: TaskPage) -> dict[str, Any]:
    """Return the answer to ``GET /tasks``; the last page has no ``next``."""
    more = {"next": page.next_cursor} if page.next_cursor else {}
    tasks = [summary_json(summary) for summary in page.tasks]
    return {"tasks": tasks, "total": page.total, **more}


def detail_json(task: TaskDetail) -> dict[str, Any]:
    """Return the answer to ``GET /tasks/ID``."""
    return {
        **summary_json(task.summary),
        "uploaded_chunks": sorted(task.chunks),
        "file_md5": task.file_md5,
        **_if_known("file_composite_sha256", task.file_composite_sha256),
        "failure": task.failure,
        "chunks": [_chunk_json(chunk, task) for chunk in task.chunks.values()],
    }


def _chunk_json(chunk: StoredChunk, task: TaskDetail) -> dict[str, Any]:
    """Return a chunk. ``retry_count``: how often the chunk was repeated or had a wrong
    digest."""
    key = str(chunk.index)
    return {
        "index": chunk.index,
        "size": chunk.size,
        "md5": task.declared_md5s.get(key, chunk.md5),
        **_if_known("sha256", chunk.sha256),
        "status": "completed",
        "uploaded_at": rfc3339(chunk.stored_at),
        "retry_count": task.retries.get(key, 0),
    }


def _if_known(name: str, digest: str) -> dict[str, str]:
    return {name: digest} if digest else {}


def rfc3339(seconds: float) -> str:
    """Format a time as in RFC 3339, in UTC and with milliseconds.

    Return an empty text for a time outside of the years 1 to 9999.
    """
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OSError, OverflowError, ValueError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
