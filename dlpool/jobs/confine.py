"""Where a job's file may go: under the download folder, or another allowed root, after links are resolved."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from dlpool.config import PathSettings
from dlpool.disk import translated
from dlpool.errors import PolicyRefused
from dlpool.transfer.names import MAX_NAME_BYTES, in_utf8

MAX_PATH_BYTES = 4095  # of PATH_MAX, less its NUL


@dataclass(frozen=True)
class Target:
    """The resolved path of a job; ``is_folder``: the server or the URL names the file in it."""

    path: Path
    is_folder: bool


class Confinement:
    """The rules for paths of one set of settings; the folders in them are resolved once. Immutable.

    Raises LocalFault for folders that cannot be resolved.
    """

    def __init__(self, paths: PathSettings) -> None:
        given = [root for root in (paths.allowed_roots or "").split(":") if root] or [paths.download_dir]
        with translated("resolve the folders in [paths]"):
            self._download_dir = os.path.realpath(paths.download_dir)
            self._roots = [os.path.realpath(root) for root in given]
            self._own = [os.path.realpath(folder) for folder in (paths.state_dir, paths.log_dir)]

    def __repr__(self) -> str:
        return f"<Confinement to {':'.join(self._roots)}>"

    @property
    def roots(self) -> list[str]:
        """The folders that files may go to, resolved."""
        return list(self._roots)

    def holds(self, folder: str) -> bool:
        """Whether a folder that is there lies in one of them."""
        real = os.path.realpath(folder)
        return any(_is_under(real, root) for root in self._roots)

    def target(self, save_path: str) -> Target:
        """The target of a ``save_path``. Raises PolicyRefused for what leaves the roots, LocalFault."""
        shown = f"save_path {save_path[:200]!r}"
        if re.search(r"[\x00-\x1f\x7f]", save_path):
            raise PolicyRefused(f"{shown} has control characters")
        save_path = in_utf8(save_path)
        joined = os.path.join(self._download_dir, save_path)
        if len(os.fsencode(joined)) > MAX_PATH_BYTES:
            raise PolicyRefused(f"{shown} is longer than {MAX_PATH_BYTES} bytes")
        if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in save_path.split("/")):
            raise PolicyRefused(f"{shown} has a name longer than {MAX_NAME_BYTES} bytes")
        real, is_folder = self._checked(joined, shown)
        return Target(Path(real), is_folder or save_path.endswith(("/", "/.")))

    def check_named(self, path: Path) -> None:
        """The name that the server or the URL gave may be that of a link to elsewhere. Raises as ``target`` does."""
        self._checked(str(path), f"the target {path.name!r}")

    def _checked(self, path: str, what: str) -> tuple[str, bool]:
        """The path with its links resolved, if a job may write there, and whether it is a folder."""
        with translated(f"resolve {what}"):
            real, is_folder = self._resolved(path)
        allowed = [root for root in self._roots if _is_under(real, root)]
        if not allowed:
            raise PolicyRefused(f"{what} leads to {real}, which is outside of {' and '.join(self._roots)}")
        for own in self._own:
            if _is_under(real, own) and not any(_is_under(root, own) for root in allowed):
                raise PolicyRefused(f"{what} leads into {own}, which dlpool keeps for itself")
        return real, is_folder

    def _resolved(self, path: str) -> tuple[str, bool]:
        """As realpath(3), without another look at what is above the roots."""
        root = next((one for one in (self._download_dir, *self._roots) if _is_under(path, one)), None)
        parts = path[len(root or "") :].strip("/").split("/")
        mode = _mode(root, parts) if root is not None and {"", ".", ".."}.isdisjoint(parts) else None
        if mode is None:
            real = os.path.realpath(path)
            return real, os.path.isdir(real)
        return path.rstrip("/"), stat.S_ISDIR(mode)


def _mode(folder: str, parts: list[str]) -> int | None:
    """The mode of the last of ``parts``, 0 if it does not exist; None where there is more to resolve: a link."""
    mode = 0
    path = folder.rstrip("/")
    for part in parts:
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return 0
        except OSError:
            return None
        if stat.S_ISLNK(mode):
            return None
    return mode


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
