"""Tasks as clients see them: no value is null, lists are sorted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from dlpool.storage.disk.chunk_file import StoredChunk
from dlpool.storage.disk.task_record import TaskIdentity, TaskRecord
from dlpool.storage.disk.task_summary import TaskSummary
from dlpool.storage.states import completion_rate

Chunks = Mapping[int, StoredChunk]
NOT_FOUND: dict[str, Any] = {
    "uploaded_chunks": [],
    "total_chunks": 0,
    "file_size": 0,
    "status": "not_found",
    "created_at": "",
    "updated_at": "",
    "completion_rate": 0.0,
}


def status_view(
    identity: TaskIdentity, record: TaskRecord, chunks: Chunks
) -> dict[str, Any]:
    """What ``/upload_status`` says."""
    size = sum(chunk.size for chunk in chunks.values())
    wanted = sum(index < record.total_chunks for index in chunks)
    return {
        "uploaded_chunks": sorted(chunks),
        "total_chunks": record.total_chunks,
        "file_size": max(record.file_size, 0),
        "status": record.status,
        "created_at": rfc3339(identity.created_at),
        "updated_at": rfc3339(record.updated_at),
        "completion_rate": completion_rate(
            record.status, wanted, record.total_chunks, size, record.file_size
        ),
    }


def summary_view(summary: TaskSummary) -> dict[str, Any]:
    """An entry of ``/tasks``. ``retry_count``: merges that failed, so far."""
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


def detail_view(
    identity: TaskIdentity, record: TaskRecord, chunks: Chunks
) -> dict[str, Any]:
    """What ``/tasks/ID`` says."""
    return {
        **summary_view(TaskSummary.of(identity, record, chunks)),
        "uploaded_chunks": sorted(chunks),
        "file_md5": record.result.md5 if record.result else "",
        "failure": record.failure,
        "chunks": [_chunk_view(chunk, record) for chunk in chunks.values()],
    }


def _chunk_view(chunk: StoredChunk, record: TaskRecord) -> dict[str, Any]:
    """``retry_count``: how often it came again after the first time, or came with a
    wrong md5."""
    return {
        "index": chunk.index,
        "size": chunk.size,
        "md5": record.sent.get(str(chunk.index), chunk.md5),
        "status": "completed",
        "uploaded_at": rfc3339(chunk.stored_at),
        "retry_count": record.retries.get(str(chunk.index), 0),
    }


def rfc3339(seconds: float) -> str:
    """A time as RFC 3339 has it, UTC, to the millisecond; empty for one that is not
    within the years 1 to 9999."""
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (OSError, OverflowError, ValueError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
