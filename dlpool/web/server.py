"""gunicorn with what it lacks: a client that stalls or drips is cut off, within the head of a request and its body."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from dlpool import jsontext
from dlpool.config import WebSettings
from dlpool.observe.log import Log
from dlpool.threads import is_out_of_descriptors
from dlpool.web.body import PIECE, BadFraming, BrokenBody, TooSlow
from dlpool.web.capacity import FILES_A_THREAD
from dlpool.web.lingering import Lingering
from dlpool.web.pace import Pace, PacedSocket

HURRIED_S = 0.5  # for a head, when half of the threads wait for one
CROWDED_S = 0.1  # until another connection is taken, where there are too many files open
_STATUSES = {
    "TooSlow": (408, "Request Timeout", "too_slow"),
    "LimitRequestLine": (414, "URI Too Long", "bad_request"),
    "LimitRequestHeaders": (431, "Request Header Fields Too Large", "bad_request"),
    "ExpectationFailed": (417, "Expectation Failed", "bad_request"),
    "UnsupportedTransferCoding": (501, "Not Implemented", "bad_request"),
}  # fmt: skip

_REASONS = {
    "InvalidHeader": "one of its headers is wrong, or contradicts another one",
    "InvalidHeaderName": "the name of one of its headers is wrong",
    "LimitRequestHeaders": "its headers are too many, or too long",
    "LimitRequestLine": "its first line is too long",
}


class CheckedBody:
    """gunicorn's body of a request, whose errors are ``BrokenBody`` and ``TooSlow``.

    ``100 Continue`` is sent with the first read, so that a request which is refused before sends no body. ``is_left``:
    not all of it was read. ``while_waiting``: see ``PacedSocket``.
    """

    def __init__(self, req: Any, sock: socket.socket, paced: PacedSocket) -> None:
        self._body = req.body
        self._sock = sock
        self._paced = paced
        self.while_waiting = paced.while_waiting
        self._left, self._held = sys.maxsize, b""
        self._take: Callable[[int], bytes] = self._framed
        if isinstance(self._body.reader, LengthReader):
            self._left, self._take = int(self._body.reader.length), self._known
            self._held = _taken(self._body.reader.unreader, self._left)
        self._is_awaited = bool(req._expected_100_continue) and self._left > 0

    @property
    def is_left(self) -> bool:
        """Whether the connection cannot be used again: it is not known where the next request begins."""
        return self._left > 0

    def read(self, size: int | None = None) -> bytes:
        """Up to ``size`` bytes, or all; none at the end. Raises BrokenBody, TooSlow."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        try:
            if self._is_awaited:
                self._is_awaited = False
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            return self._take(size)
        except http.errors.NoMoreData as error:
            raise BrokenBody("the connection ended before the last chunk") from error
        except http.errors.ParseException as error:
            raise BadFraming(str(error)) from error
        except OSError as error:
            raise BrokenBody(error.strerror or "the connection broke") from error

    def _known(self, size: int) -> bytes:
        """Of a body of known length, past gunicorn's buffers, where it is copied over and over."""
        if self._held:  # it came with the head
            data, self._held = self._held[:size], self._held[size:]
        else:
            size = min(size, self._left)
            data = self._paced.recv(size) if size else b""
        self._left -= len(data)
        return data

    def _framed(self, size: int) -> bytes:
        """Of a chunked body."""
        data = bytes(self._body.read(size))
        if size and not data:
            self._left = 0
        return data


def _taken(unreader: Any, length: int) -> bytes:
    """What gunicorn holds of a body; it keeps what is behind it."""
    held: bytes = unreader.take_buffered()
    unreader.unread(held[length:])
    return held[:length]


class _Pool(ThreadPoolExecutor):
    """A pool that continues with its existing threads if no further one can be started; work waits for them."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


class WebWorker(ThreadWorker):  # type: ignore[misc]
    """A worker process whose threads no client can keep."""

    settings = WebSettings()
    refused: Callable[[int, str, str, str], None] | None = None  # status, label, client, reason

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting = 0  # threads that wait for a head; a count that is off by one does no harm
        self._lingering = Lingering()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return gunicorn's pool, with fewer threads if the system allows no more."""
        return _Pool(max_workers=self.cfg.threads)

    def accept(self, listener: Any) -> None:
        """As gunicorn's, which ends when too many files are open; the connection waits in the kernel meanwhile."""
        try:
            super().accept(listener)
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
            time.sleep(CROWDED_S)

    def handle(self, conn: Any) -> Any:
        """As gunicorn's, but the head of the request must come within its time."""
        self._waiting += 1
        conn.close = partial(self._close, conn)
        try:
            self._expect_head(conn)
            return super().handle(conn)
        finally:
            self._waiting -= 1

    def handle_request(self, req: Any, conn: Any) -> Any:
        """As gunicorn's, but the body must come at its pace, and the client must take its answer."""
        web = self.settings
        self._waiting -= 1
        try:
            conn.sock.settimeout(web.body_timeout)
            paced = conn.parser.unreader.sock
            paced.expect_body(Pace(web.body_timeout, web.body_rate, web.body_rate_time))
            body = req.body = CheckedBody(req, conn.sock, paced)
            req._expected_100_continue = False
            should_close = req.should_close
            req.should_close = lambda: should_close() or body.is_left  # rather than to wait for the rest
            return super().handle_request(req, conn)
        finally:
            self._waiting += 1

    def handle_error(self, _req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP in the one shape of all errors."""
        if not isinstance(exc, (http.errors.ParseException, TooSlow)):
            self.log.exception("error in a request")
            return
        status, reason, code = _STATUSES.get(type(exc).__name__, (400, "Bad Request", "bad_request"))
        if self.refused is not None:
            self.refused(status, code, str(addr[0]) if isinstance(addr, tuple) else "", type(exc).__name__)
        text = _REASONS.get(type(exc).__name__, str(exc))
        body = jsontext.dumps({"error": f"this is no request that can be read: {text}", "code": code})
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):  # the client is gone
            client.settimeout(self.settings.body_timeout)
            client.sendall(head.encode() + body)

    def _close(self, conn: Any, graceful: bool = False) -> None:
        """Instead of gunicorn's, which keeps the main loop waiting for clients that go on sending."""
        if graceful:
            self._lingering.close(conn.sock)
        else:
            conn.sock.close()

    def _expect_head(self, conn: Any) -> None:
        patience_s = self.settings.head_timeout if self._waiting <= self.cfg.threads // 2 else HURRIED_S

        def paced_init() -> None:  # gunicorn calls it for each request of a connection
            type(conn).init(conn)
            unreader = conn.parser.unreader
            if not isinstance(unreader.sock, PacedSocket):
                unreader.sock = PacedSocket(unreader.sock)
            unreader.sock.expect_head(patience_s)

        conn.init = paced_init


class ServerLog(GunicornLogger):  # type: ignore[misc]
    """Puts what gunicorn says into our log. Requests are logged by the application."""

    target: Log

    def setup(self, _cfg: Any) -> None:
        """Nothing: the log is there."""
        self.loglevel = 0
        self._logger = self.target.logger("web")

    def critical(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What ends the server."""
        self._fail(_text(msg, args))

    def error(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What a worker did not survive."""
        self._fail(_text(msg, args))

    def exception(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The same, with what was raised."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # else a client that does not take its answer
            self._fail(_text(msg, args), error)

    def warning(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """What goes on."""
        self._warn(_text(msg, args))

    def info(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """The course of its processes."""
        self._say(_text(msg, args))

    def debug(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Nothing."""

    def _fail(self, text: str, error: BaseException | None = None) -> None:
        self._logger.error("server_failed", reason=text, error=error)

    def _warn(self, text: str) -> None:
        self._logger.warning("server_warned", reason=text)

    def _say(self, text: str) -> None:
        self._logger.debug("server_said", reason=text)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: see ``gate``."""

    def reopen_files(self) -> None:
        """Our log follows its name by itself."""
        self.target.reopen()

    def close_on_exec(self) -> None:
        """Python's files are so already."""


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, set by our settings, at a listening descriptor.

    ``load`` makes the application, in each worker, and what is called for requests that it never sees.
    """

    def __init__(self, listener: int, settings: WebSettings, log: Log, processes: int,
                 load: Callable[[], tuple[Any, Callable[[int, str, str, str], None]]]) -> None:  # fmt: skip
        self._load = load
        self._worker: Any = type("Worker", (WebWorker,), {"settings": settings})
        self._options = {
            "bind": f"fd://{listener}", "workers": processes, "threads": settings.threads,
            "worker_class": self._worker,
            "logger_class": type("Log", (ServerLog,), {"target": log}),
            "worker_connections": _connections(settings.threads),
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
        app, refused = self._load()
        self._worker.refused = staticmethod(refused)
        return app


def _connections(threads: int) -> int:
    """How many connections a process may have, so that there are files left for what it does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(2 * threads, min(1000 + threads, soft - FILES_A_THREAD * threads))


def _text(message: object, arguments: tuple[Any, ...]) -> str:
    try:
        return str(message) % arguments if arguments else str(message)
    except (TypeError, ValueError):
        return str(message)
