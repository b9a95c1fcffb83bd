"""Connections that break, stall or trickle."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher
from tests.handlers import (
    DATA,
    SIZE,
    Serve,
    check_file,
    cut_after,
    first,
    nth,
)
from tests.origin import LAST_MODIFIED, Connection, File, Request


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def is_tls(request: pytest.FixtureRequest) -> bool:
    """All tests hold without TLS and with it."""
    return bool(request.param)


# --- broken connections ---


@pytest.mark.parametrize("reset", [True, False])
def test_truncated_bodies_go_on_from_the_exact_byte(reset: bool, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(cut_after(70_000, reset=reset))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.retries > 4
    if not reset:
        assert outcome.received == SIZE


def test_a_server_that_closes_every_connection_after_one_answer_is_no_trouble(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        file(request, connection)
        connection.hang_up()  # without having said "Connection: close"

    origin = serve(handle)
    client = fetch.client()
    for number in range(3):
        outcome = fetch(f"{origin.url}/f", tmp_path / f"f{number}", client=client)
        assert (tmp_path / f"f{number}").read_bytes() == DATA
        assert outcome.received == SIZE


def test_a_portals_page_is_neither_a_change_nor_saved(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def portal(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Type": "text/html"}, b"<html>please log in</html>")

    origin = serve(nth({2, 4, 5}, portal, File(DATA)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.restarts == 0


# --- slow and silent servers ---


def test_a_silent_server_ends_with_a_timeout(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.wait_for_client_to_go())
    with pytest.raises(errors.TimedOut):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=0, network={"read_timeout": 0.3})


def test_a_header_that_trickles_ends_with_a_timeout(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_request: Request, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(200):
            connection.send(b"X: y\r\n")
            threading.Event().wait(0.1)

    origin = serve(handle)
    with pytest.raises(errors.TimedOut):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=0, network={"read_timeout": 0.5, "connect_timeout": 0.5})


def test_a_trickle_below_the_minimum_speed_moves_to_another_connection(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    trickle = File(DATA, block=10, pause_s=0.1)
    origin = serve(first(1, trickle, File(DATA)))
    outcome = fetch(
        f"{origin.url}/f", tmp_path / "f", connections=1, network={"low_speed_limit": 1024, "low_speed_time": 1.0}
    )
    check_file(tmp_path / "f")
    assert outcome.retries >= 1


def test_a_stalled_connection_is_replaced_by_another(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def stall(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None and span.end is not None
        headers = {
            "ETag": '"v1"',
            "Last-Modified": LAST_MODIFIED,
            "Content-Length": str(span.end - span.start),
            "Content-Range": f"bytes {span.start}-{span.end - 1}/{SIZE}",
        }
        connection.answer(206, headers, DATA[span.start : span.start + 100], length=False)
        connection.wait_for_client_to_go()

    origin = serve(nth({3}, stall, File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f", network={"read_timeout": 1.0})
    check_file(tmp_path / "f")
