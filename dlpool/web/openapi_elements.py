"""Builds elements of the OpenAPI document: operations, parameters, headers, content.
Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dlpool.web.schemas import Schema, ref

COMMON_ERRORS = (401, 403, 429)  # error statuses of the middleware
JSON = "application/json"


def operation_object(
    name: str,
    summary: str,
    responses: dict[int, dict[str, Any]],
    *,
    error_statuses: Collection[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """Return an operation.

    ``error_statuses``: the statuses of the operation's own errors. The statuses of the
    middleware's errors (``COMMON_ERRORS``) are added.
    """
    error = {"description": "Refused", **content_object(JSON, ref("Error"))}
    errors = dict.fromkeys((*COMMON_ERRORS, *error_statuses), error)
    return {
        "operationId": name,
        "summary": summary,
        **more,
        "responses": {
            str(status): one for status, one in sorted({**errors, **responses}.items())
        },
    }


def ok_response(schema: Schema) -> dict[int, dict[str, Any]]:
    """Return the responses of an operation with one successful JSON response."""
    return {200: {"description": "Done", **content_object(JSON, schema)}}


def parameter_object(
    name: str, place: str, schema: Schema, *, required: bool = True
) -> dict[str, Any]:
    """Return a parameter; ``place``: path, query or header."""
    return {"name": name, "in": place, "required": required, "schema": schema}


def content_object(kind: str, schema: Schema) -> dict[str, Any]:
    """Return the content of a body with one media type."""
    return {"content": {kind: {"schema": schema}}}


def header_object(schema: Schema, *, required: bool = True) -> dict[str, Any]:
    """Return a header of a response."""
    return {"required": required, "schema": schema}
