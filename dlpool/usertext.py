"""Functions that decode text files of users, and escape foreign text for display.

The byte order mark determines the encoding; text without a mark is UTF-8. Lines end in
LF, CRLF or CR.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

READ_BYTES = 64 * 1024
# Characters that control a terminal, or that it shows as something else: C0, DEL, C1,
# marks of text direction, line separators, invisible tags, unpaired surrogates. For a
# character class of re.
UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(f"[{UNSAFE}]")
MAX_LINE = 1024 * 1024  # characters
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def escape_unsafe(text: str, *, keeps: str = "") -> str:
    r"""Return ``text`` with unsafe characters replaced by escapes, such as ``\x1b``.

    Unsafe characters control a terminal or are invisible (``UNSAFE``). The characters
    of ``keeps`` are not replaced.
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(
        lambda found: found[0] if found[0] in keeps else ascii(found[0])[1:-1], text
    )


def split_byte_order_mark(data: bytes) -> tuple[str, bytes]:
    """Return the encoding of a leading byte order mark, and the rest of ``data``.

    The encoding is ``""`` if there is no mark.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, data[len(mark) :]
    return "", data


class NotText(ValueError):
    """The input is not text; the message contains the line number and the reason."""


class TextLines:
    """Splits bytes into lines of text, incrementally. Not thread-safe.

    Without a byte order mark the text is UTF-8, and invalid bytes become surrogates
    (``surrogateescape``), as in file names. With a mark, invalid bytes are an error. A
    mark at the beginning of a later line, as in concatenated files, is dropped.
    """

    def __init__(self, *, truncates: bool = False, allows_nul: bool = False) -> None:
        """Create an empty splitter.

        ``truncates``: drop the rest of a line after about ``MAX_LINE`` characters,
        instead of raising NotText. ``allows_nul``: accept NUL characters.
        """
        self._keeps_nul = allows_nul
        self._cuts = truncates
        self._head: bytes | None = b""  # until the encoding is known
        self._decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder(
            "utf-8"
        )("surrogateescape")
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._encoding = ""  # of the byte order mark
        self._pending: list[str] = []  # parts of the incomplete line
        self._pending_size = 0
        self._number = 0

    def feed(self, data: bytes, *, is_end: bool = False) -> Iterator[str]:
        """Yield the lines that ``data`` completes.

        ``is_end``: ``data`` is the last part, and completes the last line. Raises
        NotText.
        """
        if self._head is not None:
            data = self._head + data
            self._head = None if is_end or not _may_be_mark(data) else data
            if self._head is not None:
                return
            data = self._without_mark(data)
        *lines, rest = self._decoded(data, is_end).split("\n")
        for line in lines:
            yield self._checked("".join(self._pending) + line)
            self._pending, self._pending_size = [], 0
        if self._pending_size <= MAX_LINE:
            self._pending.append(rest)
            self._pending_size += len(rest)
        elif not self._cuts:
            raise NotText(
                f"line {self._number + 1}: it is longer than {MAX_LINE} characters: is "
                "it a text?"
            )
        if is_end and self._pending_size:
            yield self._checked("".join(self._pending))

    def _without_mark(self, data: bytes) -> bytes:
        encoding, rest = split_byte_order_mark(data)
        if encoding:
            self._encoding = encoding.upper()
            errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
            self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        return rest

    def _decoded(self, data: bytes, is_end: bool) -> str:
        try:
            text = self._decoder.decode(data, is_end)
        except UnicodeDecodeError as error:
            raise NotText(
                f"line {self._number + 1}: not {self._encoding}: {error.reason}"
            ) from error
        return str(self._newlines.decode(text, is_end))

    def _checked(self, line: str) -> str:
        self._number += 1
        if self._encoding and _has_surrogates(line):
            raise NotText(
                f"line {self._number}: not {self._encoding}, as its byte order mark "
                "says"
            )
        if "\0" in line and not self._keeps_nul:
            raise NotText(
                f"line {self._number}: it holds a NUL character: save the file as text "
                "in UTF-8"
            )
        return line.removeprefix("\ufeff")


def read_lines(
    read: Callable[[int], bytes], *, allows_nul: bool = False
) -> Iterator[str]:
    """Yield the lines of a stream, each line as soon as it is complete.

    ``read(n)`` returns up to ``n`` bytes, ``b""`` at the end. Raises NotText and the
    errors of ``read``.
    """
    lines = TextLines(allows_nul=allows_nul)
    while data := read(READ_BYTES):
        yield from lines.feed(data)
    yield from lines.feed(b"", is_end=True)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in the encoding of its byte order mark.

    Raises OSError, NotText. A file that contains only a UTF-16 or UTF-32 mark is not
    accepted as text.
    """
    with path.open("rb") as file:
        lines = list(read_lines(file.read, allows_nul=True))
        is_cut = not lines and file.tell() in (
            len(codecs.BOM_UTF16),
            len(codecs.BOM_UTF32),
        )
    if is_cut:
        raise NotText("line 1: a byte order mark, and nothing after it")
    for number, line in enumerate(lines, 1):
        if _has_surrogates(line):
            raise NotText(f"line {number}: not UTF-8: save the file in that encoding")
    return "\n".join(lines)


def _has_surrogates(line: str) -> bool:
    return not line.isascii() and any("\ud800" <= letter <= "\udfff" for letter in line)


def _may_be_mark(data: bytes) -> bool:
    """Return whether ``data`` may be the beginning of a longer byte order mark."""
    return any(mark.startswith(data) and mark != data for mark, _ in _MARKS)
