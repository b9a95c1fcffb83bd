"""The detection of job paths that lead to a file or folder of dlpool itself: by a link,
a bind mount, a name in other letter case, or a hard link."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator

from dlpool.config.owned_paths import Location, OwnedPath, folded, is_under
from dlpool.dataclass import dataclass
from dlpool.disk import Identity, identity_of


@dataclass(frozen=True)
class PathWalk:
    """The result of a walk from a root down to a path.

    ``identities``: device and inode of the root and of each of ``names`` that the walk
    has passed. The walk stops before a name that does not exist, is a link or cannot be
    examined. ``mode`` and ``links``: file mode and number of hard links of the path
    itself, both 0 if the walk stopped. ``is_plain``: the walk met neither a link nor an
    error; a missing name is not an error.
    """

    path: str
    names: tuple[str, ...]
    identities: tuple[Identity, ...]
    mode: int
    links: int
    is_plain: bool

    @property
    def is_folder(self) -> bool:
        """Whether the path is an existing folder."""
        return stat.S_ISDIR(self.mode)


def walk_down(root: str, names: list[str]) -> PathWalk:
    """Examine ``root`` and ``names``, one below the other. Stop before a name that does
    not exist, is a link or cannot be examined."""
    identities: list[Identity] = []
    mode = links = 0
    is_plain = True
    path = root.rstrip("/")
    full_path = "/".join([path, *names]) or "/"
    for position, name in enumerate(["", *names]):
        path = f"{path}/{name}" if name else path
        mode = links = 0
        try:
            found = os.lstat(path) if position else os.stat(path or "/")
        except FileNotFoundError:
            break
        except OSError:
            is_plain = False
            break
        if stat.S_ISLNK(found.st_mode):
            is_plain = False
            break
        identities.append(identity_of(found))
        mode, links = found.st_mode, found.st_nlink
    return PathWalk(full_path, tuple(names), tuple(identities), mode, links, is_plain)


class OwnedPathIndex:
    """An index of the files and folders that dlpool owns. Immutable.

    The index examines the owned paths when it is created. ``conflict`` compares names
    and identities with the index. If they match, ``conflict`` examines both paths
    again, because an inode number may have been reused.
    """

    def __init__(self, owned: Iterable[OwnedPath]) -> None:
        self._places = [(one, Location.of(one.path)) for one in owned]
        self._anchors: dict[Identity, list[tuple[tuple[str, ...], OwnedPath]]] = (
            defaultdict(list)
        )
        for one, place in self._places:
            if place.identities:
                self._anchors[place.identities[-1]].append((place.rest, one))

    def conflict(self, walk: PathWalk) -> OwnedPath | None:
        """Return the owned path that is, or contains, the path of ``walk``; None if
        there is no such owned path."""
        path = folded(walk.path)
        candidates = [
            one for one, place in self._places if is_under(path, place.folded)
        ]
        candidates += self._candidates(walk)
        if not candidates:
            return None
        target = Location.of(walk.path)
        return next(
            (one for one in candidates if Location.of(one.path).holds(target)), None
        )

    def _candidates(self, walk: PathWalk) -> Iterator[OwnedPath]:
        """Yield the owned paths that the walk may have reached by another name."""
        if stat.S_ISREG(walk.mode) and walk.links > 1:
            yield from (one for one, _ in self._places)
            return
        for position, identity in enumerate(walk.identities):
            for rest, one in self._anchors.get(identity, ()):
                if (
                    tuple(map(folded, walk.names[position : position + len(rest)]))
                    == rest
                ):
                    yield one
