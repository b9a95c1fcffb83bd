"""The upload API: receives chunks, merges them, and lists and changes tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import falcon

from dlpool import jsontext
from dlpool.config.web import split_words
from dlpool.storage import states
from dlpool.storage.backend import StagedChunk, UploadBackend
from dlpool.storage.errors import UploadError
from dlpool.storage.upload_requests import ChunkRequest, MergeRequest
from dlpool.storage.values import MAX_PAGE, ChunkResult
from dlpool.web.auditing import add_changes, set_object
from dlpool.web.body import RequestBody
from dlpool.web.errors import HttpError, error_json
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
from dlpool.web.upload_json import (
    chunk_result_json,
    detail_json,
    merge_result_json,
    page_json,
    status_json,
)
from dlpool.web.wiring import WebServices

OCTETS = "application/octet-stream"
MAX_BATCH = 1000
_MERGEABLE = (states.UPLOADING, states.FAILED)
_ACTIONS = ("/pause", "/resume")
_DAYS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def send_json(resp: falcon.Response, body: dict[str, Any]) -> None:
    """Answer with a JSON object."""
    resp.data = jsontext.dumps(body)
    resp.content_type = "application/json"


class _UploadApiResource:
    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._backend = services.backend
        self._settings = services.settings

    def fields(self, req: falcon.Request) -> dict[str, str]:
        """Return the fields of a form or JSON object. Raises HttpError, BrokenBody,
        BodyTooSlow."""
        limit = self._settings.web.field_size
        with self._services.open_body(req, 4 * limit, "the form") as body:
            return read_fields(body, req.content_type or "", limit)


class ChunkResource(_UploadApiResource):
    """``POST /upload_chunk``: stores a chunk."""

    actions: ClassVar = {"POST": "upload.write"}
    scopes = UPLOAD_SCOPES

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Receive a chunk and store it when it is complete."""
        kind = (req.content_type or "").partition(";")[0].strip().lower()
        if kind not in (MULTIPART, OCTETS):
            text = f"the Content-Type must be {MULTIPART} or {OCTETS}"
            raise HttpError(415, "unsupported_type", text)
        settings = self._settings
        form_size = settings.web.field_size if kind == MULTIPART else 0
        limit = settings.upload.max_chunk_size + form_size
        with self._services.open_body(req, limit, "the chunk") as body:
            receive = self._from_form if kind == MULTIPART else self._from_octets
            result = receive(req, body)
        self._services.counters.add("chunks")
        self._services.counters.add("bytes", result.size)
        send_json(resp, chunk_result_json(result))

    def _from_octets(self, req: falcon.Request, body: RequestBody) -> ChunkResult:
        fields = urlencoded_fields(req.query_string)
        request = _chunk_request(fields, request_owner(req))
        if req.content_length is None and req.get_header("Transfer-Encoding") is None:
            text = "a chunk needs a Content-Length or the chunked coding"
            raise HttpError(411, "length_required", text)
        chunks = self._backend.chunks
        with chunks.stage() as staged:
            chunks.check(staged, request, body.length)
            staged.reserve(body.length or 0)
            for block in body.blocks():
                staged.write(block)
            return chunks.commit(staged, request)

    def _from_form(self, req: falcon.Request, body: RequestBody) -> ChunkResult:
        owner, chunks = request_owner(req), self._backend.chunks
        with chunks.stage() as staged:
            staged.reserve(body.length or 0)  # the other fields are small
            form = MultipartForm(
                req.content_type or "",
                self._settings.web.field_size,
                "chunk",
                lambda fields: self._start_file(staged, fields, owner),
            )
            fields = form.read(body)
            if not form.has_file:
                raise HttpError(400, "missing_field", "the file field chunk is missing")
            return chunks.commit(staged, _chunk_request(fields, owner))

    def _start_file(
        self, staged: StagedChunk, fields: dict[str, str], owner: str | None
    ) -> StagedChunk:
        """Prepare for the file part of a form; return ``staged`` as the sink of the
        file.

        If the fields before the file identify the chunk, check the request now, so that
        an invalid request is refused before its file is received.
        """
        if fields.get("file_id") and fields.get("chunk_index"):
            self._backend.chunks.check(staged, _chunk_request(fields, owner))
        return staged


class MergeResource(_UploadApiResource):
    """``POST /merge_chunks``: merges the chunks of a task into a file."""

    actions: ClassVar = {"POST": "upload.merge"}
    scopes = UPLOAD_SCOPES

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Publish the file of a task. A repeated request gets the same response."""
        fields = self.fields(req)
        request = MergeRequest(
            file_id=required_text(fields, "file_id"),
            filename=required_text(fields, "filename"),
            total_chunks=required_number(fields, "total_chunks"),
            owner=request_owner(req),
            relative_path=fields.get("relative_path") or None,
            expected_md5=fields.get("expected_md5") or None,
            is_shared=parse_switch(fields, "shared"),
            expected_composite_sha256=fields.get("expected_composite_sha256") or None,
        )
        set_object(req, request.file_id)
        task = self._backend.find_task(request.file_id, request.owner)
        needs_slot = task is not None and task.summary.status in _MERGEABLE
        slots = self._services.client_limits
        key = repr((request.owner, request.file_id))  # owners may use the same ids
        with slots.merge_slot(key) if needs_slot else nullcontext():
            result = self._backend.merge(request)
        send_json(resp, merge_result_json(result))


class StatusResource(_UploadApiResource):
    """``GET /upload_status``: lists the stored chunks of a task."""

    scopes = RESUME_SCOPES

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the indexes of the stored chunks, and the state of the task."""
        fields = urlencoded_fields(req.query_string)
        file_id = required_text(fields, "file_id")
        task = self._backend.find_task(file_id, request_owner(req))
        send_json(resp, status_json(task))

    on_head = on_get


class TasksResource(_UploadApiResource):
    """``GET /tasks``: lists tasks."""

    scopes = READ_SCOPES

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with one page of the owner's tasks."""
        fields = urlencoded_fields(req.query_string)
        limit = optional_number(fields, "limit")
        page = self._backend.tasks(
            request_owner(req),
            limit=MAX_PAGE if limit is None else limit,
            cursor=fields.get("cursor", ""),
            status=split_words(fields.get("status")),
        )
        send_json(resp, page_json(page))

    on_head = on_get


class TaskResource(_UploadApiResource):
    """``/tasks/ID`` and the actions below ``/tasks``.

    An id may contain slashes. The actions are ``ID/pause``, ``ID/resume``, ``cleanup``
    and ``batch``.
    """

    scopes = RESUME_SCOPES | UPLOAD_SCOPES

    def on_options(
        self, _req: falcon.Request, resp: falcon.Response, rest: str
    ) -> None:
        """Answer with the allowed methods."""
        is_action = rest in ("cleanup", "batch") or rest.endswith(_ACTIONS)
        allowed = "OPTIONS, POST" if is_action else "DELETE, GET, HEAD, OPTIONS"
        resp.set_header("Allow", allowed)

    def change_of(self, method: str, rest: str) -> tuple[str, str]:
        """Return the audited action of a method, and its object (see ``auditing``)."""
        file_id, _, verb = rest.rpartition("/")
        if method == "DELETE":
            return "upload.delete", rest
        if rest == "cleanup":
            return "upload.cleanup", ""
        if file_id and f"/{verb}" in _ACTIONS:
            return f"upload.{verb}", file_id
        return "upload.control", ""

    def on_get(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """Answer with the task and its chunks."""
        send_json(resp, detail_json(self._backend.task(rest, request_owner(req))))

    on_head = on_get

    def on_delete(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """Remove the task and its chunks, but keep the published file."""
        self._backend.delete(rest, request_owner(req))
        answer = {"status": "ok", "message": "the task is deleted", "task_id": rest}
        send_json(resp, answer)

    def on_post(self, req: falcon.Request, resp: falcon.Response, rest: str) -> None:
        """Pause or resume a task, remove old tasks, or change a batch of tasks."""
        file_id, _, verb = rest.rpartition("/")
        verbs = {"pause": self._backend.pause, "resume": self._backend.resume}
        if rest == "cleanup":
            self._clean_up(req, resp)
        elif rest == "batch":
            self._batch(req, resp)
        elif file_id and verb in verbs:
            verbs[verb](file_id, request_owner(req))
            message = f"the task is {verb}d"
            send_json(resp, {"status": "ok", "message": message, "task_id": file_id})
        else:
            text = "the actions of a task are pause and resume: POST /tasks/ID/pause"
            raise HttpError(404, "not_found", text)

    def _clean_up(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Remove old tasks in the requested states."""
        fields = urlencoded_fields(req.query_string) or self.fields(req)
        unknown = sorted(fields.keys() - {"status", "older_than"})
        if unknown:
            text = f"unknown field {unknown[0][:100]!r}: use status and older_than"
            raise HttpError(400, "bad_field", text)
        days = _days_of(fields)
        options: dict[str, Any] = {} if days is None else {"older_than_days": days}
        if fields.get("status"):
            options["status"] = split_words(fields["status"])
        count = self._backend.cleanup(request_owner(req), **options)
        message = f"tasks removed: {count}"
        send_json(resp, {"status": "ok", "message": message, "cleaned_count": count})

    def _batch(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Apply one action to many tasks, and answer with a result for each."""
        limit = 16 * self._settings.web.field_size
        with self._services.open_body(req, limit, "the batch") as body:
            wanted = json_object(body.read_all())
        action, ids = wanted.get("action"), wanted.get("ids")
        if not isinstance(action, str):
            text = "the action must be pause, resume or delete"
            raise HttpError(400, "bad_field", text)
        if (
            not isinstance(ids, list)
            or len(ids) > MAX_BATCH
            or not all(isinstance(one, str) for one in ids)
        ):
            text = f"ids must be a list of at most {MAX_BATCH} texts"
            raise HttpError(400, "bad_field", text)
        results = apply_batch(self._backend, action, ids, request_owner(req))
        failed = [result for result in results if "code" in result]
        add_changes(req, f"upload.{action}", {"results": failed})
        send_json(resp, {"status": "ok", "results": results})


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add the upload API below the prefix."""
    prefix = services.settings.web.prefix
    app.add_route(f"{prefix}/upload_chunk", ChunkResource(services))
    app.add_route(f"{prefix}/merge_chunks", MergeResource(services))
    app.add_route(f"{prefix}/upload_status", StatusResource(services))
    app.add_route(f"{prefix}/tasks", TasksResource(services))
    app.add_route(f"{prefix}/tasks/{{rest:path}}", TaskResource(services))


def apply_batch(
    backend: UploadBackend, action: str, file_ids: Sequence[str], owner: str | None
) -> list[dict[str, Any]]:
    """Pause, resume or delete each task, and return the results sorted by id.

    The result for a task is the error if the action fails. Raises HttpError (400) for
    an unknown action.
    """
    verbs: Mapping[str, Callable[[str, str | None], object]] = {
        "pause": backend.pause,
        "resume": backend.resume,
        "delete": backend.delete,
    }
    if action not in verbs:
        text = f"the action is {action[:40]!r}: it must be pause, resume or delete"
        raise HttpError(400, "bad_action", text)
    results: list[dict[str, Any]] = []
    for file_id in sorted(set(file_ids)):
        try:
            verbs[action](file_id, owner)
            results.append({"id": file_id, "status": "ok"})
        except UploadError as error:
            results.append({"id": file_id, "status": "error", **error_json(error)})
    return results


def _chunk_request(fields: dict[str, str], owner: str | None) -> ChunkRequest:
    """Return the chunk request that the fields of a form describe. Raises HttpError
    (400)."""
    return ChunkRequest(
        file_id=required_text(fields, "file_id"),
        index=required_number(fields, "chunk_index"),
        owner=owner,
        md5=fields.get("md5") or None,
        total_chunks=optional_number(fields, "total_chunks"),
        file_size=optional_number(fields, "file_size"),
        relative_path=fields.get("relative_path") or None,
        filename=fields.get("filename") or None,
        sha256=fields.get("sha256") or None,
    )


def _days_of(fields: dict[str, str]) -> float | None:
    text = fields.get("older_than", "").strip()
    if text and not _DAYS.fullmatch(text):
        problem = f"older_than is {text[:40]!r}: it must be a number of days, 0 or more"
        raise HttpError(400, "bad_field", problem)
    return float(text) if text else None
