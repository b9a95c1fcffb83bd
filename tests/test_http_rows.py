"""Every row of what servers do: each ends in the exact file or the named error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from tests.conftest import Fetcher, make_data
from tests.origin import LAST_MODIFIED, Connection, File, Handler, Origin, Range, Request

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
    def handle(request: Request, connection: Connection) -> None:
        handler(request, connection)
        connection.hang_up()

    return handle


def check_file(target: Path, data: bytes = DATA) -> None:
    """The file is there, exact, and nothing else is."""
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def asked_sensibly(origin: Origin) -> bool:
    return all(span.end is None or span.end > span.start for span in origin.ranges())


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


# --- validators ---


def changing(when: int, before: File, after: File) -> Handler:
    """A remote that is replaced before request ``when``."""

    def handle(request: Request, connection: Connection) -> None:
        (before if request.number < when else after)(request, connection)

    return handle


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (File(DATA), File(OTHER, etag='"v2"')),
        (File(DATA, etag=None), File(OTHER, etag=None, last_modified="Fri, 04 Oct 2024 10:00:00 GMT")),
        (File(DATA, etag=None, last_modified=None), File(OTHER[:-5], etag=None, last_modified=None)),
        (File(DATA, etag='W/"v1"'), File(OTHER, etag='W/"v2"', last_modified="Fri, 04 Oct 2024 10:00:00 GMT")),
        (File(DATA), File(OTHER[: SIZE // 2], etag='"v2"')),
    ],
    ids=["strong etag", "date", "size", "weak etag and date", "etag and smaller"],
)
def test_a_remote_that_changes_begins_anew_and_is_wholly_the_new_version(
    before: File, after: File, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(changing(3, before, after))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", after.data)
    assert outcome.restarts == 1
    assert len(fetch.named("download_restarted")) == 1


def test_a_weak_etag_is_never_sent_in_if_range(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, etag='W/"v1"'))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert not any("if-range" in request.headers for request in origin.requests)


def test_a_strong_etag_is_sent_in_if_range(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert {request.headers.get("if-range") for request in origin.requests[1:]} == {'"v1"'}


def test_a_strong_date_is_sent_in_if_range_where_there_is_no_etag(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, etag=None))
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert {request.headers.get("if-range") for request in origin.requests[1:]} == {LAST_MODIFIED}


def test_another_etag_each_time_ends_with_a_file_of_one_version(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        File(DATA, etag=f'"{request.number}"')(request, connection)

    origin = serve(handle)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.restarts == 3
    assert origin.requests[-1].range is None


def test_a_remote_that_keeps_changing_and_breaking_off_ends_with_an_error(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.range is None:
            connection.answer(200, {"ETag": f'"{request.number}"', "Content-Length": str(SIZE)}, DATA[:1000])
            connection.hang_up()
        File(DATA, etag=f'"{request.number}"')(request, connection)

    origin = serve(handle)
    with pytest.raises(errors.ShortBody):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert len(origin.requests) < 40


def test_a_200_to_if_range_but_206_to_a_plain_range_still_uses_ranges(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        if "if-range" in request.headers:
            connection.answer(200, {**file.headers(), "Content-Length": str(SIZE)}, DATA[:1000])
            connection.hang_up()
        file(request, connection)

    origin = serve(handle)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.restarts == 0
    assert outcome.received <= SIZE * 1.02


# --- encodings ---


def test_identity_is_asked_for_on_every_request(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    fetch(f"{origin.url}/f", tmp_path / "f", probe="head")
    assert {request.headers.get("accept-encoding") for request in origin.requests} == {"identity"}


@pytest.mark.parametrize("serves_ranges", [True, False])
def test_an_encoded_file_is_saved_as_sent_and_said_so(
    serves_ranges: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA, serves_ranges=serves_ranges, extra={"Content-Encoding": "gzip"}))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert fetch.named("content_encoded")[0]["encoding"] == "gzip"


def test_a_part_that_is_encoded_while_others_are_not_is_asked_for_again(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    encoded = File(OTHER, extra={"Content-Encoding": "gzip"})
    origin = serve(nth({3, 4}, encoded, File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


# --- broken connections ---


def cut_after(size: int, *, reset: bool) -> Handler:
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


# --- statuses ---


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524])
def test_passing_statuses_are_retried(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(nth({1, 3}, lambda _r, c: c.answer(status), File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, errors.AccessDenied, 6), (403, errors.AccessDenied, 6), (407, errors.AccessDenied, 6),
        (404, errors.NotFound, 10), (410, errors.NotFound, 10), (451, errors.HttpRefused, 8),
        (204, errors.ProtocolBroken, 7), (205, errors.ProtocolBroken, 7), (304, errors.ProtocolBroken, 7),
        (505, errors.HttpRefused, 8),
    ],
)  # fmt: skip
def test_final_statuses_fail_at_once(
    status: int, error: type[errors.DlpoolError], code: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(lambda _request, connection: connection.answer(status))
    with pytest.raises(error) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert raised.value.exit_code == code
    assert len(origin.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_1xx_answers_are_skipped(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_203_is_taken_whole_and_never_combined(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(203, {"ETag": '"v1"'}, DATA))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")

    mixed = serve(nth({2, 3}, lambda _r, c: c.answer(203, {"ETag": '"v1"'}, OTHER), File(DATA)))
    fetch(f"{mixed.url}/g", tmp_path / "f")
    check_file(tmp_path / "f")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("value", ["1", "date"])
def test_no_thread_asks_again_before_retry_after(
    status: int, value: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)
    refused_at: list[float] = []
    early: list[float] = []
    lock = threading.Lock()

    def handle(request: Request, connection: Connection) -> None:
        now = time.time()
        with lock:
            if request.number == 3:
                refused_at.append(now)
            elif refused_at and request.number > 8 and now < refused_at[0] + 0.9:
                early.append(now)
        if request.number == 3:
            seconds = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 2)) if value == "date" else value
            connection.answer(status, {"Retry-After": seconds})
        else:
            file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f", min_split_size=64 * 1024, connections=4)
    check_file(tmp_path / "f")
    assert refused_at and not early


@pytest.mark.parametrize("value", ["soon", "-5", "", "Thu, 01 Jan 1970 00:00:00 GMT", "99999999999999999999"])
def test_a_garbage_or_past_retry_after_is_an_ordinary_backoff(
    value: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(nth({1}, lambda _r, c: c.answer(503, {"Retry-After": value}), File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


def test_a_retry_after_above_the_limit_fails_with_that_reason(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(429, {"Retry-After": "3600"}))
    with pytest.raises(errors.WaitTooLong, match="3600 s"):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_a_range_that_fails_for_good_fails_the_job_and_keeps_the_state(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=16 * 1024, pause_s=0.2)

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        if span and span.start > SIZE // 2:
            connection.answer(500)
        else:
            file(request, connection)

    origin = serve(handle)
    threads = set(threading.enumerate())
    with pytest.raises(errors.ServerTrouble):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f.part.meta").exists()
    left = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("dlpool-lane")]
    assert left == []

    good = serve(File(DATA))
    file.pause_s = 0
    origin.handler = good.handler
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.resumed_from > 0


@pytest.mark.parametrize("how", ["503", "close", "silence"])
def test_a_server_that_allows_two_connections_still_completes(
    how: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA, block=32 * 1024, pause_s=0.05)
    busy = threading.Semaphore(2)

    def handle(request: Request, connection: Connection) -> None:
        if not busy.acquire(blocking=False):
            if how == "503":
                return connection.answer(503)
            return connection.reset() if how == "close" else connection.wait_for_client_to_go()
        try:
            return file(request, connection)
        finally:
            busy.release()

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f", retry_delay=0.2, retry_max_delay=0.5)
    check_file(tmp_path / "f")


# --- redirects ---


def redirect(location: str, status: int = 302, **headers: str) -> Handler:
    return lambda _request, connection: connection.answer(status, {"Location": location, **headers})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range_on_each_hop(
    status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    file = File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/start":
            connection.answer(status, {"Location": "next/../middle?x=1"})
        elif request.path.startswith("/middle"):
            connection.answer(status, {"Location": f"http://127.0.0.1:{origin.port}/end"})
        else:
            file(request, connection)

    origin = serve(handle)
    fetch(f"{origin.url}/start", tmp_path / "f")
    check_file(tmp_path / "f")
    assert all(request.range for request in origin.requests)


def test_a_redirect_loop_ends_with_an_error(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(redirect("/again"))
    with pytest.raises(errors.ProtocolBroken, match="redirected more than 10 times"):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert len(origin.requests) == 11


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:1", "http://[:x"])
def test_a_redirect_to_anything_but_http_is_refused(
    location: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(redirect(location))
    with pytest.raises(errors.PolicyRefused):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_a_redirect_without_a_location_is_an_error(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(lambda _r, c: c.answer(302))
    with pytest.raises(errors.ProtocolBroken):
        fetch(f"{origin.url}/f", tmp_path / "f")


def test_an_expired_signed_url_is_renewed_at_the_original_one(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    file = File(DATA)
    uses: dict[str, int] = {}
    lock = threading.Lock()

    def signed(request: Request, connection: Connection) -> None:
        with lock:
            uses[request.path] = uses.get(request.path, 0) + 1
            is_expired = uses[request.path] > 2
        if is_expired:
            connection.answer(403)
        else:
            cut_after(100_000, reset=False)(request, connection)

    cdn = serve(signed)
    made = iter(range(1000))
    origin = serve(lambda r, c: c.answer(302, {"Location": f"{cdn.url}/f?signature={next(made)}"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert SIZE == len(file.data) <= outcome.received < SIZE * 1.05
    assert len(uses) > 2


def test_credentials_never_reach_another_origin(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    other = serve(File(DATA))
    origin = serve(redirect(f"{other.url}/f"))
    secrets = {"Cookie": "session=1", "X-Api-Key": "k", "Accept-Language": "de"}
    fetch(f"{origin.url}/f", tmp_path / "f", headers=secrets, user=("me", "secret"))
    check_file(tmp_path / "f")
    assert origin.requests[0].headers["authorization"].startswith("Basic ")
    assert origin.requests[0].headers["cookie"] == "session=1"
    for request in other.requests:
        assert not {"authorization", "cookie", "x-api-key"} & request.headers.keys()
        assert request.headers["accept-language"] == "de"


def test_user_info_of_the_url_is_sent_as_credentials_and_not_in_the_url(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA))
    fetch(f"http://me:pass%20word@127.0.0.1:{origin.port}/f", tmp_path / "f")
    assert origin.requests[0].headers["authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert "me" not in origin.requests[0].headers["host"]


def test_a_cookie_set_by_a_redirect_is_sent_back_to_its_host(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.headers.get("cookie") == "seen=yes":
            File(DATA)(request, connection)
        else:
            connection.answer(302, {"Location": request.path, "Set-Cookie": "seen=yes"})

    origin = serve(handle)
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")


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
            "ETag": '"v1"', "Last-Modified": LAST_MODIFIED, "Content-Length": str(span.end - span.start),
            "Content-Range": f"bytes {span.start}-{span.end - 1}/{SIZE}",
        }  # fmt: skip
        connection.answer(206, headers, DATA[span.start : span.start + 100], length=False)
        connection.wait_for_client_to_go()

    origin = serve(nth({3}, stall, File(DATA)))
    fetch(f"{origin.url}/f", tmp_path / "f", network={"read_timeout": 1.0})
    check_file(tmp_path / "f")


# --- names ---


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('attachment; filename="plain.bin"', "plain.bin"),
        ("attachment; filename=token.bin", "token.bin"),
        ("attachment; filename=\"no.bin\"; filename*=UTF-8''na%C3%AFve%20file.bin", "naïve file.bin"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="/etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\windows\\\\evil.exe"', "evil.exe"),
        ('attachment; filename=".bashrc"', "_bashrc"),
        ('attachment; filename="x.part"', "x.part_"),
        ("attachment; filename*=UTF-8''%E2%80%AEgnp.exe", "gnp.exe"),
        ("attachment; filename*=UTF-8''a%00b%0Ac", "abc"),
        ('attachment; filename=".."', "from-url.bin"),
        ("attachment", "from-url.bin"),
    ],
)
def test_the_servers_name_is_made_safe(value: str, name: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(DATA, extra={"Content-Disposition": value}))
    outcome = fetch(f"{origin.url}/a/from-url.bin?x=/y", tmp_path)
    assert outcome.path == tmp_path / name
    check_file(tmp_path / name)


def test_the_digest_of_the_server_is_verified(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    origin = serve(File(DATA, extra={"Repr-Digest": f"sha-256=:{digest}:"}))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    assert outcome.checksum == f"sha256:{hashlib.sha256(DATA).hexdigest()}"

    wrong = serve(File(OTHER, extra={"Repr-Digest": f"sha-256=:{digest}:"}))
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{wrong.url}/g", tmp_path / "g")
    check_file(tmp_path / "f")
