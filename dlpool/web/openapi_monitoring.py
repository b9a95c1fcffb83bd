"""Describes probes, health, metrics and settings in the OpenAPI document. Pure."""

from __future__ import annotations

from typing import Any

from dlpool.web.openapi_elements import (
    JSON,
    content_object,
    ok_response,
    operation_object,
)
from dlpool.web.schemas import COUNT, DATE_TIME, TEXT, Schema, object_schema, ref

_DISK = object_schema(
    {
        "total": COUNT,
        "free": COUNT,
        "used_percent": {"type": "number"},
        "health": {"type": "string", "enum": ["healthy", "warning", "unhealthy"]},
    }
)
_OPEN: dict[str, Any] = {"security": []}


def monitoring_paths(prefix: str) -> dict[str, Any]:
    """Return the path items (OpenAPI 3.1) of monitoring below ``prefix``, and of the
    probes at the root."""
    client = operation_object(
        "clientSettings",
        "Return the settings for clients",
        ok_response(ref("ClientSettings")),
    )
    metrics = {
        200: {
            "description": "Prometheus text format, or JSON for Accept: "
            "application/json",
            "content": {
                "text/plain": {"schema": TEXT},
                JSON: {"schema": {"type": "object"}},
            },
        }
    }
    return {
        **_probe_paths("", ""),
        **_probe_paths(prefix, "Below"),
        f"{prefix}/health": {"get": _health()},
        f"{prefix}/client": {"get": client},
        f"{prefix}/system": {"get": _system()},
        f"{prefix}/metrics": {
            "get": operation_object(
                "metrics", "Return the metrics of all processes", metrics
            )
        },
    }


def _probe_paths(root: str, suffix: str) -> dict[str, Any]:
    lines = {
        "description": "Lines of text; the last one is ok or not ok",
        **content_object("text/plain", TEXT),
    }
    return {
        f"{root}/livez": {
            "get": operation_object(
                f"live{suffix}", "Whether this process responds", {200: lines}, **_OPEN
            )
        },
        f"{root}/readyz": {
            "get": operation_object(
                f"ready{suffix}",
                "Whether uploads can be accepted, for probes",
                {200: lines, 503: lines},
                **_OPEN,
            )
        },
    }


def _health() -> dict[str, Any]:
    check = object_schema({"status": TEXT}, closed=False)
    health = object_schema(
        {
            "status": {"type": "string", "enum": ["healthy", "warning", "unhealthy"]},
            "timestamp": DATE_TIME,
            "checks": {"type": "object", "additionalProperties": check},
        }
    )
    return operation_object(
        "health",
        "Whether uploads can be accepted",
        {
            **ok_response(health),
            503: {"description": "Unhealthy", **content_object(JSON, health)},
        },
        **_OPEN,
    )


def _system() -> dict[str, Any]:
    system = object_schema(
        {
            "version": TEXT,
            "timestamp": DATE_TIME,
            "memory": _counts(),
            "threads": _counts(),
            "tasks": _counts(),
            "configuration": {"type": "object"},
            "disk": {"type": "object", "additionalProperties": _DISK},
        }
    )
    return operation_object(
        "system",
        "Return memory, configuration, tasks and disks",
        ok_response(system),
    )


def _counts() -> Schema:
    return {"type": "object", "additionalProperties": COUNT}
