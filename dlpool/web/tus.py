"""Resumable uploads by tus 1.0 (https://tus.io/protocols/resumable-upload), at
``/files``.

Supports the core protocol and the extensions creation, creation-with-upload,
creation-defer-length, checksum, expiration, termination and concatenation. If a body is
cut off, its received bytes are kept, unless the request has a checksum. When a client
reconnects, its new connection takes the upload over from the old connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import Any, ClassVar

import falcon

from dlpool.config.web import UPLOAD
from dlpool.storage.backend import AppendSession
from dlpool.storage.errors import (
    AlreadyComplete,
    UnlockRequested,
    UploadError,
    offset_mismatch,
    too_large,
    upload_locked,
)
from dlpool.storage.upload_requests import FINAL, AppendRequest, TusUploadRequest
from dlpool.web.body import BodyTooSlow, RequestBody
from dlpool.web.errors import HttpError, http_error
from dlpool.web.middleware import request_owner
from dlpool.web.principal import UPLOAD_SCOPES
from dlpool.web.tus_headers import (
    ALGORITHMS,
    ROOT,
    ExpectedChecksum,
    parse_checksum,
    parse_concat,
    parse_length,
    parse_metadata,
    parse_number,
    parse_parts,
)
from dlpool.web.wiring import WebServices

VERSION = "1.0.0"
BODY_TYPE = "application/offset+octet-stream"
EXTENSIONS = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "checksum",
    "expiration",
    "termination",
)
CONCATENATION = "concatenation"  # offered if the backend supports it
OVERRIDE = "X-HTTP-Method-Override"
# HEAD is not allowed: a response to HEAD has no body, but a response to POST has one.
_OVERRIDES = ("DELETE", "OPTIONS", "PATCH", "POST")
_MISMATCH = 460
MERGE_WAIT_S = 5.0  # to wait for a merge slot
_BLOCK_SIZE = 32 * 1024  # maximum of bytes that are lost when a connection is cut off


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add ``/files`` and ``/files/ID``."""
    app.add_route(ROOT, TusUploadsResource(services))
    app.add_route(f"{ROOT}/{{file_id}}", TusUploadResource(services))


class TusMiddleware:
    """Adds the version of tus to every response of ``/files``, and supports
    X-HTTP-Method-Override.

    With this header a POST stands for another method, for clients that can send only
    GET and POST.
    """

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Replace the method POST by that in X-HTTP-Method-Override. Raises
        HTTPMethodNotAllowed."""
        wanted = req.get_header(OVERRIDE)
        if wanted is None or req.method != "POST" or not _is_ours(req):
            return
        if wanted.upper() not in _OVERRIDES:
            raise falcon.HTTPMethodNotAllowed(list(_OVERRIDES))
        req.method = wanted.upper()

    def process_response(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        _resource: object,
        _req_succeeded: bool,
    ) -> None:
        """Add ``Tus-Resumable``."""
        if _is_ours(req):
            resp.set_header("Tus-Resumable", VERSION)


class _TusResource:
    methods: ClassVar[str]
    scopes = UPLOAD_SCOPES | {"HEAD": (UPLOAD,)}

    def __init__(self, services: WebServices) -> None:
        self._services = services
        self._backend = services.backend
        self._uploads = services.backend.tus
        self._max_size = services.settings.upload.max_file_size

    def on_options(
        self, _req: falcon.Request, resp: falcon.Response, **_params: str
    ) -> None:
        """Answer with the capabilities of this server."""
        has_concatenation = self._backend.concatenator is not None
        extensions = [*EXTENSIONS, *([CONCATENATION] if has_concatenation else [])]
        resp.status = 200
        resp.set_header("Allow", self.methods)
        resp.set_header("Tus-Version", VERSION)
        resp.set_header("Tus-Extension", ",".join(extensions))
        resp.set_header("Tus-Max-Size", str(self._max_size))
        resp.set_header("Tus-Checksum-Algorithm", ",".join(ALGORITHMS))

    def append(
        self, req: falcon.Request, resp: falcon.Response, file_id: str, offset: int
    ) -> None:
        """Append the body of a request at ``offset``, and answer with the new offset.

        If this completes the upload, publish it.
        """
        limit = max(self._max_size, req.content_length or 0)
        try:
            with self._services.open_body(req, limit, "the upload") as body:
                session = self._append(req, body, file_id, offset)
        except AlreadyComplete as completed:
            if completed.offset != offset:
                raise
            if req.content_length != 0:
                raise too_large(offset, 0) from completed
        else:
            offset = session.offset
            if session.is_complete:
                self.finish(req, file_id)
            else:
                _set_expiry(resp, session.expires_at)
        resp.set_header("Upload-Offset", str(offset))

    def finish(self, req: falcon.Request, file_id: str) -> None:
        """Publish a complete upload.

        Raises UploadError, with the code ``locked`` if no merge slot becomes free in
        time. After ``locked``, a client tries again; after other errors of a HEAD
        request, it restarts the upload.
        """
        with self._merge_slot(file_id):
            self._uploads.finish(file_id, request_owner(req))

    @contextmanager
    def _merge_slot(self, key: str) -> Iterator[None]:
        """Hold a slot for a merge.

        Raises UploadError (locked) if no slot becomes free in time, or while this
        process merges the upload.
        """
        try:
            with self._services.client_limits.merge_slot(key, timeout_s=MERGE_WAIT_S):
                yield
        except (HttpError, UploadError) as error:
            if error.code in ("busy", "task_merging"):
                raise upload_locked() from None
            raise

    def _append(
        self, req: falcon.Request, body: RequestBody, file_id: str, offset: int
    ) -> AppendSession:
        checksum = parse_checksum(req.get_header("Upload-Checksum"))
        is_patch = req.method == "PATCH"
        request = AppendRequest(
            file_id,
            request_owner(req),
            offset,
            size=req.content_length,
            length=parse_number(req.get_header, "Upload-Length") if is_patch else None,
            has_checksum=checksum is not None,
        )
        try:
            with (
                self._backend.locker.lock(file_id, request.owner) as lock,
                self._uploads.append(lock, request) as session,
            ):
                body.call_while_waiting(lock.check)
                self._receive(body, session, checksum)
        except UnlockRequested as error:
            raise offset_mismatch(session.offset) from error
        except BodyTooSlow as error:  # clients do not retry after 408
            text = f"the body was too slow: {error}"
            headers = {"Retry-After": "1"}
            raise HttpError(503, "too_slow", text, headers=headers) from error
        return session

    def _receive(
        self,
        body: RequestBody,
        session: AppendSession,
        checksum: ExpectedChecksum | None,
    ) -> None:
        """Append the body and commit it.

        Raises HttpError, UploadError, UnlockRequested, BodyTooSlow, BrokenBody.
        """
        digest = (
            hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        )
        try:
            for block in body.blocks(_BLOCK_SIZE):
                session.write(block)
                if digest is not None:
                    digest.update(block)
            if checksum and digest and digest.digest() != checksum.digest:
                text = "checksum mismatch: send the body again"
                raise HttpError(_MISMATCH, "checksum_mismatch", text)
        except HttpError:  # the bytes are not what the client announced
            session.discard()
            raise
        self._services.counters.add("bytes", body.size)
        session.commit()


class TusUploadsResource(_TusResource):
    """``/files``: creates uploads."""

    methods = "OPTIONS, POST"
    actions: ClassVar = {"POST": "upload.begin"}

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Create an upload, with its first bytes if the request has a body."""
        _check_version(req)
        concat, length = parse_concat(req.get_header), parse_length(req.get_header)
        has_body = _has_body(req)
        if has_body and concat.startswith(FINAL):
            text = "a final upload is made of its parts: its request has no body"
            raise HttpError(403, "final", text)
        if has_body:  # refused before the upload is created
            parse_checksum(req.get_header("Upload-Checksum"))
            if length is not None and (req.content_length or 0) > length:
                raise too_large(0, length)
        file_id = self._create(req, concat, length)
        resp.status = 201
        resp.set_header("Location", f"{ROOT}/{file_id}")
        if has_body:
            self.append(req, resp, file_id, 0)
        else:
            with suppress(UploadError):  # the upload exists, without Upload-Expires
                state = self._uploads.state(file_id, request_owner(req))
                _set_expiry(resp, state.expires_at)

    def _create(self, req: falcon.Request, concat: str, length: int | None) -> str:
        header = req.get_header("Upload-Metadata") or ""
        metadata = parse_metadata(header)
        request = TusUploadRequest(
            owner=request_owner(req),
            length=length,
            filename=metadata.get("filename") or metadata.get("name") or "",
            relative_path=metadata.get("relative_path", ""),
            metadata=header,
            concat=concat,
            is_shared=metadata.get("shared", "").strip().lower()
            in ("true", "1", "yes"),
        )
        if not concat.startswith(FINAL):
            return self._uploads.create(request)
        concatenator = self._backend.concatenator
        if concatenator is None:
            text = "this server does not concatenate uploads"
            raise HttpError(501, "not_implemented", text)
        with self._merge_slot(concat):
            return concatenator.concatenate(request, parse_parts(concat))


class TusUploadResource(_TusResource):
    """``/files/ID``: one upload."""

    methods = "DELETE, HEAD, OPTIONS, PATCH, POST"
    actions: ClassVar = {"PATCH": "upload.write", "DELETE": "upload.delete"}

    def on_head(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """Answer with the offset of the upload. If the upload is complete but not
        published, publish it."""
        _check_version(req)
        resp.set_header("Cache-Control", "no-store")
        with self._offset_in_conflicts(req, file_id):
            state = self._uploads.recover(file_id, request_owner(req))
            if state.is_ready_to_merge:
                self.finish(req, file_id)
                state = self._uploads.state(file_id, request_owner(req))
        resp.status = 200
        resp.set_header("Upload-Offset", str(state.offset))
        if state.length >= 0:
            resp.set_header("Upload-Length", str(state.length))
        else:
            resp.set_header("Upload-Defer-Length", "1")
        if state.metadata:
            resp.set_header("Upload-Metadata", state.metadata)
        if state.concat:
            resp.set_header("Upload-Concat", state.concat)
        _set_expiry(resp, state.expires_at)

    def on_patch(
        self, req: falcon.Request, resp: falcon.Response, file_id: str
    ) -> None:
        """Append the body to the upload."""
        _check_version(req)
        if not _has_body(req):
            text = f"the Content-Type must be {BODY_TYPE}"
            raise HttpError(415, "unsupported_type", text)
        offset = parse_number(req.get_header, "Upload-Offset")
        if offset is None:
            text = "the header Upload-Offset is missing"
            raise HttpError(400, "missing_field", text)
        with self._offset_in_conflicts(req, file_id):
            self.append(req, resp, file_id, offset)
        resp.status = 204

    def on_delete(
        self, req: falcon.Request, resp: falcon.Response, file_id: str
    ) -> None:
        """Remove the upload, but keep its published file."""
        _check_version(req)
        self._uploads.state(file_id, request_owner(req))
        try:
            self._backend.delete(file_id, request_owner(req))
        except UploadError as error:
            if error.code == "task_merging":
                raise upload_locked() from None
            raise
        resp.status = 204

    @contextmanager
    def _offset_in_conflicts(self, req: falcon.Request, file_id: str) -> Iterator[None]:
        """Add ``Upload-Offset`` to 409 responses if possible, so that the client can
        resume without another HEAD. Raises HttpError for each UploadError."""
        try:
            yield
        except UploadError as error:
            refused = http_error(error)
            if refused.status == 409:
                with suppress(UploadError):
                    offset = self._uploads.state(file_id, request_owner(req)).offset
                    refused.headers.setdefault("Upload-Offset", str(offset))
            raise refused from error


def _is_ours(req: falcon.Request) -> bool:
    return req.path == ROOT or req.path.startswith(f"{ROOT}/")


def _has_body(req: falcon.Request) -> bool:
    return (req.content_type or "").partition(";")[0].strip().lower() == BODY_TYPE


def _check_version(req: falcon.Request) -> None:
    if req.get_header("Tus-Resumable") != VERSION:
        raise HttpError(
            412,
            "bad_version",
            f"the header Tus-Resumable must be {VERSION}",
            headers={"Tus-Version": VERSION},
        )


def _set_expiry(resp: falcon.Response, expires_at: float | None) -> None:
    if expires_at is not None:
        resp.set_header("Upload-Expires", formatdate(expires_at, usegmt=True))
