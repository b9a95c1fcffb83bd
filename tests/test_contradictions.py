"""Answers that contradict themselves, and what a 206 proves that repeats no validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.http.answer import ByteRange, read_answer
from tests.conftest import Fetcher
from tests.handlers import DATA, OTHER, SIZE, Serve, check_file, first
from tests.origin import Connection, File, Handler, Request
from tests.test_answer import NOW
from tests.test_one_version import interrupt, refusing_from

PART = 262_144
HALF = SIZE // 2

# --- a 200 with Content-Range ---


@pytest.mark.parametrize("status", [200, 203])
@pytest.mark.parametrize("asked", [None, ByteRange(0, 5), ByteRange(5, 10)])
@pytest.mark.parametrize(
    ("content_range", "length"),
    [
        ("bytes 0-4/10", "5"),
        ("bytes 5-9/10", "5"),
        ("bytes 0-4/*", "5"),
        ("bytes 0-4/10", None),
        ("bytes 0-4/*", None),
        ("bytes */10", "5"),
        ("bytes 0-9/10", "5"),
        ("bytes 0-4/10", "11"),
        ("0-4/10", "5"),
        ("bytes 0-4", "5"),
        ("bytes=0-4/10", "5"),
        ("bytes 0-4/10, bytes 5-9/10", "5"),
        ("items 0-4/10", "5"),
        ("", "5"),
    ],
)
def test_a_200_with_the_range_of_a_part_is_no_file(
    content_range: str, length: str | None, asked: ByteRange | None, status: int
) -> None:
    headers = {"Content-Range": content_range} | ({"Content-Length": length} if length else {})
    with pytest.raises(errors.ContradictoryAnswer):
        read_answer(status, headers, asked, NOW)


@pytest.mark.parametrize(
    ("content_range", "length"),
    [("bytes 0-9/10", "10"), ("bytes 5-9/10", "10"), ("bytes */10", "10"), ("bytes 0-9/10", None)],
)
def test_a_200_of_the_whole_total_is_the_file(content_range: str, length: str | None) -> None:
    headers = {"Content-Range": content_range} | ({"Content-Length": length} if length else {})
    assert not read_answer(200, headers, None, NOW).is_partial


def part_as_200(request: Request, connection: Connection, **extra: str) -> None:
    """A part, as a server sends it whose cache has lost the status."""
    connection.answer(200, {"Content-Range": f"bytes 0-{PART - 1}/{SIZE}", "ETag": '"v1"', **extra}, DATA[:PART])


@pytest.mark.parametrize("good", [File(DATA), File(DATA, serves_ranges=False)], ids=["ranges", "no ranges"])
def test_a_contradiction_is_followed_by_one_plain_get(
    good: Handler, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(lambda request, connection: (part_as_200 if request.range else good)(request, connection))
    fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert [request.range is None for request in origin.requests] == [False, True]


@pytest.mark.parametrize("connections", [1, 4])
def test_two_contradictions_are_the_end(connections: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(part_as_200)
    with pytest.raises(errors.BadAnswer) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", connections=connections)
    assert raised.value.exit_code == 7
    assert len(origin.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_contradiction_in_mid_download_is_retried(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = File(DATA)
    origin = serve(lambda request, connection: (part_as_200 if request.number == 2 else good)(request, connection))
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 0
    check_file(tmp_path / "f")


def test_a_contradiction_costs_nothing_that_an_earlier_run_has_fetched(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = File(DATA)
    origin = serve(refusing_from(2, good))
    committed = interrupt(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = part_as_200
    with pytest.raises(errors.BadAnswer):
        fetch(f"{origin.url}/f", tmp_path / "f")
    origin.handler = good
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == committed > 0
    check_file(tmp_path / "f")


def test_a_200_shorter_than_the_total_of_the_same_version_is_no_file(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """Its ranges are of 1,000,003 bytes, its whole file has 1000, and both have one strong entity tag."""
    good, short = File(DATA), File(DATA[:1000], serves_ranges=False)
    origin = serve(first(1, good, short))
    with pytest.raises(errors.BadAnswer) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert raised.value.exit_code == 7
    assert not (tmp_path / "f").exists()


def test_a_200_whose_body_is_shorter_than_its_length_is_no_file(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Length": str(SIZE), "ETag": '"v1"'}, DATA[:PART], length=False)
        connection.hang_up()

    origin = serve(handle)
    with pytest.raises(errors.ShortBody):
        fetch(f"{origin.url}/f", tmp_path / "f", retries=1)
    assert list(tmp_path.iterdir()) == []


# --- a 206 to If-Range ---

VALIDATORS: dict[str, dict[str, Any]] = {"strong etag": {}, "date": {"etag": None}}


def silent(data: bytes, conditional: dict[str, str], plain: dict[str, str], known: dict[str, Any]) -> Handler:
    """Says all in its first answer, then other headers: ``conditional`` in a 206 to If-Range, else ``plain``."""
    full, silence = File(DATA, **known), File(data, etag=None, last_modified=None)

    def handle(request: Request, connection: Connection) -> None:
        if request.number == 1:
            return full(request, connection)
        span = request.range
        assert span is not None
        end = min(len(data), span.end or len(data))
        headers = {
            "Content-Range": f"bytes {span.start}-{end - 1}/{len(data)}",
            "Content-Length": str(end - span.start),
        }
        told = conditional if "if-range" in request.headers else plain
        return silence.stream(connection, 206, {**headers, **told}, span.start, end)

    return handle


@pytest.mark.parametrize("known", VALIDATORS)
def test_a_206_to_if_range_needs_no_validator(known: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(silent(DATA, {}, {}, VALIDATORS[known]))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert (outcome.retries, outcome.restarts) == (0, 0)
    assert fetch.named("samples_compared") == []


@pytest.mark.parametrize("known", VALIDATORS)
def test_a_206_to_if_range_needs_no_validator_in_a_later_run(
    known: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(refusing_from(2, File(DATA, **VALIDATORS[known])))
    committed = interrupt(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = silent(DATA, {}, {}, VALIDATORS[known])
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    assert outcome.resumed_from == committed > 0
    assert outcome.received == SIZE - committed
    check_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ("strong etag", {"ETag": '"v2"'}),
        ("strong etag", {"ETag": 'W/"v2"'}),
        ("strong etag", {"Last-Modified": "Fri, 27 Sep 2024 10:00:00 GMT"}),
        ("date", {"Last-Modified": "Fri, 27 Sep 2024 10:00:00 GMT"}),
    ],
)
def test_a_206_to_if_range_with_another_validator_is_a_change(
    known: str, other: dict[str, str], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    changed = silent(OTHER, other, {}, VALIDATORS[known])
    after = File(OTHER, etag='"v2"')
    is_begun = False

    def handle(request: Request, connection: Connection) -> None:
        nonlocal is_begun
        is_begun = is_begun or (request.number > 1 and "if-range" not in request.headers)
        (after if is_begun else changed)(request, connection)

    origin = serve(handle)
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 1
    check_file(tmp_path / "f", OTHER)


def test_a_206_without_validator_to_a_plain_range_is_no_proof(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """A server that knows no If-Range, and names no version where it is not asked with one."""
    ranged, file = silent(OTHER, {}, {}, {}), File(DATA)

    def handle(request: Request, connection: Connection) -> None:
        if "if-range" in request.headers:
            connection.answer(200, {**file.headers(), "Content-Length": str(SIZE)}, DATA[:1000], length=False)
            connection.hang_up()
        ranged(request, connection)

    origin = serve(handle)
    with pytest.raises(errors.BadAnswer) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert raised.value.exit_code == 7
    assert not (tmp_path / "f").exists()
