"""Redis behind a Sentinel: its master dies or steps down in the midst of work, and each job still ends once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.backoff import NoBackoff
from redis.retry import Retry

from dlpool.config import RedisSettings
from dlpool.errors import QueueAway, QueueRefused
from dlpool.jobs.connection import connect, translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.transitions import Transitions
from tests import processes
from tests.conftest import free_port
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.outage import DATA, Gate, assert_ended_once, is_fetched_once, push_numbered, wait_until
from tests.redis_kinds import NAME, Replicated

SECRET = "s3cret"


def test_a_master_that_dies_in_the_midst_of_work_costs_nothing_that_its_replica_has(tmp_path: Path) -> None:
    gate = Gate()
    with Replicated(tmp_path) as redis, Origin(gate) as origin:
        before, after = redis.servers
        with Supervisor(tmp_path / "service", redis.url, {"transfer": {"connections": 1}}) as service:
            ids, urls = push_numbered(Client(before.client()), origin, 10)
            wait_until(lambda: len(origin.requests) == 5)
            wait_until(redis.is_in_step)
            before.kill()
            wait_until(lambda: service.events("redis_unavailable") != [])
            wait_until(lambda: redis.master() is after)
            gate.open()
            client = Client(after.client(retry=Retry(NoBackoff(), 3)))  # a Sentinel closes connections, too
            client.wait_for(*urls)
            before.start()
            more_ids, more_urls = push_numbered(client, origin, 3, start=10)
            client.wait_for(*more_urls)
            assert service.stop() == 0, service.said()
        assert_ended_once(client, *ids, *more_ids)
        assert is_fetched_once(origin)
        assert client.leftovers() == []


def test_a_master_that_steps_down_is_left_for_the_new_one(tmp_path: Path) -> None:
    gate = Gate()
    with Replicated(tmp_path) as redis, Origin(gate) as origin:
        before, after = redis.servers
        with Supervisor(tmp_path / "service", redis.url) as service:
            ids, urls = push_numbered(Client(before.client()), origin, 8)
            wait_until(lambda: len(origin.requests) >= 5)
            wait_until(redis.is_in_step)
            redis.sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
            wait_until(lambda: redis.master() is after)
            gate.open()
            client = Client(after.client(retry=Retry(NoBackoff(), 3)))
            client.wait_for(*urls)
            assert service.stop() == 0, service.said()
        assert_ended_once(client, *ids, starts=None)


def test_the_commands_find_the_master_by_any_sentinel_that_answers(tmp_path: Path) -> None:
    with Replicated(tmp_path) as redis, Origin(File(DATA)) as origin:
        url = redis.url.replace("://", f"://127.0.0.1:{free_port()},")
        pushed = processes.run("push", f"{origin.url}/a", "a.bin", "--redis-url", url)
        assert pushed.code == 0, pushed.err
        shown = processes.run("job", pushed.out.strip(), "--json", "--redis-url", url)
        assert shown.json["state"] == "queued"
        assert processes.run("stats", "--json", "--redis-url", url).json["ready_normal"] == 1


def test_a_replica_that_is_taken_for_the_master_is_left_at_its_first_answer(tmp_path: Path) -> None:
    """A connection that was made before the roles changed."""
    with Replicated(tmp_path) as redis:
        client = connect(replace(RedisSettings(), url=redis.url), tmp_path)
        client.ping()
        first, second = redis.servers
        second.client().execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        redis.sentinel.execute_command("SENTINEL", "REMOVE", NAME)
        redis.sentinel.execute_command("SENTINEL", "MONITOR", NAME, "127.0.0.1", second.port, 1)
        first.client().config_set("replica-read-only", "yes")
        first.client().execute_command("REPLICAOF", "127.0.0.1", second.port)  # type: ignore[no-untyped-call]
        with pytest.raises(QueueAway), translated(client):
            client.lpush("list", "1")
        with translated(client):
            client.lpush("list", "2")
        assert second.client().lrange("list", 0, -1) == [b"2"]


def test_a_master_that_was_replaced_and_does_not_know_it_is_left_at_its_first_answer(tmp_path: Path) -> None:
    """Its replica was promoted, so that it has too few to write to; a Sentinel tells it ten seconds later, if ever."""
    with Replicated(tmp_path) as redis:
        client = connect(replace(RedisSettings(), url=redis.url), tmp_path)
        transitions = Transitions(client, QueueKeys())
        first, second = redis.servers
        first.client().config_set("min-replicas-to-write", 2)
        redis.sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
        with pytest.raises(QueueAway, match="NOREPLICAS"):
            transitions.hold_host("h", 1.0)
        wait_until(lambda: redis.master() is second)
        wait_until(lambda: second.client().info("replication")["role"] == "master")
        assert first.client().info("replication")["role"] == "master"
        with suppress(QueueAway):
            transitions.hold_host("h", 1.0)  # by the connection from before
        transitions.hold_host("h", 1.0)
        assert second.client().exists(QueueKeys().holds)


def test_a_service_that_no_sentinel_knows_is_away(tmp_path: Path) -> None:
    with Replicated(tmp_path) as redis:
        client = connect(replace(RedisSettings(), url=redis.url.replace(NAME, "other")), tmp_path)
        said = r"^Redis at other of the Sentinels 127.0.0.1:\d+ cannot be reached: none"
        with pytest.raises(QueueAway, match=said), translated(client):
            client.ping()


@pytest.mark.parametrize("way", ["sentinel_password", "sentinel_password_file", None])
def test_sentinels_have_a_password_of_their_own(way: str | None, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    given: dict[str, Any] = {"sentinel_password": SECRET, "sentinel_password_file": str(tmp_path / "secret")}
    with Replicated(tmp_path, password=SECRET) as redis:
        settings = replace(RedisSettings(), url=redis.url, **({way: given[way]} if way else {}))
        client = connect(settings, tmp_path)
        if way:
            assert client.ping()
            return
        with pytest.raises(QueueRefused, match="Authentication required"), translated(client):
            client.ping()
