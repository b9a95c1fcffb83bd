"""Make file names that come from servers and URLs safe. Pure."""

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

# so that every name with one of these suffixes fits NAME_MAX
MAX_NAME_BYTES = 255 - len(STATE_SUFFIX) - len(".tmp")
MAX_NUMBERED_NAMES = 10_000  # tried for one file
# characters at the beginning and the end of a longer name that are read: composing
# accents takes a time that is quadratic in their number
_HEAD_CHARS, _TAIL_CHARS = 4 * MAX_NAME_BYTES, 64
_DEFAULT_NAME = "download"
# URLs without query and fragment, and names, which most files have: they need no
# general parsing and cleaning
_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.:-]+/[A-Za-z0-9._~%/-]*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


def safe_name(name: str) -> str:
    """Return ``name`` as a base name that cannot leave its folder, hide, or mislead.

    Folders, drives and what ``clean_file_name`` rejects are removed; a leading dot
    becomes ``_``; names that are too long keep their extension; names reserved for
    dlpool's own files get a ``_`` at the end. Returns ``""`` if nothing is left.
    """
    if _PLAIN_NAME.fullmatch(name) and clean_file_name(name) == name:
        return name if not name.endswith(RESERVED_SUFFIXES) else name + "_"
    base, before = name, None
    while base != before:  # removing one part may expose the next one
        before, base = base, _shortened(_without_tricks(base), MAX_NAME_BYTES)
    return (
        _shortened(base, MAX_NAME_BYTES - 1) + "_"
        if base.endswith(RESERVED_SUFFIXES)
        else base
    )


def name_from_url(url: str) -> str:
    """Return the last segment of the URL's path, decoded and made safe.

    Returns ``download`` if nothing is left of the segment.
    """
    path = url if _PLAIN_URL.fullmatch(url) else urlsplit(url).path
    segment = path.rpartition("/")[2]
    return safe_name(unquote(segment, errors="replace")) or _DEFAULT_NAME


def file_name(server_name: str | None, url: str) -> str:
    """Return the name of a file in a target folder: the server's name, else the URL's.

    On the disk the name is encoded in UTF-8, in every locale.
    """
    return encoded_in_utf8(safe_name(server_name or "") or name_from_url(url))


def encoded_in_utf8(path: str) -> str:
    """Return the text that ``os.fsencode`` encodes as the UTF-8 bytes of ``path``.

    This text differs from ``path`` in a locale whose file names are not in UTF-8. It
    can be used even if the encoding of the locale lacks characters of ``path``.
    """
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def numbered_paths(path: Path) -> Iterator[Path]:
    """Yield the paths that ``if_exists = rename`` tries: ``a.bin``, ``a.1.bin``..."""
    yield path
    for number in range(1, MAX_NUMBERED_NAMES):
        ending = f".{number}{path.suffix}"
        stem = os.fsencode(path.stem)[: MAX_NAME_BYTES - len(os.fsencode(ending))]
        yield path.with_name(os.fsdecode(stem) + ending)


def _without_tricks(name: str) -> str:
    base = clean_file_name(name[max(name.rfind("/"), name.rfind("\\")) + 1 :])
    if len(base) > _HEAD_CHARS + _TAIL_CHARS:
        base = base[:_HEAD_CHARS] + base[-_TAIL_CHARS:]
    base = unicodedata.normalize("NFC", base)
    base = clean_file_name(re.sub(r"^[A-Za-z]:", "", base).strip())
    return "_" + base[1:] if base.startswith(".") else base


def _shortened(name: str, max_bytes: int) -> str:
    if len(name.encode()) <= max_bytes:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension if dot and stem and len(extension.encode()) <= 16 else ""
    stem_bytes = max_bytes - len(ending.encode())
    return name.encode()[:stem_bytes].decode(errors="ignore") + ending
