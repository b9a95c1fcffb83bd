"""Check the path of a target: a regular file, or a path where no file exists."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dlpool.disk_errors import translated
from dlpool.errors import LocalFault, PolicyRefused
from dlpool.transfer.target.names import MAX_NAME_BYTES, RESERVED_SUFFIXES
from dlpool.transfer.target.protocol import TargetPresent


def resolve_target(target: Path) -> tuple[Path, bool]:
    """Return the path to rename the part file to, and whether that path exists.

    If the target itself is a symbolic link, the path is that of the file to which it
    leads. Raises PolicyRefused for a reserved name, LocalFault for a path that cannot
    be a target.
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


def target_present(path: Path, *, is_published: bool) -> TargetPresent:
    """Return the exception for a target that exists.

    ``is_published``: an earlier run of the same job published it. Raises LocalFault.
    """
    with translated(f"access {path}"):
        return TargetPresent(path, path.stat().st_size, is_published=is_published)


def _check_name(path: Path) -> None:
    if path.name.endswith(RESERVED_SUFFIXES):
        raise PolicyRefused(
            f"{path} ends in .part, .part.meta or .part.lock, which dlpool keeps for "
            "unfinished files"
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
