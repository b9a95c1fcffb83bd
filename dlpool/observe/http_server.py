"""A small HTTP server for probes and metrics that no client can make the process hang
or grow with.

One thread receives the heads of requests from a bounded number of connections, the
oldest of which makes room for the next one, and answers probes. What takes longer has a
thread for each of a few clients, and is refused to others. What is asked is parsed by
the standard library's handler; here are only the bounds.
"""

from __future__ import annotations

import io
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from dlpool import __version__
from dlpool.kinds import split_address
from dlpool.observe.log import Logger
from dlpool.request_heads import HeadProgress, PendingHeads
from dlpool.threads import is_out_of_descriptors

NO_SNIFF = (
    "X-Content-Type-Options",
    "nosniff",
)  # of all answers: the body is what its type says (Fetch standard)
MAX_CONNECTIONS = 64  # whose request has not come
MAX_SLOW = 2  # answers at once that take longer
REQUEST_S = (
    3.0  # for a client to send its request, and as long again to take the answer
)
RETRY_S = 5.0  # until the next try to listen
TURN_S = 0.5
_BACKLOG = 128
_ONE_READ = 8192  # bytes
_LEFT = (
    64 * 1024
)  # bytes that are read and dropped, so that an answer is not lost by a reset


@dataclass(frozen=True)
class ProbeRequest:
    """What is asked. ``options``: the names in the query."""

    options: frozenset[str]
    accept: str


@dataclass(frozen=True)
class ProbeResponse:
    """What is answered."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Route = Callable[[ProbeRequest], ProbeResponse]


class MonitoringServer:
    """Listens at ``address`` as long as that is possible: where it is not, it warns
    once, and tries again.

    ``serve`` is a thread; ``address`` may be set at any time, empty means nowhere.
    """

    def __init__(
        self,
        address: str,
        routes: Mapping[str, Route],
        log: Logger,
        *,
        slow: frozenset[str] = frozenset({"/metrics"}),
    ) -> None:
        """``slow``: paths whose answers are made in threads of their own; all others
        must not wait for anything."""
        self.address = address
        self._routes = routes
        self._slow = slow
        self._log = log
        self._stopping = threading.Event()
        self._complaint = ""

    def __repr__(self) -> str:
        return (
            f"<Listener "
            f"{self.address or 'off'}{': ' + self._complaint if self._complaint else ''}>"
        )

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
        with _Server(address, self._routes, self._slow, self._log) as server:
            self._complaint = ""
            self._log.info("metrics_listening", listen=address)
            while self.address == address and not self._stopping.is_set():
                server.turn()

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            self._log.warning(
                "metrics_unheard",
                listen=self.address,
                reason=f"cannot listen there: {reason}",
                delay_s=RETRY_S,
            )


class _Server:
    """A context; ``turn`` by one thread."""

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
        self._places = threading.BoundedSemaphore(MAX_SLOW)
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

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in list(self._heads):
            self._drop(sock)
        self._selector.close()
        self._listener.close()

    def turn(self) -> None:
        """Serve whoever is there, or wait a moment."""
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
        """Take a connection; the oldest of those that are silent makes room."""
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if is_out_of_descriptors(error) and not self._drop_oldest():
                time.sleep(TURN_S)  # it would be tried again at once, and again
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
                self._answer(sock, head, dict.fromkeys(self._slow, _crowded))

    def _start(self, sock: socket.socket, head: bytes) -> bool:
        """Answer in a thread, which ends by itself within its seconds; False if there
        is none for it."""
        if not self._places.acquire(blocking=False):
            return False
        try:
            threading.Thread(
                target=self._answer_slowly, args=(sock, head), daemon=True
            ).start()
        except RuntimeError:  # no more threads
            self._places.release()
            return False
        return True

    def _answer_slowly(self, sock: socket.socket, head: bytes) -> None:
        try:
            sock.settimeout(REQUEST_S)  # of sendall: limits the whole of it
            self._answer(sock, head, self._routes)
        finally:
            self._places.release()

    def _answer(
        self, sock: socket.socket, head: bytes, routes: Mapping[str, Route]
    ) -> None:
        """Send one answer; a client that went away, or takes none, is no news. Raises
        _TakesLonger."""
        said = b""
        try:
            said = _Handler(head, routes).wfile.getvalue()
        except _TakesLonger:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of one page
            self._log.error("metrics_failed", error=error)
        with sock, suppress(OSError):
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            sock.setblocking(False)
            sock.recv(_LEFT)


class _TakesLonger(Exception):
    """What is asked for has a thread of its own."""


def _take_longer(_: ProbeRequest) -> ProbeResponse:
    raise _TakesLonger


def _crowded(_: ProbeRequest) -> ProbeResponse:
    return ProbeResponse(
        b"too many ask for this just now, try again\n",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
    )


class _Handler(BaseHTTPRequestHandler):
    """One request, in memory; HTTP/1.0, so that the connection ends with it."""

    rfile: io.BytesIO
    wfile: io.BytesIO
    server_version = f"dlpool/{__version__}"
    sys_version = ""
    # else what cannot be read gets an answer without a head, as of HTTP/0.9
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
            reply = ProbeResponse(
                f"there is nothing here; there are {paths}\n".encode(),
                status=HTTPStatus.NOT_FOUND,
            )
        else:
            options = frozenset(option.partition("=")[0] for option in query.split("&"))
            reply = route(ProbeRequest(options, self.headers.get("Accept", "")))
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        """Of the library's own answers, too."""
        self.send_header(*NO_SNIFF)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are no news."""
