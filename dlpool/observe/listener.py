"""A small HTTP server for probes and metrics, in threads, that no client can make the process hang or grow with.

A few connections at once, each with one request and a few seconds for all of it. What is asked is read by the standard
library's handler; here are only the bounds.
"""

from __future__ import annotations

import io
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from dlpool import __version__
from dlpool.kinds import split_address
from dlpool.observe.log import Logger

MAX_CONNECTIONS = 8
REQUEST_S = 3.0  # for a client to send its request, and as long again to take the answer
MAX_REQUEST = 16 * 1024  # bytes
RETRY_S = 5.0  # until the next try to listen
TURN_S = 0.5


@dataclass(frozen=True)
class Request:
    """What is asked. ``options``: the names in the query."""

    options: frozenset[str]
    accept: str


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Route = Callable[[Request], Reply]


class Listener:
    """Listens at ``address`` as long as that is possible: where it is not, it warns once, and tries again.

    ``serve`` is a thread; ``address`` may be set at any time, empty means nowhere.
    """

    def __init__(self, address: str, routes: Mapping[str, Route], log: Logger) -> None:
        self.address = address
        self._routes = routes
        self._log = log
        self._stopping = threading.Event()
        self._complaint = ""

    def __repr__(self) -> str:
        return f"<Listener {self.address or 'off'}{': ' + self._complaint if self._complaint else ''}>"

    def serve(self) -> None:
        """Until ``stop``. Never raises."""
        while not self._stopping.is_set():
            try:
                self._serve_at(self.address)
                continue
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
            except Exception as error:  # noqa: BLE001 - top of a thread that the service can do without
                reason = f"unexpected {type(error).__name__}: {error}"
            self._complain(reason)
            self._stopping.wait(RETRY_S)

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def _serve_at(self, address: str) -> None:
        """Until that is not the address any more. Raises OSError."""
        if not address:
            self._stopping.wait(TURN_S)
            return
        with _Server(address, self._routes, self._log) as server:
            self._complaint = ""
            self._log.info("metrics_listening", listen=address)
            while self.address == address and not self._stopping.is_set():
                server.handle_request()

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            self._log.warning("metrics_unheard", listen=self.address, reason=f"cannot listen there: {reason}",
                              delay_s=RETRY_S)  # fmt: skip


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # a thread ends by itself within its seconds
    request_queue_size = 16
    timeout = TURN_S

    def __init__(self, address: str, routes: Mapping[str, Route], log: Logger) -> None:
        self.routes = routes
        self._log = log
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        host, port = split_address(address)
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, where = found[0]
        super().__init__((str(where[0]), int(where[1])), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(TURN_S)  # no more descriptors: it would be tried again at once, and again
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the library calls it
        """A client that went away, or sent nonsense, is no news."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._log.error("metrics_failed", error=error)


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so that the connection ends with it."""

    server: _Server
    server_version = f"dlpool/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        """Read the request as a whole, so that its time is limited as a whole; what comes later is not looked at."""
        self.connection: socket.socket = self.request
        self.rfile = io.BytesIO(_head_of(self.connection))
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the answer; a timeout of sendall limits the whole of it."""
        self.connection.settimeout(REQUEST_S)
        self.connection.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        route = self.server.routes.get(path)
        if route is None:
            paths = " ".join(sorted(self.server.routes))
            reply = Reply(f"there is nothing here; there are {paths}\n".encode(), status=HTTPStatus.NOT_FOUND)
        else:
            options = frozenset(option.partition("=")[0] for option in query.split("&"))
            reply = route(Request(options, self.headers.get("Accept", "")))
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are no news."""


def _head_of(connection: socket.socket) -> bytes:
    """The request up to its empty line. Raises OSError for a client that takes too long, or says too much."""
    until = time.monotonic() + REQUEST_S
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        connection.settimeout(max(0.001, until - time.monotonic()))
        part = connection.recv(MAX_REQUEST + 1 - len(head))
        head += part
        if not part or len(head) > MAX_REQUEST or time.monotonic() >= until:
            raise OSError("no request")
    return head
