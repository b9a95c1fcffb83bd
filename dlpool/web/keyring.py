"""Named keys of ``keys_file``, which is reloaded after changes."""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections.abc import Callable

from dlpool.config.keysfile import KeyList, NamedKey, digest_of, read_keys
from dlpool.errors import ConfigurationError

CHECK_S = 1.0  # minimum interval of checks for changes
# Age of a file after which an unchanged modification time proves unchanged content.
MTIME_GRANULARITY_S = 2.0
_Identity = tuple[int, ...]


class KeyRing:
    """The keys of one file. Thread-safe, and usable after a fork.

    A lookup checks the file for changes at most once a second. In a changed file,
    invalid lines are skipped; an unreadable file has no keys. When the problems of the
    file change, ``on_problem`` is called for each of the first 20 problems.
    """

    def __init__(
        self, path: str, on_problem: Callable[[str], None] = lambda _: None
    ) -> None:
        """Load the file. Raises ConfigurationError if the file or a line is invalid."""
        self.path = path
        self.on_problem = on_problem
        self._lock = threading.Lock()
        self._identity = self._identify()
        found = read_keys(path)
        if found.problems:
            raise ConfigurationError(found.problems[0])
        self._keys = found.keys
        self._checked_at = time.monotonic()
        self._problems: tuple[str, ...] = ()

    def find(self, secret: bytes) -> NamedKey | None:
        """Return the key with this secret, None if no key has it.

        Takes the same time for right and wrong secrets, so that timing reveals no
        secret.
        """
        self._refresh()
        digest, found = digest_of(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refresh(self) -> None:
        if time.monotonic() - self._checked_at < CHECK_S or not self._lock.acquire(
            blocking=False
        ):
            return
        try:
            identity = self._identify()
            if identity is None or identity != self._identity:
                self._identity = identity
                self._take(self._read())
            self._checked_at = time.monotonic()
        finally:
            self._lock.release()

    def _read(self) -> KeyList:
        try:
            return read_keys(self.path)
        except ConfigurationError as error:
            return KeyList(problems=(str(error),))

    def _take(self, found: KeyList) -> None:
        self._keys = found.keys
        is_reported = found.problems == self._problems
        self._problems = found.problems
        for problem in () if is_reported else found.problems[:20]:
            self.on_problem(problem)

    def _identify(self) -> _Identity | None:
        """Return a value that differs after each change of the file.

        None if the file is inaccessible, or if it changed so recently that a further
        change might leave the same modification time.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        if abs(time.time() - status.st_mtime) < MTIME_GRANULARITY_S:
            return None
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
        )
