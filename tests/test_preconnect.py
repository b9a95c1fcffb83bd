"""The connections of a download from a distant host are opened while its first request is under way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dlpool.transfer import preconnect
from dlpool.transfer.preconnect import round_trip_s
from tests.conftest import Fetcher, wait_until
from tests.handlers import DATA, Admits, Serve, check_file
from tests.origin import Connection, File, Origin, Request
from tests.test_connection_admission import REFUSALS, Limited


@pytest.fixture(autouse=True)
def distant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any host counts as distant."""
    monkeypatch.setattr(preconnect, "MIN_RTT_S", 0.0)


class Waiting:
    """Answers the first request when ``wanted`` connections are open."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.origin: Origin | None = None

    def __call__(self, request: Request, connection: Connection) -> None:
        origin = self.origin
        assert origin is not None
        if request.number == 1:
            wait_until(lambda: origin.open_connections >= self._wanted, 10.0)
        File(DATA)(request, connection)


def test_the_kernel_tells_the_round_trip_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        assert 0.0 < round_trip_s(sock) < 10.0


@pytest.mark.parametrize("connections", [1, 3, 8])
def test_as_many_connections_as_wanted_are_open_before_the_first_answer(
    connections: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    handler = Waiting(connections)
    origin = handler.origin = serve(handler)
    fetch(f"{origin.url}/f", tmp_path / "f", connections=connections, min_split_size=100_000)
    check_file(tmp_path / "f")
    assert origin.most_connections == connections


def test_a_near_host_gets_one_connection_first(
    serve: Serve, fetch: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconnect, "MIN_RTT_S", 60.0)
    origin = serve(File(DATA[:1000]))
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4)
    assert origin._connections == 1


def test_a_host_of_small_files_gets_one_connection_from_the_second_file_on(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA[:1000]))
    client = fetch.client()
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4, client=client)
    client.close()
    made = origin._connections
    assert made <= 4
    fetch(f"{origin.url}/g", tmp_path / "g", connections=4, client=client)
    assert origin._connections == made + 1


def test_a_proxy_gets_no_connection_in_advance(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA[:1000]))
    fetch("http://example.org/f", tmp_path / "f", connections=4, network={"proxy": origin.url})
    assert origin._connections == 1


@pytest.mark.parametrize("status", [*REFUSALS, 503])
def test_a_server_that_serves_few_connections_still_gives_the_file(
    status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    handler = Admits(2, File(DATA, block=16 * 1024, pause_s=0.005)) if status == 503 else Limited(2, status)
    origin = serve(handler)
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4, retries=10)
    check_file(tmp_path / "f")
    assert origin.most_connections <= 4 + 4  # it may not have noticed that a connection was closed


def test_connections_that_the_server_closes_meanwhile_are_opened_again(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """The server closes each connection without an answer, but the first and those opened after its answer."""
    closed: set[int] = set()

    def handle(request: Request, connection: Connection) -> None:
        if 1 <= connection.number <= 3 and connection.number not in closed:
            closed.add(connection.number)
            connection.hang_up()
            return
        File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f", connections=4, min_split_size=100_000, retries=3)
    check_file(tmp_path / "f")
