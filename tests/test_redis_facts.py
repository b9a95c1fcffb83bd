"""What a server says of itself: too old ones are refused, and what may cost jobs is warned of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import RedisSettings
from dlpool.jobs.connection import connect
from dlpool.jobs.server_check import check_server, incompatibility, master_of_replica, warnings
from tests import processes
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.outage import DATA, SINGLE, Gate, assert_ended_once, push_numbered, wait_until
from tests.processes import ROOT
from tests.redis_server import RedisServer

PASSWORD = "hunter2-s3cr3t"
SHORT = {"supervisor": {"lease": "1s", "grace": "1s", "drain_timeout": "0s"}, "transfer": SINGLE}
LUA = "".join(path.read_text() for path in (ROOT / "dlpool" / "jobs" / "lua").glob("*.lua"))


def events_of(server: RedisServer, folder: Path, **settings: Any) -> list[str]:
    client = connect(replace(RedisSettings(), url=server.url, **settings), folder)
    return [warned.event for warned in check_server(client)]


# --- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", "6.1.241", "2.8"])
def test_a_server_before_6_2_is_refused_in_one_sentence(version: str) -> None:
    reason = incompatibility({"redis_version": version}, is_cluster=False)
    assert reason == f"Redis {version} is too old: dlpool needs 6.2 or newer, or Valkey"


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.2.1", "10.0", "", "unstable"])
def test_a_newer_server_or_one_that_does_not_say_is_taken(version: str) -> None:
    assert incompatibility({"redis_version": version}, is_cluster=False) == ""


@pytest.mark.parametrize(
    ("info", "master"),
    [
        ({"role": "slave", "slave_read_only": 1, "master_host": "10.0.0.1", "master_port": 6379}, "10.0.0.1:6379"),
        ({"role": "slave", "slave_read_only": "1", "master_host": "::1", "master_port": 1}, "::1:1"),
        ({"role": "slave"}, "?:?"),
        ({"role": "slave", "slave_read_only": 0, "master_host": "h", "master_port": 1}, ""),
        ({"role": "slave", "slave_read_only": "0"}, ""),
        ({"role": "master", "slave_read_only": 1}, ""),
        ({"role": "sentinel"}, ""),
        ({}, ""),
    ],
)
def test_a_read_only_replica_is_known_by_what_it_says(info: dict[str, Any], master: str) -> None:
    assert master_of_replica(info) == master


# --- what may cost jobs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"appendonly": True}, []),
        ({"save": "3600 1"}, []),
        ({}, ["redis_not_persistent"]),
        ({"appendonly": True, "maxmemory": "100mb"}, []),
        ({"appendonly": True, "maxmemory_policy": "allkeys-lru"}, []),
        ({"maxmemory": "100mb", "maxmemory_policy": "volatile-ttl"}, ["redis_may_evict", "redis_not_persistent"]),
    ],
)
def test_what_may_cost_jobs_is_known(options: dict[str, Any], found: list[str], tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", **options) as server:
        assert events_of(server, tmp_path) == found


def test_a_server_that_does_not_tell_its_configuration_is_taken_for_good() -> None:
    assert warnings({"aof_enabled": 0}, None) == ()


def test_a_user_who_may_not_ask_is_not_warned(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        for name, rules in (("blind", "-info -config"), ("half", "-config")):
            acl = ["ACL", "SETUSER", name, "on", f">{PASSWORD}", "~*", "+@all", *rules.split()]
            server.client().execute_command(*acl)  # type: ignore[no-untyped-call]
            assert events_of(server, tmp_path, username=name, password=PASSWORD) == []


def test_the_service_warns_once_at_its_start(tmp_path: Path) -> None:
    careless = RedisServer(tmp_path / "redis", maxmemory="100mb", maxmemory_policy="allkeys-lru")
    with careless as server, Supervisor(tmp_path / "service", server.url) as service:
        for event in ("redis_may_evict", "redis_not_persistent"):
            [line] = service.events(event)
            assert line["log.level"] == "warning"


# --- an ACL user --------------------------------------------------------------------------------------------------


def acl_of_the_documents() -> list[str]:
    """The line that docs/redis.md gives to those who make a user, with a password."""
    [line] = re.findall(r"^ACL SETUSER .*$", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE)
    return shlex.split(line.replace("PASSWORD", PASSWORD))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with the user of docs/redis.md."""
    with RedisServer(tmp_path / "redis", appendonly=True) as server:
        server.client().execute_command(*acl_of_the_documents())  # type: ignore[no-untyped-call]
        yield server


def test_the_acl_user_of_the_documents_may_all_that_is_needed(guarded: RedisServer, tmp_path: Path) -> None:
    """Success and failure, retries, another's jobs, and the commands of the queue."""
    own: dict[str, dict[str, Any]] = {"redis": {"username": "dlpool", "password": PASSWORD}, **SHORT}
    client, gate = Client(guarded.client()), Gate()
    with (
        Origin(gate) as origin,
        Supervisor(tmp_path / "a", guarded.url, own) as first,
        Supervisor(tmp_path / "b", guarded.url, own) as second,
    ):
        ids, urls = push_numbered(client, origin, 12)
        client.push(f"{origin.url}/missing", "missing.bin", id="job-missing")
        client.push("http://127.0.0.1:1/", "none.bin", id="job-bad", max_attempts=2)
        pushed = processes.run("push", f"{origin.url}/cli", "cli.bin", "--dedupe", "-c", first.ini)
        assert pushed.code == 0, pushed.err
        wait_until(lambda: len(origin.requests) >= 10)
        first.kill()
        wait_until(lambda: second.events("jobs_recovered") != [])
        first.start()
        gate.open()
        client.wait_for(*urls, f"{origin.url}/cli")
        client.wait_for_failure(f"{origin.url}/missing")
        for command in (["stats"], ["jobs"], ["job", "job-1"]):
            assert processes.run(*command, "-c", first.ini).code == 0
        assert first.events("redis_unavailable") == [] == second.events("redis_unavailable")
        assert first.stop() == 0 == second.stop()
    assert_ended_once(client, *ids, "job-missing", starts=None)
    refused: Any = guarded.client().execute_command("ACL LOG")  # type: ignore[no-untyped-call]
    assert [row["object"] for row in refused if row["object"] != "client|setinfo"] == []


def test_the_acl_user_of_the_documents_may_not_much_else(guarded: RedisServer) -> None:
    user = guarded.client(username="dlpool", password=PASSWORD)
    for command in ("FLUSHALL", "KEYS *", "CONFIG SET maxmemory 1", "GET other", "SHUTDOWN", "ACL LIST"):
        with pytest.raises(Exception, match="permission"):
            user.execute_command(*command.split())  # type: ignore[no-untyped-call]


def test_every_command_of_a_script_is_in_the_acl_of_the_documents() -> None:
    """Also those that a test would reach once in a hundred runs."""
    called = set(re.findall(r"redis\.call\('([A-Z]+)'", LUA)) | set(re.findall(r"'([LR]P(?:USH|OP))'", LUA))
    assert {f"+{name.lower()}" for name in called} <= set(acl_of_the_documents())


def test_a_service_of_an_acl_user_works_in_a_real_run_with_its_url(guarded: RedisServer, tmp_path: Path) -> None:
    url = f"unix://dlpool:{PASSWORD}@{guarded.socket}"
    with Origin(File(DATA)) as origin, Supervisor(tmp_path / "service", url) as service:
        client = Client(guarded.client())
        client.push(f"{origin.url}/a", "a.bin")
        client.wait_for(f"{origin.url}/a")
        assert service.stop() == 0, service.said()
