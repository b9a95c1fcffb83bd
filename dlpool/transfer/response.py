"""http.client's answer, read strictly and past its slow parts.

Strictly: every 1xx but 101 is skipped (http.client returns a 103 as the final answer), and all header fields
together stay under ``MAX_HEADER_BYTES``. Its parser of header fields is that of e-mail, which costs as much as the rest
of a small file; so what any sane server sends is split here, and the other goes there.
"""

from __future__ import annotations

import email.parser
import http.client
import re
from http import HTTPStatus
from typing import Any, BinaryIO, cast

from dlpool.transfer.exchange import running

MAX_HEADER_BYTES = 64 * 1024
MAX_FIELDS = 100
MAX_INFORMATIONAL = 32  # 1xx answers before the final one

_FIELD = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.MULTILINE)  # RFC 9112 section 5
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class StrictResponse(http.client.HTTPResponse):
    """http.client's answer with a bound on its header and all informational answers skipped."""

    def begin(self) -> None:
        """Read up to the body, and tell how that is framed: RFC 9112 section 6.3."""
        if self.headers is not None:
            return
        body = self.fp
        self.fp = cast(Any, _HeaderReader(body))
        try:
            version, self.status, reason = self._read_status()
            self.headers = self.msg = read_fields(self.fp)
        finally:
            if isinstance(self.fp, _HeaderReader):  # not when http.client closed it
                self.fp = body
        if not version.startswith(("HTTP/0.9", "HTTP/1.")):
            raise http.client.UnknownProtocol(version)
        self.code, self.reason = self.status, reason.strip()
        self.version = 10 if version in ("HTTP/0.9", "HTTP/1.0") else 11
        coding = self.headers.get("Transfer-Encoding")
        self.chunked = coding is not None and coding.lower() == "chunked"
        self.chunk_left = None
        if coding is not None and not self.chunked:  # http.client would hand out the framing as body
            raise http.client.HTTPException(f"Transfer-Encoding is {coding[:80]!r}")
        self.length = self._body_length()
        self.will_close = self._check_close() or (not self.chunked and self.length is None)
        exchange = running()
        if exchange is not None:
            exchange.body = self

    def readinto1(self, buffer: Any) -> int:
        """Read what has arrived into ``buffer``, past http.client's way over new bytes; 0 at the end of the body."""
        view = memoryview(buffer)
        if self.chunked or self.fp is None:
            data = self.read1(len(view))
            view[: len(data)] = data
            return len(data)
        if self.length is not None:
            view = view[: self.length]
        size: int = self.fp.readinto1(view)
        if size == 0 and len(view):
            self._close_conn()  # type: ignore[attr-defined]
        elif self.length is not None:
            self.length -= size
        return size

    def _body_length(self) -> int | None:
        """Bytes of the body, None where its end is the connection's, or a chunk's."""
        if self.status in _BODILESS or 100 <= self.status < 200 or self._method == "HEAD":  # type: ignore[attr-defined]
            return 0
        length = self.headers.get("Content-Length")
        if length is None or self.chunked:
            return None
        try:
            size = int(length)
        except ValueError:
            return None
        return size if size >= 0 else None

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INFORMATIONAL):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:
                return version, status, reason
            read_fields(self.fp)
        raise http.client.HTTPException("too many informational answers")


class _HeaderReader:
    """The lines of a header, up to a total size."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._lines.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException(f"the header is larger than {MAX_HEADER_BYTES} bytes")
        return line

    def flush(self) -> None:
        """http.client flushes what it closes."""

    def close(self) -> None:
        self._lines.close()


def read_fields(lines: BinaryIO) -> http.client.HTTPMessage:
    """The header fields up to the empty line. Raises HTTPException for too many."""
    read: list[bytes] = []
    while (line := lines.readline(MAX_HEADER_BYTES + 1)) not in (b"\r\n", b"\n", b""):
        read.append(line)
        if len(read) > MAX_FIELDS:
            raise http.client.HTTPException(f"the header has more than {MAX_FIELDS} fields")
    text = b"".join(read).decode("iso-8859-1")
    fields = _FIELD.findall(text)
    if len(fields) != len(read):  # folded, without a name, with a stray CR
        return email.parser.Parser(_class=http.client.HTTPMessage).parsestr(text)
    message = http.client.HTTPMessage()
    for name, value in fields:
        message.set_raw(name, value)
    return message
