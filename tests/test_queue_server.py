"""Test where the queue is: in a running Redis, or in a private one that clients of this machine can reach."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from dlpool.cli.supervisor import StartPrinter
from dlpool.config import RedisSettings
from dlpool.errors import ConfigurationError, QueueAway
from dlpool.jobs.connection import AUTO, connect, translated
from dlpool.jobs.embedded_socket import socket_path
from dlpool.kinds import parse_loopback
from dlpool.service.node.embedded_redis import EmbeddedRedis
from tests import processes
from tests.conftest import free_port, wait_until
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.redis_server import RedisServer

DATA = b"a small file\n"
PASSWORD = "correct-horse"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short name, which a socket requires."""
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def port() -> int:
    return free_port()


def service_of(folder: Path, url: str, port: int, **settings: Any) -> Supervisor:
    return Supervisor(folder, url, {"redis": {"embedded_listen": f"127.0.0.1:{port}", **settings}})


def plain_client(port: int, **options: Any) -> Client:
    """Return a client as written for the Go service."""
    return Client(redis.Redis(host="localhost", port=port, **options))


def private_servers(service: Supervisor) -> list[psutil.Process]:
    found = psutil.Process(service.pid).children()
    return [one for one in found if "redis" in one.name() or "valkey" in one.name()]


def wait_for_file(service: Supervisor, origin: Origin, client: Client, name: str) -> None:
    """Push a job as a plain client does, and wait for the file and the record."""
    client.push(f"{origin.url}/{name}", name)
    client.wait_for(f"{origin.url}/{name}")
    assert (service.out / name).read_bytes() == DATA


@contextmanager
def listening(port: int, answer: bytes | None) -> Iterator[None]:
    """Run a program that is not Redis and answers with these bytes, or not at all."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = server.accept()
                    if answer is not None:
                        accepted.sendall(answer)
                    accepted.close()

        threading.Thread(target=serve, daemon=True).start()
        yield
        server.shutdown(socket.SHUT_RDWR)


# --- a plain start and a plain client ---


@pytest.mark.parametrize("url", ["embedded", "auto"])
def test_a_plain_client_reaches_the_private_server(url: str, folder: Path, port: int) -> None:
    with Origin(File(DATA)) as origin, service_of(folder, url, port) as service:
        wait_for_file(service, origin, plain_client(port), "a")
        [started] = service.events("service_started")
        assert started["dlpool.client_url"] == f"redis://127.0.0.1:{port}"
        assert started["dlpool.redis"] == f"unix://{socket_path(service.state_dir)}"
        assert len(private_servers(service)) == 1
        listed = processes.run("jobs", "--state", "succeeded", "--json", "-c", service.ini)
        assert listed.code == 0 and f"{origin.url}/a" in listed.out
        assert processes.run("stats", "--redis-addr", f"localhost:{port}", "--json").json["succeeded"] == 1
        assert service.stop() == 0, service.said()


def test_the_private_server_listens_nowhere_if_that_is_wanted(folder: Path) -> None:
    with Supervisor(folder, "embedded", {"redis": {"embedded_listen": ""}}) as service:
        [server] = private_servers(service)
        assert [one for one in server.net_connections() if one.status == psutil.CONN_LISTEN] == []
        client: Any = redis.Redis(unix_socket_path=str(socket_path(service.state_dir)))
        assert client.config_get("port") == {"port": "0"} or client.config_get("port") == {b"port": b"0"}
        assert service.events("embedded_listen_in_use") == []


def test_the_private_server_listens_at_the_loopback_interface_only(folder: Path, port: int) -> None:
    with service_of(folder, "embedded", port) as service:
        [server] = private_servers(service)
        listens = {one.laddr for one in server.net_connections() if one.status == psutil.CONN_LISTEN}
        assert listens == {("127.0.0.1", port)}


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG SET dir /tmp",
        "CONFIG SET appendonly no",
        "MODULE LOAD /tmp/x.so",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "SAVE",
        "BGREWRITEAOF",
        "REPLICAOF 127.0.0.1 1",
        "ACL SETUSER default +@all",
        "MONITOR",
    ],
)
def test_who_reaches_it_over_tcp_cannot_change_the_server(listening_server: int, command: str) -> None:
    client: Any = redis.Redis(port=listening_server)
    with pytest.raises(redis.exceptions.ResponseError, match=r"no permissions|not allowed"):
        client.execute_command(*command.split())
    assert client.ping()


@pytest.fixture(scope="module")
def listening_server() -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as name:
        server = EmbeddedRedis.start(Path(name), listen=f"127.0.0.1:{port}")
        yield port
        server.stop()


@pytest.mark.parametrize("address", ["0.0.0.0:6379", "192.0.2.1:6379", ":6379", "[::]:6379", "example.org:6379"])
def test_another_address_than_loopback_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an address of the loopback interface"):
        parse_loopback(address)
    (tmp_path / "x.ini").write_text(f"[redis]\nembedded_listen = {address}\n")
    assert processes.run("config", "check", "-c", tmp_path / "x.ini").code == 78


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "127.1.2.3:1", "[::1]:6379", "localhost:6380", ""])
def test_loopback_addresses_are_taken(address: str) -> None:
    assert parse_loopback(address) == address


def test_a_server_that_dies_listens_again_after_its_start(folder: Path, port: int) -> None:
    with Origin(File(DATA)) as origin, service_of(folder, "auto", port) as service:
        [server] = private_servers(service)
        server.kill()
        wait_until(lambda: service.events("redis_available") != [] or service.events("embedded_redis_exited") != [])
        wait_until(lambda: any(one.pid != server.pid for one in private_servers(service)))

        def answers() -> bool:
            with suppress(redis.RedisError):
                return bool(plain_client(port).redis.ping())
            return False

        wait_until(answers)
        wait_for_file(service, origin, plain_client(port), "a")


# --- the address is taken ---


def test_of_two_supervisors_the_second_has_its_socket_only(folder: Path, port: int) -> None:
    with (
        service_of(folder / "a", "embedded", port),
        service_of(folder / "b", "embedded", port) as service,
        Origin(File(DATA)) as origin,
    ):
        [warned] = service.events("embedded_listen_in_use")
        assert warned["log.level"] == "warning" and f"127.0.0.1:{port}" in warned["dlpool.reason"]
        assert "dlpool push" in warned["dlpool.reason"]
        pushed = processes.run("push", f"{origin.url}/a", "a", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        wait_until(lambda: (service.out / "a").exists())


@pytest.mark.parametrize("event", ["embedded_listen_in_use", "embedded_data_unused"])
@pytest.mark.parametrize("is_quiet", [False, True])
def test_what_clients_must_know_of_the_private_redis_is_said_at_the_start(
    event: str, is_quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    herald = StartPrinter(is_quiet=is_quiet)
    for _ in range(2):
        herald.handle_event(event, {"reason": "the reason"})
    assert capsys.readouterr().err == ("" if is_quiet else "dlpool-supervisor: warning: the reason\n")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["http", "hangs up", "closed"])
def test_what_listens_there_and_is_no_redis_is_left_alone(answer: bytes | None, folder: Path, port: int) -> None:
    with listening(port, answer), Origin(File(DATA)) as origin, service_of(folder, "auto", port) as service:
        assert len(service.events("embedded_listen_in_use")) == 1
        pushed = processes.run("push", f"{origin.url}/a", "a", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        wait_until(lambda: (service.out / "a").exists())


# --- a server that is there ---


def test_a_redis_that_answers_is_used(folder: Path, port: int) -> None:
    with (
        RedisServer(folder / "redis", port=port) as server,
        Origin(File(DATA)) as origin,
        service_of(folder, "auto", port) as service,
    ):
        wait_for_file(service, origin, Client(server.client()), "a")
        assert private_servers(service) == []
        assert service.events("service_started")[0]["dlpool.redis"] == f"redis://127.0.0.1:{port}"
        pushed = processes.run("push", f"{origin.url}/b", "b", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        wait_until(lambda: (service.out / "b").exists())
        assert service.stop() == 0, service.said()


def test_one_that_wants_a_password_is_named_and_used_with_it(folder: Path, port: int) -> None:
    with RedisServer(folder / "redis", port=port, password=PASSWORD) as server, Origin(File(DATA)) as origin:
        service = service_of(folder, "auto", port).start(is_ready=False)
        assert service.wait() == 20
        said = service.errors.read_text().splitlines()[-1]
        assert f"127.0.0.1:{port} refuses" in said and "url = auto" in said and "password" in said
        with service_of(folder, "auto", port, password=PASSWORD) as service:
            wait_for_file(service, origin, Client(server.client()), "a")


def test_jobs_that_wait_in_the_private_server_are_told_of(folder: Path, port: int) -> None:
    with service_of(folder, "embedded", port) as service:
        for number in range(30):
            plain_client(port).push("http://127.0.0.1:1/x", f"{number}", not_before=4e9)
        wait_until(lambda: plain_client(port).redis.llen("go_download_urls") == 0)
        assert service.stop() == 0
    with RedisServer(folder / "redis", port=port), service_of(folder, "auto", port) as service:
        [warned] = service.events("embedded_data_unused")
        assert str(service.state_dir / "redis") in warned["dlpool.reason"]


def test_the_server_of_a_killed_supervisor_is_not_taken_for_a_strangers(folder: Path, port: int) -> None:
    with Origin(File(DATA)) as origin, service_of(folder, "auto", port) as service:
        [server] = private_servers(service)
        server.suspend()  # it listens, and cannot end yet
        try:
            service.kill()
            service.start(is_ready=False)
        finally:
            server.resume()
        wait_until(lambda: len(service.events("service_ready")) == 2, 40)
        assert service.events("service_started")[1]["dlpool.redis"].startswith("unix://")
        assert len(private_servers(service)) == 1 and service.events("embedded_listen_in_use") == []
        wait_for_file(service, origin, plain_client(port), "a")


# --- clients ---


def test_clients_with_auto_look_each_time_they_connect(folder: Path, port: int) -> None:
    settings = replace(RedisSettings(), url=AUTO, embedded_listen=f"127.0.0.1:{port}", password=PASSWORD)
    state_dir = folder / "state"
    client = connect(settings, state_dir)

    def name() -> bytes | None:
        with translated(client):
            found: Any = client.get("name")
        return found  # type: ignore[no-any-return]

    with pytest.raises(QueueAway, match=f"127.0.0.1:{port}"):
        name()
    with RedisServer(folder / "tcp", port=port, password=PASSWORD) as over_tcp:
        over_tcp.client().set("name", "tcp")
        assert name() == b"tcp"
        with RedisServer(folder / "private") as private:  # it knows no password
            private.client().set("name", "private")
            socket_path(state_dir).parent.mkdir(parents=True)
            socket_path(state_dir).symlink_to(private.socket)
            client.connection_pool.disconnect()
            assert name() == b"private"
        with suppress(QueueAway):  # the connection has broken: the next one looks again
            name()
        assert name() == b"tcp"


def test_without_any_server_a_command_says_what_to_start(folder: Path, port: int) -> None:
    service = service_of(folder, "auto", port)
    ended = processes.run("push", "http://h/a", "a", "-c", service.ini)
    assert ended.code == 20 and len(ended.err.splitlines()) == 1
    assert f"127.0.0.1:{port}" in ended.err and f"start it with dlpool-supervisor -c {service.ini}" in ended.err


def test_a_url_that_is_none_names_auto(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="embedded, auto"):
        connect(replace(RedisSettings(), url="automatic"), tmp_path)


# --- what is said at the start ---


def test_the_start_says_version_node_queue_redis_slots_and_folders(folder: Path, port: int) -> None:
    with service_of(folder, "auto", port) as service:
        assert service.stop() == 0
        version, queue, folders, ready = service.errors.read_text().splitlines()
    [started] = service.events("service_started")
    assert (
        version
        == f"dlpool-supervisor: dlpool {started['service.version']}, node {started['service.node.name']}, "
        + ("5 jobs at once")
    )
    assert queue.startswith(f"dlpool-supervisor: queue go_download_urls at unix://{os.path.realpath(folder)}")
    assert queue.endswith(f" (clients on this machine: redis://127.0.0.1:{port})")
    assert folders == (
        f"dlpool-supervisor: downloads in {service.out}, state in {service.state_dir}, log in {folder / 'log'}"
    )
    assert ready == "dlpool-supervisor: ready"


def test_a_password_of_the_url_is_not_said(folder: Path, port: int) -> None:
    with RedisServer(folder / "redis", port=port, password=PASSWORD):
        with Supervisor(folder, f"redis://:{PASSWORD}@127.0.0.1:{port}") as service:
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
        said = service.errors.read_text()
    assert PASSWORD not in said and f"queue go_download_urls at redis://127.0.0.1:{port}\n" in said


def test_quiet_says_nothing(folder: Path) -> None:
    service = Supervisor(folder, "embedded")
    try:
        service.start("-q")
        assert service.stop() == 0
    finally:
        service.kill()
    assert service.errors.read_text() == ""
