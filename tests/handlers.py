"""Handlers that misbehave, for the tests of what servers do."""

from __future__ import annotations

from collections.abc import Callable
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
            "ETag": '"v1"', "Last-Modified": LAST_MODIFIED, "Content-Length": str(end - span.start),
            "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}",
        }  # fmt: skip
        connection.answer(206, headers, DATA[span.start : min(end, span.start + size)], length=False)
        if end - span.start > size:
            connection.reset() if reset else connection.hang_up()

    return handle


def redirect(location: str, status: int = 302, **headers: str) -> Handler:
    """A handler that redirects everything."""
    return lambda _request, connection: connection.answer(status, {"Location": location, **headers})
