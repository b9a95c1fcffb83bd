"""Adapt http.client: parse responses strictly, without the slow parts of http.client.

All 1xx responses except 101 are skipped (http.client returns a 103 as the final
response), and the total size of the header fields is limited. http.client parses header
fields with the e-mail parser, and urllib3 wraps the response again; these two steps
take as long as all other work for a small file. So this module parses a header in the
usual form itself, and leaves any other header to http.client.

A TLS record has at most 16 KiB. Between http.client and a TLS socket are two objects,
whose methods take as long for one record as the decryption of the record. So a body of
known length is read from the TLS socket itself, once the buffer between them is empty.

This is the only module that overrides or calls private members of http.client. A
contract test (``tests/test_library_contracts.py``) fails when a release of Python
changes them.
"""

from __future__ import annotations

import http.client
import io
import re
import select
import socket
import ssl
import time
from http import HTTPStatus
from typing import Any, BinaryIO, cast

from dlpool.transfer.http.header_fields import (
    CUT_HEADER,
    MAX_FIELDS,
    MAX_HEADER_BYTES,
    HeaderFields,
    parse_usual_fields,
    read_fields,
)
from dlpool.transfer.pipe import Pipe

MAX_CHUNK_LINE = 4 * 1024  # bytes of a chunk's size with its extensions
MAX_INFORMATIONAL = 32  # 1xx responses before the final one
COLLECT_S = 0.02  # seconds after which one read stops collecting
# A read into more than this number of bytes leaves nothing in the buffer of ``fp``: it
# takes the buffered bytes, and the remaining space is larger than the buffer.
_DRAINING_BYTES = 2 * io.DEFAULT_BUFFER_SIZE

# RFC 9112 section 4
_STATUS = re.compile(rb"HTTP/1\.([01]) ([2-9][0-9]{2})(?: ([^\r\n]*))?\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]*)?\r?\n")  # section 7.1
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class StrictResponse(http.client.HTTPResponse):
    """http.client's response with a bounded header and without 1xx responses.

    ``tls_socket``: the socket that the body comes from, None without TLS.
    """

    tls_socket: ssl.SSLSocket | None = None
    _is_drained = False  # the buffer of ``fp`` is empty, and stays so
    _record_error: Exception | None = None  # for the next read

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        # TLS sockets have other classes
        self._plain_socket = sock if type(sock) is socket.socket else None
        self._is_buffer_empty = False  # that of ``fp``

    def begin(self) -> None:
        """Read the header and determine the framing (RFC 9112 section 6.3)."""
        if self.headers is not None:
            return
        if not self._read_usual():
            self._read_unusual()
        coding = (self.headers.get("Transfer-Encoding") or "").lower()
        self.chunked = coding == "chunked"
        self.chunk_left = None
        # RFC 2616 section 3.6
        is_none = coding in ("", "identity") and "Content-Length" in self.headers
        if "Transfer-Encoding" in self.headers and not (self.chunked or is_none):
            # http.client would return the framing as body
            raise http.client.HTTPException(f"Transfer-Encoding is {coding[:80]!r}")
        self.length = self._body_length()
        self.will_close = self._check_close() or (
            not self.chunked and self.length is None
        )

    def readinto1(self, buffer: Any) -> int:
        """Read received bytes into ``buffer`` without a copy, and return their number.

        0 at the end of the body.
        """
        view = memoryview(buffer)
        if self.chunked or self.fp is None:
            data = self.read1(len(view))
            view[: len(data)] = data
            return len(data)
        if self.length is not None:
            view = view[: self.length]
            if self._is_drained:
                return self._read_records(view)
            self._is_drained = (
                self.tls_socket is not None and len(view) > _DRAINING_BYTES
            )
        size: int = self.fp.readinto1(view)
        self._is_buffer_empty = len(view) > _DRAINING_BYTES
        if size == 0 and len(view):
            self._close_conn()  # type: ignore[attr-defined]
        elif self.length is not None:
            self.length -= size
        return size

    def _read_records(self, view: memoryview) -> int:
        """Fill ``view`` with the TLS records that arrive within 20 milliseconds.

        Returns the number of bytes, 0 at the end of the connection. If reading fails
        after some bytes, returns these bytes; the next call raises the exception.
        """
        if self._record_error is not None:
            raise self._record_error
        assert self.tls_socket is not None and self.length is not None
        # Any: with a buffer, ``read`` returns the number of bytes
        receive, clock = cast(Any, self.tls_socket.read), time.monotonic
        size, filled, until = len(view), 0, clock() + COLLECT_S
        try:
            while filled < size:
                count = receive(size - filled, view[filled:])
                filled += count
                if not count or clock() > until:
                    break
        except (OSError, ValueError) as error:
            if not filled:
                raise
            self._record_error = error
        self.length -= filled
        return filled

    @property
    def can_splice(self) -> bool:
        """Whether the next bytes of the body are in a socket without TLS."""
        return (
            self._plain_socket is not None
            and self._is_buffer_empty
            and self.fp is not None
            and not self.chunked
            and bool(self.length)
        )

    def splice1(self, pipe: Pipe, size: int) -> int:
        """Move at most ``size`` received bytes of the body into ``pipe``.

        Call it only if ``can_splice`` is true. Returns the number of bytes; 0 if the
        connection has ended. Waits for the first byte as ``readinto1`` does. Raises
        BlockingIOError if the pipe is full, and OSError with EINVAL if the socket does
        not support splice(2).
        """
        assert self._plain_socket is not None and self.length is not None
        size = min(size, self.length)
        try:
            count = pipe.fill(self._plain_socket.fileno(), size)
        except BlockingIOError:
            _wait_until_readable(self._plain_socket)
            count = pipe.fill(self._plain_socket.fileno(), size)
        if count == 0:
            self._close_conn()  # type: ignore[attr-defined]
        self.length -= count
        return count

    def _read_usual(self) -> bool:
        """Parse the header if it has arrived completely and has the usual form.

        Otherwise consumes nothing and returns False.
        """
        data = self.fp.peek(1)
        status, end = _STATUS.match(data), data.find(b"\r\n\r\n")
        if status is None or end < 0:
            return False
        block = data[status.end() : end + 2].decode("iso-8859-1")
        fields = parse_usual_fields(block)
        if len(fields) != block.count("\n") or len(fields) > MAX_FIELDS:
            return False
        self.fp.read(end + 4)
        self.version = 10 + int(status[1])
        self.code = self.status = int(status[2])
        self.reason = (status[3] or b"").decode("iso-8859-1").strip()
        self.headers = self.msg = cast(Any, HeaderFields(fields))
        return True

    def _read_unusual(self) -> None:
        body = self.fp
        self.fp = cast(Any, _HeaderReader(body))
        try:
            version, self.status, reason = self._read_status()
            self.headers = self.msg = cast(Any, read_fields(self.fp, is_lenient=True))
        finally:
            if isinstance(self.fp, _HeaderReader):  # not when http.client closed it
                self.fp = body
        if not version.startswith(("HTTP/0.9", "HTTP/1.")):
            raise http.client.UnknownProtocol(version)
        self.code, self.reason = self.status, reason.strip()
        self.version = 10 if version in ("HTTP/0.9", "HTTP/1.0") else 11

    def _body_length(self) -> int | None:
        """Return the size of the body in bytes.

        None if chunks or the end of the connection delimit it.
        """
        if (
            self.status in _BODILESS
            or 100 <= self.status < 200
            or self._method == "HEAD"  # type: ignore[attr-defined]
        ):
            return 0
        length = self.headers.get("Content-Length")
        if length is None or self.chunked:
            return None
        try:
            size = int(length)
        except ValueError:
            return None
        return size if size >= 0 else None

    def _get_chunk_left(self) -> int | None:
        """Return the remaining bytes of the chunk, None after the last one.

        Stricter than http.client: there, a size line that was cut off counts as a
        smaller size, and a line that was cut off after a leading 0 counts as the end of
        the body.
        """
        if self.chunk_left:
            return self.chunk_left
        if self.chunk_left is not None and (ending := self.fp.read(2)) != b"\r\n":
            raise (
                http.client.HTTPException("a chunk is too long")
                if ending[1:]
                else http.client.IncompleteRead(b"")
            )
        line = self.fp.readline(MAX_CHUNK_LINE)
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None and line.endswith(b"\n"):
            raise http.client.HTTPException(f"a chunk begins with {line[:80]!r}")
        if size is None:
            raise http.client.IncompleteRead(b"")
        self.chunk_left = int(size[1], 16) or None
        if self.chunk_left is None:
            self._skip_trailer()
            self._close_conn()  # type: ignore[attr-defined]
        return self.chunk_left

    def _skip_trailer(self) -> None:
        """Skip the trailer fields. http.client would read them without a limit."""
        for _ in range(MAX_FIELDS + 1):
            if self.fp.readline(MAX_HEADER_BYTES + 1) in (b"\r\n", b"\n", b""):
                return
        raise http.client.HTTPException(
            f"the trailer has more than {MAX_FIELDS} fields"
        )

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INFORMATIONAL):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:
                return version, status, reason
            read_fields(self.fp)
        raise http.client.HTTPException("too many informational responses")


def _wait_until_readable(sock: socket.socket) -> None:
    """Wait until the socket has bytes, an error or the end. Raises TimeoutError."""
    timeout_s = sock.gettimeout()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(None if timeout_s is None else timeout_s * 1000):
        raise TimeoutError("timed out")


class _HeaderReader:
    """Reads the lines of a header, up to a total size."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._lines.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException(
                f"the header is larger than {MAX_HEADER_BYTES} bytes"
            )
        if line and not line.endswith(b"\n"):
            # the missing part may contain a Content-Length
            raise http.client.RemoteDisconnected(CUT_HEADER)
        return line

    def flush(self) -> None:
        """Do nothing: http.client flushes the files that it closes."""

    def close(self) -> None:
        self._lines.close()
