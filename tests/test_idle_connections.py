"""Idle connections are closed after a while, also when nothing else happens, and keep no process alive."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlpool.engine import DownloadEngine
from dlpool.transfer.http import idle_connections
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.idle_connections import IdleCloser, IdlePool
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from tests.conftest import PATIENT, Authority, Fetcher, wait_until
from tests.handlers import DATA, Serve
from tests.origin import Connection, File, Request
from tests.processes import ROOT

SHORT_S = 0.2
LONG_S = 3600.0


def client_of(max_idle_s: float | None, **network: str) -> HttpClient:
    gate, watch = HostHolds(time.monotonic), NetworkMonitor(time.monotonic)
    return HttpClient(replace(PATIENT, **network), 16, gate, watch, max_idle_s=max_idle_s)  # type: ignore[arg-type]


def closers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dlpool-idle"]


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_the_origin_sees_every_idle_connection_end(
    connections: int, is_tls: bool, authority: Authority, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(DATA), tls=authority.server_context() if is_tls else None)
    client = client_of(SHORT_S, cacert=str(authority.ca_file))
    fetch(f"{origin.url}/f", tmp_path / "f", client=client, connections=connections)
    wait_until(lambda: origin.open_connections == 0)
    fetch(f"{origin.url}/f", tmp_path / "f", client=client)  # and the pool is of use afterwards
    assert (tmp_path / "f").read_bytes() == DATA
    wait_until(lambda: origin.open_connections == 0)


def test_connections_that_are_not_idle_for_long_are_used_again(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origin = serve(File(b"x"))
    client = client_of(LONG_S)
    for number in range(5):
        fetch(f"{origin.url}/{number}", tmp_path / "f", client=client)
    assert {request.connection for request in origin.requests} == {1}
    assert origin.open_connections == 1
    client.close()


def test_connections_to_several_hosts_each_end(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    origins = [serve(File(b"x")) for _ in range(3)]
    client = client_of(SHORT_S)
    for origin in origins:
        fetch(f"{origin.url}/f", tmp_path / "f", client=client)
    wait_until(lambda: all(origin.open_connections == 0 for origin in origins))


def test_so_do_those_to_a_proxy(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    proxy = serve(File(b"x"))
    fetch("http://origin.test/f", tmp_path / "f", client=client_of(SHORT_S, proxy=proxy.url))
    wait_until(lambda: proxy.open_connections == 0)


def test_a_connection_in_use_is_not_idle(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    release = threading.Event()

    def handle(request: Request, connection: Connection) -> None:
        if request.path == "/slow":
            release.wait(20.0)
        File(b"x")(request, connection)

    origin = serve(handle)
    client = client_of(SHORT_S)
    fetch(f"{origin.url}/first", tmp_path / "first", client=client)
    slow = threading.Thread(target=fetch, args=(f"{origin.url}/slow", tmp_path / "slow"), kwargs={"client": client})
    slow.start()
    wait_until(lambda: len(origin.requests) == 2)
    fetch(f"{origin.url}/second", tmp_path / "second", client=client)
    wait_until(lambda: origin.open_connections == 1)  # the idle one has gone, the one in use stays
    release.set()
    slow.join(20.0)
    assert (tmp_path / "slow").read_bytes() == b"x"


def test_an_idle_engine_closes_its_connections(monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path) -> None:
    monkeypatch.setattr(idle_connections, "MAX_IDLE_S", SHORT_S)
    origin = serve(File(b"x"))
    with DownloadEngine(network=PATIENT) as engine:
        task = engine.download(f"{origin.url}/f", tmp_path)
        task.result(20.0)
        wait_until(lambda: origin.open_connections == 0)


PROGRAM = """
import sys, time
from dlpool.config import NetworkSettings
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.source import Source

client = HttpClient(NetworkSettings(network="any"), 4, HostHolds(time.monotonic), NetworkMonitor(time.monotonic),
                max_idle_s=3600.0)
with Exchange(time.monotonic, time.sleep, ExchangeStats(0, 0.0)) as exchange:
    reply = Source(client, sys.argv[1], {}).get(exchange, None)
    view = memoryview(bytearray(100))
    while reply.read(view):
        pass
    reply.close()
print("idle")
"""


def test_an_idle_connection_keeps_no_process_alive(serve: Serve) -> None:
    origin = serve(File(b"x"))
    command = [sys.executable, "-c", PROGRAM, f"{origin.url}/f"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert ended.stdout == b"idle\n"


def test_the_thread_ends_when_nothing_is_idle_and_when_the_client_is_closed(
    serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    origin = serve(File(b"x"))
    before = set(closers())
    fetch(f"{origin.url}/f", tmp_path / "f", client=client_of(SHORT_S))
    wait_until(lambda: set(closers()) <= before)
    client = client_of(LONG_S)
    fetch(f"{origin.url}/f", tmp_path / "f", client=client)
    assert len(set(closers()) - before) == 1
    client.close()
    wait_until(lambda: set(closers()) <= before)
    wait_until(lambda: origin.open_connections == 0)


class Counted:
    """A pool that has an idle connection for a number of looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def close_idle(self, _max_idle_s: float) -> float | None:
        self.looks -= 1
        return 0.0 if self.looks > 0 else None


def test_a_pool_is_looked_at_until_nothing_in_it_is_idle_and_again_later() -> None:
    closer, pool = IdleCloser(0.01), Counted(3)
    closer.watch(pool)
    wait_until(lambda: pool.looks == 0)
    pool.looks = 2
    closer.watch(pool)
    wait_until(lambda: pool.looks == 0)


def test_a_closed_closer_can_be_used_again() -> None:
    closer = IdleCloser(0.01)
    closer.close()
    pool = Counted(2)
    closer.watch(pool)
    wait_until(lambda: pool.looks == 0)


def test_a_closer_that_gets_no_thread_tries_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    closer, pool = IdleCloser(0.01), Counted(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        closer.watch(pool)
    assert pool.looks == 2
    closer.watch(pool)
    wait_until(lambda: pool.looks == 0)


def test_a_closed_closer_ends_its_thread_whatever_its_pools_say() -> None:
    before = set(closers())
    closer = IdleCloser(LONG_S)
    closer.watch(Counted(10**9))
    assert len(set(closers()) - before) == 1
    closer.close()
    wait_until(lambda: set(closers()) <= before)
    assert not closer._woken.is_set()  # else the next thread would look at its pools without a pause


class Impatient(Counted):
    """A pool whose next connection is due at once, while a new one would be idle for long."""

    def __init__(self, closer: IdleCloser) -> None:
        super().__init__(2)
        self._closer = closer

    def close_idle(self, max_idle_s: float) -> float | None:
        self._closer.max_idle_s = LONG_S
        return super().close_idle(max_idle_s)


def test_a_pool_is_looked_at_when_its_next_connection_is_due() -> None:
    closer = IdleCloser(0.01)
    pool = Impatient(closer)
    closer.watch(pool)
    wait_until(lambda: pool.looks == 0, 20.0)
    assert closer.max_idle_s == LONG_S


class Guarded(weakref.WeakSet[IdlePool]):
    """A set that is to be changed and listed by the holder of a lock only, and remembers if it was not."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self.faults: list[str] = []
        self._guard = lock

    def _check(self, what: str) -> None:
        if not self._guard.locked():
            self.faults.append(what)

    def add(self, item: IdlePool) -> None:
        self._check("add")
        super().add(item)

    def clear(self) -> None:
        self._check("clear")
        super().clear()

    def __iter__(self) -> Iterator[IdlePool]:
        self._check("iter")
        return super().__iter__()

    def __len__(self) -> int:
        self._check("len")
        return super().__len__()


def test_the_pools_are_changed_and_listed_under_the_lock() -> None:
    before = set(closers())
    closer = IdleCloser(0.01)
    closer._pools = guarded = Guarded(closer._lock)
    pools = [Counted(2), Counted(3)]
    for pool in pools:
        closer.watch(pool)
    wait_until(lambda: set(closers()) <= before)
    closer.watch(pools[0])
    closer.close()
    wait_until(lambda: set(closers()) <= before)
    assert guarded.faults == []
