"""A stop at each point where the first request of a download waits: the reason of the stop is what ``run`` raises."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.transfer import Transfer
from tests.conftest import Fetcher, wait_until
from tests.handlers import redirect
from tests.origin import Connection, Handler, Origin, Request

NEVER: dict[str, Any] = {"retry_delay": 10_000.0, "retry_max_delay": 10_000.0, "retries": 999, "max_retry_after": 600.0}
SLOW: dict[str, Any] = {"connect_timeout": 300.0, "read_timeout": 300.0}


def silent(_request: Request, connection: Connection) -> None:
    connection.wait_for_client_to_go(60.0)


def status(code: int, **headers: str) -> Handler:
    return lambda _request, connection: connection.answer(code, {k.replace("_", "-"): v for k, v in headers.items()})


def half_a_stream(_request: Request, connection: Connection) -> None:
    connection.answer(200, {"Content-Length": "1000"}, b"x", length=False)
    connection.hang_up()


@contextmanager
def served(handler: Handler, scheme: str = "http") -> Iterator[str]:
    with Origin(handler) as origin:
        yield f"{scheme}://127.0.0.1:{origin.port}/f"


@contextmanager
def refused() -> Iterator[str]:
    """A port at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/f"


@contextmanager
def full() -> Iterator[str]:
    """A port whose queue of connections is full, so that connecting takes for ever."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/f"


@dataclass(frozen=True)
class Point:
    """A server that keeps the first request waiting, and the event that tells that it does; else its connection."""

    server: Callable[[], Any]
    event: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


POINTS = {
    "connecting": Point(full),
    "TLS handshake": Point(lambda: served(silent, "https")),
    "header": Point(lambda: served(silent)),
    "header of HEAD": Point(lambda: served(silent), settings={"probe": "head"}),
    "header after a redirect": Point(
        lambda: served(lambda r, c: redirect("/other")(r, c) if r.path == "/f" else silent(r, c))
    ),
    "retry after 500": Point(lambda: served(status(500)), "range_retry"),
    "retry after 503": Point(lambda: served(status(503)), "range_retry"),
    "Retry-After": Point(lambda: served(status(503, Retry_After="300")), "range_retry"),
    "retry after a refusal": Point(refused, "range_retry"),
    "retry after a broken answer": Point(lambda: served(lambda _r, c: c.hang_up()), "range_retry"),
    "retry after malformed HTTP": Point(lambda: served(lambda _r, c: c.send(b"nonsense\r\n\r\n")), "range_retry"),
    "restart of a stream": Point(lambda: served(half_a_stream), "download_restarted"),
}
STOPS: dict[str, errors.DlpoolError | None] = {
    "cancel": None,
    "lost job": errors.LostJob("another supervisor has the job"),
    "error": errors.LocalFault("the disk failed"),
}


def run(transfer: Transfer, ended: list[BaseException | None]) -> None:
    try:
        transfer.run()
        ended.append(None)
    except BaseException as error:  # noqa: BLE001 - what it raises is the matter of the test
        ended.append(error)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", POINTS)
def test_a_stop_ends_every_wait_of_the_first_request(name: str, stop: str, fetch: Fetcher, tmp_path: Path) -> None:
    point, ended = POINTS[name], list[BaseException | None]()
    with point.server() as url:
        transfer = fetch.transfer(url, tmp_path / "f", **{**NEVER, **point.settings}, network=SLOW)
        thread = threading.Thread(target=run, args=(transfer, ended), daemon=True)
        thread.start()
        if point.event is not None:
            wait_until(lambda: bool(fetch.named(str(point.event))))
        else:
            wait_until(lambda: transfer.progress().connections == 1)
        transfer.cancel(STOPS[stop])
        thread.join(20.0)
    assert len(ended) == 1, "it did not end"
    expected = STOPS[stop]
    if expected is None:
        assert type(ended[0]) is errors.Cancelled
    else:
        assert ended[0] is expected
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("name", POINTS)
def test_the_deadline_ends_every_wait_of_the_first_request(name: str, fetch: Fetcher, tmp_path: Path) -> None:
    with POINTS[name].server() as url, pytest.raises(errors.DeadlineExceeded):
        fetch(url, tmp_path / "f", **{**NEVER, **POINTS[name].settings}, deadline=0.5, network=SLOW)
