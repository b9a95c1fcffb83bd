"""Answers every error in the same JSON format: ``{"error": text, "code": label}``."""

from __future__ import annotations

from typing import Any

import falcon
from falcon.util import http_status_to_code

from dlpool import jsontext
from dlpool.observe.log import Logger
from dlpool.storage.errors import UploadError
from dlpool.web.body import BadFraming, BodyTooSlow, BrokenBody, SlotRevoked
from dlpool.web.errors import HttpError, http_error
from dlpool.web.middleware import bind_trace

_LABELS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "too_slow",
    409: "conflict",
    411: "length_required",
    413: "too_large",
    415: "unsupported_type",
    416: "bad_range",
    429: "too_many",
    500: "internal",
    501: "not_implemented",
    503: "unavailable",
    507: "no_space",
}

_TEXTS = {
    404: "no such path",
    405: "method not allowed",
}


def add_error_handlers(app: falcon.App[Any, Any], log: Logger) -> None:
    """Add handlers for all exceptions to the application."""

    def unexpected(
        req: falcon.Request, resp: falcon.Response, error: Exception, _params: object
    ) -> None:
        bind_trace(log, req).error(
            "request_internal_error", error=error, method=req.method, location=req.path
        )
        answer(
            resp,
            HttpError(500, "internal", "internal error: see the log of dlpool-web"),
        )

    app.add_error_handler(Exception, unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(HttpError, _refused)
    app.add_error_handler(UploadError, _upload_error)
    app.add_error_handler(BodyTooSlow, _too_slow)
    app.add_error_handler(SlotRevoked, _yielded)
    app.add_error_handler(BrokenBody, _broken)


_REASONS = {460: "460 Checksum Mismatch"}  # defined by tus


def answer(resp: falcon.Response, error: HttpError) -> None:
    """Fill the response with the error."""
    resp.status = _REASONS.get(error.status, error.status)
    resp.data = jsontext.dumps(error.as_json())
    resp.content_type = "application/json"
    resp.stream = None
    for name, value in error.headers.items():
        resp.set_header(name, value)
    resp.context.code = error.code


def _refused(
    _req: falcon.Request, resp: falcon.Response, error: HttpError, _params: object
) -> None:
    answer(resp, error)


def _upload_error(
    _req: falcon.Request, resp: falcon.Response, error: UploadError, _params: object
) -> None:
    answer(resp, http_error(error))


def _too_slow(
    _req: falcon.Request, resp: falcon.Response, error: BodyTooSlow, _params: object
) -> None:
    answer(resp, HttpError(408, "too_slow", f"the request body was too slow: {error}"))


def _yielded(
    _req: falcon.Request, resp: falcon.Response, _error: SlotRevoked, _params: object
) -> None:
    text = "the body was slow while other requests waited: send it again"
    answer(resp, HttpError(503, "busy", text, headers={"Retry-After": "1"}))


def _broken(
    _req: falcon.Request, resp: falcon.Response, error: BrokenBody, _params: object
) -> None:
    if isinstance(error, BadFraming):
        answer(
            resp,
            HttpError(400, "bad_framing", f"invalid framing of the body: {error}"),
        )
    else:
        answer(resp, HttpError(400, "truncated", f"the body is incomplete: {error}"))


def _http_error(
    _req: falcon.Request,
    resp: falcon.Response,
    error: falcon.HTTPError,
    _params: object,
) -> None:
    status = http_status_to_code(error.status)
    text = error.description or _TEXTS.get(status) or error.title
    answer(
        resp,
        HttpError(
            status,
            _LABELS.get(status, "error"),
            text,
            headers=dict(error.headers or {}),
        ),
    )
