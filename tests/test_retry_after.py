"""``Retry-After``: seconds, or a date by the clock of the server that sent it."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from dlpool.errors import RetryRange, WaitTooLong
from dlpool.transfer.http.answer import error_for_status, requested_wait_s
from dlpool.transfer.http.limits import HostHolds
from tests.conftest import Fetcher
from tests.handlers import DATA, Serve, check_file
from tests.origin import Connection, File, Request

NOW = datetime(2024, 10, 2, 10, 0, 0, tzinfo=timezone.utc)


def http_date(seconds: float) -> str:
    """``seconds`` after our own clock."""
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


HOUR, DAY = 3600, 86400


@pytest.mark.parametrize("status", [429, 503, 500, 408])
@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("7", None, 7),
        ("7", http_date(HOUR), 7),
        (http_date(3), None, 3),
        (http_date(3), http_date(0), 3),
        (http_date(HOUR + 3), http_date(HOUR), 3),
        (http_date(3 - HOUR), http_date(-HOUR), 3),
        (http_date(2 * HOUR), http_date(-HOUR), 3 * HOUR),
        (http_date(HOUR), http_date(HOUR), 0),
        (http_date(HOUR), http_date(HOUR + 30), 0),
        (http_date(-5), None, 0),
        (http_date(-5), http_date(0), 0),
        (http_date(3), "soon", 3),
        (http_date(3), "", 3),
        (http_date(3), "Wed, 99 Foo 2024 10:00:00 GMT", 3),
        (http_date(3), http_date(-400 * DAY), 3),  # a Date out of a cache, or a constant
        (http_date(3 - 400 * DAY), http_date(-400 * DAY), 3),  # a clock that was never set
        (http_date(3 + 400 * DAY), http_date(400 * DAY), 3),
        ("Sunday, 06-Nov-94 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:30 GMT", 7),
        ("Sun Nov  6 08:49:37 1994", "Sun Nov  6 08:49:30 1994", 7),
        ("soon", http_date(0), None),
        ("-5", http_date(0), None),
        ("", http_date(0), None),
        ("1.5", http_date(0), None),
        (None, http_date(0), None),
    ],
)
def test_a_wait_is_read_against_the_date_of_the_answer(
    status: int, retry_after: str | None, date: str | None, seconds: float | None
) -> None:
    given = {"Retry-After": retry_after, "Date": date}
    headers = {name: value for name, value in given.items() if value is not None}
    assert requested_wait_s(headers, NOW) == seconds
    error = error_for_status(status, headers, NOW)
    assert isinstance(error, RetryRange)
    assert error.retry_after_s == seconds


@pytest.mark.parametrize("offset_s", [-HOUR, -90, 90, HOUR, 12 * HOUR])
def test_a_server_whose_clock_differs_is_waited_for_as_long_as_it_asked(
    offset_s: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.number > 1:
            return File(DATA)(request, connection)
        now = time.time() + offset_s
        dates = {
            name: format_datetime(datetime.fromtimestamp(at, timezone.utc), usegmt=True)
            for name, at in (("Date", now), ("Retry-After", int(now) + 1))
        }
        return connection.answer(503, dates)

    origin = serve(handle)
    client, told = fetch.client(), []
    client.host_holds = HostHolds(time.monotonic, lambda host, seconds: told.append((host, seconds)))
    fetch(f"{origin.url}/f", tmp_path / "f", connections=1, max_retry_after=5.0, client=client)
    check_file(tmp_path / "f")
    assert told == [(origin.url.partition("//")[2], 1.0)]


def test_a_wait_beyond_the_limit_is_told_by_the_servers_clock(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    dates = {"Date": http_date(-HOUR), "Retry-After": http_date(100 - HOUR)}
    origin = serve(lambda _request, connection: connection.answer(429, dates))
    with pytest.raises(WaitTooLong, match="asked to wait 100 s"):
        fetch(f"{origin.url}/f", tmp_path / "f", max_retry_after=50.0)
    assert len(origin.requests) == 1
