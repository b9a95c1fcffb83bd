"""Bytes of two versions never meet in a file, whatever a server says, or does not say, of the version."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from tests.conftest import Fetcher, sha256
from tests.handlers import DATA, OTHER, SIZE, Serve, check_file, first
from tests.origin import DATE, LAST_MODIFIED, Connection, File, Handler, Request

FRESH = "Wed, 02 Oct 2024 09:59:01 GMT"  # 59 s before DATE
AHEAD = "Thu, 03 Oct 2024 10:00:00 GMT"  # after DATE
FAR_AHEAD = "Thu, 03 Oct 2999 10:00:00 GMT"

# What a server may say of its versions although it says the same of both.
PROVES_NOTHING: dict[str, dict[str, Any]] = {
    "nothing": {"last_modified": None},
    "an empty date": {"last_modified": ""},
    "0": {"last_modified": "0"},
    "-1": {"last_modified": "-1"},
    "GMT": {"last_modified": "GMT"},
    "text": {"last_modified": "yesterday"},
    "ISO 8601": {"last_modified": "2024-10-01T10:00:00Z"},
    "no such day": {"last_modified": "Tue, 31 Sep 2024 10:00:00 GMT"},
    "two dates": {"last_modified": f"{LAST_MODIFIED}, {LAST_MODIFIED}"},
    "no time, as Go writes it": {"last_modified": "Mon, 01 Jan 0001 00:00:00 GMT"},
    "a year of two digits": {"last_modified": "Tue, 01 Oct 24 10:00:00 GMT"},
    "a year that begins with 0": {"last_modified": "Tue, 01 Oct 0024 10:00:00 GMT"},
    "asctime in the year 1": {"last_modified": "Mon Jan  1 00:00:00 0001"},
    "another day of the week": {"last_modified": "Mon, 01 Oct 2024 10:00:00 GMT"},
    "lower case": {"last_modified": LAST_MODIFIED.lower()},
    "another zone": {"last_modified": "Tue, 01 Oct 2024 10:00:00 +0200"},
    "no zone": {"last_modified": "Tue, 01 Oct 2024 10:00:00"},
    "the hour 24": {"last_modified": "Tue, 01 Oct 2024 24:00:00 GMT"},
    "the epoch": {"last_modified": "Thu, 01 Jan 1970 00:00:00 GMT"},
    "the second of the answer": {"last_modified": DATE},
    "59 s ago": {"last_modified": FRESH},
    "later than the answer": {"last_modified": AHEAD},
    "in our future": {"last_modified": FAR_AHEAD, "date": "Thu, 03 Oct 2999 12:00:00 GMT"},
    "no Date": {"date": None},
    "no date in Date": {"date": "now"},
    "a weak etag": {"etag": 'W/"v1"', "last_modified": None},
    "a weak etag and a fresh date": {"etag": 'W/"v1"', "last_modified": FRESH},
    "an empty etag": {"etag": '""', "last_modified": None},
    "an empty weak etag": {"etag": 'W/""', "last_modified": None},
    "an etag with one quote": {"etag": '"v1', "last_modified": None},
    "an etag with a space": {"etag": '"v 1"', "last_modified": None},
    "two etags": {"etag": '"v1", "v1"', "last_modified": None},
    "an etag without quotes": {"etag": "v1", "last_modified": None},
}
KINDS = pytest.mark.parametrize("kind", PROVES_NOTHING)


def file(data: bytes, kind: str) -> File:
    return File(data, **{"etag": None, **PROVES_NOTHING[kind]})


def changing(when: int, before: Handler, after: Handler) -> Handler:
    """A remote that is replaced before request ``when``."""
    return first(when - 1, before, after)


def refusing_from(number: int, good: Handler) -> Handler:
    """A remote that is gone from request ``number`` on, so that the run ends with what came before."""
    return first(number - 1, good, lambda _request, connection: connection.answer(404))


def interrupt(fetch: Fetcher, url: str, target: Path, **options: Any) -> int:
    """Run a download that fails; return how many bytes it has committed."""
    with pytest.raises(errors.DlpoolError):
        fetch(url, target, connections=1, **options)
    state = json.loads(target.with_name(target.name + ".part.meta").read_text())
    return sum(chunk["position"] - chunk["start"] for chunk in state["chunks"])


def sampled(requests: list[Request]) -> list[Request]:
    """The requests that asked for a few bytes alone."""
    return [one for one in requests if one.range and one.range.end and one.range.end - one.range.start <= 4096]


# --- between two runs ---


@KINDS
def test_what_proves_nothing_lets_no_second_run_go_on(kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(refusing_from(2, file(DATA, kind)))
    assert interrupt(fetch, f"{origin.url}/f", tmp_path / "f") > 0
    origin.handler = file(OTHER, kind)
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == 0
    check_file(tmp_path / "f", OTHER)


@pytest.mark.parametrize(
    "proof",
    [{"etag": '"v1"'}, {"etag": '"v1"', "last_modified": "0"}, {"etag": None}, {"etag": 'W/"v1"'}],
    ids=["strong etag", "strong etag and no date", "date", "weak etag and date"],
)
def test_a_proof_lets_a_second_run_go_on_from_the_exact_byte(
    proof: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = File(DATA, **proof)
    origin = serve(refusing_from(2, good))
    committed = interrupt(fetch, f"{origin.url}/f", tmp_path / "f")
    origin.handler = good
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    assert outcome.resumed_from == committed > 0
    assert outcome.received == SIZE - committed
    check_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": 'W/"v1"'}, {"etag": 'W/"v2"'}),
        ({"etag": 'W/"v1"'}, {"etag": '"v2"'}),
        ({"etag": '"v1"'}, {"etag": '"v2"'}),
        ({"etag": '"v1"'}, {"etag": 'W/"v2"'}),
        ({"etag": None}, {"etag": None, "last_modified": "Fri, 27 Sep 2024 10:00:00 GMT"}),
        ({"etag": None}, {"etag": None, "last_modified": FRESH}),
        ({"etag": None, "extra": {"Repr-Digest": "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"}}, {"etag": None, "extra": {}}),
    ],
    ids=["weak", "weak and strong", "strong", "strong and weak", "older", "newer", "digest"],
)
def test_another_validator_is_another_version_between_runs(
    before: dict[str, Any], after: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    if "extra" in after:
        after = {**after, "last_modified": "Fri, 27 Sep 2024 10:00:00 GMT"}
    origin = serve(refusing_from(2, File(DATA, **before)))
    assert interrupt(fetch, f"{origin.url}/f", tmp_path / "f", verify=False) > 0
    origin.handler = File(OTHER, **after)
    assert fetch(f"{origin.url}/f", tmp_path / "f", verify=False).resumed_from == 0
    check_file(tmp_path / "f", OTHER)


@pytest.mark.parametrize(("etag", "resumes"), [('"v1"', True), (None, False)], ids=["strong etag", "date alone"])
def test_a_state_without_the_date_of_its_answer_resumes_by_a_strong_etag_alone(
    etag: str | None, resumes: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = File(DATA, etag=etag)
    origin = serve(refusing_from(2, good))
    committed = interrupt(fetch, f"{origin.url}/f", tmp_path / "f")
    path = tmp_path / "f.part.meta"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({name: state[name] for name in state.keys() - {"date", "content_type", "host"}}))
    origin.handler = good
    assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from == (committed if resumes else 0)
    check_file(tmp_path / "f")


def test_a_checksum_still_lets_a_second_run_go_on_without_a_validator(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(refusing_from(2, file(DATA, "nothing")))
    checksum = f"sha256:{sha256(DATA)}"
    committed = interrupt(fetch, f"{origin.url}/f", tmp_path / "f", checksum=checksum)
    origin.handler = file(DATA, "nothing")
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", checksum=checksum)
    assert outcome.resumed_from == committed > 0
    assert sampled(origin.requests) == []
    check_file(tmp_path / "f")


def test_a_checksum_that_is_not_verified_lets_no_second_run_go_on(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(refusing_from(2, file(DATA, "nothing")))
    checksum = f"sha256:{sha256(DATA)}"
    interrupt(fetch, f"{origin.url}/f", tmp_path / "f", checksum=checksum)
    origin.handler = file(OTHER, "nothing")
    assert fetch(f"{origin.url}/f", tmp_path / "f", checksum=checksum, verify=False).resumed_from == 0
    check_file(tmp_path / "f", OTHER)


# --- within a run ---


@pytest.mark.parametrize("when", [2, 4])
@KINDS
def test_a_change_that_no_validator_shows_is_found_at_the_end(
    kind: str, when: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(changing(when, file(DATA, kind), file(OTHER, kind)))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f", OTHER)
    assert outcome.restarts == 1


@pytest.mark.parametrize("when", [2, 3])
@pytest.mark.parametrize("connections", [1, 2])
def test_a_change_before_the_last_answers_is_found(
    connections: int, when: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    """The versions differ behind their first 4 KiB alone."""
    after = DATA[:8192] + OTHER[8192:]
    origin = serve(changing(when, file(DATA, "nothing"), file(after, "nothing")))
    fetch(f"{origin.url}/f", tmp_path / "f", connections=connections)
    assert (tmp_path / "f").read_bytes() in (DATA, after)


@KINDS
def test_several_connections_stay_allowed_without_a_validator(
    kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(file(DATA, kind))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.connections == 4
    samples = sampled(origin.requests)
    assert 1 <= len(samples) <= 4
    size = sum(one.range.end - one.range.start for one in samples if one.range and one.range.end)
    assert outcome.received == SIZE + size
    assert len(fetch.named("samples_compared")) == 1


@pytest.mark.parametrize(
    ("good", "options"),
    [
        (File(DATA), {}),
        (File(DATA, etag=None), {}),
        (File(DATA, etag='W/"v1"'), {}),
        (file(DATA, "nothing"), {"checksum": f"sha256:{sha256(DATA)}"}),
        (File(DATA, etag=None, last_modified=None, serves_ranges=False), {}),
        (file(DATA[:60_000], "nothing"), {}),
        (file(b"", "nothing"), {}),
        (file(b"x", "nothing"), {}),
    ],
    ids=["strong etag", "date", "date and weak etag", "checksum", "one body", "one range", "empty", "one byte"],
)
def test_a_download_that_is_proven_makes_no_further_request(
    good: File, options: dict[str, Any], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(good)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **options)
    check_file(tmp_path / "f", good.data)
    assert outcome.received == len(good.data)
    assert fetch.named("samples_compared") == []


def test_another_weak_etag_is_another_version_within_a_run(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(changing(3, File(DATA, etag='W/"v1"'), File(OTHER, etag='W/"v2"')))
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 1
    check_file(tmp_path / "f", OTHER)


def test_validators_are_asked_for_once_more_at_the_end(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """The same bytes in the samples, but another fresh date: another version."""
    count = 0

    def handle(request: Request, connection: Connection) -> None:
        nonlocal count
        is_sample = bool(sampled([request]))
        count += is_sample
        kind = "59 s ago" if not is_sample or count > 1 else "the second of the answer"
        file(DATA, kind)(request, connection)

    origin = serve(handle)
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 1
    check_file(tmp_path / "f")


def test_a_remote_that_is_another_at_each_request_ends_as_one_body(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        data = bytes([request.number % 251]) * SIZE
        file(data, "nothing")(request, connection)

    origin = serve(handle)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    assert outcome.restarts == 3
    assert len(set((tmp_path / "f").read_bytes())) == 1
    assert origin.requests[-1].range is None


# --- a server that fails the last look ---


def failing_samples(answer: Callable[[Request, Connection], None], times: int) -> Handler:
    """A server of a file without validators that answers samples otherwise."""
    count = 0

    def handle(request: Request, connection: Connection) -> None:
        nonlocal count
        if sampled([request]) and count < times:
            count += 1
            return answer(request, connection)
        return file(DATA, "nothing")(request, connection)

    return handle


def cut(request: Request, connection: Connection) -> None:
    assert request.range is not None and request.range.end is not None
    start, end = request.range.start, request.range.end
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(end - start)}
    connection.answer(206, headers, DATA[start : start + 10], length=False)
    connection.hang_up()


TROUBLE: dict[str, Callable[[Request, Connection], None]] = {
    "503": lambda _request, connection: connection.answer(503),
    "429 with Retry-After": lambda _request, connection: connection.answer(429, {"Retry-After": "0"}),
    "reset": lambda _request, connection: connection.reset(),
    "hang up": lambda _request, connection: connection.hang_up(),
    "cut": cut,
    "a page": lambda _request, connection: connection.answer(200, {"Content-Type": "text/html"}, b"<html>"),
    "a range without Content-Range": lambda _request, connection: connection.answer(206, {}, b"abc"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_at_the_last_look_is_retried(trouble: str, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(failing_samples(TROUBLE[trouble], 2))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f")
    check_file(tmp_path / "f")
    assert outcome.restarts == 0


@pytest.mark.parametrize(
    ("trouble", "error"),
    [("503", errors.ServerBusy), ("cut", errors.ShortBody), ("a page", errors.UnexpectedContent)],
)
def test_a_file_that_cannot_be_looked_at_again_is_not_published(
    trouble: str, error: type[errors.DlpoolError], serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(failing_samples(TROUBLE[trouble], 1000))
    with pytest.raises(error):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    assert len(sampled(origin.requests)) == 4  # one, and three retries


def test_a_remote_that_is_gone_at_the_last_look_fails(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(failing_samples(lambda _request, connection: connection.answer(404), 1000))
    with pytest.raises(errors.NotFound):
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_server_that_serves_no_ranges_any_more_is_asked_for_one_body(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    good = file(DATA, "nothing")
    whole = replace(good, serves_ranges=False)
    seen: list[Request] = []

    def handle(request: Request, connection: Connection) -> None:
        seen.extend(sampled([request]))
        (whole if seen else good)(request, connection)

    origin = serve(handle)
    assert fetch(f"{origin.url}/f", tmp_path / "f").restarts == 1
    check_file(tmp_path / "f")


def test_a_download_can_be_cancelled_at_the_last_look(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def hang(_request: Request, connection: Connection) -> None:
        transfer.cancel()
        connection.wait_for_client_to_go()

    origin = serve(failing_samples(hang, 1000))
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f")
    with pytest.raises(errors.Cancelled):
        transfer.run()
    assert not (tmp_path / "f").exists()


def test_an_answer_that_trickles_at_the_last_look_is_ended(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    def trickle(request: Request, connection: Connection) -> None:
        assert request.range is not None and request.range.end is not None
        start, end = request.range.start, request.range.end
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(end - start)}
        connection.answer(206, headers, length=False)
        pause = threading.Event()
        for position in range(start, end):  # for minutes, if nobody ends it
            connection.send(DATA[position : position + 1])
            pause.wait(0.2)

    origin = serve(failing_samples(trickle, 1))
    fetch(f"{origin.url}/f", tmp_path / "f", network={"connect_timeout": 1.0, "read_timeout": 1.5})
    check_file(tmp_path / "f")
    assert "timeout" in {retry["label"] for retry in fetch.named("range_retry")}
