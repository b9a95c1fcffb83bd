"""A remote that changes: the file is wholly one version."""

from __future__ import annotations

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
)
from tests.origin import LAST_MODIFIED, Connection, File, Handler, Request

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
