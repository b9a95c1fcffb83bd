"""Reservation of file names, so that the tasks of an engine do not overwrite each
other's files."""

from __future__ import annotations

import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from dlpool.disk import Identity, identity_of, is_name_of, make_folders
from dlpool.disk_errors import translated
from dlpool.errors import TargetExists

# a path of which only the case of letters is folded
_PLAIN = re.compile(r"(?:/[A-Za-z0-9._-]*[A-Za-z0-9_-])*")
_HASH_SIZE = 8  # bytes
MAX_FOLDERS = 1000  # whose resolved paths are kept
MAX_PATH = 4096  # characters; Linux opens no longer paths (PATH_MAX)


class DuplicateItem(TargetExists):
    """Two lines of a list of downloads have the same URL and the same file."""


@dataclass(slots=True, eq=False)
class _Name:
    """A reserved file name. The object is small, because each file of a list has one.

    ``path``: the resolved path. ``url``: a hash of the URL. ``label``: the name, in
    messages, of the first task that held the file name. ``tasks``: the number of tasks
    that hold it now; 0 after a completed download. ``other``: the next name with the
    same key in the table, None for the last name.
    """

    path: str
    url: bytes
    label: str
    tasks: int = 0
    other: _Name | None = None

    def chain(self) -> Iterator[_Name]:
        """Yield this name and all names that follow it under the same key."""
        name: _Name | None = self
        while name is not None:
            yield name
            name = name.other


@dataclass(frozen=True)
class NameRequest:
    """A task that requests a file name.

    ``label`` is the task's name in messages. ``is_of_list`` is True if the task comes
    from a line of a list of downloads.
    """

    task_id: str
    url: str
    label: str
    is_of_list: bool


class NameRegistry:
    """The file names that the tasks of an engine have reserved. Thread-safe.

    The lock guards the tables. The keys of the table of names are hashes of the results
    of ``_folded``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders = RealFolders()
        self._names: dict[bytes, _Name] = {}
        self._held: dict[str, list[_Name]] = {}  # by task id, until the task ends

    def __repr__(self) -> str:
        return f"<NameRegistry of {len(self._names)} names>"

    def reserve(self, path: Path, request: NameRequest) -> None:
        """Reserve ``path`` for a task.

        Several tasks with the same URL can reserve the same path. For a task of a list,
        this raises DuplicateItem instead. Raises TargetExists if the file is reserved
        for another URL, or under another spelling of its name. Raises LocalFault if the
        path cannot be resolved.
        """
        with translated(f"use the path {str(path)[:200]}"):
            real = self._folders.resolve(str(path))
        key, url = _hash(_folded(real)), _hash(request.url)
        while True:
            with self._lock:
                first = self._names.get(key)
                seen = list(first.chain()) if first is not None else []
            name = next((other for other in seen if other.path == real), None) or _Name(
                real, url, request.label
            )
            if name.url != url:
                raise TargetExists(
                    f"{request.label} would overwrite {path}, the file of {name.label}"
                )
            if (
                name in seen
                and request.is_of_list
                and not self._has(name, request.task_id)
            ):
                raise DuplicateItem(
                    f"{request.label} is the same as {name.label}, which fetches it"
                )
            self._check_others(
                path,
                real,
                [other for other in seen if other is not name],
                request.label,
            )
            if self._reserved(key, seen, name, request.task_id):
                return

    def release(self, task_id: str, *, is_completed: bool) -> None:
        """Remove an ended task from the holders of its names.

        A name without holders becomes free. With ``is_completed`` it stays reserved for
        the completed file.
        """
        with self._lock:
            for name in self._held.pop(task_id, ()):
                name.tasks -= 1
                if not is_completed and not name.tasks:
                    self._remove(name)

    def _check_others(
        self, path: Path, real: str, others: list[_Name], label: str
    ) -> None:
        for other in others:
            if _is_same_file(other.path, real):
                raise TargetExists(
                    f"{label} would overwrite {path}: on this file system that is "
                    f"{other.path}, the file of "
                    f"{other.label}"
                )

    def _has(self, name: _Name, task_id: str) -> bool:
        with self._lock:
            return name in self._held.get(task_id, ())

    def _reserved(
        self, key: bytes, seen: list[_Name], name: _Name, task_id: str
    ) -> bool:
        """Reserve ``name`` for a task and return True.

        ``seen``: the names that the caller found in the table under ``key``. If the
        table has other names there now, reserves nothing and returns False.
        """
        with self._lock:
            first = self._names.get(key)
            if (list(first.chain()) if first is not None else []) != seen:
                return False
            if name not in seen:
                name.other = first
                self._names[key] = name
            held = self._held.setdefault(task_id, [])
            if name not in held:
                held.append(name)
                name.tasks += 1
            return True

    def _remove(self, name: _Name) -> None:
        key = _hash(_folded(name.path))
        first = self._names.get(key)
        left = (
            [one for one in first.chain() if one is not name]
            if first is not None
            else []
        )
        for one, other in zip(left, [*left[1:], None], strict=False):
            one.other = other
        if left:
            self._names[key] = left[0]
        else:
            self._names.pop(key, None)


class RealFolders:
    """A cache of resolved folders, for the paths of many files in few folders.

    Thread-safe. Two threads may resolve the same folder at the same time.
    """

    def __init__(self) -> None:
        # The resolved path of a folder and its identity, by its path.
        self._known: dict[str, tuple[str, Identity]] = {}

    def resolve(self, path: str) -> str:
        """Return the result of ``os.path.realpath`` for ``path``.

        Raises OSError or ValueError if the path cannot be used.
        """
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        try:
            identity = identity_of(os.stat(folder or "."))
        except OSError:  # usually the folder is missing
            return os.path.realpath(path)
        real, known = self._known.get(folder, ("", None))
        if identity != known:
            real = os.path.realpath(folder)
            if not is_name_of(real, identity):
                return os.path.realpath(path)
            if len(self._known) >= MAX_FOLDERS:
                self._known.clear()
            self._known[folder] = real, identity
        return os.path.join(real, name)


def _hash(text: str) -> bytes:
    return blake2b(
        text.encode(errors="surrogateescape"), digest_size=_HASH_SIZE
    ).digest()


def _folded(path: str) -> str:
    """Return a form of the path that is the same for all spellings of one file.

    The form ignores case, Unicode composition, and dots and spaces at the end of a
    name, because some file systems ignore them. A path of more than 4096 characters is
    returned unchanged, because normalisation of very long paths is slow.
    """
    if len(path) > MAX_PATH:
        return path
    if _PLAIN.fullmatch(path):
        return path.lower()
    names = unicodedata.normalize("NFKD", path).upper().casefold().split("/")
    return unicodedata.normalize("NFKD", "/".join(name.rstrip(" .") for name in names))


def _is_same_file(one: str, other: str) -> bool:
    """Return whether two paths name one file.

    Creates a test file beside the first path and removes it. Returns False if this
    fails.
    """
    ending = f".{secrets.token_hex(4)}.tmp"
    with suppress(OSError):
        make_folders(Path(one).parent, sync=False)
        descriptor = os.open(
            one + ending, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            return os.path.lexists(other + ending)
        finally:
            os.close(descriptor)
            os.unlink(one + ending)
    return False
