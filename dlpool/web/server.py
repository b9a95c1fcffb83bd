"""gunicorn with what it lacks: a client that stalls or drips is cut off, within the head of a request and its body."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn import http
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.workers.gthread import ThreadWorker

from dlpool import jsontext
from dlpool.observe.log import Log
from dlpool.web.body import BrokenBody, TooSlow
from dlpool.web.settings import WebSettings

MAX_RECEIVE = 256 * 1024  # bytes: what a thread may hold of a body at once
HURRIED_S = 0.5  # for a head, when half of the threads wait for one
_STATUSES = {
    "LimitRequestLine": (414, "URI Too Long"), "LimitRequestHeaders": (431, "Request Header Fields Too Large"),
    "ExpectationFailed": (417, "Expectation Failed"), "UnsupportedTransferCoding": (501, "Not Implemented"),
}  # fmt: skip


class Pace:
    """How slow a client may be: ``timeout_s`` of silence; ``rate`` bytes a second over each ``window_s`` of waiting.

    Only the time in which we wait for the client counts. Used by one thread.
    """

    def __init__(self, timeout_s: float, rate: int, window_s: float) -> None:
        self._timeout_s = timeout_s
        self._rate = rate
        self._window_s = window_s
        self._waited_s = 0.0
        self._got = 0

    def patience_s(self) -> float:
        """How long to wait for the next bytes."""
        return min(self._timeout_s, max(0.001, self._window_s - self._waited_s)) if self._rate else self._timeout_s

    def count(self, got: int, waited_s: float) -> None:
        """So many bytes came after so long, 0 for none. Raises TooSlow."""
        self._waited_s += waited_s
        self._got += got
        if not got and waited_s >= self._timeout_s:
            raise TooSlow(f"nothing came for {self._timeout_s:g} s")
        if self._rate and self._waited_s >= self._window_s:
            if self._got < self._rate * self._window_s:
                raise TooSlow(f"fewer than {self._rate} bytes a second came for {self._window_s:g} s")
            self._waited_s, self._got = 0.0, 0


class PacedSocket:
    """What gunicorn reads a connection from. Used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deadline: float | None = None
        self._pace: Pace | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def expect_head(self, patience_s: float) -> None:
        """The head of a request has to be here within so long."""
        self._deadline, self._pace = time.monotonic() + patience_s, None

    def expect_body(self, pace: Pace) -> None:
        """From now on a body may come at this pace."""
        self._deadline, self._pace = None, pace

    def recv(self, size: int) -> bytes:
        """Some bytes, none at the end. Raises TooSlow, OSError."""
        size = min(size, MAX_RECEIVE)
        while True:
            begun = time.monotonic()
            is_there = self._wait()
            data = self._sock.recv(size) if is_there else b""
            if self._pace is not None and (data or not is_there):
                self._pace.count(len(data), time.monotonic() - begun)
            if is_there:
                return data

    def _wait(self) -> bool:
        patience_s = None
        if self._deadline is not None:
            patience_s = self._deadline - time.monotonic()
            if patience_s <= 0:
                raise TooSlow("the head of the request did not come in time")
        elif self._pace is not None:
            patience_s = self._pace.patience_s()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(None if patience_s is None else patience_s * 1000 + 1))


class CheckedBody:
    """gunicorn's body of a request, whose errors are ``BrokenBody`` and ``TooSlow``.

    ``100 Continue`` is sent with the first read, so that a request which is refused before sends no body.
    """

    def __init__(self, body: Any, sock: socket.socket, *, is_awaited: bool) -> None:
        self._body = body
        self._sock = sock
        self._is_awaited = is_awaited

    @property
    def failed(self) -> bool:
        """Whether the connection cannot be used again: it is not known where the next request begins."""
        return bool(getattr(self._body, "failed", False)) or self._is_awaited

    def read(self, size: int | None = None) -> bytes:
        """Up to ``size`` bytes, none at the end. Raises BrokenBody, TooSlow."""
        if self._is_awaited:
            self._is_awaited = False
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            data: bytes = self._body.read(size)
        except TooSlow:
            raise
        except (OSError, http.errors.ParseException) as error:
            raise BrokenBody(str(error) or "the connection broke") from error
        return data


class WebWorker(ThreadWorker):  # type: ignore[misc]
    """A worker process whose threads no client can keep."""

    settings = WebSettings()
    _waiting = 0  # threads that wait for a head; a count that is off by one does no harm

    def handle(self, conn: Any) -> Any:
        """As gunicorn's, but the head of the request must come within its time."""
        self._waiting += 1
        try:
            self._expect_head(conn)
            return super().handle(conn)
        except TooSlow:
            return False
        finally:
            self._waiting -= 1

    def handle_request(self, req: Any, conn: Any) -> Any:
        """As gunicorn's, but the body must come at its pace, and the client must take its answer."""
        web = self.settings
        self._waiting -= 1
        try:
            conn.sock.settimeout(web.body_timeout)
            conn.parser.unreader.sock.expect_body(Pace(web.body_timeout, web.body_rate, web.body_rate_time))
            is_awaited = bool(getattr(req, "_expected_100_continue", False))
            req._expected_100_continue = False
            req.body = CheckedBody(req.body, conn.sock, is_awaited=is_awaited)
            return super().handle_request(req, conn)
        finally:
            self._waiting += 1

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP in the one shape of all errors."""
        if not isinstance(exc, http.errors.ParseException):
            self.log.exception("error in a request")
            return
        status, reason = _STATUSES.get(type(exc).__name__, (400, "Bad Request"))
        body = jsontext.dumps({"error": f"this is no request that can be read: {exc}", "code": "bad_request"})
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.settimeout(self.settings.body_timeout)
            client.sendall(head.encode() + body)
        except OSError:
            self.log.debug("the client is gone")

    def _expect_head(self, conn: Any) -> None:
        patience_s = self.settings.head_timeout if self._waiting <= self.cfg.threads // 2 else HURRIED_S
        if not conn.initialized:
            init = conn.init

            def paced_init() -> None:
                init()
                conn.parser.unreader.sock = PacedSocket(conn.parser.unreader.sock)
                conn.parser.unreader.sock.expect_head(patience_s)

            conn.init = paced_init
        elif isinstance(conn.parser.unreader.sock, PacedSocket):
            conn.parser.unreader.sock.expect_head(patience_s)


class ServerLog(GunicornLogger):  # type: ignore[misc]
    """Puts what gunicorn says into our log. Requests are logged by the application."""

    target: Log

    def setup(self, cfg: Any) -> None:
        """Nothing: the log is there."""
        self.loglevel = 0
        self._logger = self.target.logger("web")

    def critical(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What ends the server."""
        self._logger.error("server_failed", reason=_text(msg, args))

    def error(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What a worker did not survive."""
        self._logger.error("server_failed", reason=_text(msg, args))

    def exception(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The same, with what was raised."""
        import sys

        self._logger.error("server_failed", reason=_text(msg, args), error=sys.exc_info()[1])

    def warning(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What goes on."""
        self._logger.warning("server_warned", reason=_text(msg, args))

    def info(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The course of its processes."""
        self._logger.debug("server_said", reason=_text(msg, args))

    def debug(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Nothing."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: see ``gate``."""

    def reopen_files(self) -> None:
        """Our log follows its name by itself."""
        self.target.reopen()

    def close_on_exec(self) -> None:
        """Python's files are so already."""


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, set by our settings, at a listening descriptor; ``load`` makes the application, in each worker."""

    def __init__(self, listener: int, settings: WebSettings, log: Log, processes: int,
                 load: Callable[[], Any]) -> None:  # fmt: skip
        self._load = load
        self._options = {
            "bind": f"fd://{listener}", "workers": processes, "threads": settings.threads,
            "worker_class": type("Worker", (WebWorker,), {"settings": settings}),
            "logger_class": type("Log", (ServerLog,), {"target": log}), "worker_connections": 1000 + settings.threads,
            "keepalive": 15, "graceful_timeout": 30, "proc_name": "dlpool-web", "forwarded_allow_ips": "",
            "limit_request_line": 8190, "control_socket_disable": True,
        }  # fmt: skip
        super().__init__()

    def load_config(self) -> None:
        """Tell gunicorn; one of an older version need not know all of it."""
        for name, value in self._options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """The application."""
        return self._load()


def _text(message: object, arguments: tuple[Any, ...]) -> str:
    try:
        return str(message) % arguments if arguments else str(message)
    except (TypeError, ValueError):
        return str(message)
