"""A client of clamd that scans one file per connection, by INSTREAM; see clamd(8)."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

from dlpool.dataclass import dataclass
from dlpool.kinds import split_clamd
from dlpool.scan.deadline import ScanDeadline, ScanTimedOut
from dlpool.scan.result import UNAVAILABLE, ScanResult, printable_line, read_answer
from dlpool.scan.scannedfile import ScannedFile

# bytes of a chunk, which must not exceed clamd's StreamMaxLength (25 MB by default)
BLOCK = 256 * 1024
MAX_ANSWER = 4096
_CONNECTING = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})
_CONNECTED = frozenset({0, errno.EISCONN})


class _ConnectionLost(Exception):
    """The connection to clamd failed; the message says how."""


@dataclass(frozen=True)
class ClamdScanner:
    """A scanner that sends files to clamd.

    Thread-safe: each scan has its own connection. ``address``: ``unix:PATH`` or
    ``tcp://HOST:PORT``.
    """

    address: str

    def scan(self, file: ScannedFile, deadline: ScanDeadline) -> ScanResult:
        """Send the file and return clamd's result.

        Raises OSError, and what ``deadline.check_abort`` raises.
        """
        try:
            with closing(self._connect(deadline)) as connection:
                return _exchange(connection, file, deadline)
        except ScanTimedOut:
            return ScanResult(
                UNAVAILABLE, f"it did not answer within {deadline.timeout_s:g} s"
            )
        except _ConnectionLost as error:
            return ScanResult(UNAVAILABLE, str(error))

    def _connect(self, deadline: ScanDeadline) -> socket.socket:
        """Return a non-blocking connection.

        Raises OSError, _ConnectionLost, and what ``ScanDeadline.left_s`` raises.
        """
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
        raise _ConnectionLost(f"it cannot be reached: {failure}")

    def _targets(self) -> Iterator[tuple[int, object]]:
        address = split_clamd(self.address)
        if isinstance(address, str):
            yield socket.AF_UNIX, address
            return
        try:
            found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _ConnectionLost(f"its host cannot be resolved: {error}") from error
        yield from ((family, target) for family, _, _, _, target in found)


def _connected(
    connection: socket.socket, target: object, deadline: ScanDeadline
) -> int:
    """Connect, and return the last errno, a value in ``_CONNECTED`` for success.

    Raises _ConnectionLost, and what ``ScanDeadline.left_s`` raises.
    """
    poller = select.poll()
    poller.register(connection, select.POLLOUT)
    while True:
        try:
            code = connection.connect_ex(target)  # type: ignore[arg-type]  # a path or a socket address
        except (OSError, ValueError) as error:  # a path that is too long for a socket
            raise _ConnectionLost(f"it cannot be reached: {error}") from error
        if code in _CONNECTING:
            deadline.wait(poller)
        elif code == errno.EAGAIN:  # the queue of a Unix socket is full (connect(2))
            deadline.pause()
        else:
            return code


def _exchange(
    connection: socket.socket, file: ScannedFile, deadline: ScanDeadline
) -> ScanResult:
    poller = select.poll()
    poller.register(connection, select.POLLIN | select.POLLOUT)
    for block in _request(file):
        if not _sent(connection, block, poller, deadline):
            return read_answer(_answer(connection, deadline), is_complete=False)
    return read_answer(_answer(connection, deadline), is_complete=True)


def _request(file: ScannedFile) -> Iterator[bytes]:
    """Yield the command, the chunks with their lengths, and the terminator.

    Raises OSError if the file cannot be read.
    """
    yield b"zINSTREAM\0"
    for block in file.blocks(BLOCK):
        yield struct.pack(">I", len(block))
        yield block
    yield struct.pack(">I", 0)


def _sent(
    connection: socket.socket, data: bytes, poller: select.poll, deadline: ScanDeadline
) -> bool:
    """Send all of ``data``. Return True if all was sent.

    Return False if the scanner answered or closed the connection before.
    """
    remaining = memoryview(data)
    while remaining:
        if deadline.wait(poller) & (select.POLLIN | select.POLLHUP | select.POLLERR):
            return False
        try:
            remaining = remaining[connection.send(remaining) :]
        except BlockingIOError:
            continue
        except OSError:
            # an answer sent before clamd closed the connection can still be read
            return False
    return True


def _answer(connection: socket.socket, deadline: ScanDeadline) -> bytes:
    """Read the answer up to its NUL, the end of the stream, or ``MAX_ANSWER`` bytes."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    answer = b""
    while not answer.endswith(b"\0") and len(answer) < MAX_ANSWER:
        deadline.wait(poller)
        try:
            data = connection.recv(MAX_ANSWER)
        except BlockingIOError:
            continue
        except OSError as error:
            raise _ConnectionLost(
                "it broke the connection: "
                f"{printable_line(error.strerror or str(error))}"
            ) from error
        if not data:
            break
        answer += data
    return answer
