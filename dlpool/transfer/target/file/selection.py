"""Choose and lock the path of an output, by the setting ``if_exists``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from dlpool import disk
from dlpool.dataclass import dataclass
from dlpool.disk_errors import translated
from dlpool.errors import ForeignFile, LocalFault, Locked, TargetExists
from dlpool.transfer.job import Job, Notify
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.publish import check_unpublished
from dlpool.transfer.target.file.statefile import StateFile
from dlpool.transfer.target.file.targetpath import target_present
from dlpool.transfer.target.names import MAX_NUMBERED_NAMES, PART_SUFFIX, numbered_paths
from dlpool.transfer.target.protocol import TargetOptions
from dlpool.transfer.target.state import (
    SavedState,
    StateUnusable,
    url_digest,
    url_without_secrets,
)


@dataclass(frozen=True)
class PathSelection:
    """Chooses the path of one output.

    All methods raise LocalFault, and what ``check_target`` raises.
    """

    job: Job
    options: TargetOptions
    notify: Notify
    check_target: Callable[[Path], None]

    def open(self, requested: Path, *, exists: bool) -> tuple[Path, PartFile]:
        """Choose a path and lock its part file.

        ``exists``: whether ``requested`` exists.

        Raises TargetPresent, TargetExists, Locked, ForeignFile.
        """
        if self.options.if_exists == "rename":
            return self._open_numbered(requested)
        self.check_target(requested)
        path = self.choose(requested) if exists else requested
        return path, PartFile(path, sync=self.options.sync, notify=self.notify)

    def choose(self, requested: Path) -> Path:
        """Return the path to publish to.

        This is ``requested``, or with ``if_exists = rename`` an unused numbered path.
        Raises TargetPresent, TargetExists.
        """
        self._check_unpublished(requested)
        if self.options.if_exists == "overwrite" or not _exists(requested):
            return requested
        if self.options.if_exists == "skip":
            raise target_present(requested, is_published=False)
        if self.options.if_exists == "fail":
            raise TargetExists(f"{requested} exists already")
        return next(self._unused(requested))

    def _unused(self, requested: Path) -> Iterator[Path]:
        """Yield the numbered paths that do not exist.

        Raises TargetPresent if an earlier run has published one of them, and
        TargetExists when all numbers are used up.
        """
        for path in numbered_paths(requested):
            self._check_unpublished(path)
            if path != requested:
                self._check_unpublished(path, part_of=requested)
            if not _exists(path):
                yield path
        raise TargetExists(
            f"{requested} exists already, and so do {MAX_NUMBERED_NAMES} other names "
            "for it"
        )

    def _check_unpublished(self, path: Path, part_of: Path | None = None) -> None:
        if self.options.resume:
            check_unpublished(self.job, path, sync=self.options.sync, part_of=part_of)

    def _open_numbered(self, requested: Path) -> tuple[Path, PartFile]:
        """Choose one of the numbered paths that do not exist, and lock its part file.

        The order of preference:

        1. a path with a part file of the same URL,
        2. a path with a part file whose state is missing or unreadable, or has a URL
           that differs in the query only,
        3. the first path without a part file.

        Skips a path if another download has locked it, or if its part file belongs to
        another URL or another program.
        """
        unfinished: list[Path] = []
        unused = self._unused(requested)
        for free in unused:
            if not _exists(free.with_name(free.name + PART_SUFFIX)):
                break
            unfinished.append(free)
        resumable = [path for path in unfinished if self._is_of_url(path)]
        unknown = [
            path
            for path in unfinished
            if path not in resumable and not self._is_of_other_url(path)
        ]
        # ``unused`` ends with an error
        candidates = chain(resumable, unknown, [free], unused)
        path = next(candidates)
        while (part := self._lock(path)) is None:
            path = next(candidates)
        return path, part

    def _lock(self, path: Path) -> PartFile | None:
        """Lock the part file of an unused path, and return it.

        Returns None if ``check_target`` refuses the path because it exists, or if
        another download or program has taken the path or its part file.
        """
        try:
            self.check_target(path)
            part = PartFile(path, sync=self.options.sync, notify=self.notify)
        except (TargetExists, Locked, ForeignFile):
            return None
        is_free = False
        try:
            # another download may have published to it before the lock was taken
            is_free = not _exists(path)
        finally:
            if not is_free:
                abandon(part)
        return part if is_free else None

    def _is_of_url(self, path: Path) -> bool:
        saved = _state_of(path)
        return saved is not None and saved.url_sha256 == url_digest(self.job.url)

    def _is_of_other_url(self, path: Path) -> bool:
        saved = _state_of(path)
        return saved is not None and saved.url != url_without_secrets(self.job.url)


def abandon(part: PartFile) -> None:
    """Release the lock of an unused part file; remove the file if it is new."""
    try:
        if part.is_new:
            with suppress(LocalFault):
                part.discard()
    finally:
        part.close()


def _state_of(path: Path) -> SavedState | None:
    with suppress(StateUnusable):
        return StateFile.for_target(path, sync=False).load()
    return None


def _exists(path: Path) -> bool:
    """Return whether the name exists. Raises LocalFault."""
    with translated(f"access {path}"):
        return disk.exists(path)
