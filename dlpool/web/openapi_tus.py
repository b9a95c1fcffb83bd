"""Describes tus in the OpenAPI document. Pure."""

from __future__ import annotations

from typing import Any

from dlpool.web.openapi_elements import (
    content_object,
    header_object,
    operation_object,
    parameter_object,
)
from dlpool.web.schemas import COUNT, TEXT, Schema, ref
from dlpool.web.tus import BODY_TYPE, VERSION
from dlpool.web.tus_headers import ROOT

_BYTES: Schema = {"type": "string", "format": "binary"}
_NAME = parameter_object(
    "id",
    "path",
    {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[0-9a-f]+$"},
)
_VERSION = parameter_object(
    "Tus-Resumable", "header", {"type": "string", "enum": [VERSION]}
)
_WITH_VERSION = {"Tus-Resumable": header_object(TEXT)}
_OFFSET = {"Upload-Offset": header_object(COUNT)}
_EXPIRES = {"Upload-Expires": header_object(TEXT, required=False)}
_BODY = {"required": False, **content_object(BODY_TYPE, _BYTES)}
_CHECKSUM = parameter_object("Upload-Checksum", "header", TEXT, required=False)
_OF_BODY = (
    parameter_object("Upload-Length", "header", COUNT, required=False),
    _CHECKSUM,
)
_OF_PATCH = (400, 404, 408, 409, 410, 412, 413, 415, 423, 503, 507)
_OF_DELETE = (400, 404, 409, 410, 412, 423, 503)


def tus_paths() -> dict[str, Any]:
    """Return the path items (OpenAPI 3.1) of ``/files`` and ``/files/{id}``."""
    return {
        ROOT: {"options": _options("tusOptions"), "post": _create()},
        f"{ROOT}/{{id}}": {
            "options": _options(
                "tusOptionsOfOne", parameters=[parameter_object("id", "path", TEXT)]
            ),
            "head": _offset(),
            "patch": _append(),
            "delete": _known(
                "tusTerminate",
                "Delete an upload; a published file is kept",
                {204: _response("Deleted", {})},
                parameters=[_NAME],
                error_statuses=_OF_DELETE,
            ),
            "post": _override(),
        },
    }


def _append() -> dict[str, Any]:
    offset = parameter_object("Upload-Offset", "header", COUNT)
    return _known(
        "tusAppend",
        "Append bytes",
        {204: _response("Appended", {**_OFFSET, **_EXPIRES}), 460: _mismatch()},
        parameters=[_NAME, offset, *_OF_BODY],
        error_statuses=_OF_PATCH,
        requestBody=_BODY,
    )


def _override() -> dict[str, Any]:
    offset = {"Upload-Offset": header_object(COUNT, required=False)}
    methods: Schema = {"type": "string", "enum": ["DELETE", "PATCH"]}
    override = parameter_object("X-HTTP-Method-Override", "header", methods)
    return _known(
        "tusOverride",
        "PATCH or DELETE, for clients that can only send POST",
        {204: _response("Done", {**offset, **_EXPIRES}), 460: _mismatch()},
        parameters=[_NAME, override, *_OF_BODY],
        error_statuses=(405, *_OF_PATCH),
        requestBody=_BODY,
    )


def _offset() -> dict[str, Any]:
    fields = {
        **_OFFSET,
        "Cache-Control": header_object(TEXT),
        "Upload-Length": header_object(COUNT, required=False),
        **_EXPIRES,
    }
    return _known(
        "tusOffset",
        "Return the offset of an upload",
        {200: _response("The offset", fields)},
        parameters=[_NAME],
        error_statuses=(400, 404, 409, 410, 412, 423, 503, 507),
    )


def _create() -> dict[str, Any]:
    options = {
        "Upload-Length": COUNT,
        "Upload-Defer-Length": {"type": "string", "enum": ["1"]},
        "Upload-Metadata": TEXT,
        "Upload-Concat": TEXT,
    }
    return _known(
        "tusCreate",
        "Create an upload, with its first bytes if there is a body",
        {
            201: _response(
                "Created",
                {
                    "Location": header_object(TEXT),
                    "Upload-Offset": header_object(COUNT, required=False),
                    **_EXPIRES,
                },
            ),
            460: _mismatch(),
        },
        parameters=[
            *(
                parameter_object(one, "header", schema, required=False)
                for one, schema in options.items()
            ),
            _CHECKSUM,
        ],
        error_statuses=(400, 404, 408, 409, 410, 412, 413, 415, 423, 503, 507),
        requestBody=_BODY,
    )


def _options(name: str, **more: Any) -> dict[str, Any]:
    headers = {
        "Tus-Version": header_object(TEXT),
        "Tus-Extension": header_object(TEXT),
        "Tus-Max-Size": header_object(COUNT),
        "Tus-Checksum-Algorithm": header_object(TEXT),
    }
    return operation_object(
        name,
        "Return the capabilities of the server",
        {200: _response("The capabilities", headers)},
        security=[],
        **more,
    )


def _known(
    name: str, summary: str, responses: dict[int, Any], **more: Any
) -> dict[str, Any]:
    return operation_object(
        name,
        summary,
        responses,
        **{**more, "parameters": [_VERSION, *more.get("parameters", ())]},
    )


def _response(description: str, headers: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "headers": {**_WITH_VERSION, **headers}}


def _mismatch() -> dict[str, Any]:
    return {
        "description": "Checksum mismatch",
        **content_object("application/json", ref("Error")),
    }
