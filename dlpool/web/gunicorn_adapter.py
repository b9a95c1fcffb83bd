"""Adapts gunicorn: the only module that uses its classes and their private members.

The main loop of a worker holds each connection until the head of its request is
complete (``head_receiver``); then a thread handles the request. A client that has not
sent a complete head costs a descriptor and some bytes, but no thread. gunicorn's own
worker gives each new connection a thread, which waits up to 5 s for the first byte and
without a limit for the rest of the head. ``tests/test_gunicorn_contract.py`` checks
what this module expects of gunicorn.
"""

from __future__ import annotations

import errno
import resource
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger as GunicornLogger  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from dlpool.config import WebSettings
from dlpool.disk_errors import is_out_of_descriptors
from dlpool.observe.log import Log
from dlpool.web import raw_responses as raw
from dlpool.web.body import BLOCK_SIZE, BadFraming, BodyTooSlow, BrokenBody
from dlpool.web.body_timeouts import BodyTimeouts, TimedSocket
from dlpool.web.capacity import FILES_A_THREAD
from dlpool.web.head_receiver import HeadReceiver
from dlpool.web.lingering_close import LingeringCloser
from dlpool.web.monitoring import probe_paths
from dlpool.web.request_pools import RequestPool, RequestPools

# Status, error code, client address and reason of a request that the worker rejects.
OnReject = Callable[[int, str, str, str], None]

ACCEPT_PAUSE_S = 0.1  # if no descriptor is free and no silent connection can be closed
CLOSED_AT_ONCE = 8  # silent connections, if no descriptor is free
_ACCEPT_ERRORS = {errno.EAGAIN, errno.ECONNABORTED}
# Response and explanation for gunicorn's exceptions. Any other exception is answered
# with 400 and the text of the exception.
_ERRORS = {
    BodyTooSlow: (raw.TIMEOUT, ""),
    http.errors.LimitRequestLine: (raw.URI_TOO_LONG, "the first line is too long"),
    http.errors.LimitRequestHeaders: (raw.HEAD_TOO_LONG, "too many or long headers"),
    http.errors.InvalidHeader: (raw.BAD_REQUEST, "invalid or contradictory headers"),
    http.errors.InvalidHeaderName: (raw.BAD_REQUEST, "invalid name of a header"),
    http.errors.ExpectationFailed: (raw.EXPECTATION_FAILED, ""),
    http.errors.UnsupportedTransferCoding: (raw.NOT_IMPLEMENTED, ""),
}


class GunicornBody:
    """Reads the body of a request; errors are ``BrokenBody`` and ``BodyTooSlow``.

    If the client expects ``100 Continue``, the first read sends it. If the application
    rejects the request before this read, such a client does not send the body.
    """

    def __init__(self, req: Any, sock: socket.socket, timed: TimedSocket) -> None:
        self._body = req.body
        self._sock = sock
        self._timed = timed
        self.call_while_waiting = timed.call_while_waiting
        self._left, self._buffered = sys.maxsize, b""
        self._take: Callable[[int], bytes] = self._read_chunked
        if isinstance(self._body.reader, LengthReader):
            self._left, self._take = int(self._body.reader.length), self._read_known
            self._buffered = _take_buffered(self._body.reader.unreader, self._left)
        self._is_awaited = bool(req._expected_100_continue) and self._left > 0

    @property
    def received(self) -> int:
        """Return the number of body bytes received on the connection so far."""
        return self._timed.received

    @property
    def has_unread(self) -> bool:
        """Return whether the connection may contain unread bytes of the body."""
        return self._left > 0

    def read(self, size: int | None = None) -> bytes:
        """Return up to ``size`` bytes (None: the whole rest), ``b""`` at the end.

        Raises BrokenBody, BodyTooSlow.
        """
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(BLOCK_SIZE), b""))
        try:
            if self._is_awaited:
                self._is_awaited = False
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            return self._take(size)
        except http.errors.NoMoreData as error:
            text = "the connection was closed before the last chunk"
            raise BrokenBody(text) from error
        except http.errors.ParseException as error:
            raise BadFraming(str(error)) from error
        except OSError as error:
            raise BrokenBody(error.strerror or "connection error") from error

    def _read_known(self, size: int) -> bytes:
        """Read a body of known length, without the copies in gunicorn's buffers."""
        if self._buffered:  # received with the head
            data, self._buffered = self._buffered[:size], self._buffered[size:]
        else:
            size = min(size, self._left)
            data = self._timed.recv(size) if size else b""
        self._left -= len(data)
        return data

    def _read_chunked(self, size: int) -> bytes:
        data = bytes(self._body.read(size))
        if size and not data:
            self._left = 0
        return data


def _take_buffered(unreader: Any, length: int) -> bytes:
    """Remove up to ``length`` buffered bytes from gunicorn's reader and return them."""
    buffered: bytes = unreader.take_buffered()
    unreader.unread(buffered[length:])
    return buffered[:length]


class ClientConnection(TConn):  # type: ignore[misc]
    """A connection whose received head is passed to gunicorn's parser.

    ``pool``: the threads that handle its request.
    """

    pool: RequestPool

    def __init__(
        self,
        sock: socket.socket,
        client: Any,
        server: Any,
        cfg: Any,
        closer: LingeringCloser,
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self._closer = closer
        self.data_ready = True
        self.head = b""

    def init(self) -> None:
        """Prepare the connection for its next request. Called by a pool thread."""
        super().init()
        unreader = self.parser.unreader
        if not isinstance(unreader.sock, TimedSocket):
            unreader.sock = TimedSocket(unreader.sock)
        unreader.sock.stop_reading()
        unreader.unread(self.head)
        self.head = b""

    def close(self, graceful: bool = False) -> None:
        """Close the connection without blocking.

        gunicorn's own method blocks the main loop while a client keeps sending.
        """
        if graceful:
            self._closer.close(self.sock)
        else:
            self.sock.close()

    @property
    def address(self) -> str:
        """Return the address of the peer, empty for a Unix socket."""
        return _address(self.client)


class WebWorker(ThreadWorker):  # type: ignore[misc]
    """A worker process whose threads are not occupied by incomplete heads.

    ``probes``: a set of paths for each kind of probe. ``on_reject`` is called for
    each request that the worker rejects before the application is called.
    """

    settings = WebSettings()
    probes: tuple[frozenset[str], ...] = ()
    on_reject: OnReject | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._closer = LingeringCloser()

    def run(self) -> None:
        """Serve until the worker stops."""
        self._receiver = HeadReceiver(self.poller, self.settings.head_timeout, self)
        super().run()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Start the threads of the probes; return the pool of all other requests."""
        self._pools = RequestPools(
            self.probes, self.worker_connections, self.cfg.threads
        )
        return self._pools.main.executor

    def accept(self, listener: Any) -> None:
        """Accept a connection; if there are too many, close the oldest waiting ones."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if is_out_of_descriptors(error):
                # Free descriptors, or let new connections wait in the kernel.
                if not self._receiver.close_oldest(CLOSED_AT_ONCE):
                    time.sleep(ACCEPT_PAUSE_S)
            elif error.errno not in _ACCEPT_ERRORS:
                raise
            return
        self.nr_conns += 1
        connection = ClientConnection(
            sock, client, listener.getsockname(), self.cfg, self._closer
        )
        self._receiver.add(connection, b"", self.settings.head_timeout)
        while self.nr_conns >= self.worker_connections:
            if not self._receiver.close_oldest(1):
                return

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but not beyond the next deadline of a head."""
        timeout = min(timeout, self._receiver.next_timeout_s())
        super().wait_for_and_dispatch_events(timeout)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections with an overdue head; ``force``: all waiting
        connections."""
        if force:
            self._receiver.close_all()
        else:
            self._receiver.close_overdue()

    def _cap_keepalive(self, deadline: float) -> None:
        self._receiver.cap_deadlines(deadline)

    def enqueue_req(self, conn: ClientConnection) -> None:
        """Pass a connection with a complete head to a thread of its pool.

        Raises RuntimeError if the pool has no thread and none can be started.
        """
        future = conn.pool.executor.submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def finish_request(self, conn: ClientConnection, fs: Future[Any]) -> None:
        """Let the receiver wait for the next head, or close the connection.

        Bytes of the next head may have been received with the body.
        """
        conn.pool.in_use -= 1
        try:
            if not fs.cancelled() and fs.result():
                keepalive_s = self.cfg.keepalive
                timeout_s = keepalive_s if self.alive else min(keepalive_s, 1)
                buffered = conn.parser.unreader.take_buffered()
                self._receiver.add(conn, buffered, timeout_s)
                return
        except Exception:  # noqa: BLE001 - as gunicorn does: close this connection only
            self.nr_conns -= 1
            conn.close()
        else:
            self.nr_conns -= 1
            conn.close(graceful=True)

    def on_head(self, connection: ClientConnection, head: bytes) -> None:
        """Queue a request for a pool thread; reject it if the pool has no capacity."""
        pool = self._pools.pool_for(head)
        if pool.is_full:
            text = "the server is busy: try again"
            self.on_invalid_head(connection, raw.BUSY, "Crowded", text)
            return
        connection.head, connection.pool = head, pool
        try:
            self.enqueue_req(connection)
        except RuntimeError:  # not even one thread can be started
            text = "the server cannot start a thread: try again"
            self.on_invalid_head(connection, raw.BUSY, "NoThread", text)
        else:
            pool.in_use += 1

    def on_no_head(self, connection: ClientConnection) -> None:
        """Close a connection that sent no complete head."""
        self.nr_conns -= 1
        connection.close()

    def on_invalid_head(
        self, connection: ClientConnection, error: raw.RawError, reason: str, text: str
    ) -> None:
        """Send an error without waiting for the client, and close the connection."""
        if self.on_reject is not None:
            self.on_reject(error.status, error.code, connection.address, reason)
        self.nr_conns -= 1
        with suppress(OSError):
            connection.sock.send(raw.render_error(error, text))
        connection.close(graceful=True)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Handle a request with timeouts for receiving its body and sending the
        response."""
        web = self.settings
        conn.sock.settimeout(web.body_timeout)
        timed: TimedSocket = conn.parser.unreader.sock
        timed.start_body(
            BodyTimeouts(web.body_timeout, web.body_rate, web.body_rate_time)
        )
        body = req.body = GunicornBody(req, conn.sock, timed)
        req._expected_100_continue = False
        should_close = req.should_close
        # Close a connection with unread bytes, instead of reading these bytes.
        req.should_close = lambda: should_close() or body.has_unread
        return super().handle_request(req, conn)

    def handle_error(
        self, _req: Any, client: Any, addr: Any, exc: BaseException
    ) -> None:
        """Answer an invalid request with an error; log any other exception."""
        if not isinstance(exc, (http.errors.ParseException, BodyTooSlow)):
            self.log.exception("error in a request")
            return
        error, text = _ERRORS.get(type(exc), (raw.BAD_REQUEST, ""))
        if self.on_reject is not None:
            reason = type(exc).__name__
            self.on_reject(error.status, error.code, _address(addr), reason)
        with suppress(OSError):  # the client has closed the connection
            client.settimeout(self.settings.body_timeout)
            text = f"invalid HTTP request: {text or exc}"
            client.sendall(raw.render_error(error, text))


def _address(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else ""


class GunicornLog(GunicornLogger):  # type: ignore[misc]
    """Writes gunicorn's messages to the log of dlpool-web."""

    target: Log

    def setup(self, _cfg: Any) -> None:
        """Use the log of dlpool-web instead of gunicorn's settings."""
        self.loglevel = 0
        self._logger = self.target.logger("web")

    def critical(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Log a fatal error of the server."""
        self._logger.error("gunicorn_error", reason=_format(msg, args), error=None)

    def error(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Log an error of a worker."""
        self._logger.error("gunicorn_error", reason=_format(msg, args), error=None)

    def exception(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Log the current exception, unless the client closed the connection."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self._logger.error("gunicorn_error", reason=_format(msg, args), error=error)

    def warning(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Log a warning."""
        self._logger.warning("gunicorn_warning", reason=_format(msg, args))

    def info(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Log starts and exits of processes, at level debug."""
        self._logger.debug("gunicorn_message", reason=_format(msg, args))

    def debug(self, msg: str, *args: Any, **_kwargs: Any) -> None:
        """Discard the message."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Do nothing: ``middleware`` logs requests."""

    def reopen_files(self) -> None:
        """Reopen the log files."""
        self.target.reopen()

    def close_on_exec(self) -> None:
        """Do nothing: Python opens files with O_CLOEXEC."""


class GunicornServer(BaseApplication):  # type: ignore[misc]
    """Runs gunicorn on a listening descriptor.

    Each worker calls the argument ``load``. It returns a pair: the application, and
    the ``on_reject`` of the worker.
    """

    def __init__(
        self,
        listener: int,
        settings: WebSettings,
        log: Log,
        processes: int,
        load: Callable[[], tuple[Any, OnReject]],
    ) -> None:
        self._load = load
        worker = {"settings": settings, "probes": probe_paths(settings.prefix)}
        self._worker: Any = type("Worker", (WebWorker,), worker)
        self._options = {
            "bind": f"fd://{listener}",
            "workers": processes,
            "threads": settings.threads,
            "worker_class": self._worker,
            "logger_class": type("Log", (GunicornLog,), {"target": log}),
            "worker_connections": _connection_limit(settings.threads),
            "keepalive": 15,
            "graceful_timeout": 30,
            "proc_name": "dlpool-web",
            "forwarded_allow_ips": "",
            "limit_request_line": 8190,
            "control_socket_disable": True,
        }
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's options; options unknown to its version are skipped."""
        for name, value in self._options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Create the application of this worker process."""
        app, on_reject = self._load()
        self._worker.on_reject = staticmethod(on_reject)
        return app


def _connection_limit(threads: int) -> int:
    """Return the limit of connections of a process.

    The limit leaves descriptors for the files that requests open.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(2 * threads, min(1000 + threads, soft - FILES_A_THREAD * threads))


def _format(message: object, arguments: tuple[Any, ...]) -> str:
    try:
        return str(message) % arguments if arguments else str(message)
    except (TypeError, ValueError):
        return str(message)
