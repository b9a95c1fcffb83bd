"""Reads the file of named keys (``keys_file``), one JSON object per line.

The file may have several keys, so that a new key can be added before an old key is
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlpool.config.web import ADMIN, SCOPES
from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError
from dlpool.usertext import NotText, read_text

MAX_FILE = 1024 * 1024  # bytes
MAX_NAME = 64
MAX_OWNER = 255
MIN_SECRET = 16  # characters
_MEMBERS = {"name", "scopes", "owner", "secret", "sha256"}


@dataclass(frozen=True)
class NamedKey:
    """A named key of dlpool-web.

    ``digest`` is the SHA-256 of its secret. ``owner`` is the owner whose uploads the
    key may see. It is None for an admin key, which may see the uploads of all owners.
    """

    name: str
    scopes: frozenset[str]
    owner: str | None
    digest: bytes


@dataclass(frozen=True)
class KeyList:
    """The keys of a file, and a sentence for each invalid line.

    No sentence quotes a secret.
    """

    keys: tuple[NamedKey, ...] = ()
    problems: tuple[str, ...] = ()


def read_keys(path: str) -> KeyList:
    """Return the keys of a file.

    Raises ConfigurationError if the file cannot be used, for example because every user
    can write to it or can read secrets in it.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path}: it is not a regular file")
        if status.st_size > MAX_FILE:
            raise ConfigurationError(f"{path}: it has more than {MAX_FILE} bytes")
        if status.st_mode & stat.S_IWOTH:
            raise ConfigurationError(f"{path}: every user can write to it: chmod o-w")
        text = read_text(Path(path))
    except (OSError, NotText) as error:
        raise ConfigurationError(
            f"{path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"
        ) from error
    found = parse_keys(text)
    if status.st_mode & stat.S_IROTH and any(
        "secret" in members for _, members in _objects(text)
    ):
        problem = (
            f"{path}: every user can read the secrets in it: chmod o-r, or give sha256 "
            f"instead of secret"
        )
        raise ConfigurationError(problem)
    return KeyList(found.keys, tuple(f"{path}:{problem}" for problem in found.problems))


def parse_keys(text: str) -> KeyList:
    """Parse the keys of a text.

    Empty lines and lines that begin with ``#`` are skipped.
    """
    keys: list[NamedKey] = []
    problems: list[str] = []
    for number, line in _lines(text):
        try:
            key = _key(_members(line))
            if any(key.name == one.name for one in keys):
                raise ValueError("another key has that name")
            if any(key.digest == one.digest for one in keys):
                raise ValueError("another key has that secret")
            keys.append(key)
        except ValueError as error:
            problems.append(f"{number}: {error}")
    return KeyList(tuple(keys), tuple(problems))


def digest_of(secret: bytes) -> bytes:
    """Return the SHA-256 of a secret.

    Secrets are random, so a slow hash is not needed.
    """
    return hashlib.sha256(secret).digest()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(text):
        try:
            yield number, _members(line)
        except ValueError:
            continue


def _members(line: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises ValueError with a message that quotes nothing of the line.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    members: dict[str, Any] | None = found if isinstance(found, dict) else None
    if members is None:
        raise ValueError(
            "it is not a JSON object, such as "
            '{"name": "backup", "scopes": ["read"], "sha256": "..."}'
        )
    if members.keys() - _MEMBERS:
        raise ValueError(f"it has another member than {', '.join(sorted(_MEMBERS))}")
    return members


def _key(members: dict[str, Any]) -> NamedKey:
    """Return the key that a JSON object describes. Raises ValueError."""
    name, owner = members.get("name"), members.get("owner")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ValueError("name is not 1 to 64 of A-Z a-z 0-9 _ . -")
    if owner is not None and not (
        isinstance(owner, str) and 0 < len(owner) <= MAX_OWNER and owner.isprintable()
    ):
        raise ValueError("owner is not a name of 1 to 255 printable characters")
    scopes = _scopes(members.get("scopes"))
    if ADMIN in scopes and owner is not None:
        raise ValueError(
            "a key with the scope admin has no owner: it sees the uploads of all"
        )
    return NamedKey(
        name, scopes, None if ADMIN in scopes else owner or name, _digest(members)
    )


def _scopes(given: object) -> frozenset[str]:
    names = given.replace(",", " ").split() if isinstance(given, str) else given
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(one, str) and one in SCOPES for one in names)
    ):
        raise ValueError(f"scopes is not a list of {', '.join(SCOPES)}")
    return frozenset(names)


def _digest(members: dict[str, Any]) -> bytes:
    secret, digest = members.get("secret"), members.get("sha256")
    if (secret is None) == (digest is None):
        raise ValueError("it needs either secret or sha256")
    if digest is not None:
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
            raise ValueError("sha256 is not 64 hex digits")
        return bytes.fromhex(digest)
    if not isinstance(secret, str) or not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise ValueError(
            "secret is not a text of printable ASCII characters without spaces"
        )
    if len(secret) < MIN_SECRET:
        raise ValueError(
            f"secret has fewer than {MIN_SECRET} characters: take a longer one"
        )
    return digest_of(secret.encode())
