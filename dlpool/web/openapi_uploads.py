"""Describes the upload API and downloads of files in the OpenAPI document. Pure."""

from __future__ import annotations

from typing import Any

from dlpool.filenames import HIDDEN
from dlpool.storage.names import MAX_ID_BYTES
from dlpool.storage.states import STATES
from dlpool.storage.upload_requests import MAX_CHUNKS
from dlpool.storage.values import MAX_PAGE
from dlpool.web.openapi_elements import (
    JSON,
    content_object,
    header_object,
    ok_response,
    operation_object,
    parameter_object,
)
from dlpool.web.schemas import (
    BOOLEAN,
    COUNT,
    DATE_TIME,
    TEXT,
    Schema,
    array_of,
    object_schema,
)
from dlpool.web.uploads import MAX_BATCH

# Without surrogates and characters beyond U+FFFF, so that the pattern is valid in all
# dialects of regular expressions.
_NOT_IN_NAMES = (
    ascii(HIDDEN)[1:-1]
    .replace(r"\ud800-\udfff", "")
    .replace(r"\U000e0000-\U000e007f", "")
    + r"/\\"
)
_NAME = f"^[^{_NOT_IN_NAMES}]*[^{_NOT_IN_NAMES}. ]$"
_FILE_NAME: Schema = {"type": "string", "pattern": _NAME}
_MD5: Schema = {"type": "string", "pattern": "^[0-9a-fA-F]{32}$"}
_SHA256: Schema = {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}
_RATE: Schema = {"type": "number", "minimum": 0, "maximum": 100}
_FILE_ID: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^[^\x00-\x1f\x7f]+$",
}
_INDEX: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_CHUNKS - 1}
_TOTAL: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_CHUNKS}
_CHUNK_FIELDS: dict[str, Schema] = {
    "file_id": _FILE_ID,
    "chunk_index": _INDEX,
    "md5": _MD5,
    "sha256": _SHA256,
    "relative_path": TEXT,
    "total_chunks": _TOTAL,
    "file_size": COUNT,
    "filename": _FILE_NAME,
}
_BYTES: Schema = {"type": "string", "format": "binary"}
_CHUNK = object_schema(
    {name: _CHUNK_FIELDS[name] for name in ("file_id", "chunk_index")}
    | {"chunk": _BYTES},
    {
        name: schema
        for name, schema in _CHUNK_FIELDS.items()
        if name not in ("file_id", "chunk_index")
    },
    closed=False,
)
_SHARED: Schema = {
    "type": "boolean",
    "description": "whether every client with a token may read the file",
}
_MERGE = object_schema(
    {"file_id": _FILE_ID, "filename": _FILE_NAME, "total_chunks": _TOTAL},
    {
        "relative_path": TEXT,
        "expected_md5": _MD5,
        "expected_composite_sha256": _SHA256,
        "shared": _SHARED,
    },
    closed=False,
)
_STATE: Schema = {"type": "string", "enum": sorted([*STATES, "not_found"])}
_STATUS_FIELDS: dict[str, Schema] = {
    "total_chunks": COUNT,
    "file_size": COUNT,
    "status": _STATE,
    "created_at": TEXT,
    "updated_at": TEXT,
    "completion_rate": _RATE,
}
_TASK_FIELDS: dict[str, Schema] = {
    **_STATUS_FIELDS,
    "task_id": TEXT,
    "task_type": TEXT,
    "filename": TEXT,
    "relative_path": TEXT,
    "retry_count": COUNT,
}
_PAGE: dict[str, Schema] = {
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_PAGE,
        "default": MAX_PAGE,
    },
    "cursor": TEXT,
    "status": {
        "type": "string",
        "description": f"states, separated by commas: {', '.join(STATES)}",
    },
}
_CHUNK_VIEW = object_schema(
    {
        "index": COUNT,
        "size": COUNT,
        "md5": TEXT,
        "status": TEXT,
        "uploaded_at": DATE_TIME,
        "retry_count": COUNT,
    },
    {"sha256": _SHA256},
)
_STATUS = {"status": TEXT}
_DONE = object_schema({**_STATUS, "message": TEXT, "task_id": TEXT})


def upload_paths(prefix: str) -> dict[str, Any]:
    """Return the path items (OpenAPI 3.1) of the upload API below ``prefix``."""
    return {
        f"{prefix}/upload_chunk": {"post": _chunk()},
        f"{prefix}/merge_chunks": {"post": _merge()},
        f"{prefix}/upload_status": {
            "get": operation_object(
                "uploadStatus",
                "List the stored chunks of a file",
                ok_response(
                    object_schema(
                        {"uploaded_chunks": array_of(COUNT), **_STATUS_FIELDS}
                    )
                ),
                parameters=[parameter_object("file_id", "query", _FILE_ID)],
                error_statuses=(400,),
            )
        },
        **_task_paths(f"{prefix}/tasks"),
        f"{prefix}/files/{{path}}": {
            "get": _file("fetchFile", "Download a merged file, or a range of it"),
            "head": _file("describeFile", "Return the headers of a GET"),
        },
    }


def _task_paths(prefix: str) -> dict[str, Any]:
    own = [parameter_object("file_id", "path", _FILE_ID)]
    steps = {
        f"{prefix}/{{file_id}}/{verb}": {
            "post": operation_object(
                f"{verb}Upload",
                f"{verb.title()} an upload",
                ok_response(_DONE),
                parameters=own,
                error_statuses=(400, 404, 409),
            )
        }
        for verb in ("pause", "resume")
    }
    return {
        prefix: {"get": _list()},
        f"{prefix}/batch": {"post": _batch()},
        f"{prefix}/cleanup": {"post": _cleanup()},
        f"{prefix}/{{file_id}}": {
            "get": _show(own),
            "delete": operation_object(
                "deleteUpload",
                "Delete an upload and its chunks, but not the merged file",
                ok_response(_DONE),
                parameters=own,
                error_statuses=(400, 404, 409),
            ),
        },
        **steps,
    }


def _list() -> dict[str, Any]:
    tasks = array_of(object_schema({**_TASK_FIELDS, "uploaded_chunks": COUNT}))
    return operation_object(
        "listUploads",
        "List the client's uploads by id; next is the cursor of the next page, absent "
        "on the last",
        ok_response(object_schema({"tasks": tasks, "total": COUNT}, {"next": TEXT})),
        parameters=[
            parameter_object(name, "query", schema, required=False)
            for name, schema in _PAGE.items()
        ],
        error_statuses=(400, 503, 507),
    )


def _batch() -> dict[str, Any]:
    fields: dict[str, Any] = {
        "action": {"type": "string", "enum": ["pause", "resume", "delete"]},
        "ids": {"type": "array", "items": TEXT, "maxItems": MAX_BATCH},
    }
    return operation_object(
        "batchUploads",
        "Pause, resume or delete uploads",
        ok_response(
            object_schema(
                {
                    **_STATUS,
                    "results": array_of(
                        object_schema({"id": TEXT, "status": TEXT}, closed=False)
                    ),
                }
            )
        ),
        error_statuses=(400, 413),
        requestBody={
            "required": True,
            **content_object(JSON, object_schema(fields, closed=False)),
        },
    )


def _cleanup() -> dict[str, Any]:
    return operation_object(
        "cleanUploads",
        "Remove old uploads",
        ok_response(
            object_schema({**_STATUS, "message": TEXT, "cleaned_count": COUNT})
        ),
        parameters=[
            parameter_object(
                "status",
                "query",
                {"type": "string", "enum": list(STATES)},
                required=False,
            ),
            parameter_object(
                "older_than", "query", {"type": "number", "minimum": 0}, required=False
            ),
        ],
        error_statuses=(400, 413, 415),
    )


def _show(own: list[dict[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **_TASK_FIELDS,
        "uploaded_chunks": array_of(COUNT),
        "file_md5": TEXT,
        "failure": TEXT,
        "chunks": array_of(_CHUNK_VIEW),
    }
    return operation_object(
        "showUpload",
        "Return one upload, with its chunks",
        ok_response(object_schema(fields, {"file_composite_sha256": _SHA256})),
        parameters=own,
        error_statuses=(400, 404),
    )


def _chunk() -> dict[str, Any]:
    answer = object_schema(
        {
            **_STATUS,
            "chunk_index": COUNT,
            "md5_checked": BOOLEAN,
            "relative_path": TEXT,
            "size": COUNT,
        }
    )
    body = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _CHUNK},
            "application/octet-stream": {"schema": _BYTES},
        },
    }
    options = [
        parameter_object(name, "query", schema, required=False)
        for name, schema in _CHUNK_FIELDS.items()
    ]
    return operation_object(
        "uploadChunk",
        "Send one chunk; with application/octet-stream its fields are in the query",
        ok_response(answer),
        requestBody=body,
        parameters=options,
        error_statuses=(400, 408, 409, 413, 415, 503, 507),
    )


def _merge() -> dict[str, Any]:
    answer = object_schema(
        {
            **_STATUS,
            "filePath": TEXT,
            "relative_path": TEXT,
            "size": COUNT,
            "merge_time": COUNT,
        },
        {"md5": _MD5, "composite_sha256": _SHA256},
    )
    kinds = (JSON, "application/x-www-form-urlencoded", "multipart/form-data")
    return operation_object(
        "mergeChunks",
        "Merge the chunks into the file; can be repeated",
        ok_response(answer),
        requestBody={
            "required": True,
            "content": {kind: {"schema": _MERGE} for kind in kinds},
        },
        error_statuses=(400, 404, 409, 413, 415, 503, 507),
    )


def _file(name: str, summary: str) -> dict[str, Any]:
    known = {
        "ETag": header_object(TEXT),
        "Last-Modified": header_object(TEXT),
        "Accept-Ranges": header_object(TEXT),
    }
    whole = {"headers": known, **content_object("application/octet-stream", _BYTES)}
    options = [
        parameter_object(one, "header", TEXT, required=False)
        for one in (
            "Range",
            "If-Range",
            "If-Match",
            "If-None-Match",
            "If-Unmodified-Since",
        )
    ]
    responses = {
        200: {"description": "The complete file", **whole},
        206: {
            "description": "The requested range",
            **whole,
            "headers": {**known, "Content-Range": header_object(TEXT)},
        },
        304: {"description": "Not modified"},
    }
    return operation_object(
        name,
        summary,
        responses,
        parameters=[parameter_object("path", "path", TEXT), *options],
        error_statuses=(400, 404, 412, 416, 503),
    )
