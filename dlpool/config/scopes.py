"""What a token or a key may do: the scopes of dlpool-web. Pure."""

from __future__ import annotations

from collections.abc import Collection

READ = "read"  # look at jobs, uploads, figures; fetch merged files
UPLOAD = "upload"  # send files, steer and remove the owner's uploads
PUSH = "push"  # queue jobs
OPERATE = "operate"  # steer jobs, nodes and the queue; failure records
ADMIN = "admin"  # all of it, for all owners
SCOPES = (READ, UPLOAD, PUSH, OPERATE, ADMIN)
COMMON = (READ, UPLOAD, PUSH, OPERATE)


def allows(granted: Collection[str], scope: str) -> bool:
    """Return whether ``granted`` includes ``scope``; admin includes all."""
    return ADMIN in granted or scope in granted


def known_scopes(names: Collection[object]) -> frozenset[str]:
    """Return those of ``names`` that are scopes of dlpool-web; a token may have others
    for other services."""
    return frozenset(name for name in names if isinstance(name, str) and name in SCOPES)
