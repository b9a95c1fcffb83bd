"""The Unix socket of the private Redis (``url = embedded``): the same path for the
supervisor and all clients."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from dlpool.disk_errors import translated
from dlpool.errors import NotPermitted

MAX_SOCKET_BYTES = 100  # the kernel allows 107; some systems and tools allow less
# not TMPDIR: a service and a shell may have different ones, and must find one socket
TEMPORARY = Path("/tmp")


def embedded_dir(state_dir: Path) -> Path:
    """Return the absolute path of the folder with the server's data, log and lock."""
    return Path(os.path.realpath(state_dir)) / "redis"


def socket_path(state_dir: Path) -> Path:
    """Return the absolute path of the server's socket: in the server's folder, or in a
    private folder in /tmp if the path would be too long.

    Creates the private folder in /tmp if it is missing. Clients create it as well:
    otherwise another user could create it first, and receive the jobs of clients.
    Raises LocalFault if the private folder cannot be used.
    """
    path = embedded_dir(state_dir) / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path.parent.parent)).hexdigest()[:16]
    private = TEMPORARY / f"dlpool-{os.geteuid()}-{digest}"
    _make_private(private)
    return private / path.name


def socket_url(state_dir: Path) -> str:
    """Return ``socket_path`` as a URL for redis-py. Raises LocalFault."""
    return f"unix://{quote(os.fsencode(socket_path(state_dir)))}"


def _make_private(private: Path) -> None:
    """Create a folder, or check that only this user can enter the existing one. Raises
    LocalFault."""
    with translated(f"use {private} for the socket of the embedded Redis"):
        with suppress(FileExistsError):
            os.mkdir(private, 0o700)
        found = os.lstat(private)
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.geteuid()
        or found.st_mode & 0o777 != 0o700
    ):
        raise NotPermitted(
            f"cannot use {private} for the socket of the embedded Redis: "
            "it is not a folder of this user that only this user may enter: remove it"
        )
