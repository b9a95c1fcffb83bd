"""What was fetched belongs to the resource: a new signature goes on with it, the file of another query never does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.target.file.cleanup import remove_part_files
from tests.conftest import Fetcher, sha256
from tests.handlers import DATA, OTHER, SIZE, Serve, check_file
from tests.origin import Connection, File, Handler, Request
from tests.test_one_version import interrupt, sampled

NOTHING: dict[str, Any] = {"etag": None, "last_modified": None}


def signed(good: Handler, signature: str, status: int = 403, most: int = 10**6) -> Handler:
    """A server of ``good`` that refuses other signatures, and its own after ``most`` requests."""
    served = 0

    def handle(request: Request, connection: Connection) -> None:
        nonlocal served
        served += 1
        if request.path.endswith(f"sig={signature}") and served <= most:
            return good(request, connection)
        return connection.answer(status, {"Content-Type": "application/xml"}, b"<Error><Code>Expired</Code></Error>")

    return handle


def capped(good: Handler) -> Handler:
    """A server that sends no more than 200,000 bytes at a time."""

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        end = min(span.end or SIZE, span.start + 200_000)
        headers = {**request.headers, "range": f"bytes={span.start}-{end - 1}"}
        good(replace(request, headers=headers), connection)

    return handle


def state_of(target: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(target.with_name(target.name + ".part.meta").read_text())
    return state


# --- the same resource ---


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
@pytest.mark.parametrize("known", [{}, {"etag": 'W/"v1"'}, {"etag": None}], ids=["strong etag", "weak etag", "date"])
def test_a_signature_that_expires_keeps_what_was_fetched_and_a_new_one_goes_on(
    known: dict[str, Any], status: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = File(DATA, **known)
    origin = serve(signed(good, "a", status, most=1))
    committed = interrupt(fetch, f"{origin.url}/f?X-Expires=1&sig=a", tmp_path / "f")
    count = len(origin.requests)
    origin.handler = signed(good, "b")
    outcome = fetch(f"{origin.url}/f?X-Expires=2&sig=b", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.resumed_from == committed > 0
    asked = [one.range.start for one in origin.requests[count:] if one.range and not sampled([one])]
    assert min(asked) == committed
    assert len(sampled(origin.requests)) == (0 if known == {} else 4)


def test_a_signature_that_expires_twice_goes_on_twice(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = capped(File(DATA))
    origin = serve(signed(good, "a", most=2))
    first = interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    origin.handler = signed(good, "b", most=2)
    second = interrupt(fetch, f"{origin.url}/f?sig=b", tmp_path / "f")
    origin.handler = signed(good, "c")
    assert fetch(f"{origin.url}/f?sig=c", tmp_path / "f").resumed_from == second > first > 0
    check_file(tmp_path / "f")


def test_a_checksum_that_both_runs_demand_goes_on_without_validator(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good, checksum = File(DATA, **NOTHING), f"sha256:{sha256(DATA)}"
    origin = serve(signed(good, "a", most=1))
    committed = interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f", checksum=checksum)
    origin.handler = signed(good, "b")
    assert fetch(f"{origin.url}/f?sig=b", tmp_path / "f", checksum=checksum).resumed_from == committed > 0
    check_file(tmp_path / "f")


def test_a_digest_of_the_server_goes_on_without_validator(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    good = File(DATA, extra={"Digest": f"SHA-256={digest}"}, **NOTHING)
    origin = serve(signed(good, "a", most=1))
    committed = interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    origin.handler = signed(good, "b")
    assert fetch(f"{origin.url}/f?sig=b", tmp_path / "f").resumed_from == committed > 0
    check_file(tmp_path / "f")


def test_the_name_that_the_server_gives_finds_what_was_fetched(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = File(DATA, etag=None, extra={"Content-Disposition": "attachment; filename=n"})
    origin = serve(signed(good, "a", most=1))
    with pytest.raises(errors.AccessDenied):
        fetch(f"{origin.url}/f?sig=a", tmp_path, connections=1)
    origin.handler = signed(good, "b")
    assert fetch(f"{origin.url}/f?sig=b", tmp_path).resumed_from > 0
    check_file(tmp_path / "n")


# --- another resource ---

OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "strong etags": ({"etag": '"1"'}, {"etag": '"2"'}),
    "weak etags": ({"etag": 'W/"1"'}, {"etag": 'W/"2"'}),
    "a strong etag and none": ({"etag": '"1"'}, {"etag": None}),
    "dates": ({"etag": None}, {"etag": None, "last_modified": "Fri, 27 Sep 2024 10:00:00 GMT"}),
    "the same date and size": ({"etag": None}, {"etag": None}),
    "the same weak etag, date and size": ({"etag": 'W/"1"'}, {"etag": 'W/"1"'}),
    "nothing": (NOTHING, NOTHING),
    "dates that are none": ({"etag": None, "last_modified": "0"}, {"etag": None, "last_modified": "0"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_two_files_of_two_queries_never_meet(kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    one, other = OTHERS[kind]
    origin = serve(signed(File(DATA, **one), "a", most=1))
    assert interrupt(fetch, f"{origin.url}/f?id=1&sig=a", tmp_path / "f") > 0
    origin.handler = signed(File(OTHER, **other), "a")
    assert fetch(f"{origin.url}/f?id=2&sig=a", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER)


def test_a_checksum_of_another_file_does_not_go_on(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(signed(File(DATA, **NOTHING), "a", most=1))
    interrupt(fetch, f"{origin.url}/f?id=1&sig=a", tmp_path / "f", checksum=f"sha256:{sha256(DATA)}")
    origin.handler = File(OTHER, **NOTHING)
    outcome = fetch(f"{origin.url}/f?id=2&sig=a", tmp_path / "f", checksum=f"sha256:{sha256(OTHER)}")
    assert outcome.resumed_from == 0
    check_file(tmp_path / "f", OTHER)


def test_another_path_is_another_resource_whatever_its_etag(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(signed(File(DATA), "a", most=1))
    interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    origin.handler = File(OTHER)
    assert fetch(f"{origin.url}/g?sig=a", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER)


def test_a_login_page_under_a_new_query_costs_nothing(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = File(DATA)
    origin = serve(signed(good, "a", most=1))
    committed = interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    origin.handler = File(b"<html>", etag='"login"', extra={"Content-Type": "text/html"})
    with pytest.raises(errors.UnexpectedContent):
        fetch(f"{origin.url}/f?sig=b", tmp_path / "f")
    origin.handler = signed(good, "c")
    assert fetch(f"{origin.url}/f?sig=c", tmp_path / "f").resumed_from == committed > 0
    check_file(tmp_path / "f")


@pytest.mark.parametrize("trouble", [503, 429, 500])
def test_trouble_with_the_samples_costs_nothing(trouble: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = File(DATA, etag=None)
    origin = serve(signed(good, "a", most=1))
    committed = interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    count = 0

    def handle(request: Request, connection: Connection) -> None:
        nonlocal count
        count += 1
        connection.answer(trouble) if count in (1, 3) else good(request, connection)

    origin.handler = handle
    assert fetch(f"{origin.url}/f?sig=b", tmp_path / "f").resumed_from == committed > 0
    check_file(tmp_path / "f")


# --- what stays beside the target ---


def test_the_state_holds_no_query_and_follows_the_latest(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    good = capped(File(DATA))
    origin = serve(signed(good, "a", most=1))
    interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    first = state_of(tmp_path / "f")
    origin.handler = signed(good, "b", most=1)
    interrupt(fetch, f"{origin.url}/f?sig=b", tmp_path / "f")
    second = state_of(tmp_path / "f")
    assert first["url"] == second["url"] == f"{origin.url}/f"
    assert first["url_sha256"] != second["url_sha256"]
    assert second["attempts"] == 2


def test_only_the_query_that_fetched_it_removes_what_is_unfinished(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(signed(File(DATA), "a", most=1))
    interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    remove_part_files(tmp_path / "f", f"{origin.url}/f?sig=b")
    assert (tmp_path / "f.part").exists()
    remove_part_files(tmp_path / "f", f"{origin.url}/f?sig=a")
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_that_of_the_resource(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """An entity tag alone, with another size, is no proof."""
    origin = serve(signed(File(DATA), "a", most=1))
    interrupt(fetch, f"{origin.url}/f?sig=a", tmp_path / "f")
    origin.handler = File(OTHER[: SIZE - 1])
    assert fetch(f"{origin.url}/f?sig=b", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER[: SIZE - 1])
