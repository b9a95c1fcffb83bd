"""tus 1.0 (https://tus.io/protocols/resumable-upload), at ``/files``: uploads that any
client of that protocol resumes.

Core, and the extensions creation, creation-with-upload, creation-defer-length,
checksum, expiration, termination and concatenation. What was received of a body that
was cut off counts, unless it came with a checksum. Who comes back over another
connection takes the upload over from the one that hangs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import Any, ClassVar

import falcon

from dlpool.config.scopes import UPLOAD
from dlpool.storage.disk import (
    FINAL,
    AlreadyComplete,
    AppendSession,
    TusUploadRequest,
    UnlockRequested,
    offset_mismatch,
    too_large,
    upload_locked,
)
from dlpool.storage.errors import UploadError
from dlpool.web.body import BodyTooSlow, RequestBody
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
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,checksum,expiration,termination,concatenation"
OVERRIDE = "X-HTTP-Method-Override"
_OVERRIDES = (
    "DELETE",
    "OPTIONS",
    "PATCH",
    "POST",
)  # an answer to HEAD has no body, and one to POST has
_MISMATCH = 460
TURN_S = 5.0  # for a turn to merge
_PIECE = 32 * 1024  # bytes: no more than this is lost when a client is cut off


def add_routes(app: falcon.App[Any, Any], parts: WebServices) -> None:
    """``/files`` and ``/files/ID``."""
    app.add_route(ROOT, TusUploadsResource(parts))
    app.add_route(f"{ROOT}/{{file_id}}", TusUploadResource(parts))


class TusMiddleware:
    """Falcon's middleware for what holds at every address of tus.

    Every answer names the version, whoever gave it. A POST may stand for another
    method, for clients that can send nothing else.
    """

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """A request has come. Raises HTTPMethodNotAllowed."""
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
        """It is answered."""
        if _is_ours(req):
            resp.set_header("Tus-Resumable", VERSION)


class _TusResource:
    methods: ClassVar[str]
    scopes = UPLOAD_SCOPES | {"HEAD": (UPLOAD,)}

    def __init__(self, parts: WebServices) -> None:
        self._parts = parts
        self._growing = parts.store.tus
        self._max_size = parts.settings.upload.max_file_size

    def on_options(
        self, _req: falcon.Request, resp: falcon.Response, **_params: str
    ) -> None:
        """What this server can do."""
        resp.status = 200
        resp.set_header("Allow", self.methods)
        resp.set_header("Tus-Version", VERSION)
        resp.set_header("Tus-Extension", EXTENSIONS)
        resp.set_header("Tus-Max-Size", str(self._max_size))
        resp.set_header("Tus-Checksum-Algorithm", ",".join(ALGORITHMS))

    def append(
        self, req: falcon.Request, resp: falcon.Response, file_id: str, offset: int
    ) -> None:
        """Receive the body of a request at ``offset``, merge the upload if it is whole,
        and say how far it is."""
        try:
            with self._parts.open_body(
                req, max(self._max_size, req.content_length or 0), "the upload"
            ) as body:
                appending = self._append(req, body, file_id, offset)
        except AlreadyComplete as completed:
            if completed.offset != offset:
                raise
            if req.content_length != 0:
                raise too_large(offset, 0) from completed
        else:
            offset = appending.position.offset
            if appending.is_complete:
                self.finish(req, file_id)
            else:
                _say_expiry(resp, self._growing.expires_at(appending.record))
        resp.set_header("Upload-Offset", str(offset))

    def finish(self, req: falcon.Request, file_id: str) -> None:
        """Make the file of an upload that is whole. Raises Refusal: 423 if that has to
        wait.

        After a HEAD that is refused otherwise clients begin anew.
        """
        with self._turn(file_id):
            self._growing.finish(file_id, request_owner(req))

    @contextmanager
    def _turn(self, file_id: str) -> Iterator[None]:
        try:
            with self._parts.client_limits.merge_slot(file_id, patience_s=TURN_S):
                yield
        except UploadError as refusal:
            raise (
                upload_locked() if refusal.code in ("busy", "task_merging") else refusal
            ) from None

    def _append(
        self, req: falcon.Request, body: RequestBody, file_id: str, offset: int
    ) -> AppendSession:
        wanted = parse_checksum(req.get_header("Upload-Checksum"))
        length = (
            parse_number(req.get_header, "Upload-Length")
            if req.method == "PATCH"
            else None
        )
        begun = self._growing.append(
            file_id,
            request_owner(req),
            offset,
            size=req.content_length,
            length=length,
            is_checked=wanted is not None,
        )
        try:
            with begun as appending:
                self._receive(body, appending, wanted)
        except UnlockRequested as error:
            raise offset_mismatch(appending.position.offset) from error
        except BodyTooSlow as error:  # clients give up after 408
            text = f"the body came too slowly: {error}"
            raise UploadError(
                503, "too_slow", text, headers={"Retry-After": "1"}
            ) from error
        return appending

    def _receive(
        self,
        body: RequestBody,
        appending: AppendSession,
        wanted: ExpectedChecksum | None,
    ) -> None:
        """Take a body. Raises Refusal, Superseded, TooSlow, BrokenBody."""
        found = hashlib.new(wanted.algorithm, usedforsecurity=False) if wanted else None
        body.while_waiting(appending.check)
        for data in body.blocks(_PIECE):
            appending.write(data)
            if found is not None:
                found.update(data)
        if wanted is not None and found is not None and found.digest() != wanted.digest:
            raise UploadError(
                _MISMATCH,
                "checksum_mismatch",
                "the body has another checksum: send it again",
            )
        self._parts.counters.add("bytes", body.size)
        appending.commit()


class TusUploadsResource(_TusResource):
    """``/files``: where uploads begin."""

    methods = "OPTIONS, POST"
    actions: ClassVar = {"POST": "upload.begin"}

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begin an upload, with its first bytes if the request has some."""
        _check_version(req)
        concat, length, has_body = (
            parse_concat(req.get_header),
            parse_length(req.get_header),
            _has_body(req),
        )
        if has_body and concat.startswith(FINAL):
            raise UploadError(
                403,
                "final",
                "a final upload is made of others: no bytes can come with it",
            )
        if (
            has_body
        ):  # what would be refused with it is refused before there is an upload
            parse_checksum(req.get_header("Upload-Checksum"))
            if length is not None and (req.content_length or 0) > length:
                raise too_large(0, length)
        file_id = self._create(req, concat, length)
        resp.status = 201
        resp.set_header("Location", f"{ROOT}/{file_id}")
        if has_body:
            self.append(req, resp, file_id, 0)
        else:
            with suppress(
                UploadError
            ):  # the upload exists already: this only adds the time of its expiry
                _say_expiry(
                    resp, self._growing.state(file_id, request_owner(req)).expires_at
                )

    def _create(self, req: falcon.Request, concat: str, length: int | None) -> str:
        note = req.get_header("Upload-Metadata") or ""
        metadata = parse_metadata(note)
        wish = TusUploadRequest(
            request_owner(req),
            length,
            metadata.get("filename") or metadata.get("name") or "",
            metadata.get("relative_path", ""),
            note,
            concat,
            metadata.get("shared", "").strip().lower() in ("true", "1", "yes"),
        )
        if not concat.startswith(FINAL):
            return self._growing.create(wish)
        with self._turn(concat):
            return self._parts.store.concatenator.concatenate(wish, parse_parts(concat))


class TusUploadResource(_TusResource):
    """``/files/ID``: one upload."""

    methods = "DELETE, HEAD, OPTIONS, PATCH, POST"
    actions: ClassVar = {"PATCH": "upload.write", "DELETE": "upload.delete"}

    def on_head(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """How far it is."""
        _check_version(req)
        resp.set_header("Cache-Control", "no-store")
        with self._saying_offset(req, file_id):
            growth = self._growing.recover(file_id, request_owner(req))
            if growth.is_ready_to_merge:
                self.finish(req, file_id)
                growth = self._growing.state(file_id, request_owner(req))
        resp.status = 200
        resp.set_header("Upload-Offset", str(growth.offset))
        if growth.length >= 0:
            resp.set_header("Upload-Length", str(growth.length))
        else:
            resp.set_header("Upload-Defer-Length", "1")
        if growth.metadata:
            resp.set_header("Upload-Metadata", growth.metadata)
        if growth.concat:
            resp.set_header("Upload-Concat", growth.concat)
        _say_expiry(resp, growth.expires_at)

    def on_patch(
        self, req: falcon.Request, resp: falcon.Response, file_id: str
    ) -> None:
        """The next bytes."""
        _check_version(req)
        if not _has_body(req):
            raise UploadError(
                415, "unsupported_type", f"the Content-Type is to be {BODY_TYPE}"
            )
        offset = parse_number(req.get_header, "Upload-Offset")
        if offset is None:
            raise UploadError(
                400, "missing_field", "the header Upload-Offset is missing"
            )
        with self._saying_offset(req, file_id):
            self.append(req, resp, file_id, offset)
        resp.status = 204

    def on_delete(
        self, req: falcon.Request, resp: falcon.Response, file_id: str
    ) -> None:
        """Forget it; a file that was published stays."""
        _check_version(req)
        self._growing.state(file_id, request_owner(req))
        try:
            self._parts.store.delete(file_id, request_owner(req))
        except UploadError as refusal:
            raise (
                upload_locked() if refusal.code == "task_merging" else refusal
            ) from None
        resp.status = 204

    @contextmanager
    def _saying_offset(self, req: falcon.Request, file_id: str) -> Iterator[None]:
        """An answer that the upload's state forbids something says how far it is,
        whatever the reason."""
        try:
            yield
        except UploadError as refusal:
            if refusal.status == 409:
                with suppress(UploadError):
                    offset = self._growing.state(file_id, request_owner(req)).offset
                    refusal.headers.setdefault("Upload-Offset", str(offset))
            raise


def _is_ours(req: falcon.Request) -> bool:
    return req.path == ROOT or req.path.startswith(f"{ROOT}/")


def _has_body(req: falcon.Request) -> bool:
    return (req.content_type or "").partition(";")[0].strip().lower() == BODY_TYPE


def _check_version(req: falcon.Request) -> None:
    if req.get_header("Tus-Resumable") != VERSION:
        raise UploadError(
            412,
            "bad_version",
            f"the header Tus-Resumable is to be {VERSION}",
            headers={"Tus-Version": VERSION},
        )


def _say_expiry(resp: falcon.Response, expires_at: float | None) -> None:
    if expires_at is not None:
        resp.set_header("Upload-Expires", formatdate(expires_at, usegmt=True))
