"""What a 206 may say, and what of it is believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher
from tests.handlers import (
    DATA,
    OTHER,
    SIZE,
    Serve,
    check_file,
    nth,
    then_hang_up,
)
from tests.origin import Connection, File, Handler, Range, Request

# --- Content-Range ---


def with_content_range(change: Callable[[Range, int], str | None]) -> Handler:
    """A 206 whose Content-Range is ``change(span, end)``, with the asked bytes as body."""

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        if span is None:
            return File(DATA)(request, connection)
        end = min(SIZE, span.end or SIZE)
        value = change(span, end)
        headers = {"ETag": '"v1"'} | ({"Content-Range": value} if value else {})
        return connection.answer(206, headers, DATA[span.start : end])

    return handle


def test_a_total_of_star_is_completed_by_head(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(with_content_range(lambda span, end: f"bytes {span.start}-{end - 1}/*"))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.connections == 4


def test_a_total_of_star_without_head_is_one_stream(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    ranged = with_content_range(lambda span, end: f"bytes {span.start}-{end - 1}/*")

    def handle(request: Request, connection: Connection) -> None:
        if request.method == "HEAD":
            connection.answer(405)
        else:
            ranged(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize("size", [0, 1, 5000, 64 * 1024 - 1])
def test_a_head_that_tells_less_than_the_part_has_is_not_believed(
    size: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    ranged = with_content_range(lambda span, end: f"bytes {span.start}-{end - 1}/*")

    def handle(request: Request, connection: Connection) -> None:
        if request.method == "HEAD":
            connection.answer(200, {"ETag": '"v1"', "Content-Length": str(size)}, length=False)
        elif request.range is None:
            File(DATA)(request, connection)
        else:
            ranged(request, connection)

    fetch(f"{serve(handle).url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_206_that_starts_earlier_is_skipped_up_to_the_asked_byte(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        start, end = max(0, span.start - 1000), min(SIZE, span.end or SIZE)
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{SIZE}"}
        connection.answer(206, headers, DATA[start:end])

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def late(request: Request, connection: Connection) -> None:
    span = request.range
    assert span is not None
    start, end = span.start + 1000, min(SIZE, span.end or SIZE)
    connection.answer(206, {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{SIZE}"}, DATA[start:end])


def multipart(_request: Request, connection: Connection) -> None:
    body = b"--x\r\nContent-Type: a/b\r\nContent-Range: bytes 0-9/20\r\n\r\n0123456789\r\n--x--\r\n"
    connection.answer(206, {"ETag": '"v1"', "Content-Type": "multipart/byteranges; boundary=x"}, body)


BAD_PARTS = {
    "late": late,
    "multipart": multipart,
    "no Content-Range": with_content_range(lambda *_: None),
    "garbage": with_content_range(lambda *_: "bytes many"),
    "another unit": with_content_range(lambda span, end: f"items {span.start}-{end - 1}/{SIZE}"),
    "inverted": with_content_range(lambda span, end: f"bytes {end - 1}-{span.start}/{SIZE}"),
    "beyond its total": with_content_range(lambda span, end: f"bytes {span.start}-{end - 1}/{end - 1}"),
    "negative": with_content_range(lambda span, end: f"bytes -{span.start}-{end - 1}/{SIZE}"),
    "two lengths": lambda request, connection: connection.send(
        b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n0123456789!"
    ),
    "huge header": lambda _r, c: c.answer(200, {f"X-{n}": "y" * 2000 for n in range(100)}, DATA),
    "no HTTP": lambda request, connection: connection.send(b"220 mail.example.org ESMTP\r\n\r\n"),
    "endless 1xx": lambda request, connection: connection.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
}


@pytest.mark.parametrize("bad", BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_malformed_part_is_refused_and_asked_for_again(
    bad: Handler, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(nth({1, 3}, then_hang_up(bad), File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize("bad", BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_server_that_sends_only_malformed_parts_fails_as_broken_http(
    bad: Handler, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(then_hang_up(bad))
    with pytest.raises(errors.BadAnswer) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    assert raised.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_caps_ranges_is_asked_for_the_rest(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        end = min(SIZE, span.end or SIZE, span.start + 30_000)
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}"}
        connection.answer(206, headers, DATA[span.start : end])

    origin = serve(handle)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.received == SIZE
    assert outcome.retries == 0


def test_what_exceeds_the_range_is_never_written(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        end = min(SIZE, (span.end or SIZE) + 5000)
        headers = {"ETag": '"v1"', "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}"}
        connection.answer(206, headers, DATA[span.start : end])

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_bytes_behind_the_announced_body_are_never_written(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        file(request, connection)
        connection.send(b"EVIL" * 5000)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


# --- encodings ---


def test_identity_is_asked_for_on_every_request(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f", probe="head")
    assert {request.headers.get("accept-encoding") for request in origin.requests} == {"identity"}


@pytest.mark.parametrize("serves_ranges", [True, False])
def test_an_encoded_file_is_saved_as_sent_if_asked_for_and_said_so(
    serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, serves_ranges=serves_ranges, extra={"Content-Encoding": "gzip"}))
    fetch(f"{origin.url}/f", tmp_path / "f", content_encoding="keep")
    check_file(tmp_path / "f")
    assert fetch.named("content_encoded")[0]["encoding"] == "gzip"


def test_a_part_that_is_encoded_while_others_are_not_is_asked_for_again(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    encoded = File(OTHER, extra={"Content-Encoding": "gzip"})
    origin = serve(nth({3, 4}, encoded, File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
