"""Handlers that misbehave, for the tests of what servers do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import make_data
from tests.origin import LAST_MODIFIED, Connection, Handler, Origin, Request

Serve = Callable[..., Origin]

SIZE = 1_000_003
DATA = make_data(SIZE)
OTHER = make_data(SIZE, seed=2)


def first(times: int, broken: Handler, good: Handler) -> Handler:
    """A handler that misbehaves for the first requests."""

    def handle(request: Request, connection: Connection) -> None:
        (broken if request.number <= times else good)(request, connection)

    return handle


def nth(numbers: set[int], broken: Handler, good: Handler) -> Handler:
    """A handler that misbehaves for some requests, counted from 1."""

    def handle(request: Request, connection: Connection) -> None:
        (broken if request.number in numbers else good)(request, connection)

    return handle


def then_hang_up(handler: Handler) -> Handler:
    """The handler, and then the connection closed."""

    def handle(request: Request, connection: Connection) -> None:
        handler(request, connection)
        connection.hang_up()

    return handle


def check_file(target: Path, data: bytes = DATA) -> None:
    """The file is there, exact, and nothing else is."""
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def asked_sensibly(origin: Origin) -> bool:
    """Whether no empty or inverted range was ever asked for."""
    return all(span.end is None or span.end > span.start for span in origin.ranges())


def cut_after(size: int, *, reset: bool) -> Handler:
    """A handler that breaks off after ``size`` bytes of each range."""

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        end = min(SIZE, span.end or SIZE)
        headers = {
            "ETag": '"v1"',
            "Last-Modified": LAST_MODIFIED,
            "Content-Length": str(end - span.start),
            "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}",
        }
        connection.answer(206, headers, DATA[span.start : min(end, span.start + size)], length=False)
        if end - span.start > size:
            connection.reset() if reset else connection.hang_up()

    return handle


def redirect(location: str, status: int = 302, **headers: str) -> Handler:
    """A handler that redirects everything."""
    return lambda _request, connection: connection.answer(status, {"Location": location, **headers})


@dataclass(frozen=True)
class Drip:
    """Answers each range with ``blocks`` blocks of ``block`` bytes, ``pause_s`` apart, and then does ``end``.

    ``cap``: how many bytes of the range are announced. ``end``: "body" sends what is left at once.
    """

    block: int
    pause_s: float = 0.0
    blocks: int = 10**6
    end: str = "body"
    cap: int = SIZE
    data: bytes = DATA
    serves_ranges: bool = True
    etag: str = '"v1"'

    def __call__(self, request: Request, connection: Connection) -> None:
        asked = request.range if self.serves_ranges else None
        size = len(self.data)
        start, end = (asked.start, min(asked.end or size, size, asked.start + self.cap)) if asked else (0, size)
        headers = {"ETag": self.etag, "Last-Modified": LAST_MODIFIED, "Content-Length": str(end - start)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        connection.answer(206 if asked else 200, headers, length=False)
        pause = threading.Event()
        for low in range(start, end, self.block)[: self.blocks]:
            pause.wait(self.pause_s)
            connection.send(self.data[low : min(low + self.block, end)])
        if self.end == "body":
            connection.send(self.data[min(end, start + self.block * self.blocks) : end])
        if self.end == "reset":
            connection.reset()
        if self.end == "close":
            connection.hang_up()
        if self.end == "silence":
            connection.wait_for_client_to_go()


class Admits:
    """Serves ``most`` requests at once by ``handler``, and answers 503 to others."""

    def __init__(self, most: int, handler: Handler) -> None:
        self._handler = handler
        self._free = threading.Semaphore(most)

    def __call__(self, request: Request, connection: Connection) -> None:
        if not self._free.acquire(blocking=False):
            connection.answer(503)
            return
        try:
            self._handler(request, connection)
        finally:
            self._free.release()
