"""The part of the OpenAPI document about chunked uploads. Pure."""

from __future__ import annotations

from typing import Any

from dlpool.web.schemas import COUNT, SWITCH, TEXT, Schema, items, or_null, record, ref

_MD5: Schema = {"type": "string", "pattern": "^[0-9a-fA-F]{32}$"}
_RATE: Schema = {"type": "number", "minimum": 0, "maximum": 100}
_CHUNK_FIELDS: dict[str, Schema] = {
    "file_id": TEXT, "chunk_index": COUNT, "md5": _MD5, "relative_path": TEXT, "total_chunks": COUNT, "file_size": COUNT
}  # fmt: skip
_BYTES: Schema = {"type": "string", "format": "binary"}
_CHUNK = record(
    {name: _CHUNK_FIELDS[name] for name in ("file_id", "chunk_index")} | {"chunk": _BYTES},
    {name: _CHUNK_FIELDS[name] for name in ("md5", "relative_path", "total_chunks", "file_size")}, closed=False,
)  # fmt: skip
_MERGE = record({"file_id": TEXT, "filename": TEXT, "total_chunks": COUNT},
                {"relative_path": TEXT, "expected_md5": _MD5}, closed=False)  # fmt: skip
_TASK_FIELDS: dict[str, Schema] = {
    "task_id": TEXT, "task_type": TEXT, "filename": TEXT, "relative_path": TEXT, "total_chunks": COUNT,
    "file_size": COUNT, "status": TEXT, "completion_rate": _RATE, "retry_count": COUNT,
}  # fmt: skip
_SAID = {"status": TEXT}


def upload_paths(prefix: str) -> dict[str, Any]:
    """The paths of the fixed upload API below ``prefix``."""
    one = f"{prefix}/tasks/{{file_id}}"
    name = [_parameter("file_id", "path", TEXT)]
    return {
        f"{prefix}/upload_chunk": {"post": _chunk()},
        f"{prefix}/merge_chunks": {"post": _merge()},
        f"{prefix}/upload_status": {"get": _made(
            "uploadStatus", "Which chunks of a file are there",
            record({"uploaded_chunks": items(COUNT), **_SAID}, closed=False),
            parameters=[_parameter("file_id", "query", TEXT)],
        )},
        f"{prefix}/tasks": {"get": _made(
            "listUploads", "All uploads of who asks", record({"tasks": items(record(_TASK_FIELDS, closed=False)),
                                                              "total": COUNT}),
        )},
        f"{prefix}/tasks/batch": {"post": _made(
            "steerUploads", "Pause, resume or delete uploads", {"type": "object"}, refusals=(400,),
            requestBody=_body(record({"action": {"type": "string", "enum": ["pause", "resume", "delete"]},
                                      "ids": items(TEXT)})),
        )},
        f"{prefix}/tasks/cleanup": {"post": _made(
            "cleanUploads", "Remove old uploads",
            record({**_SAID, "message": TEXT, "cleaned_count": COUNT}, closed=False),
            parameters=[_parameter("status", "query", TEXT, required=False),
                        _parameter("older_than", "query", COUNT, required=False)], refusals=(400,),
        )},
        one: {
            "get": _made("showUpload", "One upload, with its chunks", record(_TASK_FIELDS, closed=False),
                         parameters=name, refusals=(404,)),
            "delete": _made("deleteUpload", "Remove an upload and its chunks, not the merged file", {"type": "object"},
                            parameters=name, refusals=(404, 409)),
        },
        **{f"{one}/{verb}": {"post": _made(f"{verb}Upload", f"{verb.title()} an upload", {"type": "object"},
                                           parameters=name, refusals=(404, 409))} for verb in ("pause", "resume")},
    }  # fmt: skip


def _chunk() -> dict[str, Any]:
    answer = record(
        {**_SAID, "chunk_index": COUNT, "md5_checked": SWITCH, "relative_path": or_null(TEXT), "size": COUNT}
    )
    body = {"required": True, "content": {
        "multipart/form-data": {"schema": _CHUNK},
        "application/octet-stream": {"schema": _BYTES},
    }}  # fmt: skip
    options = [_parameter(name, "query", schema, required=False) for name, schema in _CHUNK_FIELDS.items()]
    return _made("uploadChunk", "Send one chunk; with application/octet-stream its fields stand in the query", answer,
                 requestBody=body, parameters=options, refusals=(400, 408, 409, 413, 415, 507))  # fmt: skip


def _merge() -> dict[str, Any]:
    answer = record({**_SAID, "filePath": TEXT, "md5": _MD5, "relative_path": or_null(TEXT), "size": COUNT,
                     "merge_time": COUNT})  # fmt: skip
    body = _body(_MERGE)
    body["content"]["application/x-www-form-urlencoded"] = {"schema": _MERGE}
    return _made("mergeChunks", "Make the file out of its chunks; may be repeated", answer, requestBody=body,
                 refusals=(400, 404, 409, 507))  # fmt: skip


def _made(name: str, summary: str, answer: Schema, *, refusals: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
    statuses = sorted({*refusals, 401, 403, 429})
    error = {"description": "Refused", "content": {"application/json": {"schema": ref("Error")}}}
    return {"operationId": name, "summary": summary, **more, "responses": {
        "200": {"description": "Done", "content": {"application/json": {"schema": answer}}},
        **{str(status): error for status in statuses},
    }}  # fmt: skip


def _parameter(name: str, place: str, schema: Schema, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _body(schema: Schema) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}
