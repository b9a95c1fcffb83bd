"""The last bytes of a file on a connection that hardly moves, while others have no work: they are fetched by these."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import IN_FLIGHT, Fetcher, make_data, sha256
from tests.handlers import Admits, Drip, Serve, check_file
from tests.origin import LAST_MODIFIED, Connection, File, Handler, Request

KIB = 1024
TAIL = 900 * KIB
DATA = make_data(4 * TAIL)
END = len(DATA)
SPLIT: dict[str, Any] = {"min_split_size": TAIL, "connections": 4, "deadline": 20.0}
PATIENT: dict[str, Any] = {"read_timeout": 300.0, "low_speed_limit": 0}  # nothing else ends a slow connection


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def is_tls(request: pytest.FixtureRequest) -> bool:
    """All tests hold without TLS and with it."""
    return bool(request.param)


def fast(request: Request, connection: Connection) -> None:
    File(DATA)(request, connection)


def drip(rate: int, **options: Any) -> Handler:
    """A handler that brings ``rate`` bytes a second."""
    return Drip(rate // 4, 0.25, data=DATA, **options)


def stalls_after(left: int, data: bytes = DATA) -> Handler:
    """A handler that leaves out the last ``left`` bytes of the range and then sends nothing."""

    def handle(request: Request, connection: Connection) -> None:
        asked = request.range
        assert asked is not None
        assert asked.end is not None
        span = min(asked.end, len(data)) - asked.start
        Drip(max(1, span - left), blocks=1, end="silence", data=data)(request, connection)

    return handle


def silent(_request: Request, connection: Connection) -> None:
    connection.wait_for_client_to_go(300.0)


def only_header(request: Request, connection: Connection) -> None:
    Drip(1, blocks=0, end="silence", data=DATA)(request, connection)


class OwnerOfTheTail:
    """The first request for the end of the file is answered by ``slow``, all others at full speed."""

    def __init__(self, slow: Handler) -> None:
        self._slow = slow
        self._is_first = threading.Semaphore(1)

    def __call__(self, request: Request, connection: Connection) -> None:
        asked = request.range
        is_tail = asked is not None and asked.end == END
        handler = self._slow if is_tail and self._is_first.acquire(blocking=False) else fast
        handler(request, connection)


class SlowAtFirst:
    """Each connection answers its first request by ``slow``, and all others at full speed, from the 4th request on."""

    def __init__(self, slow: Handler) -> None:
        self._slow = slow
        self._known: set[int] = set()

    def __call__(self, request: Request, connection: Connection) -> None:
        is_new = connection.number not in self._known
        self._known.add(connection.number)
        (self._slow if is_new and request.number > 3 else fast)(request, connection)


@dataclass(frozen=True)
class Case:
    """A server, made for each test, and how many requests may be needed."""

    handler: Callable[[], Handler]
    requests: int = 16


TAILS = {
    "4 KiB/s": Case(lambda: OwnerOfTheTail(drip(4 * KIB))),
    "1 KiB/s": Case(lambda: OwnerOfTheTail(drip(KIB))),
    "50 bytes/s": Case(lambda: OwnerOfTheTail(drip(52))),
    "a header and nothing more": Case(lambda: OwnerOfTheTail(only_header)),
    "no answer": Case(lambda: OwnerOfTheTail(silent)),
    "all but 100 KiB": Case(lambda: OwnerOfTheTail(stalls_after(100 * KIB))),
    "all but 1500 bytes": Case(lambda: OwnerOfTheTail(stalls_after(1500))),
    "all but one byte": Case(lambda: OwnerOfTheTail(stalls_after(1))),
    "slow, then fast": Case(lambda: OwnerOfTheTail(drip(4 * KIB, blocks=8))),
    "each new connection slow": Case(lambda: SlowAtFirst(drip(4 * KIB)), 40),
    "each new connection slow at first": Case(lambda: SlowAtFirst(drip(4 * KIB, blocks=8)), 40),
    "two at once": Case(lambda: Admits(2, OwnerOfTheTail(drip(4 * KIB))), 100),
}


@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("name", TAILS)
def test_a_slow_owner_of_the_tail_keeps_nobody_waiting(
    name: str, has_checksum: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    case = TAILS[name]
    origin = serve(case.handler())
    checksum = f"sha256:{sha256(DATA)}" if has_checksum else None
    options = {**SPLIT, "retries": 10} if "at once" in name else SPLIT
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **options, network=PATIENT, checksum=checksum)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) <= case.requests
    assert outcome.received <= 1.02 * len(DATA) + IN_FLIGHT


ALONE: dict[str, Callable[[bytes], Handler]] = {
    "4 KiB/s": lambda data: Drip(KIB, 0.25, data=data),
    "a header and nothing more": lambda data: Drip(1, blocks=0, end="silence", data=data),
    "all but 1500 bytes": lambda data: stalls_after(1500, data),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("size", [TAIL, 3 * TAIL // 2])
def test_a_file_that_is_worth_one_connection_gets_another_if_that_is_slow(
    name: str, size: int, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    data = DATA[:size]
    slow, good = ALONE[name](data), File(data)
    origin = serve(lambda request, connection: (slow if request.number == 1 else good)(request, connection))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **SPLIT, network=PATIENT)
    check_file(tmp_path / "f", data)
    assert len(origin.requests) <= 12
    assert outcome.received <= 1.02 * size + IN_FLIGHT


def test_one_wanted_connection_stays_one(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    data = DATA[: 12 * KIB]
    origin = serve(Drip(KIB, 0.25, data=data))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=1, network=PATIENT)
    check_file(tmp_path / "f", data)
    assert (len(origin.requests), outcome.connections, outcome.received) == (1, 1, len(data))


def test_a_slow_link_is_not_asked_without_end(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """Every connection brings 4 KiB/s: what is left is shared, and none is replaced for it."""
    data = DATA[: 4 * 16 * KIB]
    origin = serve(Drip(KIB, 0.25, data=data))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", min_split_size=16 * KIB, network=PATIENT)
    check_file(tmp_path / "f", data)
    assert len(origin.requests) <= 16
    assert outcome.received <= 1.02 * len(data) + 16 * KIB


def test_a_clean_download_asks_for_each_byte_once(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(fast)
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", **SPLIT, network=PATIENT)
    check_file(tmp_path / "f", DATA)
    assert len(origin.requests) == 4
    assert outcome.received == len(DATA)
    assert all(request.headers.get("if-range") in (None, '"v1"', LAST_MODIFIED) for request in origin.requests)
