"""Adds the routes of the job API. ``operations`` declares the operations, and
``queue_service`` executes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import falcon

from dlpool import jsontext
from dlpool.config.web import COMMON
from dlpool.errors import DlpoolError
from dlpool.web import auditing
from dlpool.web.circuit_breaker import CircuitBreaker
from dlpool.web.errors import HttpError
from dlpool.web.middleware import request_trace_id
from dlpool.web.openapi import build_document
from dlpool.web.operations import BASE, MAX_BODY, OPERATIONS, Operation
from dlpool.web.queue_service import QueueService, http_error_of
from dlpool.web.wiring import WebServices

HEAVY = 64 * 1024  # bytes; a larger body needs much processor time


class JobApiResource:
    """One path of the API, with a responder for each of its methods."""

    def __init__(
        self,
        services: WebServices,
        service: QueueService,
        breaker: CircuitBreaker,
        operations: Iterable[Operation],
    ) -> None:
        self.actions = {one.method: one.action for one in operations if one.action}
        self.scopes: dict[str, tuple[str, ...]] = {}
        for one in operations:
            self.scopes[one.method] = (one.scope,)
            setattr(
                self,
                f"on_{one.method.lower()}",
                _responder(services, service, breaker, one),
            )
            if one.method == "GET":
                self.scopes["HEAD"] = (one.scope,)
                self.on_head = _responder(services, service, breaker, one)


class OpenApiResource:
    """Serves the OpenAPI document to clients with any scope."""

    scopes = dict.fromkeys(("GET", "HEAD"), COMMON)

    def __init__(self, made: dict[str, Any]) -> None:
        self._made = made

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the document, or with status 304."""
        answer_json(req, resp, self._made)

    on_head = on_get


def add_routes(app: falcon.App[Any, Any], services: WebServices) -> None:
    """Add the job API and its OpenAPI document.

    Raises ConfigurationError, LocalFault.
    """
    service, breaker = QueueService(services.settings), CircuitBreaker()
    for path in sorted({one.path for one in OPERATIONS}):
        app.add_route(
            BASE + path,
            JobApiResource(
                services,
                service,
                breaker,
                [one for one in OPERATIONS if one.path == path],
            ),
        )
    made = build_document(
        OPERATIONS,
        services.settings.web.prefix,
        is_authenticated=services.authenticator.is_required,
    )
    app.add_route(f"{BASE}/openapi.json", OpenApiResource(made))


def answer_json(req: falcon.Request, resp: falcon.Response, value: Any) -> None:
    """Answer with ``value`` as JSON, or with status 304 if the client already has the
    same value.

    The comparison ignores the member ``now``.
    """
    data = jsontext.dumps(value)
    resp.set_header("Cache-Control", "no-cache")
    is_timed = isinstance(value, dict) and "now" in value
    told = jsontext.dumps({**value, "now": None}) if is_timed else data
    if req.method in ("GET", "HEAD") and set_etag(req, resp, told, is_weak=is_timed):
        return
    resp.content_type = "application/json"
    resp.data = data


def set_etag(
    req: falcon.Request, resp: falcon.Response, data: bytes, *, is_weak: bool = False
) -> bool:
    """Set the ETag of ``data``, and status 304 if the ETag matches If-None-Match (RFC
    9110, 13.1.2). Return whether it matches."""
    tag = falcon.ETag(hashlib.blake2b(data, digest_size=12).hexdigest())
    tag.is_weak = is_weak
    resp.etag = tag.dumps()
    is_same = any(one in ("*", tag) for one in req.if_none_match or ())
    if is_same:
        resp.status = falcon.HTTP_304
    return is_same


def _responder(
    services: WebServices,
    service: QueueService,
    breaker: CircuitBreaker,
    operation: Operation,
) -> Any:
    def respond(req: falcon.Request, resp: falcon.Response, **names: str) -> None:
        try:
            body = _body(req, services, operation)
            is_heavy = len(body) > HEAVY
            with (
                services.client_limits.heavy_slot(req.context.client)
                if is_heavy
                else nullcontext()
            ):
                call = replace(
                    operation.parse(names, req.params, body),
                    trace_id=request_trace_id(req),
                )
                with breaker.guard():
                    found = operation.handler(service, call)
            if operation.action:
                auditing.add_changes(req, operation.audit_action(call), found)
            answer_json(req, resp, found)
        except DlpoolError as error:
            raise http_error_of(error) from error

    return respond


def _body(req: falcon.Request, services: WebServices, operation: Operation) -> bytes:
    if operation.body is None:
        return b""
    if (req.content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(
            415,
            "unsupported_type",
            "the Content-Type must be application/json; an empty body is {}",
        )
    with services.open_body(req, MAX_BODY) as body:
        return body.read_all()
