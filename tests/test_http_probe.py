"""How a download begins: HEAD, the probe, sizes, and bodies without length."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher
from tests.handlers import (
    DATA,
    SIZE,
    Serve,
    asked_sensibly,
    check_file,
    first,
)
from tests.origin import Connection, File, Handler, Request

# --- HEAD and the probe ---


def refuse_head(request: Request, connection: Connection) -> None:
    if request.method == "HEAD":
        connection.answer(405)
    else:
        File(DATA)(request, connection)


def reset_on_head(request: Request, connection: Connection) -> None:
    if request.method == "HEAD":
        connection.reset()
    File(DATA)(request, connection)


def lie_on_head(request: Request, connection: Connection) -> None:
    if request.method == "HEAD":
        connection.answer(200, {"Content-Length": "12", "ETag": '"other"'})
    else:
        File(DATA)(request, connection)


def head_without_length(request: Request, connection: Connection) -> None:
    if request.method == "HEAD":
        connection.answer(200, length=False)
    else:
        File(DATA)(request, connection)


@pytest.mark.parametrize("handler", [refuse_head, reset_on_head, lie_on_head, head_without_length, File(DATA)])
def test_a_head_that_is_refused_reset_or_a_lie_is_replaced_by_a_get(
    handler: Handler, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(handler)
    fetch(f"{origin.url}/f", tmp_path / "f", probe="head")
    check_file(tmp_path / "f")
    assert origin.requests[0].method == "HEAD"


@pytest.mark.parametrize("status", [400, 405, 416, 501])
def test_a_refused_range_is_followed_by_one_plain_get(
    status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.range:
            connection.answer(status, {"Content-Range": f"bytes */{SIZE}"} if status == 416 else {})
        else:
            File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("status", "retry_after"),
    [(400, "soon"), (400, "-1"), (400, ""), (405, "1"), (416, "1"), (416, "soon"), (501, "0"), (501, "86400")],
)
def test_so_is_one_whose_retry_after_means_nothing(
    status: int, retry_after: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.range:
            connection.answer(status, {"Retry-After": retry_after})
        else:
            File(DATA)(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert len(origin.requests) == 2


def test_a_range_and_a_plain_get_both_refused_fail_the_job(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _request, connection: connection.answer(400))
    with pytest.raises(errors.HttpRefused):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert len(origin.requests) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("serves_ranges", [True, False])
def test_accept_ranges_none_means_one_stream(serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, serves_ranges=serves_ranges, extra={"Accept-Ranges": "none"}))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert origin.most_connections == 1


def test_a_206_without_accept_ranges_proves_ranges(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.connections == 4
    assert outcome.received <= SIZE * 1.02
    assert asked_sensibly(origin)


def test_a_200_in_spite_of_accept_ranges_is_used_as_the_one_stream(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, serves_ranges=False, extra={"Accept-Ranges": "bytes"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert len(origin.requests) == 1
    assert outcome.received == SIZE


@pytest.mark.parametrize("size", [0, 1, 3, 65_536 * 4 - 1, 65_536 * 4, 65_536 * 4 + 1, 65_535, 65_537])
@pytest.mark.parametrize("probe", ["range", "head"])
def test_sizes_around_the_chunk_borders_are_exact(
    size: int, probe: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA[:size]))
    fetch(f"{origin.url}/f", tmp_path / "f", probe=probe)
    check_file(tmp_path / "f", DATA[:size])
    assert asked_sensibly(origin)


def test_a_416_of_an_empty_file_is_an_empty_file(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _request, connection: connection.answer(416, {"Content-Range": "bytes */0"}))
    assert fetch(f"{origin.url}/f", tmp_path / "f").size == 0
    check_file(tmp_path / "f", b"")


# --- no length ---


def chunked(data: bytes, *, ends: bool = True) -> Handler:
    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Transfer-Encoding": "chunked"}, length=False)
        for start in range(0, len(data), 50_000):
            part = data[start : start + 50_000]
            connection.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.send(b"0\r\n\r\n" if ends else b"")
        if not ends:
            connection.hang_up()

    return handle


def test_a_chunked_body_is_one_stream_and_not_resumable(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(chunked(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert fetch.named("job_started")[0]["has_ranges"] is False


def test_a_chunked_body_without_its_last_chunk_is_fetched_anew(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(first(1, chunked(DATA[:300_000], ends=False), chunked(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_chunked_body_that_never_ends_right_fails(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(chunked(DATA[:300_000], ends=False))
    with pytest.raises(errors.ShortBody):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_ends_with_its_connection_is_taken_whole(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Connection": "close"}, DATA, length=False)
        connection.hang_up()

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
