"""The scopes of dlpool-web: what a token or key may do. Pure."""

from __future__ import annotations

from collections.abc import Collection

READ = "read"  # see jobs, uploads and figures; download merged files
UPLOAD = "upload"  # upload files, control and delete the owner's uploads
PUSH = "push"  # queue jobs
OPERATE = (
    "operate"  # control jobs, nodes and the queue; retry and delete failure records
)
ADMIN = "admin"  # everything, for all owners
SCOPES = (READ, UPLOAD, PUSH, OPERATE, ADMIN)
COMMON = (READ, UPLOAD, PUSH, OPERATE)


def allows(granted: Collection[str], scope: str) -> bool:
    """Return whether ``granted`` includes ``scope``. The scope admin includes all."""
    return ADMIN in granted or scope in granted


def known_scopes(names: Collection[object]) -> frozenset[str]:
    """Return the scopes of dlpool-web among ``names``. A token may have scopes for
    other services."""
    return frozenset(name for name in names if isinstance(name, str) and name in SCOPES)
