"""Where the private Redis of ``url = embedded`` lives: the same answer for the
supervisor and for every client."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from dlpool.disk import translated
from dlpool.errors import NotPermitted

MAX_SOCKET_BYTES = 100  # the kernel takes 107; some systems and tools take less
TEMPORARY = Path(
    "/tmp"
    # not TMPDIR: a service and a shell have different ones, and must find the same
    # socket
)


def embedded_dir(state_dir: Path) -> Path:
    """The folder of the server's data, log and lock, absolute."""
    return Path(os.path.realpath(state_dir)) / "redis"


def socket_path(state_dir: Path) -> Path:
    """The server's Unix socket, absolute: in its folder, or in a private temporary one
    when that path is too long.

    The temporary folder is made when it is missing, by clients as well: where there is
    none, another user could plant one in the instant before the connection, and be
    given our jobs. Raises LocalFault when it is not ours.
    """
    path = embedded_dir(state_dir) / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path.parent.parent)).hexdigest()[:16]
    private = TEMPORARY / f"dlpool-{os.geteuid()}-{digest}"
    _claim(private)
    return private / path.name


def socket_url(state_dir: Path) -> str:
    """``socket_path`` as a URL for redis-py."""
    return f"unix://{quote(os.fsencode(socket_path(state_dir)))}"


def _claim(private: Path) -> None:
    """Make the folder, or see that the one that is there lets nobody else in: anybody
    may plant one in /tmp."""
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
            "it is not a folder of this user that nobody else may enter"
        )
