"""A worker of gunicorn that receives the heads of requests without threads, and keeps
places for probes.

The main loop holds each connection until the head of its request is whole
(``dlpool.request_heads``); only then one of the threads gets it. A client that says
nothing, or drips, costs a descriptor and some bytes, and the oldest of them makes room
for the next one.
"""

from __future__ import annotations

import errno
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from dlpool import jsontext
from dlpool.config import WebSettings
from dlpool.observe.http_server import NO_SNIFF
from dlpool.request_heads import MAX_HEAD, HeadProgress, PendingHeads, parse_target
from dlpool.threads import is_out_of_descriptors
from dlpool.web.body import BLOCK_SIZE, BadFraming, BodyTooSlow, BrokenBody
from dlpool.web.body_timeouts import BodyTimeouts, TimedSocket
from dlpool.web.lingering_close import LingeringCloser

# until another connection is taken, where there are too many files open and all are in
# use
CROWDED_S = 0.1
FREED = 8  # silent connections that are closed where there are too many files open
RESERVED = 256  # connections of a process for probes, and for heads that may be of some
BUSY_S = 1  # seconds; Retry-After of who is turned away
_ONE_READ = 8192  # bytes
_GONE = {errno.EAGAIN, errno.ECONNABORTED}
_CROWDED = (503, "Service Unavailable", "busy")
_TOO_LONG = (431, "Request Header Fields Too Large", "bad_request")
_LATE = (408, "Request Timeout", "too_slow")
_STATUSES = {
    "BodyTooSlow": _LATE,
    "LimitRequestLine": (414, "URI Too Long", "bad_request"),
    "LimitRequestHeaders": _TOO_LONG,
    "ExpectationFailed": (417, "Expectation Failed", "bad_request"),
    "UnsupportedTransferCoding": (501, "Not Implemented", "bad_request"),
}
_REASONS = {
    "InvalidHeader": "one of its headers is wrong, or contradicts another one",
    "InvalidHeaderName": "the name of one of its headers is wrong",
    "LimitRequestHeaders": "its headers are too many, or too long",
    "LimitRequestLine": "its first line is too long",
}


@dataclass
class RequestPool:
    """Threads for some of the requests, and how many these may have, with those that
    wait. By the main loop only."""

    pool: ThreadPoolExecutor
    limit: int
    in_use: int = 0


class GunicornBody:
    """gunicorn's body of a request, whose errors are ``BrokenBody`` and ``TooSlow``.

    ``100 Continue`` is sent with the first read, so that a request which is refused
    before sends no body. ``is_left``: not all of it was read. ``while_waiting``: see
    ``TimedSocket``.
    """

    def __init__(self, req: Any, sock: socket.socket, paced: TimedSocket) -> None:
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
    def received(self) -> int:
        """Bytes that have come on the connection, but for heads."""
        return self._paced.received

    @property
    def is_left(self) -> bool:
        """Whether the connection cannot be used again: it is not known where the next
        request begins."""
        return self._left > 0

    def read(self, size: int | None = None) -> bytes:
        """Up to ``size`` bytes, or all; none at the end. Raises BrokenBody, TooSlow."""
        if size is None or size < 0:
            return b"".join(iter(lambda: self.read(BLOCK_SIZE), b""))
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
        """Of a body of known length, past gunicorn's buffers, where it is copied over
        and over."""
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


class _ElasticPool(ThreadPoolExecutor):
    """A pool that continues with its existing threads if no further one can be started;
    work waits for them."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


class ClientConnection(TConn):  # type: ignore[misc]
    """gunicorn's, of which a thread gets the head with the first read; ``lane`` is
    whose thread that is."""

    pool: RequestPool

    def __init__(
        self,
        sock: socket.socket,
        client: Any,
        server: Any,
        cfg: Any,
        lingering: LingeringCloser,
    ) -> None:
        super().__init__(cfg, sock, client, server)
        self._lingering = lingering
        self.data_ready = True
        self.head = b""

    def init(self) -> None:
        """As gunicorn's, for each request."""
        super().init()
        unreader = self.parser.unreader
        if not isinstance(unreader.sock, TimedSocket):
            unreader.sock = TimedSocket(unreader.sock)
        unreader.sock.stop_reading()
        unreader.unread(self.head)
        self.head = b""

    def close(self, graceful: bool = False) -> None:
        """Instead of gunicorn's, which keeps the main loop waiting for clients that go
        on sending."""
        if graceful:
            self._lingering.close(self.sock)
        else:
            self.sock.close()

    @property
    def address(self) -> str:
        """Of the peer."""
        return str(self.client[0]) if isinstance(self.client, tuple) else ""


class WebWorker(ThreadWorker):  # type: ignore[misc]
    """A worker process whose threads no client can keep. ``probes``: the paths of each
    kind of probe."""

    settings = WebSettings()
    probes: tuple[frozenset[str], ...] = ()
    refused: Callable[[int, str, str, str], None] | None = (
        None  # status, label, client, reason
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._heads: PendingHeads[ClientConnection] = PendingHeads()
        self._lingering = LingeringCloser()
        self._reserved: Mapping[str, RequestPool] = {}

    def init_process(self) -> None:
        """Start the threads of the probes, and serve until the end."""
        reserved = min(RESERVED, self.worker_connections // 4)
        self._reserved = {
            path: lane
            for paths in self.probes
            if (lane := _started_lane(max(1, reserved // 4))) is not None
            for path in paths
        }
        self._most = self.worker_connections - reserved
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return gunicorn's pool, with fewer threads if the system allows no more."""
        pool = _ElasticPool(max_workers=self.cfg.threads)
        self._lane = RequestPool(pool, self._most)
        return pool

    def accept(self, listener: Any) -> None:
        """Hold one more connection; at the cap of them the oldest silent one ends."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if is_out_of_descriptors(error):
                self._make_room()
            elif error.errno not in _GONE:
                raise
            return
        self.nr_conns += 1
        connection = ClientConnection(
            sock, client, listener.getsockname(), self.cfg, self._lingering
        )
        self._hold(connection, b"", self.settings.head_timeout)
        while (
            self.nr_conns >= self.worker_connections
            and (oldest := self._heads.oldest()) is not None
        ):
            self._drop(oldest)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """As gunicorn's, and no longer than until the next head is due."""
        super().wait_for_and_dispatch_events(
            min(timeout, self._heads.next_timeout_s(time.monotonic()))
        )

    def murder_keepalived(self, force: bool = False) -> None:
        """End the connections whose head did not come in time; ``force``: all that wait
        for one."""
        for connection in (
            list(self._heads) if force else self._heads.expired(time.monotonic())
        ):
            if force or self._heads.is_empty(connection):
                self._drop(connection)
            else:
                self._forget(connection)
                self._turn_away(
                    connection,
                    _LATE,
                    "TooSlow",
                    "the head of the request did not come in time",
                )

    def _cap_keepalive(self, deadline: float) -> None:
        self._heads.cap_deadlines(deadline)

    def enqueue_req(self, conn: ClientConnection) -> None:
        """Give a thread a connection of which a whole head has come."""
        future = conn.pool.pool.submit(self.handle, conn)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, conn, done)
        )

    def finish_request(self, conn: ClientConnection, fs: Future[Any]) -> None:
        """A thread is done with it; the next head may have come with the body."""
        conn.pool.in_use -= 1
        try:
            if not fs.cancelled() and fs.result():
                patience_s = (
                    self.cfg.keepalive if self.alive else min(self.cfg.keepalive, 1)
                )
                self._hold(conn, conn.parser.unreader.take_buffered(), patience_s)
                return
        except Exception:  # noqa: BLE001 - as gunicorn does: this connection ends, not the loop
            self.nr_conns -= 1
            conn.close()
        else:
            self.nr_conns -= 1
            conn.close(graceful=True)

    def _hold(
        self, connection: ClientConnection, data: bytes, patience_s: float
    ) -> None:
        """Wait for a head, of which ``data`` is here. Raises OSError, ValueError for a
        connection that is closed."""
        connection.sock.setblocking(False)
        self.poller.register(
            connection.sock, selectors.EVENT_READ, partial(self._receive, connection)
        )
        self._heads.add(connection, time.monotonic() + patience_s)
        if data:
            self._advance(connection, data)

    def _receive(self, connection: ClientConnection, _sock: socket.socket) -> None:
        """Some of a head may have come."""
        if connection not in self._heads:  # it was dropped in this turn of the loop
            return
        try:
            data = connection.sock.recv(_ONE_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._advance(connection, data)
        else:
            self._drop(connection)

    def _advance(self, connection: ClientConnection, data: bytes) -> None:
        progress = self._heads.feed(
            connection, data, time.monotonic() + self.settings.head_timeout
        )
        if progress is HeadProgress.PARTIAL:
            return
        head = self._forget(connection)
        if progress is HeadProgress.TOO_LONG:
            text = f"its head is longer than {MAX_HEAD} bytes"
            self._turn_away(
                connection,
                _TOO_LONG,
                "LimitRequestHeaders",
                f"this is no request that can be read: {text}",
            )
            return
        method, path = parse_target(head)
        lane = (
            self._reserved.get(path.rstrip("/"), self._lane)
            if method in ("GET", "HEAD")
            else self._lane
        )
        if lane.in_use >= lane.limit:
            self._turn_away(
                connection,
                _CROWDED,
                "Crowded",
                "too much is going on just now, try again",
            )
            return
        connection.head, connection.pool = head, lane
        try:
            self.enqueue_req(connection)
        except RuntimeError:  # the system allows not even one thread
            self._turn_away(
                connection,
                _CROWDED,
                "NoThread",
                "no thread can be started just now, try again",
            )
        else:
            lane.in_use += 1

    def _forget(self, connection: ClientConnection) -> bytes:
        """Wait no more for its head; what has come of it."""
        self.poller.unregister(connection.sock)
        return self._heads.remove(connection)

    def _drop(self, connection: ClientConnection) -> None:
        """End a connection that nothing is known of."""
        self._forget(connection)
        self.nr_conns -= 1
        connection.close()

    def _make_room(self) -> None:
        """There are too many files open; new connections wait in the kernel if none can
        be spared."""
        spared = list(self._heads)[:FREED]
        for connection in spared:
            self._drop(connection)
        if not spared:
            time.sleep(CROWDED_S)

    def _turn_away(
        self,
        connection: ClientConnection,
        answer: tuple[int, str, str],
        reason: str,
        text: str,
    ) -> None:
        """Answer from the main loop, which waits for nobody: a client that takes no
        answer gets none."""
        status, _, code = answer
        if self.refused is not None:
            self.refused(status, code, connection.address, reason)
        self.nr_conns -= 1
        with suppress(OSError):
            connection.sock.send(_refusal(answer, text))
        connection.close(graceful=True)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """As gunicorn's, but the body must come at its pace, and the client must take
        its answer."""
        web = self.settings
        conn.sock.settimeout(web.body_timeout)
        paced = conn.parser.unreader.sock
        paced.start_body(
            BodyTimeouts(web.body_timeout, web.body_rate, web.body_rate_time)
        )
        body = req.body = GunicornBody(req, conn.sock, paced)
        req._expected_100_continue = False
        should_close = req.should_close
        req.should_close = lambda: (
            should_close() or body.is_left
        )  # rather than to wait for the rest
        return super().handle_request(req, conn)

    def handle_error(
        self, _req: Any, client: Any, addr: Any, exc: BaseException
    ) -> None:
        """Answer what is no HTTP in the one shape of all errors."""
        if not isinstance(exc, (http.errors.ParseException, BodyTooSlow)):
            self.log.exception("error in a request")
            return
        answer = _STATUSES.get(type(exc).__name__, (400, "Bad Request", "bad_request"))
        if self.refused is not None:
            address = str(addr[0]) if isinstance(addr, tuple) else ""
            self.refused(answer[0], answer[2], address, type(exc).__name__)
        text = _REASONS.get(type(exc).__name__, str(exc))
        with suppress(OSError):  # the client is gone
            client.settimeout(self.settings.body_timeout)
            client.sendall(
                _refusal(answer, f"this is no request that can be read: {text}")
            )


def _started_lane(most: int) -> RequestPool | None:
    """One thread, which runs; None if the system allows no more: the others serve what
    it would."""
    pool = _ElasticPool(max_workers=1)
    try:
        pool.submit(int)
    except RuntimeError:
        return None
    return RequestPool(pool, most)


def _refusal(answer: tuple[int, str, str], text: str) -> bytes:
    """An answer that ends its connection."""
    status, reason, code = answer
    body = jsontext.dumps({"error": text, "code": code})
    again = f"Retry-After: {BUSY_S}\r\n" if status == _CROWDED[0] else ""
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: "
        f"application/json\r\n{again}"
        f"Content-Length: {len(body)}\r\n{': '.join(NO_SNIFF)}\r\n\r\n"
    )
    return head.encode() + body
