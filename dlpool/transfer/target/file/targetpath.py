"""What may be the target of a download: a regular file, or a free name for one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dlpool.disk import translated
from dlpool.errors import LocalFault, PolicyRefused
from dlpool.transfer.target.names import MAX_NAME_BYTES, RESERVED_SUFFIXES


def resolve_target(target: Path) -> tuple[Path, bool]:
    """The path that will be renamed to, and whether it exists: links followed.

    Raises PolicyRefused, LocalFault for what cannot be a target.
    """
    with translated(f"use the path {str(target)[:200]}"):
        _check_name(target)
        status, real = _status(target), target
        if status is not None and stat.S_ISLNK(status.st_mode):
            real = Path(os.path.realpath(target))
            _check_name(real)
            status = _status(real)
            if status is None:
                raise LocalFault(
                    f"{target} is a symbolic link to {real}, which does not exist"
                )
    if status is None:
        return target, False
    if stat.S_ISDIR(status.st_mode):
        raise LocalFault(f"{target} is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise LocalFault(f"{target} exists and is not a regular file")
    return real, True


def _check_name(path: Path) -> None:
    if path.name.endswith(RESERVED_SUFFIXES):
        raise PolicyRefused(
            f"{path} ends in .part, .part.meta or .part.lock, which dlpool keeps for "
            f"unfinished files"
        )
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise LocalFault(
            f"the name {path.name[:40]}... is longer than {MAX_NAME_BYTES} bytes"
        )


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
