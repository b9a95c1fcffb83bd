"""Where a file comes from: how an answer is read, what is asked after redirects, and what a failed request raises."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests

from dlpool import errors
from dlpool.config import NetworkSettings
from dlpool.transfer.http import requests_adapter
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.http_client_adapter import COLLECT_S
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.source import MAX_REDIRECTS, Reply, Source, may_be_expired
from dlpool.transfer.http.urls import request_headers
from tests.fakes import Clock
from tests.origin import Connection, Origin, Request

# --- reading an answer ---


@dataclass
class Body:
    """A body that comes in the given pieces, each after its seconds; an exception is raised in its turn."""

    clock: Callable[[], float]
    pieces: list[Any]
    length: int | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    left: int = 0

    def readinto1(self, view: memoryview) -> int:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, tuple):
            piece, seconds = piece
            cast(Any, self.clock).now += seconds
        if isinstance(piece, Exception):
            raise piece
        data = piece[: len(view)]
        if piece[len(view) :]:
            self.pieces.insert(0, piece[len(view) :])
        view[: len(data)] = data
        if self.length is not None:
            self.length -= len(data)
        return len(data)

    def release(self) -> None:
        self.left += 1
        raise OSError("it is broken")


def reply(*pieces: Any, length: int | None = None, enough: int = 10) -> tuple[Reply, Exchange, Body]:
    clock = Clock()
    exchange = Exchange(clock, lambda _: None, ExchangeStats(1000, 5.0))
    body = Body(clock, list(pieces), length)
    return Reply(cast(Any, body), "http://h/f", exchange, enough), exchange, body


def reads(answer: Reply, count: int, size: int = 100) -> list[bytes]:
    found = []
    for _ in range(count):
        view = memoryview(bytearray(size))
        found.append(bytes(view[: answer.read(view)]))
    return found


@pytest.mark.parametrize(
    ("pieces", "size", "expected"),
    [
        ([b"ab", b"cd", b"ef"], 100, [b"abcdef", b""]),
        ([b"abcdefghij", b"kl"], 100, [b"abcdefghij", b"kl", b""]),
        ([b"abcdefgh", b"ijkl", b"m"], 100, [b"abcdefghijkl", b"m", b""]),
        ([b"abcdef"], 4, [b"abcd", b"ef", b""]),
        ([(b"ab", COLLECT_S), b"cd"], 100, [b"abcd", b""]),
        ([(b"ab", COLLECT_S + 0.001), b"cd"], 100, [b"ab", b"cd", b""]),
        ([], 100, [b""]),
    ],
)
def test_what_comes_without_delay_is_collected(pieces: list[Any], size: int, expected: list[bytes]) -> None:
    answer, exchange, _ = reply(*pieces)
    assert reads(answer, len(expected), size) == expected
    assert exchange.received == 1000 + sum(map(len, expected))


def test_waiting_is_measured_while_it_lasts() -> None:
    answer, exchange, body = reply((b"ab", 3.0), (b"", 2.0))
    seen: list[float | None] = []
    real = body.readinto1

    def readinto1(view: memoryview) -> int:
        seen.append(exchange.waiting_since)
        return real(view)

    body.readinto1 = readinto1  # type: ignore[method-assign]
    reads(answer, 1)
    assert (seen, exchange.waiting_since, exchange.waited_s) == ([100.0], None, 8.0)
    reads(answer, 1)
    assert (seen, exchange.waiting_since, exchange.waited_s) == ([100.0, 103.0], None, 10.0)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (TimeoutError("late"), errors.TimedOut),
        (ConnectionResetError("reset"), errors.ConnectionBroken),
        (http.client.IncompleteRead(b""), errors.ShortBody),
        (ValueError("odd"), errors.BadAnswer),
    ],
)
def test_what_came_before_a_failure_is_returned_first(error: Exception, raised: type[Exception]) -> None:
    answer, exchange, _ = reply(b"ab", error)
    assert reads(answer, 1) == [b"ab"]
    for _ in range(2):
        with pytest.raises(raised):
            reads(answer, 1)
    assert exchange.received == 1002


def test_a_failure_within_a_body_is_not_that_of_a_stale_connection() -> None:
    answer, _, _ = reply(ConnectionResetError("reset"))
    with pytest.raises(errors.ConnectionBroken) as caught:
        reads(answer, 1)
    assert not caught.value.is_stale


@pytest.mark.parametrize(("length", "is_short"), [(5, True), (2, False), (None, False)])
def test_a_body_that_ends_before_its_length_is_short(length: int | None, is_short: bool) -> None:
    answer, _, _ = reply(b"ab", b"", length=length)
    assert reads(answer, 1) == [b"ab"]
    if is_short:
        with pytest.raises(errors.ShortBody, match="the connection ended before the body did"):
            reads(answer, 1)
    else:
        assert reads(answer, 2) == [b"", b""]


def test_a_verdict_comes_before_what_was_read() -> None:
    answer, exchange, _ = reply(b"ab")
    exchange.cancel(errors.TooSlow("slow"))
    with pytest.raises(errors.TooSlow):
        reads(answer, 1)
    assert exchange.received == 1002


def test_a_reply_that_is_closed_gives_everything_back() -> None:
    answer, exchange, body = reply(b"ab")
    ends: list[str] = []
    exchange._shutdown = cast(Any, SimpleNamespace(release=lambda: ends.append("released")))
    answer.close()
    assert (body.left, ends) == (1, ["released"])
    assert (answer.status, answer.url, answer.headers) == (200, "http://h/f", {})


# --- requests that fail ---


class Network:
    """A client whose only request ends as the test says."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.clock = Clock()
        self.host_holds = HostHolds(self.clock)
        self.watched: list[tuple[str, str]] = []
        self.network_monitor = SimpleNamespace(
            failed=lambda host: self.watched.append(("failed", host)),
            answered=lambda host: self.watched.append(("answered", host)),
        )
        self.settings = NetworkSettings(network="any")
        self.default_headers = request_headers(self.settings, {})
        self.min_read_bytes = 10
        self.proxied = False
        self.sent: list[tuple[str, str, dict[str, str]]] = []
        self.paused: list[float] = []

    def proxy(self, _url: str) -> bool:
        return self.proxied

    def send(self, method: str, url: str, headers: dict[str, str], _body: object) -> Any:
        self.sent.append((method, url, headers))
        if self.result is None:
            return Body(self.clock, [])
        if callable(self.result):
            self.result()
        raise self.result

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.clock.now += seconds

    def source(self) -> Source:
        return Source(cast(Any, self), "http://h:81/f", {})

    def exchange(self) -> Exchange:
        return Exchange(self.clock, self.pause, ExchangeStats(0, 0.0))


OWN = errors.ConnectionBroken("no route", is_own_network=True)


@pytest.mark.parametrize(
    ("error", "raised", "watched"),
    [
        (requests.ConnectionError("broken"), errors.ConnectionBroken, []),
        (requests.Timeout("late"), errors.RetryRange, []),
        (OSError("broken"), errors.RetryRange, []),
        (ValueError("odd"), errors.BadAnswer, []),
        (errors.ShortBody("cut"), errors.ShortBody, []),
        (OWN, errors.ConnectionBroken, [("failed", "h:81")]),
    ],
)
def test_a_request_that_fails_raises_one_of_our_errors(
    error: Exception, raised: type[Exception], watched: list[tuple[str, str]]
) -> None:
    network = Network(error)
    with pytest.raises(raised):
        network.source().get(network.exchange(), None)
    assert network.watched == watched


@pytest.mark.parametrize("error", [requests.ConnectionError("broken"), errors.ShortBody("cut"), OWN])
def test_the_verdict_that_ended_a_request_is_what_it_raises(error: Exception) -> None:
    network = Network(error)
    exchange = network.exchange()
    exchange.cancel(verdict := errors.TooSlow("slow"))
    with pytest.raises(errors.TooSlow) as caught:
        network.source().get(exchange, None)
    assert caught.value is verdict
    assert caught.value.__cause__ is error


def test_an_answered_request_is_timed_and_known_to_the_watch() -> None:
    network = Network(None)
    exchange = network.exchange()
    network.clock.now = 7.0
    exchange.answered_at = 3.0
    network.source().get(exchange, None)
    assert (exchange.sent_at, exchange.answered_at, network.watched) == (7.0, 7.0, [("answered", "h:81")])


def test_a_request_is_timed_from_its_beginning() -> None:
    network = Network(errors.ShortBody("cut"))
    exchange = network.exchange()
    exchange.answered_at = cast("float | None", 3.0)
    with pytest.raises(errors.ShortBody):
        network.source().get(exchange, None)
    assert (exchange.sent_at, exchange.answered_at) == (100.0, None)


@pytest.mark.parametrize("seconds", [0.5, 30.0])
def test_a_host_that_asked_to_wait_is_asked_after_that(seconds: float) -> None:
    network = Network(None)
    network.host_holds.hold("h:81", seconds)
    network.source().get(network.exchange(), None)
    assert network.paused == [seconds]
    assert len(network.sent) == 1


def test_a_wait_that_is_ended_sends_nothing() -> None:
    network = Network(None)
    network.host_holds.hold("h:81", 30.0)
    exchange = network.exchange()
    exchange.cancel(errors.Cancelled("stopped"))
    with pytest.raises(errors.Cancelled):
        network.source().get(exchange, None)
    assert network.sent == []


@pytest.mark.parametrize("proxied", [True, False])
def test_behind_a_proxy_an_address_in_the_url_is_checked(proxied: bool) -> None:
    network = Network(None)
    network.proxied, network.settings = proxied, NetworkSettings(network="public-only")
    source = Source(cast(Any, network), "http://127.0.0.1/f", {})
    if proxied:
        with pytest.raises(errors.PolicyRefused):
            source.get(network.exchange(), None)
        assert network.sent == []
    else:
        source.get(network.exchange(), None)


@pytest.mark.parametrize(
    ("asked", "if_range", "expected"),
    [
        (None, None, {}),
        (None, '"v"', {}),
        (ByteRange(5, 10), None, {"Range": "bytes=5-9"}),
        (ByteRange(5, 10), '"v"', {"Range": "bytes=5-9", "If-Range": '"v"'}),
    ],
)
def test_a_range_is_asked_for_with_its_validator(
    asked: ByteRange | None, if_range: str | None, expected: dict[str, str]
) -> None:
    network = Network(None)
    network.source().get(network.exchange(), asked, if_range)
    ((method, url, headers),) = network.sent
    assert (method, url) == ("GET", "http://h:81/f")
    assert {name: value for name, value in headers.items() if "ange" in name} == expected


# --- redirects ---


@pytest.mark.parametrize(
    ("status", "expected"),
    [(399, False), (400, True), (401, True), (403, True), (404, True), (410, True), (499, True), (500, False)]
    + [(status, False) for status in (200, 206, 408, 416, 425, 429, 503)]
    + [(status, True) for status in (407, 409, 415, 417, 424, 426, 428, 430)],
)
def test_which_statuses_may_mean_that_a_signed_url_has_expired(status: int, expected: bool) -> None:
    assert may_be_expired(status) is expected


@pytest.fixture
def client() -> Iterator[HttpClient]:
    settings = NetworkSettings(connect_timeout=5.0, read_timeout=10.0, network="any")
    made = HttpClient(settings, 4, HostHolds(time.monotonic), NetworkMonitor(time.monotonic))
    yield made
    made.close()


def asked(source: Source, method: str = "get") -> int:
    """Send one request; returns the status."""
    with Exchange(time.monotonic, time.sleep, ExchangeStats(0, 0.0)) as exchange:
        answer = getattr(source, method)(exchange, *([None] if method == "get" else []))
        answer.close()
        return int(answer.status)


@pytest.mark.parametrize(
    ("later", "paths", "status"),
    [
        (200, ["/f", "/t", "/t", "/t"], 200),
        (206, ["/f", "/t", "/t", "/t"], 206),
        (403, ["/f", "/t", "/t", "/f", "/t", "/f", "/t"], 403),
        (400, ["/f", "/t", "/t", "/f", "/t", "/f", "/t"], 400),
        (429, ["/f", "/t", "/t", "/f", "/t"], 429),
        (500, ["/f", "/t", "/t", "/f", "/t"], 500),
    ],
)
def test_the_place_that_a_redirect_led_to_is_asked_until_it_fails(
    later: int, paths: list[str], status: int, client: HttpClient
) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/f":
            connection.answer(302, {"Location": "/t"})
        else:
            connection.answer(200 if request.number == 2 else later, body=b"x")

    with Origin(handle) as origin:
        source = Source(client, f"{origin.url}/f", {})
        assert asked(source) == 200
        assert source.host == f"127.0.0.1:{origin.port}"
        assert [asked(source) for _ in range(2)] == [status] * 2
        assert [request.path for request in origin.requests] == paths


def test_after_a_broken_request_the_first_url_is_asked(client: HttpClient) -> None:
    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/f":
            connection.answer(302, {"Location": "/t"})
        elif request.number == 2:
            connection.answer(200)
        else:
            connection.hang_up()

    with Origin(handle) as origin:
        source = Source(client, f"{origin.url}/f", {})
        asked(source)
        with pytest.raises(errors.RetryRange):
            asked(source)
        with pytest.raises(errors.RetryRange):
            asked(source)
        paths = [request.path for request in origin.requests]
        assert paths[:2] == ["/f", "/t"]
        assert paths[-2:] == ["/f", "/t"]


@pytest.mark.parametrize("method", ["get", "head"])
def test_redirects_have_a_largest_number_and_keep_the_connection(method: str, client: HttpClient) -> None:
    def handle(request: Request, connection: Connection) -> None:
        hop = int(request.path[1:])
        if hop == last:
            connection.answer(200)
        else:
            connection.answer(302, {"Location": f"/{hop + 1}"})

    with Origin(handle) as origin:
        last = MAX_REDIRECTS
        assert asked(Source(client, f"{origin.url}/0", {}), method) == 200
        assert len(origin.requests) == MAX_REDIRECTS + 1
        last = MAX_REDIRECTS + 1
        with pytest.raises(errors.ProtocolBroken, match=f"more than {MAX_REDIRECTS} times"):
            asked(Source(client, f"{origin.url}/0", {}), method)
        assert len(origin.requests) == 2 * (MAX_REDIRECTS + 1)
        assert {request.connection for request in origin.requests} == {1}


@pytest.mark.parametrize(
    ("base", "location", "allow", "expected"),
    [
        ("https://h/f", "http://h/g", False, errors.PolicyRefused),
        ("https://h/f", "http://h/g", True, "http://h/g"),
        ("https://h/f", "https://i/g", False, "https://i/g"),
        ("http://h/f", "https://h/g", False, "https://h/g"),
        ("http://h/f", "http://h/g", False, "http://h/g"),
        ("http://h/f", "ftp://h/g", False, errors.PolicyRefused),
        ("http://h/f", "http://", False, errors.PolicyRefused),
        ("http://h/f", "", False, errors.ProtocolBroken),
        ("http://h/f", None, False, errors.ProtocolBroken),
    ],
)
def test_where_a_redirect_may_lead(base: str, location: str | None, allow: bool, expected: Any) -> None:
    network = Network(None)
    network.settings = NetworkSettings(network="any", allow_downgrade=allow)
    headers = {} if location is None else {"Location": location}
    answer = cast(Any, SimpleNamespace(url=base, headers=headers, status=302))
    if isinstance(expected, str):
        assert network.source()._redirect_url(answer) == expected
    else:
        with pytest.raises(expected):
            network.source()._redirect_url(answer)


def test_what_threads_share_is_used_only_under_the_lock(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cookies, and the credentials that redirects brought."""
    unguarded: list[str] = []

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def check(*arguments: Any) -> Any:
            if not source._lock.locked():
                unguarded.append(name)
            return call(*arguments)

        return check

    class Users(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            guarded("users", dict.__setitem__)(self, key, value)

    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/f":
            location = f"http://me:pw@127.0.0.1:{origin.port}/t"
            connection.answer(302, {"Location": location, "Set-Cookie": "a=1"})
        else:
            connection.answer(200)

    for name in ("get_cookie_header", "extract_cookies_to_jar"):
        monkeypatch.setattr(requests_adapter, name, guarded(name, getattr(requests_adapter, name)))
    with Origin(handle) as origin:
        source = Source(client, f"{origin.url}/f", {"Cookie": "b=2"})
        source._credentials = Users()
        asked(source)
        first, second = (request.headers for request in origin.requests)
    assert (first.get("cookie"), second.get("cookie")) == ("b=2", "b=2; a=1")
    assert (first.get("authorization"), second.get("authorization")) == (None, "Basic bWU6cHc=")
    assert unguarded == []
