"""Bodies that come slowly hold no place that others wait for, and get through all the same."""

from __future__ import annotations

import hashlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from dlpool.web.body_slots import FLOOR, MEMORY_S, PROBATION_S, REJECTED_S, SHORT_S, BodySlot, BodySlots
from tests.conftest import make_data, wait_until
from tests.web import RawClient, WebServer

OCTETS = "Content-Type: application/octet-stream"
MIB = 1024 * 1024


# --- the rule ---


class Clock:
    """A time that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Places with bodies of known rates."""

    def __init__(self, most: int, waiting: int = 4) -> None:
        self.clock = Clock()
        self.places = BodySlots(most, waiting, self.clock)
        self.got: dict[BodySlot, float] = {}
        self.rates: dict[BodySlot, float] = {}
        self.answers: list[BodySlot | None] = []

    def begin(self, client: str, rate: float) -> BodySlot:
        place = self.places.acquire(client, timeout_s=0)
        assert place is not None
        self.got[place], self.rates[place] = 0.0, rate
        place.start_receiving(lambda: int(self.got[place]), self.clock.now)
        return place

    def end(self, place: BodySlot) -> None:
        del self.got[place], self.rates[place]
        self.places.release(place)

    def run(self, seconds: float) -> None:
        self.clock.now += seconds
        for place, rate in self.rates.items():
            self.got[place] += rate * seconds
        self.places.revoke_slow()

    @contextmanager
    def waiting(self, *clients: str) -> Iterator[None]:
        """Requests of these wait; by a clock that stands still, until each has a place or is sent away."""
        threads = [threading.Thread(target=self._wait, args=(client,)) for client in clients]
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda number=number: len(self.places._waiters) + len(self.answers) == number)  # type: ignore[misc]
        try:
            yield
        finally:
            self.clock.now += 3600
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()

    def _wait(self, client: str) -> None:
        self.answers.append(self.places.acquire(client, timeout_s=60))

    def asked(self) -> list[str]:
        return sorted(place.client for place in self.got if place.is_revoked)


def test_while_nobody_waits_nobody_yields() -> None:
    bench = Bench(4)
    for number in range(4):
        bench.begin(f"c{number}", 10)
    bench.run(60)
    assert bench.asked() == []
    assert bench.places.acquire("late", timeout_s=0) is None
    assert bench.asked() == []


@pytest.mark.parametrize(
    ("rates", "waiting", "after_s", "expected"),
    [
        ([10] * 8, 1, PROBATION_S, ["c7"]),  # the youngest
        ([10] * 8, 3, PROBATION_S, ["c5", "c6", "c7"]),  # as many as wait
        ([10] * 8, 4, PROBATION_S - 0.1, []),  # all have just begun
        ([10] * 3 + [MIB] * 5, 4, PROBATION_S, ["c2"]),  # a quarter of the places stays with slow ones
        ([10] * 2 + [MIB] * 6, 4, PROBATION_S, []),
        ([FLOOR + 99] * 8, 4, PROBATION_S, []),
        ([FLOOR - 99] * 8, 4, PROBATION_S, ["c4", "c5", "c6", "c7"]),
        ([FLOOR + 99] * 3 + [MIB] * 5, 4, PROBATION_S, ["c2"]),  # far slower than the others
        ([MIB + 999] * 3 + [1000 * MIB] * 5, 4, PROBATION_S, []),  # fast, though far slower than the others
    ],
)
def test_who_yields(rates: list[int], waiting: int, after_s: float, expected: list[str]) -> None:
    bench = Bench(8)
    for number, rate in enumerate(rates):
        bench.begin(f"c{number}", rate)
        bench.run(0.001)
    with bench.waiting(*(f"w{number}" for number in range(waiting))):
        bench.run(after_s)
        assert bench.asked() == expected
        bench.run(0.01)
        assert bench.asked() == expected  # they have been asked


def test_a_body_that_is_here_yields_to_nobody() -> None:
    bench = Bench(4)
    for number in range(4):
        bench.begin(f"c{number}", 10).finish_receiving(bench.clock.now)
    with bench.waiting("w"):
        bench.run(60)
        assert bench.asked() == []


def test_a_body_that_was_fast_and_drips_yields() -> None:
    bench = Bench(4)
    places = [bench.begin(f"c{number}", 100 * MIB) for number in range(4)]
    with bench.waiting("w"):
        bench.run(10)
        bench.rates = dict.fromkeys(places, 10)
        bench.run(0.5)
        assert bench.asked() == []
        bench.run(0.5)
        assert len(bench.asked()) == 1


def test_the_client_that_has_the_most_slow_bodies_yields_first() -> None:
    bench = Bench(4)
    for client in ("many", "many", "few", "many"):
        bench.begin(client, 10)
    with bench.waiting("a", "b"):
        bench.run(PROBATION_S)
        assert bench.asked() == ["many", "many"]


def test_who_yielded_before_yields_sooner_and_waits_behind_others() -> None:
    bench = Bench(4, waiting=1)
    places = [bench.begin(f"c{number}", 10) for number in range(4)]
    with bench.waiting("w"):
        bench.run(PROBATION_S)
        [asked] = [place for place in places if place.is_revoked]
        bench.end(asked)
        wait_until(lambda: bool(bench.answers))
    [given] = bench.answers
    assert given is not None and given.client == "w"
    bench.clock.now -= 3600
    bench.places.release(given)
    bench.begin(asked.client, 10)
    bench.answers.clear()
    with bench.waiting(asked.client, "other"):
        wait_until(lambda: bench.answers == [None])  # there is room for one
        assert [waiter.client for waiter in bench.places._waiters] == ["other"]
        bench.run(SHORT_S)
        assert bench.asked() == [asked.client]
    bench.clock.now += MEMORY_S
    assert not bench.places._is_slow(asked.client)


@pytest.mark.parametrize(("rate", "is_slow"), [(FLOOR + 99, False), (FLOOR - 99, True)])
def test_a_client_is_slow_no_longer_when_a_body_of_it_came_fast(rate: float, is_slow: bool) -> None:
    bench = Bench(4)
    for _ in range(3):
        bench.begin("c", 10)
    last = bench.begin("c", rate)
    with bench.waiting("w"):
        bench.run(PROBATION_S)
        assert bench.places._is_slow("c")
        last.finish_receiving(bench.clock.now)
        bench.end(last)
        assert bench.places._is_slow("c") is is_slow


def test_who_was_sent_away_counts_as_waiting_for_a_while() -> None:
    bench = Bench(8, waiting=1)
    for number in range(8):
        bench.begin(f"c{number}", 10)
        bench.run(0.001)
    with bench.waiting("w"):
        assert [bench.places.acquire(client) for client in ("x", "y")] == [None, None]
        bench.run(PROBATION_S)
        assert bench.asked() == ["c5", "c6", "c7"]
    bench = Bench(8, waiting=1)
    for number in range(8):
        bench.begin(f"c{number}", 10)
    with bench.waiting("w"):
        assert bench.places.acquire("x") is None
        bench.run(REJECTED_S + 1)
        assert len(bench.asked()) == 1


def test_while_others_want_a_place_who_yielded_has_some_of_a_quarter() -> None:
    bench = Bench(8, waiting=1)
    places = [bench.begin("drips", 10) for _ in range(8)]
    with bench.waiting("w"):
        assert [bench.places.acquire("x") for _ in range(5)] == [None] * 5
        bench.run(PROBATION_S)
        asked = [place for place in places if place.is_revoked]
        assert len(asked) == 6
        for place in asked:
            bench.end(place)
        wait_until(lambda: len(bench.answers) == 1)
        assert bench.places.acquire("drips", timeout_s=0) is None
        for client in ("x", "y"):
            bench.begin(client, MIB)
        bench.clock.now += REJECTED_S + 0.1
        bench.begin("drips", 10)


def test_a_free_place_goes_to_the_client_that_has_the_fewest() -> None:
    bench = Bench(3)
    places = [bench.begin(client, MIB) for client in ("a", "a", "b")]
    with bench.waiting("a", "b", "c"):
        bench.end(places[0])
        wait_until(lambda: bool(bench.answers))
        assert bench.answers[0] is not None and bench.answers[0].client == "c"


def test_nothing_is_lost_by_many_threads() -> None:
    places, most = BodySlots(3, 5), []

    def work(number: int) -> bool:
        place = places.acquire(f"c{number % 4}", timeout_s=5)
        if place is None:
            return False
        most.append(len(places._assigned))
        places.release(place)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert any(pool.map(work, range(2000)))
    assert max(most) <= 3
    assert (places._free, places._assigned, places._waiters) == (3, set(), [])


# --- a real server ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    settings: Any = {"web": {"processes": 2, "threads": 16, "body_rate": "1K", "body_timeout": "30s"}}
    with WebServer(tmp_path_factory.mktemp("web"), settings) as server:
        yield server


class Drips:
    """Clients of several addresses that send 1.2 KB a second each, and come again at once when they are sent away."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self.socks = [self._begin(number) for number in range(count)]
        self.sent = [0] * count
        self.refused = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Drips:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for sock in self.socks:
            sock.close()

    def _begin(self, number: int) -> socket.socket:
        source = (f"127.0.1.{number % 16 + 1}", 0)
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=20, source_address=source)
        head = f"POST /go-uploader/upload_chunk?file_id=drip{number}&chunk_index=0 HTTP/1.1\r\nHost: localhost\r\n"
        sock.sendall(f"{head}{OCTETS}\r\nContent-Length: 1000000\r\n\r\n".encode())
        return sock

    def _run(self) -> None:
        while not self._ending.wait(0.1):
            for number, sock in enumerate(self.socks):
                with suppress(ConnectionError):
                    if not select.select([sock], [], [], 0)[0]:
                        sock.sendall(bytes(120))
                        self.sent[number] += 120
                        continue
                sock.close()
                self.refused += 1
                self.sent[number] = 0
                self.socks[number] = self._begin(number)


class From(HTTPAdapter):
    """Connections from an address."""

    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, source_address=(self._address, 0))


def upload(server: WebServer, number: int) -> list[int]:
    """Send a chunk until it is taken; the statuses."""
    statuses: list[int] = []
    data = make_data(300_000)
    with requests.Session() as session:
        session.mount("http://", From(f"127.0.2.{number % 8 + 1}"))
        while len(statuses) < 30:
            said = session.post(
                f"{server.url}/upload_chunk?file_id=good{number}&chunk_index=0&md5={hashlib.md5(data).hexdigest()}",
                data=data,
                headers={"Content-Type": "application/octet-stream"},
                timeout=60,
            )
            statuses.append(said.status_code)
            if said.status_code != 503:
                break
            time.sleep(float(said.headers["Retry-After"]) / 5)
    return statuses


def test_honest_uploads_get_through_beside_dripping_bodies(server: WebServer) -> None:
    with Drips(server.port, 64) as drips:
        wait_until(lambda: min(drips.sent) > 120 or drips.refused > 40)
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda number: upload(server, number), range(74)))
        assert {statuses[-1] for statuses in found} == {200}
        assert drips.refused
        before = drips.sent[:]
        wait_until(lambda: sum(now > then + 1200 for now, then in zip(drips.sent, before, strict=True)) >= 24)
    assert not server.events("gunicorn_error") and not server.events("request_internal_error"), server.said()


def sizes_in(folder: Path) -> list[int]:
    """Of the files there; of none that goes meanwhile."""
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return sizes


def test_a_tus_upload_that_yields_keeps_its_bytes(tmp_path: Path) -> None:
    settings: Any = {"web": {"processes": 1, "threads": 4, "body_rate": 0}}
    tus = {"Tus-Resumable": "1.0.0"}
    with WebServer(tmp_path, settings) as server:
        where = [
            requests.post(f"{server.root}/files", headers={**tus, "Upload-Length": "1000000"}, timeout=20).headers[
                "Location"
            ]
            for _ in range(2)
        ]
        clients = [RawClient(server.port) for _ in range(2)]
        for path, client in zip(where, clients, strict=True):
            kind = "Content-Type: application/offset+octet-stream"
            fields = ("Tus-Resumable: 1.0.0", "Upload-Offset: 0", kind, "Content-Length: 1000000")
            client.post(path.removeprefix(server.root), *fields, body=bytes(5000), method="PATCH")
        wait_until(lambda: sizes_in(server.upload_dir).count(5000) == 2)
        for number in range(3):
            assert upload(server, number)[-1] == 200
        [yielded] = [number for number in range(2) if select.select([clients[number].sock], [], [], 0)[0]]
        status, answer = clients[yielded].answer()
        assert (status, answer["code"]) == (503, "too_slow")
        kept = requests.head(server.root + where[yielded].removeprefix(server.root), headers=tus, timeout=20)
        assert kept.headers["Upload-Offset"] == "5000"
        clients[1 - yielded].say(bytes(995_000))
        assert clients[1 - yielded].answer()[0] == 204
        for client in clients:
            client.sock.close()
