"""The confinement of job paths to the download folder and the other allowed roots,
after links are resolved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dlpool.config import PathSettings, Settings
from dlpool.config.owned_paths import (
    OwnedPath,
    is_under,
    owned_paths,
    resolved,
    target_roots,
)
from dlpool.dataclass import dataclass
from dlpool.disk_errors import translated
from dlpool.errors import PolicyRefused
from dlpool.filenames import name_fault
from dlpool.jobs.path_walk import OwnedPathIndex, PathWalk, walk_down
from dlpool.transfer.target.names import MAX_NAME_BYTES, encoded_in_utf8

MAX_PATH_BYTES = 4095  # PATH_MAX without the terminating NUL


@dataclass(frozen=True)
class JobTarget:
    """The resolved path of a job. ``is_folder``: the path is a folder, and the server
    or the URL names the file in it."""

    path: Path
    is_folder: bool


class Confinement:
    """The path rules of one set of settings, with the folders resolved once. Immutable.

    Raises LocalFault for folders that cannot be resolved.
    """

    def __init__(
        self, paths: PathSettings, owned: Iterable[OwnedPath] | None = None
    ) -> None:
        """Resolve the folders of ``paths``.

        ``owned``: paths that no job may write to, because dlpool uses them. None: the
        paths that dlpool uses if all settings except ``paths`` have their defaults.
        """
        owned = owned_paths(Settings(paths=paths)) if owned is None else owned
        with translated("resolve the folders in [paths]"):
            self._download_dir = resolved(paths.download_dir)
            self._roots = [resolved(root.path) for root in target_roots(paths)]
            self._own = OwnedPathIndex(owned)

    @classmethod
    def of(cls, settings: Settings) -> Confinement:
        """Return the rules of ``settings``."""
        return cls(settings.paths, owned_paths(settings))

    def __repr__(self) -> str:
        return f"<Confinement to {':'.join(self._roots)}>"

    @property
    def roots(self) -> list[str]:
        """The resolved folders that jobs may write to."""
        return list(self._roots)

    def contains(self, folder: str) -> bool:
        """Return whether an existing folder is one of the roots or lies in one."""
        real = os.path.realpath(folder)
        return any(is_under(real, root) for root in self._roots)

    def target(self, save_path: str) -> JobTarget:
        """Resolve the ``save_path`` of a job. Raises PolicyRefused if a job must not
        use this path, and LocalFault if the path cannot be resolved."""
        shown = f"save_path {save_path[:200]!r}"
        below = next(
            (
                save_path[len(root) :]
                for root in self._roots
                if is_under(save_path, root)
            ),
            save_path,
        )
        faults = (
            name_fault(part) for part in below.split("/") if part not in (".", "..")
        )
        if fault := next(filter(None, faults), ""):
            raise PolicyRefused(
                f"{shown} has a name that {fault}: push the job with another one"
            )
        save_path = encoded_in_utf8(save_path)
        joined = os.path.join(self._download_dir, save_path)
        if len(os.fsencode(joined)) > MAX_PATH_BYTES:
            raise PolicyRefused(f"{shown} is longer than {MAX_PATH_BYTES} bytes")
        if any(
            len(os.fsencode(part)) > MAX_NAME_BYTES for part in save_path.split("/")
        ):
            raise PolicyRefused(
                f"{shown} has a name longer than {MAX_NAME_BYTES} bytes"
            )
        real, is_folder = self._checked(joined, shown)
        return JobTarget(Path(real), is_folder or save_path.endswith(("/", "/.")))

    def check_resolved_name(self, path: Path) -> None:
        """Check the complete path of a job whose file name the server or the URL gave.

        If the path is a link, checks where it leads. Raises PolicyRefused, LocalFault.
        """
        self._checked(str(path), f"the target {path.name!r}")

    def _checked(self, path: str, what: str) -> tuple[str, bool]:
        """Return the resolved path, and whether the path is an existing folder.

        ``what`` names the path in messages. Raises PolicyRefused if a job may not write
        to the path, and LocalFault.
        """
        with translated(f"resolve {what}"):
            walk = self._walked(path)
            if walk is None or not walk.is_plain:
                path = os.path.realpath(path)
                walk = self._walked(path)
            if walk is None:
                raise PolicyRefused(
                    f"{what} leads to {path}, which is outside of "
                    f"{' and '.join(self._roots)}"
                )
            own = self._own.conflict(walk)
        if own is not None:
            raise PolicyRefused(
                f"{what} leads to {walk.path}, which dlpool itself uses ({own.setting})"
            )
        return walk.path, walk.is_folder

    def _walked(self, path: str) -> PathWalk | None:
        """Return the walk down to ``path`` from the root that contains it.

        Returns None if no root contains ``path``, or if the part below the root
        contains ``.`` or ``..``.
        """
        root = next((one for one in self._roots if is_under(path, one)), None)
        if root is None:
            return None
        names = [name for name in path[len(root) :].split("/") if name]
        return None if {".", ".."} & set(names) else walk_down(root, names)
