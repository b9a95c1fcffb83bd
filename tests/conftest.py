"""Fixtures: scripted origins, a real nginx, and fetching in this process."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import settings as hypothesis_settings

from dlpool.config import NetworkSettings, TransferSettings
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.job import Checksum, Job, TransferCallbacks, TransferResult
from dlpool.transfer.transfer import Transfer
from tests.fakes import Clock
from tests.origin import Handler, Origin
from tests.redis_server import RedisServer
from tests.splicing import Copying, copy_all, splice_all

FAST = TransferSettings(
    min_split_size=64 * 1024, retries=3, retry_delay=0.01, retry_max_delay=0.1, max_retry_after=5.0, sync=False
)
PATIENT = NetworkSettings(connect_timeout=5.0, read_timeout=10.0, network="any")

hypothesis_settings.register_profile("dlpool", deadline=None)  # a loaded machine is no defect
hypothesis_settings.load_profile("dlpool")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started pytest in the background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


IN_FLIGHT = 256 * 1024  # bytes: one read, in vain where its range was stolen twice while it waited


def make_data(size: int, seed: int = 1) -> bytes:
    """Bytes without repetition, so that a misplaced range shows."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_descriptors(folder: Path) -> int:
    """The number of descriptors that this process has of files in ``folder``, removed ones included.

    Threads that earlier tests left open and close others meanwhile.
    """
    number = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of this list
            number += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
    return number


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until ``condition`` holds; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


class Fetcher:
    """Downloads in this process, with settings that make tests fast. ``network``: those that all downloads have."""

    def __init__(self, **network: Any) -> None:
        self._network = network
        self.events: list[tuple[str, dict[str, object]]] = []
        self._lock = threading.Lock()

    def transfer(
        self,
        url: str,
        target: Path,
        *,
        network: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        user: tuple[str, str] | None = None,
        checksum: str | None = None,
        client: HttpClient | None = None,
        **settings: Any,
    ) -> Transfer:
        client = client or self.client(**(network or {}))
        wanted = Checksum.parse(checksum) if checksum else None
        job = Job(url, target, os.path.isdir(target), headers or {}, user, wanted)
        return Transfer(job, replace(FAST, **settings), client, TransferCallbacks(self._note))

    def client(self, **network: Any) -> HttpClient:
        settings = replace(PATIENT, **{**self._network, **network})
        return HttpClient(settings, 16, HostHolds(time.monotonic), NetworkMonitor(time.monotonic))

    def __call__(self, url: str, target: Path, **options: Any) -> TransferResult:
        return self.transfer(url, target, **options).run()

    def named(self, event: str) -> list[dict[str, object]]:
        with self._lock:
            return [fields for name, fields in self.events if name == event]

    def _note(self, event: str, /, **fields: object) -> None:
        with self._lock:
            self.events.append((event, fields))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; reading from the second one fails after 20 seconds."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20.0)
        yield ours, theirs


@pytest.fixture
def is_tls() -> bool:
    """Whether the origins of ``serve`` use TLS. A module whose tests hold for both has a fixture of its own."""
    return False


@pytest.fixture(params=[copy_all, splice_all], ids=["buffered", "spliced"])
def copying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Copying:
    """Both ways to copy a body."""
    copying: Copying = request.param(monkeypatch)
    return copying


@pytest.fixture
def fetch(is_tls: bool, request: pytest.FixtureRequest) -> Fetcher:
    return Fetcher(cacert=str(request.getfixturevalue("authority").ca_file)) if is_tls else Fetcher()


@pytest.fixture
def serve(is_tls: bool, request: pytest.FixtureRequest) -> Iterator[Callable[..., Origin]]:
    """Start scripted origins; they end with the test."""
    with ExitStack() as stack:

        def start(handler: Handler, **options: Any) -> Origin:
            if is_tls:
                options.setdefault("tls", request.getfixturevalue("authority").server_context())
            return stack.enter_context(Origin(handler, **options))

        yield start


@dataclass(frozen=True)
class Authority:
    """A certificate authority and a server certificate of its own for localhost."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("ca")
    ca = trustme.CA()
    cert = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    cert.private_key_pem.write_to_path(folder / "key.pem")
    cert.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return Authority(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def is_open() -> bool:
        assert process.poll() is None, "the server ended at its start"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    wait_until(is_open)


@dataclass(frozen=True)
class Nginx:
    """A running nginx: plain and TLS on free ports, over one folder."""

    root: Path
    url: str
    tls_url: str
    slow_url: str


_NGINX_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes {processes};
events {{ }}
http {{
  access_log off; sendfile on; keepalive_requests 100000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  {servers}
}}
"""
_SERVERS = """
  server {{ listen 127.0.0.1:{port}; root {folder}/www; }}
  server {{ listen 127.0.0.1:{slow}; root {folder}/www; limit_rate 20m; }}
  server {{ listen 127.0.0.1:{tls} ssl; root {folder}/www; limit_rate 60m;
    ssl_certificate {cert}; ssl_certificate_key {key}; }}
"""


@contextmanager
def run_nginx(folder: Path, servers: str, port: int, *, processes: str = "1") -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx with these server blocks until the block ends; yield once its ``port`` accepts connections."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert binary is not None, "nginx is not installed: scripts/test installs it"
    config = folder / "nginx.conf"
    config.write_text(_NGINX_CONFIG.format(folder=folder, servers=servers, processes=processes))
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    process = subprocess.Popen([binary, "-c", config, *user], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    (folder / "www").mkdir()
    ports = {"port": free_port(), "tls": free_port(), "slow": free_port()}
    servers = _SERVERS.format(folder=folder, cert=authority.cert_file, key=authority.key_file, **ports)
    for parent in [folder, *folder.parents]:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    with run_nginx(folder, servers, ports["port"]):
        host = "127.0.0.1"
        yield Nginx(
            folder / "www",
            f"http://{host}:{ports['port']}",
            f"https://localhost:{ports['tls']}",
            f"http://{host}:{ports['slow']}",
        )


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """A Redis that is empty. It is this test process's, for all of its tests: who kills one starts a RedisServer."""
    with _session_redis.start().client() as client:
        client.flushall()
        client.script_flush()
    return _session_redis
