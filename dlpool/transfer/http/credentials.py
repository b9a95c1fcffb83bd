"""Read user and password from a ``.netrc`` file, parsed as curl does.

A malformed line is an error. The format is that of netrc(5): ``machine NAME`` or
``default``, each followed by ``login``, ``password`` and ``account`` with a value;
values may be quoted. ``macdef`` begins a macro that ends at an empty line. ``#`` begins
a comment where a keyword is expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dlpool.dataclass import dataclass
from dlpool.errors import ConfigurationError

_NAMES = (".netrc", "_netrc")  # in the home folder; the first that exists is read
_FIELDS = {
    "login": "login",
    "user": "login",
    "password": "password",
    "passwd": "password",
    "account": "account",
}
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)')
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class Entry:
    """An entry of a ``.netrc`` file; ``machine`` is None in the ``default`` entry."""

    machine: str | None
    login: str | None = None
    password: str | None = None


class _MalformedLine(Exception):
    """A malformed line of the file."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


def netrc_user(url: str, login: str | None = None) -> tuple[str, str] | None:
    """Return user and password for the host of ``url`` from ``$NETRC`` or ``~/.netrc``.

    Returns None if no entry matches. With ``login``, only entries of that user match. A
    ``machine`` with the URL's port takes precedence over a ``machine`` without a port.
    Raises ConfigurationError, which names file and line, if the file cannot be read or
    parsed.
    """
    try:
        path, text = _file()
        entries = parse_netrc(text)
    except _MalformedLine as error:
        raise ConfigurationError(
            f"{path}, {error}: correct the line, or switch netrc off"
        ) from error
    parts = urlsplit(url)
    host = parts.hostname or ""
    names = (
        [f"{host}:{parts.port}", host, None] if parts.port is not None else [host, None]
    )
    for name in names:
        for entry in entries:
            if (
                entry.machine == name
                and login in (None, entry.login)
                and (entry.login or entry.password)
            ):
                return entry.login or "", entry.password or ""
    return None


def _file() -> tuple[Path, str]:
    """Return the path and the text of the file; the text is empty if no file exists."""
    given = os.environ.get("NETRC")
    names = [given] if given is not None else [f"~/{name}" for name in _NAMES]
    for name in names:
        try:
            path = Path(name).expanduser()
            return path, path.read_text("utf-8", "surrogateescape")
        except (FileNotFoundError, NotADirectoryError, RuntimeError):
            # RuntimeError: the home folder is unknown
            continue
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the netrc file {name} cannot be read: {error}"
            ) from error
    return Path(names[0]), ""


def parse_netrc(text: str) -> list[Entry]:
    """Return the entries of a file in their order.

    Raises _MalformedLine for a malformed line.
    """
    entries: list[Entry] = []
    fields: dict[str, str] = {}
    machine: str | None = None
    is_inside = False
    words = _Words(text)
    for word in map(str.lower, words):
        if word in ("machine", "default"):
            entries += [_entry(machine, fields)] if is_inside else []
            machine, fields, is_inside = (
                words.value(word).lower() if word == "machine" else None,
                {},
                True,
            )
        elif word == "macdef":
            words.skip_macro()
        elif word in _FIELDS and is_inside:
            fields[_FIELDS[word]] = words.value(word)
        else:
            reason = (
                "stands before any machine"
                if word in _FIELDS
                else "is not machine, default, login or password"
            )
            # the message omits the word, which may be part of a password
            raise _MalformedLine(words.line, f"a word {reason}")
    return entries + ([_entry(machine, fields)] if is_inside else [])


def _entry(machine: str | None, fields: Mapping[str, str]) -> Entry:
    return Entry(machine, fields.get("login"), fields.get("password"))


class _Words:
    """The words of the file; ``line`` is the number of the line read last."""

    def __init__(self, text: str) -> None:
        self.line = 0
        self._lines = text.removeprefix("\ufeff").splitlines()
        self._rest = ""

    def __iter__(self) -> Iterator[str]:
        while (word := self._next()) is not None:
            if word.startswith("#"):
                self._rest = ""
            else:
                yield word

    def value(self, keyword: str) -> str:
        """Return the value after ``keyword``, on the same line or a later one.

        Raises _MalformedLine if there is no value.
        """
        line = self.line
        self._rest = self._rest.lstrip()
        if quoted := _QUOTED.match(self._rest):
            self._rest = self._rest[quoted.end() :]
            return re.sub(
                r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), quoted[1]
            )
        if self._rest.startswith('"'):
            raise _MalformedLine(line, f"the quoted value of {keyword} does not end")
        word = self._next()
        if word is None or (
            self.line != line and word in {*_FIELDS, "machine", "default", "macdef"}
        ):
            raise _MalformedLine(line, f"{keyword} has no value")
        return word

    def skip_macro(self) -> None:
        """Skip a macro, which ends at the next empty line."""
        self._rest = ""
        while self.line < len(self._lines) and self._lines[self.line].strip():
            self.line += 1

    def _next(self) -> str | None:
        while not (words := self._rest.split(None, 1)):
            if self.line >= len(self._lines):
                return None
            self._rest = self._lines[self.line]
            self.line += 1
        self._rest = words[1] if len(words) > 1 else ""
        return words[0]
