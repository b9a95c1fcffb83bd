"""Plain HTTP without a proxy uses connections of its own pool, not urllib3's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dlpool.config import NetworkSettings
from dlpool.errors import PolicyRefused, Unreachable
from dlpool.transfer.http.cancellable import PooledResponse
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.direct_pool import DirectPools
from dlpool.transfer.http.idle_connections import MAX_HOSTS, IdleCloser
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.policy import ANY_NETWORK
from tests.conftest import free_port, wait_until
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT

IDLE_S = 30.0


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(File(b"data")) as made:
        yield made


def client_of(size: int = 2, idle_s: float = IDLE_S, network: str = "any") -> HttpClient:
    settings = NetworkSettings(network=network)
    return HttpClient(settings, size, HostHolds(time.monotonic), NetworkMonitor(time.monotonic), max_idle_s=idle_s)


def get(client: HttpClient, origin: Origin) -> PooledResponse:
    return client.send("GET", f"{origin.url}/f", {})


def read(response: PooledResponse) -> bytes:
    buffer = bytearray(100)
    data = bytes(buffer[: response.readinto1(buffer)])
    response.release()
    return data


def connections(origin: Origin) -> list[int]:
    return [request.connection for request in origin.requests]


def test_a_connection_is_used_again(origin: Origin) -> None:
    client = client_of()
    assert [read(get(client, origin)) for _ in range(3)] == [b"data"] * 3
    assert len(set(connections(origin))) == 1
    client.close()
    wait_until(lambda: origin.open_connections == 0)


def test_no_more_connections_are_kept_than_the_pool_has_places(origin: Origin) -> None:
    client = client_of(size=1)
    for response in [get(client, origin) for _ in range(3)]:
        read(response)
    wait_until(lambda: origin.open_connections == 1)
    client.close()


def test_a_connection_with_an_unread_body_is_closed(origin: Origin) -> None:
    client = client_of()
    get(client, origin).release()
    wait_until(lambda: origin.open_connections == 0)
    read(get(client, origin))
    assert len(set(connections(origin))) == 2
    client.close()


def test_a_connection_that_the_server_has_closed_is_not_used(origin: Origin) -> None:
    file = File(b"data")

    def handle(request: Request, connection: Connection) -> None:
        file(request, connection)
        connection.hang_up()

    origin.handler = handle
    client = client_of()
    for _ in range(3):
        read(get(client, origin))
        wait_until(lambda: origin.open_connections == 0)
    assert len(set(connections(origin))) == 3
    client.close()


def test_an_idle_connection_is_closed(origin: Origin) -> None:
    client = client_of(idle_s=0.05)
    read(get(client, origin))
    wait_until(lambda: origin.open_connections == 0)
    assert read(get(client, origin)) == b"data"
    client.close()


def test_a_connection_that_is_returned_after_the_close_is_closed(origin: Origin) -> None:
    client = client_of()
    response = get(client, origin)
    client.close()
    read(response)
    wait_until(lambda: origin.open_connections == 0)


def test_a_failed_request_leaves_no_connection(origin: Origin) -> None:
    origin.handler = lambda _request, connection: connection.hang_up()
    client = client_of()
    with pytest.raises(ConnectionError):
        get(client, origin)
    wait_until(lambda: origin.open_connections == 0)
    with pytest.raises(Unreachable):
        client.send("GET", f"http://127.0.0.1:{free_port()}/", {})


def test_the_network_policy_holds(origin: Origin) -> None:
    with pytest.raises(PolicyRefused):
        get(client_of(network="public-only"), origin)
    assert origin.requests == []


@pytest.mark.parametrize(
    ("url", "is_direct"),
    [
        ("http://h.test/f", True),
        ("http://127.0.0.1:81/f", True),
        ("http://h.test./f", False),
        ("http://[::1]/f", False),
        ("https://h.test/f", False),
        ("http://xn--n3h.test/", True),
    ],
)
def test_urllib3_gets_tls_and_unusual_hosts(url: str, is_direct: bool) -> None:
    pools = DirectPools(ANY_NETWORK, IdleCloser(), 1)
    assert (pools.pool(url) is not None) is is_direct
    assert pools.pool(url) is pools.pool(url)


def test_the_number_of_hosts_is_bounded() -> None:
    pools = DirectPools(ANY_NETWORK, IdleCloser(), 1)
    first = pools.pool("http://h0.test/")
    for number in range(1, MAX_HOSTS):
        pools.pool(f"http://h{number}.test/")
    assert pools.pool("http://h0.test/") is first
    pools.pool("http://other.test/")
    assert pools.pool("http://h0.test/") is not first


def test_an_ipv6_host_and_a_proxy_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with Origin(File(b"data"), host="::1") as six:
        client = client_of()
        assert read(client.send("GET", f"http://[::1]:{six.port}/f", {})) == b"data"
        client.close()


def test_a_plain_fetch_imports_no_library_for_http(origin: Origin, tmp_path: object) -> None:
    code = (
        "import atexit, sys\n"
        "from dlpool.cli.main import main\n"
        "heavy = ('requests', 'urllib3', 'subprocess', 'rich', 'structlog', 'logging', 'dlpool.scan.guard')\n"
        "atexit.register(lambda: print('loaded:', *[name for name in heavy if name in sys.modules]))\n"
        "atexit.register(lambda: print('modules:', len([name for name in sys.modules if name.startswith('dlpool')])))\n"
        f"sys.argv = ['dlpool', 'fetch', '-q', '{origin.url}/f', '{tmp_path}/f']\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0, ended.stderr
    modules, loaded = ended.stdout.splitlines()
    assert loaded == "loaded:"
    assert int(modules.removeprefix("modules:")) <= 140
