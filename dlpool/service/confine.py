"""Where a job's file may go: under the download folder, or another allowed root, after links are resolved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dlpool.config import PathSettings
from dlpool.errors import PolicyRefused
from dlpool.transfer.files import translated
from dlpool.transfer.names import MAX_NAME_BYTES

MAX_PATH_BYTES = 4095  # of PATH_MAX, less its NUL


@dataclass(frozen=True)
class Target:
    """The resolved path of a job; ``is_folder``: the server or the URL names the file in it."""

    path: Path
    is_folder: bool


def confined(save_path: str, paths: PathSettings) -> Target:
    """The target of a ``save_path``. Raises PolicyRefused for what leaves the roots, LocalFault for what cannot be."""
    shown = repr(save_path[:200])
    if any(ord(character) < 32 or ord(character) == 127 for character in save_path):
        raise PolicyRefused(f"save_path {shown} has control characters")
    joined = os.path.join(paths.download_dir, save_path)
    if len(os.fsencode(joined)) > MAX_PATH_BYTES:
        raise PolicyRefused(f"save_path {shown} is longer than {MAX_PATH_BYTES} bytes")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in save_path.split("/")):
        raise PolicyRefused(f"save_path {shown} has a name longer than {MAX_NAME_BYTES} bytes")
    with translated(f"resolve save_path {shown}"):
        real = os.path.realpath(joined)
        check_place(real, f"save_path {shown}", paths)
        is_folder = save_path.endswith(("/", "/.")) or os.path.isdir(real)
        return Target(Path(real), is_folder)


def check_place(path: str, what: str, paths: PathSettings) -> None:
    """Raise PolicyRefused if the path, links resolved, is none that a job may write to; ``what`` for the message."""
    real = os.path.realpath(path)
    allowed = [root for root in map(os.path.realpath, roots(paths)) if _is_under(real, root)]
    if not allowed:
        raise PolicyRefused(f"{what} leads to {real}, which is outside of {' and '.join(roots(paths))}")
    for own in map(os.path.realpath, (paths.state_dir, paths.log_dir)):
        if _is_under(real, own) and not any(_is_under(root, own) for root in allowed):
            raise PolicyRefused(f"{what} leads into {own}, which dlpool keeps for itself")


def roots(paths: PathSettings) -> list[str]:
    """The folders that files may go to."""
    given = [root for root in (paths.allowed_roots or "").split(":") if root]
    return given or [paths.download_dir]


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
