"""A small HTTP server for probes and metrics. Its memory, its threads and the time for
each client are bounded.

One thread receives the heads of requests and answers probes. If too many connections
wait for their requests, it closes the oldest. A slow answer, such as metrics, takes a
thread of its own; while ``MAX_SLOW`` such threads run, further clients of slow routes
get 503. The standard library's handler parses the requests.
"""

from __future__ import annotations

import io
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.disk_errors import is_out_of_descriptors
from dlpool.kinds import split_address
from dlpool.observe.log import Logger
from dlpool.request_heads import HeadProgress, PendingHeads
from dlpool.version import __version__

# clients must not guess another type of the body (Fetch standard)
NO_SNIFF = "X-Content-Type-Options", "nosniff"
MAX_CONNECTIONS = 64  # that have not sent their request
MAX_SLOW = 2  # slow answers at once
REQUEST_S = 3.0  # for a client to send its request, and again to receive a slow answer
RETRY_S = 5.0  # until the next attempt to bind the address
TURN_S = 0.5
_BACKLOG = 128
_ONE_READ = 8192  # bytes
# bytes to read and drop after an answer: unread bytes would cause a reset of the
# connection, which may destroy the answer
_UNREAD = 64 * 1024


@dataclass(frozen=True)
class ProbeRequest:
    """A request to the server. ``options``: the names in the query; ``accept``: the
    value of the header ``Accept``."""

    options: frozenset[str]
    accept: str


@dataclass(frozen=True)
class ProbeResponse:
    """A response to a ``ProbeRequest``."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Route = Callable[[ProbeRequest], ProbeResponse]


class MonitoringServer:
    """The HTTP server at ``address``. If the server cannot bind the address, it logs
    one line and retries.

    One thread runs ``serve``. Any thread may set ``address``; an empty address switches
    the server off.
    """

    def __init__(
        self,
        address: str,
        routes: Mapping[str, Route],
        log: Logger,
        *,
        slow: frozenset[str] = frozenset({"/metrics"}),
    ) -> None:
        """Create a server, which ``serve`` starts.

        The server answers requests for the paths in ``slow`` in threads of their own.
        All other routes must not block.
        """
        self.address = address
        self._routes = routes
        self._slow = slow
        self._log = log
        self._stopping = threading.Event()
        self._problem = ""

    def __repr__(self) -> str:
        return (
            f"<MonitoringServer "
            f"{self.address or 'off'}{': ' + self._problem if self._problem else ''}>"
        )

    def serve(self) -> None:
        """Serve requests until ``stop`` is called. Never raises."""
        while not self._stopping.is_set():
            try:
                self._serve_at(self.address)
                continue
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or str(error)
            except Exception as error:  # noqa: BLE001 - top of a thread that the service can do without
                reason = f"unexpected {type(error).__name__}: {error}"
            self._log_problem(reason)
            self._stopping.wait(RETRY_S)

    def stop(self) -> None:
        """Let ``serve`` return within half a second."""
        self._stopping.set()

    def _serve_at(self, address: str) -> None:
        """Serve requests at ``address`` until another address is set or ``stop`` is
        called. Raises OSError or OverflowError if ``address`` cannot be bound."""
        if not address:
            self._stopping.wait(TURN_S)
            return
        with _ProbeServer(address, self._routes, self._slow, self._log) as server:
            self._problem = ""
            self._log.info("metrics_listening", listen=address)
            while self.address == address and not self._stopping.is_set():
                server.turn()

    def _log_problem(self, reason: str) -> None:
        if reason != self._problem:
            self._problem = reason
            self._log.warning(
                "metrics_bind_failed",
                listen=self.address,
                reason=f"cannot listen there: {reason}",
                delay_s=RETRY_S,
            )


class _ProbeServer:
    """The listening socket and its connections, as a context manager. One thread calls
    ``turn``."""

    def __init__(
        self,
        address: str,
        routes: Mapping[str, Route],
        slow: frozenset[str],
        log: Logger,
    ) -> None:
        self._routes = routes
        self._slow = slow
        self._log = log
        self._heads: PendingHeads[socket.socket] = PendingHeads()
        self._slow_slots = threading.BoundedSemaphore(MAX_SLOW)
        host, port = split_address(address)
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, *_, where = found[0]
        self._listener = socket.create_server(
            (str(where[0]), int(where[1])), family=family, backlog=_BACKLOG
        )
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def __enter__(self) -> _ProbeServer:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in list(self._heads):
            self._drop(sock)
        self._selector.close()
        self._listener.close()

    def turn(self) -> None:
        """Wait up to half a second for connections and data, and answer complete
        requests."""
        for key, _ in self._selector.select(
            min(TURN_S, self._heads.next_timeout_s(time.monotonic()))
        ):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._heads:
                self._receive(key.fileobj)
        for sock in self._heads.expired(time.monotonic()):
            self._drop(sock)

    def _accept(self) -> None:
        """Accept a connection. If too many connections wait for their requests, close
        the oldest."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if is_out_of_descriptors(error) and not self._drop_oldest():
                time.sleep(TURN_S)  # the socket stays readable: do not spin
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)
        self._heads.add(sock, time.monotonic() + REQUEST_S)
        if len(self._heads) > MAX_CONNECTIONS:
            self._drop_oldest()

    def _receive(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_ONE_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        progress = (
            self._heads.feed(sock, data, time.monotonic() + REQUEST_S)
            if data
            else HeadProgress.TOO_LONG
        )
        if progress is HeadProgress.TOO_LONG:
            self._drop(sock)
        elif progress is HeadProgress.COMPLETE:
            self._selector.unregister(sock)
            self._serve(sock, self._heads.remove(sock))

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._heads.remove(sock)
        sock.close()

    def _drop_oldest(self) -> bool:
        oldest = self._heads.oldest()
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _serve(self, sock: socket.socket, head: bytes) -> None:
        try:
            self._answer(
                sock, head, {**self._routes, **dict.fromkeys(self._slow, _take_longer)}
            )
        except _TakesLonger:
            if not self._start(sock, head):
                self._answer(sock, head, dict.fromkeys(self._slow, _too_busy))

    def _start(self, sock: socket.socket, head: bytes) -> bool:
        """Start a thread for a slow answer. Return False if ``MAX_SLOW`` such threads
        run already, or if no thread can be started."""
        if not self._slow_slots.acquire(blocking=False):
            return False
        try:
            threading.Thread(
                target=self._answer_slowly, args=(sock, head), daemon=True
            ).start()
        except RuntimeError:  # no more threads
            self._slow_slots.release()
            return False
        return True

    def _answer_slowly(self, sock: socket.socket, head: bytes) -> None:
        try:
            sock.settimeout(REQUEST_S)  # for all of sendall
            self._answer(sock, head, self._routes)
        finally:
            self._slow_slots.release()

    def _answer(
        self, sock: socket.socket, head: bytes, routes: Mapping[str, Route]
    ) -> None:
        """Send one answer; ignore a client that has disconnected. Raises _TakesLonger
        if the route needs a thread of its own."""
        answer = b""
        try:
            answer = _ProbeHandler(head, routes).wfile.getvalue()
        except _TakesLonger:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of one route
            self._log.error("metrics_failed", error=error)
        with sock, suppress(OSError):
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            sock.recv(_UNREAD)


class _TakesLonger(Exception):
    """The route needs a thread of its own."""


def _take_longer(_: ProbeRequest) -> ProbeResponse:
    raise _TakesLonger


def _too_busy(_: ProbeRequest) -> ProbeResponse:
    return ProbeResponse(
        b"too many requests at once, try again\n", status=HTTPStatus.SERVICE_UNAVAILABLE
    )


class _ProbeHandler(BaseHTTPRequestHandler):
    """The handler of one request: reads the request from memory and writes the answer
    to memory. It uses HTTP/1.0, so each connection serves one request."""

    rfile: io.BytesIO
    wfile: io.BytesIO
    server_version = f"dlpool/{__version__}"
    sys_version = ""
    # otherwise a malformed request gets an answer of HTTP/0.9, without a head
    default_request_version = "HTTP/1.0"

    def __init__(self, head: bytes, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self.rfile, self.wfile = io.BytesIO(head), io.BytesIO()
        self.client_address = ("", 0)
        self.handle()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        route = self._routes.get(path)
        if route is None:
            paths = " ".join(sorted(self._routes))
            response = ProbeResponse(
                f"no such path; available are {paths}\n".encode(),
                status=HTTPStatus.NOT_FOUND,
            )
        else:
            options = frozenset(option.partition("=")[0] for option in query.split("&"))
            response = route(ProbeRequest(options, self.headers.get("Accept", "")))
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """Add ``X-Content-Type-Options: nosniff`` to each answer, including the
        library's own error answers."""
        self.send_header(*NO_SNIFF)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing, so that the library does not log requests."""
