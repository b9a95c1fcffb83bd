"""How a supervisor gets to its Redis: passwords, ACL users, and the private server of ``url = embedded``."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from dlpool.jobs.embedded_socket import socket_path
from tests import processes
from tests.conftest import free_port
from tests.fleet import Client, Supervisor
from tests.holding import is_running
from tests.origin import File, Origin
from tests.outage import DATA, Gate, assert_ended_once, push_numbered, wait_until, waiting
from tests.redis_server import RedisServer

PASSWORD = "hunter2-s3cr3t"
WRONG = "wr0ng-s3cr3t"
ACL_RULES = "~go_download_* ~success:* ~dlpool:{go_download_urls}:* +@all -@dangerous +client"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    with RedisServer(tmp_path / "redis", port=free_port(), password=PASSWORD) as server:
        yield server


def works(client: Client, service: Supervisor) -> None:
    """A job comes in and its file and record come out."""
    with Origin(File(DATA)) as origin:
        client.push(f"{origin.url}/a", "a.bin")
        client.wait_for(f"{origin.url}/a")
        assert (service.out / "a.bin").read_bytes() == DATA


def everything_said(service: Supervisor) -> str:
    """All that the service has written but its INI and its files."""
    logs = [path.read_text(errors="replace") for path in service.log_file.parent.iterdir()]
    return "".join([*logs, service.errors.read_text()])


def refusals(server: RedisServer, *kinds: str) -> int:
    """How often Redis has refused somebody."""
    found: Any = server.client().info("errorstats")
    return sum(found.get(f"errorstat_{kind}", {"count": 0})["count"] for kind in kinds)


@pytest.mark.parametrize("given", [{}, {"password": WRONG}], ids=["without it", "with a wrong one"])
def test_a_redis_that_wants_a_password_is_away_until_it_is_given(
    guarded: RedisServer, tmp_path: Path, given: dict[str, str]
) -> None:
    with waiting(tmp_path, guarded.tcp_url, {"redis": given}) as service:
        wait_until(lambda: refusals(guarded, "NOAUTH", "WRONGPASS") >= 6)
        wait_until(lambda: service.events("worker_started") != [])
        assert service.process is not None and service.process.poll() is None, service.said()
        assert service.events("service_ready") == []
        assert len(service.events("redis_unavailable")) == 1
        assert len(service.records()) < 20
        assert service.stop() == 0, service.said()
        said = everything_said(service)
    assert WRONG not in said


@pytest.mark.parametrize("way", ["password_file", "password", "option", "url"])
def test_a_password_opens_the_queue_and_is_never_shown(guarded: RedisServer, tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    given = {"password_file": secret, "password": PASSWORD}
    url = guarded.tcp_url.replace("//", f"//:{PASSWORD}@") if way == "url" else guarded.tcp_url
    options = ["--redis-password", PASSWORD] if way == "option" else []
    with waiting(tmp_path, url, {"redis": {way: given[way]} if way in given else {}}, *options) as service:
        works(Client(guarded.client()), service)
        service.signal(signal.SIGUSR2)
        wait_until(lambda: service.events("state_dumped") != [])
        guarded.kill()
        wait_until(lambda: service.events("redis_unavailable") != [])
        assert service.stop() == 0, service.said()
        assert PASSWORD not in everything_said(service)
        assert service.events("service_started") != []


def test_an_acl_user_needs_only_what_the_service_does(tmp_path: Path) -> None:
    settings = {"redis": {"username": "dlpool", "password": PASSWORD}}
    with RedisServer(tmp_path / "redis") as server:
        admin: Any = server.client()
        admin.execute_command("ACL", "SETUSER", "dlpool", "on", f">{PASSWORD}", *ACL_RULES.split())
        with Supervisor(tmp_path, server.url, settings) as service:
            works(Client(admin), service)
            assert service.events("redis_unavailable") == []
            assert service.stop() == 0, service.said()
            assert PASSWORD not in everything_said(service)


def test_an_acl_user_that_may_not_is_one_that_is_away(tmp_path: Path) -> None:
    settings = {"redis": {"username": "dlpool", "password": PASSWORD}}
    with RedisServer(tmp_path / "redis") as server:
        admin: Any = server.client()
        admin.execute_command("ACL", "SETUSER", "dlpool", "on", f">{PASSWORD}", "~other:*", "+@all")
        with waiting(tmp_path, server.url, settings) as service:
            wait_until(lambda: refusals(server, "NOPERM") >= 5)
            assert service.events("service_ready") == []
            assert len(service.events("redis_unavailable")) == 1
            admin.execute_command("ACL", "SETUSER", "dlpool", *ACL_RULES.split())
            works(Client(admin), service)
            wait_until(lambda: service.events("service_ready") != [])


# --- embedded ---


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as the one of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as name:
        yield Path(name)


def client_of(service: Supervisor) -> Client:
    return Client(redis.Redis(unix_socket_path=str(socket_path(service.state_dir)), socket_timeout=30))


def server_of(service: Supervisor) -> psutil.Process | None:
    """The private Redis of a supervisor that lives."""
    found = [one for one in psutil.Process(service.pid).children() if "redis" in one.name() or "valkey" in one.name()]
    return found[0] if found else None


def test_without_a_redis_the_service_brings_its_own_and_a_shell_finds_it(folder: Path) -> None:
    with Origin(File(DATA)) as origin, Supervisor(folder, "embedded") as service:
        pushed = processes.run("push", f"{origin.url}/a", "a.bin", "-c", service.ini)
        assert pushed.code == 0, pushed.err
        wait_until(lambda: (service.out / "a.bin").exists())
        wait_until(lambda: client_of(service).ends(pushed.out.strip()) == 1)
        shown = processes.run("job", pushed.out.strip(), "--json", "-c", service.ini).json
        assert shown["state"] == "succeeded"
        family = service.family()
        assert service.stop() == 0, service.said()
        wait_until(lambda: not any(is_running(pid) for pid in family))
        assert processes.run("stats", "-c", service.ini).code == 20


def test_the_queue_of_a_killed_service_is_there_at_its_next_start(folder: Path) -> None:
    gate = Gate()
    settings = {"supervisor": {"max_concurrent_downloads": 1}}
    with Origin(gate) as origin, Supervisor(folder, "embedded", settings) as service:
        ids, urls = push_numbered(client_of(service), origin, 4)
        wait_until(lambda: len(origin.requests) == 1)
        wait_until(lambda: client_of(service).redis.info("persistence")["aof_pending_bio_fsync"] == 0)
        family = service.family()
        service.kill()
        wait_until(lambda: not any(is_running(pid) for pid in family))
        gate.open()
        service.start()
        client = client_of(service)
        client.wait_for(*urls)
        assert_ended_once(client, *ids, starts=None)


def test_an_embedded_server_that_dies_is_started_again(folder: Path) -> None:
    gate = Gate()
    with Origin(gate) as origin, Supervisor(folder, "embedded") as service:
        ids, urls = push_numbered(client_of(service), origin, 8)
        wait_until(lambda: len(origin.requests) == 5)
        before = server_of(service)
        assert before is not None
        before.kill()
        wait_until(lambda: len(service.events("embedded_redis_exited")) == 1)
        gate.open()
        wait_until(lambda: service.events("redis_available") != [])
        client = client_of(service)
        client.wait_for(*urls)
        assert_ended_once(client, *ids)
        after = server_of(service)
        assert after is not None and after.pid != before.pid
        assert service.stop() == 0, service.said()
        assert not is_running(after.pid)
