"""How operations that are no part of the job API are described in the OpenAPI document.
Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dlpool.web.schemas import Schema, ref

ALWAYS = (401, 403, 429)  # what the gate answers
JSON = "application/json"


def operation_object(
    name: str,
    summary: str,
    responses: dict[int, dict[str, Any]],
    *,
    refusals: Collection[int] = (),
    **more: Any,
) -> dict[str, Any]:
    """An operation; ``refusals``: statuses, beside those that the gate gives, that are
    answered with an Error."""
    error = {"description": "Refused", **content_object(JSON, ref("Error"))}
    errors = dict.fromkeys((*ALWAYS, *refusals), error)
    return {
        "operationId": name,
        "summary": summary,
        **more,
        "responses": {
            str(status): one for status, one in sorted({**errors, **responses}.items())
        },
    }


def ok_response(schema: Schema) -> dict[int, dict[str, Any]]:
    """A single good answer, 200, in JSON."""
    return {200: {"description": "Done", **content_object(JSON, schema)}}


def parameter_object(
    name: str, place: str, schema: Schema, *, required: bool = True
) -> dict[str, Any]:
    """One parameter; ``place``: path, query or header."""
    return {"name": name, "in": place, "required": required, "schema": schema}


def content_object(kind: str, schema: Schema) -> dict[str, Any]:
    """A body of one media type."""
    return {"content": {kind: {"schema": schema}}}


def header_object(schema: Schema, *, required: bool = True) -> dict[str, Any]:
    """A header of an answer."""
    return {"required": required, "schema": schema}
