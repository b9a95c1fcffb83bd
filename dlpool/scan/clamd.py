"""A client of clamd: one file over one connection, by INSTREAM; see clamd(8)."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from dlpool.kinds import split_clamd
from dlpool.scan.deadline import ScanDeadline, ScanTimedOut
from dlpool.scan.result import UNAVAILABLE, ScanResult, printable_line, read_answer
from dlpool.scan.scannedfile import ScannedFile

BLOCK = (
    256 * 1024
    # bytes of a chunk; a chunk may not be longer than StreamMaxLength, which is 25M or
    # more
)
MAX_ANSWER = 4096
_CONNECTING = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})
_CONNECTED = frozenset({0, errno.EISCONN})


class _Lost(Exception):
    """The connection failed; the message says how."""


@dataclass(frozen=True)
class ClamdScanner:
    """Thread-safe: each scan has a connection of its own. ``address``: ``unix:PATH`` or
    ``tcp://HOST:PORT``."""

    address: str

    def scan(self, suspect: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Send the file and return the answer. Raises OSError if the file cannot be
        read, and what ends the scan."""
        try:
            with closing(self._connect(deadline)) as connection:
                return _exchange(connection, suspect, deadline)
        except ScanTimedOut:
            return ScanResult(
                UNAVAILABLE, f"it did not answer within {deadline.timeout_s:g} s"
            )
        except _Lost as error:
            return ScanResult(UNAVAILABLE, str(error))

    def _connect(self, deadline: ScanDeadline) -> socket.socket:
        """Return a connection that does not block. Raises _Lost, TooSlow, and what ends
        the scan."""
        failure = "its host has no address"
        for family, target in self._targets():
            connection = socket.socket(
                family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
            try:
                code = _connected(connection, target, deadline)
            except BaseException:
                connection.close()
                raise
            if code in _CONNECTED:
                return connection
            connection.close()
            failure = os.strerror(code)
        raise _Lost(f"it cannot be reached: {failure}")

    def _targets(self) -> Iterator[tuple[int, object]]:
        place = split_clamd(self.address)
        if isinstance(place, str):
            yield socket.AF_UNIX, place
            return
        try:
            found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _Lost(f"its host cannot be resolved: {error}") from error
        yield from ((family, target) for family, _, _, _, target in found)


def _connected(
    connection: socket.socket, target: object, deadline: ScanDeadline
) -> int:
    """Connect, and return the errno of the result. Raises TooSlow, and what ends the
    scan."""
    waiting = select.poll()
    waiting.register(connection, select.POLLOUT)
    while True:
        try:
            code = connection.connect_ex(target)  # type: ignore[arg-type]  # a path or a socket address
        except (OSError, ValueError) as error:  # a path that is too long for a socket
            raise _Lost(f"it cannot be reached: {error}") from error
        if code in _CONNECTING:
            deadline.wait(waiting)
        elif code == errno.EAGAIN:  # the queue of a Unix socket is full (connect(2))
            deadline.pause()
        else:
            return code


def _exchange(
    connection: socket.socket, suspect: ScannedFile, deadline: ScanDeadline
) -> ScanResult:
    waiting = select.poll()
    waiting.register(connection, select.POLLIN | select.POLLOUT)
    for block in _request(suspect):
        if not _sent(connection, block, waiting, deadline):
            return read_answer(_answer(connection, deadline), is_complete=False)
    return read_answer(_answer(connection, deadline), is_complete=True)


def _request(suspect: ScannedFile) -> Iterator[bytes]:
    """Yield the command, the chunks with their lengths, and the end. Raises OSError if
    the file cannot be read."""
    yield b"zINSTREAM\0"
    for block in suspect.blocks(BLOCK):
        yield struct.pack(">I", len(block))
        yield block
    yield struct.pack(">I", 0)


def _sent(
    connection: socket.socket, data: bytes, waiting: select.poll, deadline: ScanDeadline
) -> bool:
    """Send all of ``data``; return False if the scanner answered or closed the
    connection before that."""
    left = memoryview(data)
    while left:
        if deadline.wait(waiting) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return False
        try:
            left = left[connection.send(left) :]
        except BlockingIOError:
            continue
        except OSError:
            return (
                False  # what it said before it closed the connection can still be read
            )
    return True


def _answer(connection: socket.socket, deadline: ScanDeadline) -> bytes:
    """Return what the scanner says until its NUL, until it closes the connection, or
    until it has said too much."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    answer = b""
    while not answer.endswith(b"\0") and len(answer) < MAX_ANSWER:
        deadline.wait(waiting)
        try:
            data = connection.recv(MAX_ANSWER)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _Lost(
                f"it broke the connection: "
                f"{printable_line(error.strerror or str(error))}"
            ) from error
        if not data:
            break
        answer += data
    return answer
