"""The fixed upload API: chunks, merges, tasks."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any, ClassVar

import falcon

from dlpool import jsontext
from dlpool.config.web import split_words
from dlpool.storage import states
from dlpool.storage.disk import MAX_PAGE, ChunkResult, StagedChunk
from dlpool.storage.errors import UploadError
from dlpool.web.auditing import add_changes, set_object
from dlpool.web.body import RequestBody
from dlpool.web.forms import (
    MULTIPART,
    MultipartForm,
    json_object,
    optional_number,
    parse_switch,
    read_fields,
    required_number,
    required_text,
    urlencoded_fields,
)
from dlpool.web.middleware import request_owner
from dlpool.web.principal import READ_SCOPES, RESUME_SCOPES, UPLOAD_SCOPES
from dlpool.web.wiring import WebServices

OCTETS = "application/octet-stream"
MAX_BATCH = 1000
_MERGEABLE = (states.UPLOADING, states.FAILED)
_STEPS = ("/pause", "/resume")
_DAYS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def say(resp: falcon.Response, body: dict[str, Any]) -> None:
    """Answer with a JSON object."""
    resp.data = jsontext.dumps(body)
    resp.content_type = "application/json"


class _UploadApiResource:
    def __init__(self, parts: WebServices) -> None:
        self._parts = parts
        self._store = parts.store
        self._settings = parts.settings

    def fields(self, req: falcon.Request) -> dict[str, str]:
        """The form or JSON of a request. Raises Refusal."""
        limit = self._settings.web.field_size
        with self._parts.open_body(req, 4 * limit, "the form") as body:
            return read_fields(body, req.content_type or "", limit)


class ChunkResource(_UploadApiResource):
    """``POST /upload_chunk``."""

    actions: ClassVar = {"POST": "upload.write"}
    scopes = UPLOAD_SCOPES

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Receive a chunk, and store it when it has proved to be whole."""
        kind = (req.content_type or "").partition(";")[0].strip().lower()
        if kind not in (MULTIPART, OCTETS):
            raise UploadError(
                415,
                "unsupported_type",
                f"the Content-Type is to be {MULTIPART} or {OCTETS}",
            )
        settings = self._settings
        room = settings.web.field_size if kind == MULTIPART else 0
        with self._parts.open_body(
            req, settings.upload.max_chunk_size + room, "the chunk"
        ) as body:
            receive = self._from_form if kind == MULTIPART else self._from_octets
            result = receive(req, body)
        self._parts.counters.add("chunks")
        self._parts.counters.add("bytes", result.size)
        say(resp, result.as_json())

    def _from_octets(self, req: falcon.Request, body: RequestBody) -> ChunkResult:
        fields = urlencoded_fields(req.query_string)
        wish = _chunk_wish(fields, request_owner(req))
        if req.content_length is None and req.get_header("Transfer-Encoding") is None:
            raise UploadError(
                411,
                "length_required",
                "a chunk has a Content-Length, 0 for an empty one, or is chunked",
            )
        with self._store.stage_chunk() as reception:
            reception.task_lock = self._store.check_chunk(**wish)
            reception.reserve(body.length or 0)
            for data in body.blocks():
                reception.write(data)
            return self._store.commit_chunk(reception, **wish)

    def _from_form(self, req: falcon.Request, body: RequestBody) -> ChunkResult:
        owner = request_owner(req)
        with self._store.stage_chunk() as reception:
            reception.reserve(body.length or 0)  # its fields are small
            form = MultipartForm(
                req.content_type or "",
                self._settings.web.field_size,
                "chunk",
                lambda fields: self._begun(reception, fields, owner),
            )
            fields = form.read(body)
            if not form.has_file:
                raise UploadError(400, "missing_field", "the file chunk is missing")
            return self._store.commit_chunk(reception, **_chunk_wish(fields, owner))

    def _begun(
        self, reception: StagedChunk, fields: dict[str, str], owner: str | None
    ) -> StagedChunk:
        """The chunk begins: what will be refused anyway is refused now. Fields may come
        after it."""
        if fields.get("file_id") and fields.get("chunk_index"):
            reception.task_lock = self._store.check_chunk(**_chunk_wish(fields, owner))
        return reception


class MergeResource(_UploadApiResource):
    """``POST /merge_chunks``."""

    actions: ClassVar = {"POST": "upload.merge"}
    scopes = UPLOAD_SCOPES

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make the file; a second time the answer is the same."""
        fields = self.fields(req)
        wish: dict[str, Any] = {
            "file_id": required_text(fields, "file_id"),
            "filename": required_text(fields, "filename"),
            "total_chunks": required_number(fields, "total_chunks"),
            "owner": request_owner(req),
            "relative_path": fields.get("relative_path") or None,
            "expected_md5": fields.get("expected_md5") or None,
            "is_shared": parse_switch(fields, "shared"),
        }
        set_object(req, wish["file_id"])
        is_quick = (
            self._store.status(wish["file_id"], wish["owner"])["status"]
            not in _MERGEABLE
        )
        with (
            nullcontext()
            if is_quick
            else self._parts.client_limits.merge_slot(_key(wish))
        ):
            result = self._store.merge(**wish)
        say(resp, result.as_json())


class StatusResource(_UploadApiResource):
    """``GET /upload_status``."""

    scopes = RESUME_SCOPES

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Which chunks are there."""
        fields = urlencoded_fields(req.query_string)
        say(
            resp,
            self._store.status(required_text(fields, "file_id"), request_owner(req)),
        )

    on_head = on_get


class TasksResource(_UploadApiResource):
    """``GET /tasks``."""

    scopes = READ_SCOPES

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page of the owner's."""
        fields = urlencoded_fields(req.query_string)
        limit, cursor, status = (
            optional_number(fields, "limit"),
            fields.get("cursor", ""),
            split_words(fields.get("status")),
        )
        limit = MAX_PAGE if limit is None else limit
        say(
            resp,
            self._store.tasks(
                request_owner(req), limit=limit, cursor=cursor, status=status
            ),
        )

    on_head = on_get


class TaskResource(_UploadApiResource):
    """``/tasks/ID``, ``/tasks/ID/pause`` and so on, ``/tasks/cleanup``,
    ``/tasks/batch``. An id may have slashes."""

    scopes = RESUME_SCOPES | UPLOAD_SCOPES

    def on_options(
        self, _req: falcon.Request, resp: falcon.Response, rest: str
    ) -> None:
        """What can be asked there."""
        resp.set_header(
            "Allow",
            "OPTIONS, POST"
            if rest in ("cleanup", "batch") or rest.endswith(_STEPS)
            else "DELETE, GET, HEAD, OPTIONS",
        )

    def change_of(self, method: str, rest: str) -> tuple[str, str]:
        """What a method changes there, and of what: see ``auditing``."""
        file_id, _, verb = rest.rpartition("/")
        if method == "DELETE":
            return "upload.delete", rest
        if rest == "cleanup":
            return "upload.cleanup", ""
        return (
            (f"upload.{verb}", file_id)
            if file_id and f"/{verb}" in _STEPS
            else ("upload.control", "")
        )

    def on_get(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """The task with its chunks."""
        say(resp, self._store.task(rest, request_owner(req)))

    on_head = on_get

    def on_delete(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """Remove it and its chunks; a merged file stays."""
        self._store.delete(rest, request_owner(req))
        say(resp, {"status": "ok", "message": "the task is deleted", "task_id": rest})

    def on_post(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """Steer one, or many. Raises Refusal (404, 409)."""
        file_id, _, verb = rest.rpartition("/")
        verbs = {"pause": self._store.pause, "resume": self._store.resume}
        if rest == "cleanup":
            self._clean_up(req, resp)
        elif rest == "batch":
            self._batch(req, resp)
        elif file_id and verb in verbs:
            verbs[verb](file_id, request_owner(req))
            say(
                resp,
                {"status": "ok", "message": f"the task is {verb}d", "task_id": file_id},
            )
        else:
            raise UploadError(
                404,
                "not_found",
                "a task can be told to pause and to resume: POST /tasks/ID/pause",
            )

    def _clean_up(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Remove the tasks of a status that are so many days old."""
        fields = urlencoded_fields(req.query_string) or self.fields(req)
        unknown = sorted(fields.keys() - {"status", "older_than"})
        if unknown:
            raise UploadError(
                400,
                "bad_field",
                f"there is no field {unknown[0][:100]!r}: only status and older_than",
            )
        days = _days_of(fields)
        wanted: dict[str, Any] = {} if days is None else {"older_than_days": days}
        if fields.get("status"):
            wanted["status"] = split_words(fields["status"])
        count = self._store.cleanup(request_owner(req), **wanted)
        say(
            resp,
            {
                "status": "ok",
                "message": f"tasks removed: {count}",
                "cleaned_count": count,
            },
        )

    def _batch(self, req: falcon.Request, resp: falcon.Response) -> None:
        """One action for many tasks: what becomes of each."""
        with self._parts.open_body(
            req, 16 * self._settings.web.field_size, "the batch"
        ) as body:
            wanted = json_object(body.read_all())
        action, ids = wanted.get("action"), wanted.get("ids")
        if not isinstance(action, str):
            raise UploadError(
                400, "bad_field", "action is to be pause, resume or delete"
            )
        if (
            not isinstance(ids, list)
            or len(ids) > MAX_BATCH
            or not all(isinstance(one, str) for one in ids)
        ):
            raise UploadError(
                400, "bad_field", f"ids is to be a list of at most {MAX_BATCH} texts"
            )
        results = self._store.batch(action, ids, request_owner(req))
        add_changes(
            req,
            f"upload.{action}",
            {"results": [one for one in results if "code" in one]},
        )
        say(resp, {"status": "ok", "results": results})


def add_routes(app: falcon.App[Any, Any], parts: WebServices) -> None:
    """Below the prefix."""
    prefix = parts.settings.web.prefix
    app.add_route(f"{prefix}/upload_chunk", ChunkResource(parts))
    app.add_route(f"{prefix}/merge_chunks", MergeResource(parts))
    app.add_route(f"{prefix}/upload_status", StatusResource(parts))
    app.add_route(f"{prefix}/tasks", TasksResource(parts))
    app.add_route(f"{prefix}/tasks/{{rest:path}}", TaskResource(parts))


def _key(wish: dict[str, Any]) -> str:
    """What tells a merge from others: owners may use the same ids."""
    return repr((wish["owner"], wish["file_id"]))


def _chunk_wish(fields: dict[str, str], owner: str | None) -> dict[str, Any]:
    """What a chunk's fields say, as the store takes it. Raises Refusal (400)."""
    return {
        "file_id": required_text(fields, "file_id"),
        "index": required_number(fields, "chunk_index"),
        "owner": owner,
        "md5": fields.get("md5") or None,
        "total_chunks": optional_number(fields, "total_chunks"),
        "file_size": optional_number(fields, "file_size"),
        "relative_path": fields.get("relative_path") or None,
        "filename": fields.get("filename") or None,
    }


def _days_of(fields: dict[str, str]) -> float | None:
    text = fields.get("older_than", "").strip()
    if text and not _DAYS.fullmatch(text):
        raise UploadError(
            400,
            "bad_field",
            f"older_than is {text[:40]!r}: it is to be a number of days, 0 or more",
        )
    return float(text) if text else None
