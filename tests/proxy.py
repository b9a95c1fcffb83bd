"""A TCP proxy that fails as networks do: it loses replies, breaks connections, is slow or silent, is not there."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

CHUNK = 64 * 1024
ENDLESS = 1_000_000
TRICKLE_S = 0.2


class _Pair:
    """A client's connection and ours to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_armed = False  # the reply that comes next is swallowed
        self.is_endless = False  # nor does it ever end
        self._tail = b""

    def sees(self, data: bytes, marker: bytes) -> bool:
        """Whether ``data`` completes the marker, that may have begun before."""
        seen = marker in self._tail + data
        self._tail = (self._tail + data)[-max(len(marker) - 1, 1) :]
        return seen

    def close(self) -> None:
        for sock in (self.client, self.server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 for ``upstream``, a Unix socket's path or (host, port); a context.

    It passes everything on until one of its methods says otherwise; ``pass_on`` ends that. Thread-safe: one condition
    guards the mode and the connections.
    """

    def __init__(self, upstream: Path | tuple[str, int]) -> None:
        self.upstream = upstream
        self.swallowed = 0  # replies, or pieces of them, that no client got
        self._changed = threading.Condition()
        self._mode = "pass"
        self._marker: bytes | None = None
        self._is_silent = self._is_endless = False
        self._late_s = 0.0
        self._pairs: set[_Pair] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._listen()

    def __repr__(self) -> str:
        return f"<Proxy {self.url} of {self.upstream}: {self._mode}, {len(self._pairs)} connections>"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def pass_on(self) -> None:
        """Be a good network from now on; what a black hole held back is delivered."""
        self._set("pass")

    def swallow_next(self, marker: bytes = b"", *, silent: bool = False) -> None:
        """Lose the reply to the next data from a client in which ``marker`` occurs, once; the server does get it.

        The reply is waited for, and then the client's connection closes; with ``silent`` it stays open, and deaf.
        """
        with self._changed:
            self._marker, self._is_silent, self._is_endless = marker, silent, False

    def trickle_next(self, marker: bytes) -> None:
        """As ``swallow_next``, but a reply comes that never ends, a byte now and then: nobody's time limit passes."""
        with self._changed:
            self._marker, self._is_endless = marker, True

    @property
    def is_armed(self) -> bool:
        """Whether the data whose reply shall be lost has yet to come."""
        with self._changed:
            return self._marker is not None

    def swallow_all(self) -> None:
        """Deliver all commands and no replies."""
        self._set("swallow")

    def drop(self) -> None:
        """Close all connections, now; new ones are served."""
        with self._changed:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.close()
        with self._changed:
            self._changed.notify_all()

    def blackhole(self) -> None:
        """Accept connections and data, and deliver nothing in either direction until the mode changes."""
        self._set("hold")

    def slow_down(self, seconds: float) -> None:
        """Deliver each piece of data so much later."""
        self._late_s = seconds
        self._set("slow")

    def refuse(self) -> None:
        """Close all connections and refuse new ones; the port stays ours."""
        if self._set("refuse") == "refuse":
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self.drop()

    def close(self) -> None:
        self.refuse()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set(self, mode: str) -> str:
        """Change the mode; returns the one before."""
        with self._changed:
            before, self._mode = self._mode, mode
            self._changed.notify_all()
        if before == "refuse" and mode != "refuse":
            self._listener.listen()
            self._listen()
        return before

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        try:
            pair = _Pair(client, self._connect())
        except OSError:
            client.close()
            return
        with self._changed:
            is_wanted = self._mode != "refuse"
            if is_wanted:
                self._pairs.add(pair)
        if not is_wanted:
            pair.close()
            return
        for pump in (self._to_server, self._to_client):
            threading.Thread(target=pump, args=(pair,), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self.upstream, tuple):
            return socket.create_connection(self.upstream)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.upstream))
        except OSError:
            sock.close()
            raise
        return sock

    def _to_server(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.client.recv(CHUNK):
                self._hold(pair)
                self._arm(pair, data)
                pair.server.sendall(data)
        with suppress(OSError):
            pair.server.shutdown(socket.SHUT_WR)  # it does all that it was sent; its end then ends the pair

    def _to_client(self, pair: _Pair) -> None:
        with suppress(OSError):
            while data := pair.server.recv(CHUNK):
                self._hold(pair)
                if not self._is_lost(pair):
                    pair.client.sendall(self._edited(data))
                elif pair.is_endless:
                    self._trickle(pair)
                elif pair.is_armed and not self._is_silent:
                    self._drain(pair)
        with self._changed:
            self._pairs.discard(pair)
        pair.close()

    def _edited(self, data: bytes) -> bytes:
        """What a client gets of a reply."""
        return data

    def _arm(self, pair: _Pair, data: bytes) -> None:
        with self._changed:
            if self._marker is not None and pair.sees(data, self._marker):
                pair.is_armed, pair.is_endless, self._marker = True, self._is_endless, None

    def _is_lost(self, pair: _Pair) -> bool:
        with self._changed:
            is_lost = pair.is_armed or self._mode == "swallow"
            self.swallowed += is_lost
            return is_lost

    def _hold(self, pair: _Pair) -> None:
        """Wait while we are a black hole; a connection that is dropped meanwhile delivers nothing any more."""
        with self._changed:
            if self._mode == "slow":
                self._changed.wait_for(lambda: self._mode != "slow", self._late_s)
            self._changed.wait_for(lambda: self._mode != "hold" or pair.client.fileno() < 0)

    @staticmethod
    def _trickle(pair: _Pair) -> None:
        """Until the connection is closed, by its client or by ``drop``."""
        pair.client.sendall(b"$%d\r\n" % ENDLESS)
        while True:
            time.sleep(TRICKLE_S)
            pair.client.sendall(b"x")

    @staticmethod
    def _drain(pair: _Pair) -> None:
        """Let the server do all that it was sent, before the client hears that the connection is gone."""
        pair.server.shutdown(socket.SHUT_WR)
        while pair.server.recv(CHUNK):
            pass
