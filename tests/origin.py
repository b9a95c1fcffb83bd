"""A scripted HTTP origin on raw sockets: it can break HTTP in every way that a test wants."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

LAST_MODIFIED = "Tue, 01 Oct 2024 10:00:00 GMT"
DATE = "Wed, 02 Oct 2024 10:00:00 GMT"


class Range(NamedTuple):
    """``bytes=start-last`` as a half-open range; ``end`` None is "to the end"."""

    start: int
    end: int | None


@dataclass(frozen=True)
class Request:
    """One request; ``number`` counts all of the origin's, from 1, ``connection`` its connections."""

    method: str
    path: str
    headers: Mapping[str, str]
    number: int
    connection: int

    @property
    def range(self) -> Range | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return Range(int(match[1]), int(match[2]) + 1 if match[2] else None) if match else None


class Hangup(Exception):
    """The handler wants the connection closed."""


class Connection:
    """A connection to one client. Sending to a client that has gone ends the handler."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self._socket = sock
        self._buffer = b""

    @property
    def peer_port(self) -> int:
        """The client's port."""
        return int(self._socket.getpeername()[1])

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Hangup from error

    def answer(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        length: bool = True,
        date: str | None = DATE,
    ) -> None:
        """Send a whole answer; ``length=False`` leaves Content-Length out, ``date=None`` Date."""
        fields = {**({} if date is None else {"Date": date}), **(headers or {})}
        if length:
            fields.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.send(f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode("latin-1") + body)

    def read_body(self, size: int) -> bytes:
        """The body of the request that was read last."""
        while len(self._buffer) < size:
            data = self._socket.recv(65536)
            if not data:
                raise Hangup
            self._buffer += data
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return body

    def reset(self) -> None:
        """Close with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        raise Hangup

    def hang_up(self) -> None:
        """Close in order; over TLS without close_notify, as an attacker on the way would."""
        raise Hangup

    def close_notify(self) -> None:
        """End TLS in order, and close."""
        assert isinstance(self._socket, ssl.SSLSocket)
        self._socket.settimeout(5.0)
        with suppress(OSError):
            self._socket.unwrap()
        raise Hangup

    def wait_for_client_to_go(self, timeout_s: float = 20.0) -> None:
        """Answer nothing more until the client closes."""
        self._socket.settimeout(timeout_s)
        with suppress(OSError):
            while self._socket.recv(65536):
                pass
        raise Hangup

    def read_request(self, number: Callable[[], int]) -> Request | None:
        while b"\r\n\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            if not data:
                return None
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _version = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return Request(method, path, headers, number(), self.number)


Handler = Callable[[Request, Connection], None]


class Origin:
    """A server on a free loopback port. Use as a context manager; ``requests`` is what has come so far."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.open_connections = 0
        self.most_connections = 0
        self._tls = tls
        self._lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), backlog=64, family=family)
        self._sockets: set[socket.socket] = set()
        self._connections = 0
        self._numbers = 0
        self.port = self._listener.getsockname()[1]
        scheme = "http" if tls is None else "https"
        name = "localhost" if tls else host if family == socket.AF_INET else "127.0.0.1"
        self.url = f"{scheme}://{name}:{self.port}"

    def __enter__(self) -> Origin:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes its thread, which a close alone leaves waiting
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def ranges(self) -> list[Range]:
        """The ranges that GETs asked for."""
        return [request.range for request in self.requests if request.method == "GET" and request.range]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _address = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for its head's ACK
                with self._lock:
                    self._connections += 1
                    number = self._connections
                    self._sockets.add(sock)
                    self.open_connections += 1
                    self.most_connections = max(self.most_connections, self.open_connections)
                threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with suppress(OSError, Hangup, ValueError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            connection = Connection(sock, number)
            while (request := connection.read_request(self._next)) is not None:
                with self._lock:
                    self.requests.append(request)
                self.handler(request, connection)
        with self._lock:
            self.open_connections -= 1
            self._sockets.discard(sock)
        with suppress(OSError):
            sock.close()

    def _next(self) -> int:
        with self._lock:
            self._numbers += 1
            return self._numbers


@dataclass
class File:
    """A well-behaved handler for one file; tests replace what they want to break."""

    data: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = LAST_MODIFIED
    date: str | None = DATE
    serves_ranges: bool = True
    extra: dict[str, str] = field(default_factory=dict)
    block: int = 256 * 1024
    pause_s: float = 0.0  # between blocks
    sent: int = 0

    def __call__(self, request: Request, connection: Connection) -> None:
        headers = self.headers()
        span = request.range if self.serves_ranges and self.matches_if_range(request) else None
        if request.method == "HEAD":
            connection.answer(200, {**headers, "Content-Length": str(len(self.data))}, date=self.date)
        elif span is None:
            self.stream(connection, 200, headers, 0, len(self.data))
        elif span.start >= len(self.data):
            connection.answer(416, {"Content-Range": f"bytes */{len(self.data)}"})
        else:
            end = min(len(self.data), span.end or len(self.data))
            headers["Content-Range"] = f"bytes {span.start}-{end - 1}/{len(self.data)}"
            self.stream(connection, 206, headers, span.start, end)

    def headers(self) -> dict[str, str]:
        known = {"ETag": self.etag, "Last-Modified": self.last_modified}
        return {**{name: value for name, value in known.items() if value is not None}, **self.extra}

    def matches_if_range(self, request: Request) -> bool:
        return request.headers.get("if-range") in (None, self.etag, self.last_modified)

    def stream(self, connection: Connection, status: int, headers: dict[str, str], start: int, end: int) -> None:
        head = {"Content-Length": str(end - start), **headers}
        connection.answer(status, head, length=False, date=self.date)
        pause = threading.Event()
        for low in range(start, end, self.block):
            part = self.data[low : min(low + self.block, end)]
            connection.send(part)
            self.sent += len(part)
            if self.pause_s:
                pause.wait(self.pause_s)


class FolderOrigin(Origin):
    """Serves the files of a folder, each connection at about ``rate`` bytes/s."""

    def __init__(self, folder: Path, rate: int) -> None:
        super().__init__(self._answer)
        self._folder = folder
        self._rate = rate

    def _answer(self, request: Request, connection: Connection) -> None:
        path = self._folder / request.path.lstrip("/")
        block = 256 * 1024
        File(path.read_bytes(), block=block, pause_s=block / self._rate)(request, connection)
