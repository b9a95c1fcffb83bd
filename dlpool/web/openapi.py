"""Builds the OpenAPI document from the table of operations. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dlpool import __version__
from dlpool.web.openapi_monitoring import monitoring_paths
from dlpool.web.openapi_scopes import SCHEMES, add_scopes
from dlpool.web.openapi_tus import tus_paths
from dlpool.web.openapi_uploads import upload_paths
from dlpool.web.operations import BASE, Operation
from dlpool.web.schemas import ID, NAMED, NODE, RECORD_ID, Schema, ref

NAMES: dict[str, Schema] = {"id": ID, "record": RECORD_ID}
ERROR_TEXTS = {
    400: "The request is invalid",
    401: "No valid token or key",
    403: "A missing scope, or a cross-site request",
    404: "Not found",
    409: "Not possible in this state",
    413: "Too large",
    415: "Not application/json",
    429: "Too many requests",
    503: "Redis is unavailable: try again after Retry-After seconds",
}
_LINKS = {
    "listJobs": (
        (
            "showJob",
            "pauseJob",
            "resumeJob",
            "promoteJob",
            "setPriority",
            "changePriority",
            "cancelJob",
            "retryJob",
        ),
        "id",
        "/jobs/0/id",
    ),
    "listNodes": (("drainNode", "resumeNode", "forgetNode"), "id", "/nodes/0/node"),
    "listFailures": (("retryFailure", "removeFailure"), "record", "/failures/0/id"),
}
_COMMON_ERRORS = (400, 401, 403, 429, 503)


def build_document(
    operations: Sequence[Operation], upload_prefix: str, *, is_authenticated: bool
) -> dict[str, Any]:
    """Return the OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(BASE + one.path, {})[one.method.lower()] = _operation(one)
    paths |= {
        **upload_paths(upload_prefix),
        **monitoring_paths(upload_prefix),
        **tus_paths(),
    }
    add_scopes(paths, operations, upload_prefix, is_authenticated=is_authenticated)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "dlpool",
            "version": __version__,
            "description": _DESCRIPTION,
        },
        "paths": paths,
        "components": {"schemas": dict(NAMED), "securitySchemes": SCHEMES},
    }
    return result | (
        {"security": [{name: []} for name in SCHEMES]} if is_authenticated else {}
    )


_DESCRIPTION = (
    "All errors have the format of Error: a sentence and a stable code. POST and PUT "
    "of the job API need "
    "Content-Type: application/json, with {} as an empty body. GET responses have an "
    "ETag, and HEAD is supported "
    "wherever GET is. A finished job is removed after a day (succeeded) or a week "
    "(failed, cancelled). The scope admin "
    "allows everything; a request without a required scope gets 403 with the code "
    "insufficient_scope."
)


def _operation(one: Operation) -> dict[str, Any]:
    statuses = {*_COMMON_ERRORS, *one.error_statuses, *((413, 415) if one.body else ())}
    result: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "responses": {
            "200": {
                "description": "Done",
                "content": _json(one.response),
                **_links(one.name),
            },
            **{str(status): _error(status) for status in sorted(statuses)},
        },
    }
    if parameters := [*_names(one.path), *_options(one)]:
        result["parameters"] = parameters
    if one.body is not None:
        result["requestBody"] = {"required": True, "content": _json(one.body)}
    return result


def _links(name: str) -> dict[str, Any]:
    """Return the ``links`` of the response of the operation ``name``.

    Each link is to an operation that accepts a value from this response.
    """
    if name not in _LINKS:
        return {}
    targets, parameter, place = _LINKS[name]
    return {
        "links": {
            one: {
                "operationId": one,
                "parameters": {parameter: f"$response.body#{place}"},
            }
            for one in targets
        }
    }


def _names(path: str) -> list[dict[str, Any]]:
    def schema(name: str) -> Schema:
        return NODE if path.startswith("/nodes/") else NAMES[name]

    return [
        {"name": name, "in": "path", "required": True, "schema": schema(name)}
        for name in re.findall(r"{([a-z]+)}", path)
    ]


def _options(one: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in one.query.items()
    ]


def _error(status: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "description": ERROR_TEXTS[status],
        "content": _json(ref("Error")),
    }
    if status in (429, 503):
        result["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return result


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
