"""Downloads of published files.

Supports ranges (RFC 9110 section 14), validators, and nginx's ``X-Accel-Redirect``.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import falcon

from dlpool.web.errors import HttpError
from dlpool.web.middleware import request_owner
from dlpool.web.principal import READ_SCOPES
from dlpool.web.wiring import WebServices

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


class FileResource:
    """``GET /files/PATH``: a published file.

    The owner of the file and administrators may read it. Every user may read a shared
    file.
    """

    scopes = READ_SCOPES

    def __init__(self, services: WebServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, path: str) -> None:
        """Answer with the file, or a range of it."""
        self._answer(req, resp, path, is_sent=True)

    def on_head(self, req: falcon.Request, resp: falcon.Response, path: str) -> None:
        """Answer with the same headers as to GET."""
        self._answer(req, resp, path, is_sent=False)

    def _answer(
        self, req: falcon.Request, resp: falcon.Response, path: str, *, is_sent: bool
    ) -> None:
        with ExitStack() as stack:
            file = self._services.backend.open_merged(path, request_owner(req))
            stack.callback(file.close)
            accel = self._services.settings.web.accel_prefix
            if accel is not None:  # nginx answers with ranges and validators
                self._set_name(resp, path)
                resp.set_header("X-Accel-Redirect", f"{accel}/{quote(path)}")
                return
            etag, modified = file.etag, formatdate(file.modified_at, usegmt=True)
            if fails_precondition(req, etag, file.modified_at):
                text = "the file is not the one of the precondition"
                raise HttpError(412, "changed", text)
            self._set_name(resp, path)
            resp.set_headers(
                {"Accept-Ranges": "bytes", "ETag": etag, "Last-Modified": modified}
            )
            if is_unchanged(req.get_header("If-None-Match"), etag):
                resp.status = 304
                return
            start, end = self._select_range(req, resp, file.size, etag, modified)
            resp.set_header("Content-Length", str(end - start))
            if is_sent and end > start:
                self._services.client_limits.enter_send(req.context.client, stack)
                on_close = stack.pop_all().close
                resp.stream = file.read_range(start, end - start, on_close)

    @staticmethod
    def _set_name(resp: falcon.Response, path: str) -> None:
        """Set headers that make browsers save the file instead of showing it."""
        name = path.rpartition("/")[2]
        resp.content_type = "application/octet-stream"
        resp.set_header(
            "Content-Disposition",
            f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        )

    @staticmethod
    def _select_range(
        req: falcon.Request, resp: falcon.Response, size: int, etag: str, modified: str
    ) -> tuple[int, int]:
        condition = req.get_header("If-Range")
        if condition is not None and condition not in (etag, modified):
            return 0, size
        try:
            found = range_of(req.get_header("Range"), size)
        except ValueError as error:
            for name in ("ETag", "Last-Modified", "Content-Disposition"):
                resp.delete_header(name)
            raise HttpError(
                416,
                "bad_range",
                f"the file has {size} bytes",
                headers={"Content-Range": f"bytes */{size}"},
            ) from error
        if found is None:
            return 0, size
        resp.status = 206
        resp.set_header("Content-Range", f"bytes {found[0]}-{found[1] - 1}/{size}")
        return found


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add ``/files/PATH`` below the prefix."""
    app.add_route(
        f"{services.settings.web.prefix}/files/{{path:path}}", FileResource(services)
    )


def is_unchanged(header: str | None, etag: str) -> bool:
    """Return whether the header ``If-None-Match`` matches the ETag."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in tags or "*" in tags


def fails_precondition(req: falcon.Request, etag: str, modified: float) -> bool:
    """Return whether a precondition fails (RFC 9110 section 13.2.2).

    Evaluates ``If-Match``; ``If-Unmodified-Since`` only if the request has no
    ``If-Match``.
    """
    wanted = req.get_header("If-Match")
    if wanted is not None:
        return not {etag, "*"} & {tag.strip() for tag in wanted.split(",")}
    try:
        return (
            int(modified)
            > parsedate_to_datetime(
                req.get_header("If-Unmodified-Since") or ""
            ).timestamp()
        )
    except (ValueError, OverflowError):
        return False


def range_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Return start and exclusive end of the range in a Range header.

    Returns None if the complete file is to be sent: the header is absent or invalid, or
    has several ranges. Raises ValueError for a range that contains no byte of the file.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or (suffix is not None and int(suffix) == 0):
        raise ValueError("behind the file")
    return start, end
