"""Adds to the OpenAPI document the scopes that resources declare. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from dlpool.web import files, monitoring, tus, uploads
from dlpool.web.operations import BASE, Operation
from dlpool.web.tus_headers import ROOT

SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "secret": {"type": "apiKey", "in": "header", "name": "X-Secret-Key"},
}


def add_scopes(
    paths: dict[str, dict[str, Any]],
    operations: Iterable[Operation],
    prefix: str,
    *,
    is_authenticated: bool,
) -> None:
    """Name the required scopes in the description and the ``security`` of each
    operation.

    Operations with an empty ``security`` need no scope, and are not changed. If not
    ``is_authenticated``, only the description is set.
    """
    of_jobs = {(BASE + one.path, one.method): (one.scope,) for one in operations}
    for path, methods in paths.items():
        for method, operation in methods.items():
            if operation.get("security") == []:
                continue
            needs = of_jobs.get((path, method.upper())) or _of_resource(
                path, method.upper(), prefix
            )
            operation["description"] = f"Needs the scope {' or '.join(needs)}."
            if is_authenticated:
                operation["security"] = _security(needs)


def _security(needs: Collection[str]) -> list[dict[str, list[str]]]:
    """Return a Security Requirement Object (OpenAPI 3.1) for each security scheme and
    scope. A client needs to satisfy one of these objects."""
    return [{scheme: [scope]} for scheme in SCHEMES for scope in needs]


def _of_resource(path: str, method: str, prefix: str) -> tuple[str, ...]:
    if path == ROOT or path.startswith(f"{ROOT}/"):
        return tus.TusUploadResource.scopes[method]
    places: dict[str, dict[str, tuple[str, ...]]] = {
        "upload_chunk": uploads.ChunkResource.scopes,
        "merge_chunks": uploads.MergeResource.scopes,
        "upload_status": uploads.StatusResource.scopes,
        "tasks": uploads.TasksResource.scopes,
        "files/{path}": files.FileResource.scopes,
        "client": monitoring.ClientResource.scopes,
        "system": monitoring.SystemResource.scopes,
        "metrics": monitoring.MetricsResource.scopes,
    }
    return places.get(path.removeprefix(f"{prefix}/"), uploads.TaskResource.scopes)[
        method
    ]
