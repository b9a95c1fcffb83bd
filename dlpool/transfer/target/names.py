"""File names that others chose, made safe. Pure."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dlpool.filenames import clean_file_name

PART_SUFFIX = ".part"
STATE_SUFFIX = ".part.meta"
RESERVED_SUFFIXES = (
    PART_SUFFIX,
    STATE_SUFFIX,
    ".part.tmp",
    ".part.meta.tmp",
    ".part.lock",
    ".part.lock.tmp",
)

# so that every name derived from it fits NAME_MAX
MAX_NAME_BYTES = 255 - len(STATE_SUFFIX) - len(".tmp")
MAX_NUMBERED_NAMES = 10_000  # tried for one file
# Of a longer name only these are read: to compose accents takes a time that is
# quadratic in their number.
_HEAD, _TAIL = 4 * MAX_NAME_BYTES, 64  # characters
_DEFAULT_NAME = "download"


def safe_name(name: str) -> str:
    """Reduce ``name`` to a base name that cannot leave its folder, hide, or mislead; ""
    if nothing is left.

    Folders, drives and what ``clean_file_name`` removes go; a leading dot becomes
    ``_``; over-long names keep their extension; names that dlpool keeps for itself get
    a ``_`` at the end.
    """
    base, before = name, None
    while base != before:  # what one step lays bare, the next one sees
        before, base = base, _shortened(_without_tricks(base), MAX_NAME_BYTES)
    return (
        _shortened(base, MAX_NAME_BYTES - 1) + "_"
        if base.endswith(RESERVED_SUFFIXES)
        else base
    )


def name_from_url(url: str) -> str:
    """The last segment of the URL's path, decoded and made safe; ``download`` if there
    is none."""
    segment = urlsplit(url).path.rpartition("/")[2]
    return safe_name(unquote(segment, errors="replace")) or _DEFAULT_NAME


def file_name(server_name: str | None, url: str) -> str:
    """Return the name of a file whose target is a folder: the server's, else the URL's,
    in UTF-8 in every locale."""
    return encoded_in_utf8(safe_name(server_name or "") or name_from_url(url))


def encoded_in_utf8(path: str) -> str:
    """Return the text that Python encodes to ``path`` in UTF-8 on the disk.

    That is ``path`` itself, unless the locale has another encoding of file names, which
    may lack its characters.
    """
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def numbered_paths(path: Path) -> Iterator[Path]:
    """Return the names that ``if_exists = rename`` tries: ``a.bin``, ``a.1.bin``,
    ``a.2.bin`` and so on."""
    yield path
    for number in range(1, MAX_NUMBERED_NAMES):
        ending = f".{number}{path.suffix}"
        stem = os.fsencode(path.stem)[: MAX_NAME_BYTES - len(os.fsencode(ending))]
        yield path.with_name(os.fsdecode(stem) + ending)


def _without_tricks(name: str) -> str:
    base = clean_file_name(name[max(name.rfind("/"), name.rfind("\\")) + 1 :])
    if len(base) > _HEAD + _TAIL:
        base = base[:_HEAD] + base[-_TAIL:]
    base = unicodedata.normalize("NFC", base)
    base = clean_file_name(re.sub(r"^[A-Za-z]:", "", base).strip())
    return "_" + base[1:] if base.startswith(".") else base


def _shortened(name: str, most: int) -> str:
    if len(name.encode()) <= most:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension if dot and stem and len(extension.encode()) <= 16 else ""
    room = most - len(ending.encode())
    return name.encode()[:room].decode(errors="ignore") + ending
