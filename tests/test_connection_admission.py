"""A refusal of a further connection is no refusal of the file: fewer connections are used, and remembered."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.config import TransferSettings
from dlpool.transfer.connection_admission import ConnectionAdmission
from dlpool.transfer.http.answer import error_for_status
from dlpool.transfer.http.host_connections import MEMORY_S, HostConnections
from dlpool.transfer.http.limits import HostHolds
from dlpool.transfer.scheduler import RECENT_S, ChunkScheduler
from tests.conftest import Fetcher
from tests.contexts import context_of
from tests.handlers import DATA, SIZE, Serve, check_file, first
from tests.origin import Connection, File, Handler, Request
from tests.test_retry_after import NOW

REFUSALS = [400, 401, 403, 404, 410, 509]


class Limited:
    """A handler that serves at most ``limit`` requests at once, and answers ``status`` to the others."""

    def __init__(self, limit: int, status: int, headers: dict[str, str] | None = None) -> None:
        self.refused = 0
        self._file = File(DATA, block=16 * 1024, pause_s=0.02)
        self._free = threading.Semaphore(limit)
        self._status = status
        self._headers = headers or {}

    def __call__(self, request: Request, connection: Connection) -> None:
        if not self._free.acquire(blocking=False):
            self.refused += 1
            return connection.answer(self._status, self._headers)
        try:
            return self._file(request, connection)
        finally:
            self._free.release()


@pytest.mark.parametrize("connections", [4, "auto"])
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("status", REFUSALS)
def test_a_server_that_admits_few_connections_still_gives_the_file(
    status: int, limit: int, connections: int | str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    limited = Limited(limit, status)
    origin = serve(limited)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=connections, retries=0)
    check_file(tmp_path / "f")
    assert limited.refused
    assert outcome.received < SIZE * 1.2


@pytest.mark.parametrize("connections", [4, "auto"])
def test_the_number_of_connections_is_remembered_for_the_host(
    connections: int | str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    limited = Limited(2, 403)
    origin = serve(limited)
    client = fetch.client()
    fetch(f"{origin.url}/f", tmp_path / "f", connections=connections, client=client)
    check_file(tmp_path / "f")
    refused = limited.refused
    assert refused
    if connections == 4:
        assert refused <= 12  # each thread that is refused goes; a cut connection may still count
        assert fetch.named("connections_changed")[0]["reason"] == "refused"
    outcome = fetch(f"{origin.url}/g", tmp_path / "f", connections=connections, client=client)
    assert outcome.connections <= 2


@pytest.mark.parametrize("connections", [1, 4, "auto"])
@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, errors.HttpRefused, 8),
        (401, errors.AccessDenied, 6),
        (403, errors.AccessDenied, 6),
        (404, errors.NotFound, 10),
        (410, errors.NotFound, 10),
        (509, errors.HttpRefused, 8),
    ],
)
def test_while_nothing_is_served_a_refusal_is_final_at_once(
    status: int,
    error: type[errors.DlpoolError],
    code: int,
    connections: int | str,
    serve: Serve,
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    origin = serve(lambda _request, connection: connection.answer(status))
    with pytest.raises(error) as raised:
        fetch(f"{origin.url}/f", tmp_path / "f", connections=connections)
    assert raised.value.exit_code == code
    assert len(origin.requests) <= 2  # a 400 may be meant for the range


def expiring(status: int, after: int) -> Handler:
    """A URL that is good for some requests; the last of them is cut in the middle."""

    def handle(request: Request, connection: Connection) -> None:
        span = request.range
        assert span is not None
        if request.number > after:
            return connection.answer(status)
        end = min(SIZE, span.end or SIZE)
        head = {
            "ETag": '"v1"',
            "Content-Length": str(end - span.start),
            "Content-Range": f"bytes {span.start}-{end - 1}/{SIZE}",
        }
        connection.answer(206, head, DATA[span.start : span.start + (end - span.start) // 2], length=False)
        return connection.hang_up()

    return handle


@pytest.mark.parametrize("connections", [1, 4, "auto"])
@pytest.mark.parametrize("status", [400, 403])
def test_a_url_that_expires_ends_the_download_soon_and_keeps_what_came(
    status: int, connections: int | str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(expiring(status, after=3))
    with pytest.raises((errors.AccessDenied, errors.HttpRefused), match=f"the server answered {status}"):
        fetch(f"{origin.url}/f?sig=1", tmp_path / "f", connections=connections)
    assert len(origin.requests) < 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.part", "f.part.meta"]
    origin.handler = File(DATA)
    outcome = fetch(f"{origin.url}/f?sig=1", tmp_path / "f", connections=connections)
    check_file(tmp_path / "f")
    assert outcome.resumed_from > 0


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize("times", [1, 2])
def test_a_refusal_with_retry_after_is_waited_for(
    status: int, times: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    refusal: Handler = lambda _request, connection: connection.answer(status, {"Retry-After": "1"})  # noqa: E731
    origin = serve(first(times, refusal, File(DATA)))
    client, told = fetch.client(), []
    client.host_holds = HostHolds(time.monotonic, lambda _host, seconds: told.append(seconds))
    fetch(f"{origin.url}/f", tmp_path / "f", client=client)
    check_file(tmp_path / "f")
    assert told == [1.0] * times


@pytest.mark.parametrize("status", [400, 403])
def test_so_is_one_of_a_further_connection(status: int, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    limited = Limited(1, status, {"Retry-After": "1"})
    origin = serve(limited)
    client = fetch.client()
    fetch(f"{origin.url}/f", tmp_path / "f", client=client, connections=4)
    check_file(tmp_path / "f")
    assert limited.refused
    assert client.host_connections.max_connections(origin.url.partition("//")[2], 4) == 1


@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [
        (403, "1", errors.ServerBusy),
        (400, "1", errors.ServerBusy),
        (403, "soon", errors.AccessDenied),
        (403, None, errors.AccessDenied),
        (400, None, errors.HttpRefused),
        (401, "1", errors.AccessDenied),
        (407, "1", errors.AccessDenied),
        (404, "1", errors.NotFound),
        (451, "1", errors.HttpRefused),
    ],
)
def test_which_refusals_ask_to_wait(status: int, retry_after: str | None, kind: type[errors.DlpoolError]) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    assert type(error_for_status(status, headers, NOW)) is kind


# --- the scheduler and the memory of hosts ---


def test_the_last_thread_that_receives_never_retires() -> None:
    scheduler = ChunkScheduler(lambda: 0.0)
    scheduler.begin_body("a")
    assert not scheduler.retire_if_redundant("a")
    assert scheduler.retire_if_redundant("b")
    scheduler.begin_body("c")
    assert scheduler.others_receiving("b") == 2
    assert scheduler.retire_if_redundant("c")
    assert not scheduler.retire_if_redundant("a")
    assert not scheduler.is_retired("a")


def test_a_body_counts_while_it_lasts_and_is_remembered_shortly_after() -> None:
    now = 0.0
    scheduler = ChunkScheduler(lambda: now)
    scheduler.begin_body("a")
    now = 10 * RECENT_S
    assert (scheduler.others_receiving("b"), scheduler.others_receiving("a")) == (1, 0)
    scheduler.end_body("a")
    assert (scheduler.others_receiving("b"), scheduler.others_received_recently("b")) == (0, True)
    assert not scheduler.others_received_recently("a")
    now += RECENT_S
    assert not scheduler.others_received_recently("b")


def test_what_a_host_admits_is_forgotten_after_a_while() -> None:
    now = 0.0
    hosts = HostConnections(lambda: now)
    assert hosts.max_connections("h", 8) == 8
    hosts.record_limit("h", 3)
    hosts.record_limit("h", 2)
    hosts.record_limit("h", 5)
    assert hosts.max_connections("h", 8) == 2
    hosts.raise_limit("h", 1)
    hosts.raise_limit("other", 1)
    assert hosts.max_connections("h", 8) == 2
    hosts.raise_limit("h", 4)  # the refusal came while others were still to be answered
    assert hosts.max_connections("h", 8) == 4
    hosts.record_limit("h", 2)
    assert hosts.max_connections("h", 1) == 1
    assert hosts.max_connections("other", 8) == 8
    now = MEMORY_S
    assert hosts.max_connections("h", 8) == 8
    hosts.record_limit("h", 5)
    assert hosts.max_connections("h", 8) == 5
    assert sorted(hosts._admitted) == ["h"]


@pytest.mark.parametrize(("connections", "is_retired"), [(4, True), ("auto", False)])
def test_a_refused_connection_ends_its_thread_only_if_their_number_is_fixed(
    connections: int | str, is_retired: bool
) -> None:
    scheduler, told = ChunkScheduler(lambda: 0.0), []

    def notify(event: str, /, **fields: object) -> None:
        told.append((event, fields["connections"]))

    context = context_of(scheduler, lambda: 0.0, notify, TransferSettings(connections=connections))
    scheduler.begin_body("other")
    assert ConnectionAdmission(context, "refused")._is_crowded()
    assert scheduler.is_retired("refused") == is_retired
    assert told == ([("connections_changed", 1)] if is_retired else [])
