"""tus 1.0 (https://tus.io/protocols/resumable-upload), at ``/files``: uploads that any client of that protocol resumes.

Core, and the extensions creation, creation-with-upload, creation-defer-length, checksum, expiration, termination and
concatenation. What was received of a body that was cut off counts, unless it came with a checksum.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, ClassVar

import falcon

from dlpool.web.body import Body
from dlpool.web.gate import owner_of
from dlpool.web.parts import WebParts
from dlpool.web.refusal import Refusal
from dlpool.web.store import FINAL, PARTIAL, Appending, Growth, GrowWish

VERSION = "1.0.0"
ROOT = "/files"
BODY_TYPE = "application/offset+octet-stream"
EXTENSIONS = (
    "creation,creation-with-upload,creation-defer-length,checksum,expiration,termination,concatenation"
)  # fmt: skip
ALGORITHMS = ("sha1", "md5", "sha256")
MAX_METADATA = 4096  # characters
MAX_PARTS = 1000
_MISMATCH = 460
_PIECE = 32 * 1024  # bytes: no more than this is lost when a client is cut off


def add_routes(app: falcon.App[Any, Any], parts: WebParts) -> None:
    """``/files`` and ``/files/ID``."""
    app.add_route(ROOT, Uploads(parts))
    app.add_route(f"{ROOT}/{{file_id}}", Upload(parts))


class Versioned:
    """Falcon's middleware: every answer of tus names its version, whoever gave it."""

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, _resource: object, _req_succeeded: bool
    ) -> None:
        """It is answered."""
        if req.path == ROOT or req.path.startswith(f"{ROOT}/"):
            resp.set_header("Tus-Resumable", VERSION)


@dataclass(frozen=True)
class Checksum:
    """What a body is to have."""

    algorithm: str
    digest: bytes


class _Resource:
    methods: ClassVar[str]

    def __init__(self, parts: WebParts) -> None:
        self._parts = parts
        self._growing = parts.store.growing
        self._max_size = parts.settings.upload.max_file_size

    def on_options(self, _req: falcon.Request, resp: falcon.Response, **_params: str) -> None:
        """What this server can do."""
        resp.status = 200
        resp.set_header("Allow", self.methods)
        resp.set_header("Tus-Version", VERSION)
        resp.set_header("Tus-Extension", EXTENSIONS)
        resp.set_header("Tus-Max-Size", str(self._max_size))
        resp.set_header("Tus-Checksum-Algorithm", ",".join(ALGORITHMS))

    def receive(self, req: falcon.Request, body: Body, appending: Appending) -> int:
        """Take a body; returns the offset behind it. What came of one that was cut off counts. Raises Refusal."""
        wanted = checksum_of(req.get_header("Upload-Checksum"))
        found = hashlib.new(wanted.algorithm, usedforsecurity=False) if wanted else None
        try:
            for data in body.pieces(_PIECE):
                appending.write(data)
                if found is not None:
                    found.update(data)
        except Exception as error:
            if found is None and not isinstance(error, Refusal):
                with suppress(Refusal):
                    appending.commit()
            raise
        if wanted is not None and found is not None and found.digest() != wanted.digest:
            raise Refusal(_MISMATCH, "checksum_mismatch", "the body has another checksum: send it again")
        self._parts.figures.add("bytes", body.size)
        return appending.commit()

    def append(self, req: falcon.Request, file_id: str, offset: int, length: int | None = None) -> int:
        """Receive the body of a request at ``offset``, and merge the upload if it is whole; returns the new offset."""
        owner, is_checked = owner_of(req), req.get_header("Upload-Checksum") is not None
        with (
            self._parts.body(req, self._max_size, "the upload") as body,
            self._growing.append(file_id, owner, offset, length=length, is_checked=is_checked) as appending,
        ):
            appending.expect(req.content_length or 0)
            offset = self.receive(req, body, appending)
        self._growing.finish(file_id, owner)
        return offset


class Uploads(_Resource):
    """``/files``: where uploads begin."""

    methods = "OPTIONS, POST"

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begin an upload, with its first bytes if the request has some."""
        _check_version(req)
        file_id = self._create(req)
        resp.status = 201
        resp.set_header("Location", f"{ROOT}/{file_id}")
        if (req.content_type or "") == BODY_TYPE and not _concat_of(req).startswith(FINAL):
            resp.set_header("Upload-Offset", str(self.append(req, file_id, 0)))
        _say_expiry(resp, self._growing.look(file_id, owner_of(req)))

    def _create(self, req: falcon.Request) -> str:
        note = req.get_header("Upload-Metadata") or ""
        metadata, concat = metadata_of(note), _concat_of(req)
        wish = GrowWish(
            owner_of(req), _length_of(req), metadata.get("filename") or metadata.get("name") or "",
            metadata.get("relative_path", ""), note, concat,
        )  # fmt: skip
        if not concat.startswith(FINAL):
            return self._growing.create(wish)
        return self._growing.join(wish, _parts_of(concat))


class Upload(_Resource):
    """``/files/ID``: one upload."""

    methods = "DELETE, HEAD, OPTIONS, PATCH, POST"

    def on_head(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """How far it is."""
        _check_version(req)
        with self._saying_offset(req, file_id):
            growth = self._growing.look(file_id, owner_of(req))
        resp.status = 200
        resp.set_header("Cache-Control", "no-store")
        resp.set_header("Upload-Offset", str(growth.offset))
        if growth.length >= 0:
            resp.set_header("Upload-Length", str(growth.length))
        else:
            resp.set_header("Upload-Defer-Length", "1")
        if growth.note:
            resp.set_header("Upload-Metadata", growth.note)
        if growth.concat:
            resp.set_header("Upload-Concat", growth.concat)
        _say_expiry(resp, growth)

    def on_patch(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """The next bytes."""
        _check_version(req)
        if (req.content_type or "") != BODY_TYPE:
            raise Refusal(415, "unsupported_type", f"the Content-Type is to be {BODY_TYPE}")
        offset = _number(req, "Upload-Offset")
        if offset is None:
            raise Refusal(400, "missing_field", "the header Upload-Offset is missing")
        with self._saying_offset(req, file_id):
            offset = self.append(req, file_id, offset, _number(req, "Upload-Length"))
        resp.status = 204
        resp.set_header("Upload-Offset", str(offset))
        _say_expiry(resp, self._growing.look(file_id, owner_of(req)))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """Forget it; a file that was published stays."""
        _check_version(req)
        self._growing.peek(file_id, owner_of(req))
        self._parts.store.delete(file_id, owner_of(req))
        resp.status = 204

    def on_post(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        """For clients that can send nothing but POST."""
        verbs: dict[str, Callable[..., None]] = {"PATCH": self.on_patch, "DELETE": self.on_delete}
        verb = verbs.get((req.get_header("X-HTTP-Method-Override") or "").upper())
        if verb is None:
            raise falcon.HTTPMethodNotAllowed(["DELETE", "HEAD", "OPTIONS", "PATCH"])
        verb(req, resp, file_id)

    @contextmanager
    def _saying_offset(self, req: falcon.Request, file_id: str) -> Iterator[None]:
        """An answer that the upload's state forbids something says how far it is, whatever the reason."""
        try:
            yield
        except Refusal as refusal:
            if refusal.status == 409:
                with suppress(Refusal):
                    offset = self._growing.peek(file_id, owner_of(req)).offset
                    refusal.headers.setdefault("Upload-Offset", str(offset))
            raise


def metadata_of(header: str) -> dict[str, str]:
    """What ``Upload-Metadata`` says: keys, and values in Base64; an empty one says nothing. Raises Refusal (400)."""
    found: dict[str, str] = {}
    if len(header) > MAX_METADATA:
        raise Refusal(400, "bad_metadata", f"Upload-Metadata is longer than {MAX_METADATA} characters")
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key or key in found:
            raise Refusal(400, "bad_metadata", "Upload-Metadata has a key that is empty or there twice")
        found[key] = _decoded(value.strip(), "Upload-Metadata").decode(errors="replace")
    return found


def checksum_of(header: str | None) -> Checksum | None:
    """What ``Upload-Checksum`` says. Raises Refusal (400)."""
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    digest = _decoded(value.strip(), "Upload-Checksum")
    if algorithm not in ALGORITHMS:
        raise Refusal(400, "bad_checksum", f"checksums are of {', '.join(ALGORITHMS)}, not {algorithm[:40]!r}")
    if len(digest) != hashlib.new(algorithm, usedforsecurity=False).digest_size:
        raise Refusal(400, "bad_checksum", f"the checksum has not the length of {algorithm}")
    return Checksum(algorithm, digest)


def _check_version(req: falcon.Request) -> None:
    if req.get_header("Tus-Resumable") != VERSION:
        raise Refusal(412, "bad_version", f"the header Tus-Resumable is to be {VERSION}",
                      headers={"Tus-Version": VERSION})  # fmt: skip


def _length_of(req: falcon.Request) -> int | None:
    """The length of a new upload; None if it is said later, or follows from its parts. Raises Refusal."""
    length, later = _number(req, "Upload-Length"), req.get_header("Upload-Defer-Length")
    wanted = 0 if _concat_of(req).startswith(FINAL) else 1
    if later not in (None, "1") or [length, later].count(None) != 2 - wanted:
        text = "either Upload-Length or Upload-Defer-Length: 1 is to be given, and neither with final"
        raise Refusal(400, "bad_length", text)
    return length


def _concat_of(req: falcon.Request) -> str:
    concat = (req.get_header("Upload-Concat") or "").strip()
    if concat not in ("", PARTIAL) and not concat.startswith(f"{FINAL};"):
        raise Refusal(400, "bad_concat", f"Upload-Concat is to be {PARTIAL}, or {FINAL}; and the URLs of the parts")
    return concat


def _parts_of(concat: str) -> list[str]:
    """The ids in ``final;URL URL``."""
    ids = [url.rstrip("/").rpartition("/")[2] for url in concat.partition(";")[2].split()]
    if not 1 <= len(ids) <= MAX_PARTS:
        raise Refusal(400, "bad_concat", f"a final upload has 1 to {MAX_PARTS} parts")
    return ids


def _number(req: falcon.Request, name: str) -> int | None:
    text = req.get_header(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Refusal(400, "bad_field", f"{name} is {text[:40]!r}: it is to be a whole number, 0 or more")
    return int(text)


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "bad_base64", f"{what} has a value that is no Base64") from error


def _say_expiry(resp: falcon.Response, growth: Growth) -> None:
    if growth.expires_at is not None:
        resp.set_header("Upload-Expires", formatdate(growth.expires_at, usegmt=True))
