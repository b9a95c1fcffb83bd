"""The network between the service and Redis loses replies, breaks, goes silent: nothing is lost, nothing twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlpool.config import RedisSettings
from dlpool.errors import QueueAway
from dlpool.jobs.connection import connect
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import Transitions
from tests import processes
from tests.fleet import Client, Supervisor, fleet
from tests.origin import File, Origin
from tests.outage import (
    DATA,
    SINGLE,
    Gate,
    assert_ended_once,
    assert_nobody_was_robbed,
    heard,
    is_fetched_once,
    let_pass,
    push_numbered,
    wait_until,
    waiting,
)
from tests.proxy import Proxy, _Pair
from tests.redis_server import RedisServer

SHORT = {"lease": "1s", "grace": "1s"}


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.socket) as started:
        yield started


def call_of(client: Client, transition: str) -> bytes:
    """By what a transition is recognised on its way: the digest of its script, which Redis has from now on."""
    digest: str = client.redis.script_load(Transitions(client.redis, client.keys)._scripts[transition].script)
    return digest.encode()


# --- one reply ---


@pytest.mark.parametrize(
    ("transition", "silent"), [("claim", False), ("finish", False), ("finish", True), ("heartbeat", False)]
)
def test_a_reply_of_redis_on_the_way_to_a_supervisor_is_lost(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path, transition: str, silent: bool
) -> None:
    client = Client(redis_server.client())
    with Origin(File(DATA)) as origin:
        ids, urls = push_numbered(client, origin, 3)
        proxy.swallow_next(call_of(client, transition), silent=silent)
        with waiting(tmp_path, proxy.url, {"transfer": SINGLE}) as service:
            client.wait_for(*urls)
            wait_until(lambda: len(service.events("job_succeeded")) == 3)
            assert service.stop() == 0, service.said()
    assert proxy.swallowed > 0
    assert_nobody_was_robbed(service)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)
    assert client.leftovers() == []


def test_each_job_has_one_hook_although_the_reply_to_its_record_was_lost(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    hooks = {"on_success": f"/bin/sh -c 'echo $DLPOOL_JOB_ID >> {tmp_path}/told'"}
    with Origin(File(DATA)) as origin:
        ids, urls = push_numbered(client, origin, 3)
        proxy.swallow_next(call_of(client, "finish"))
        with waiting(tmp_path, proxy.url, {"transfer": SINGLE, "hooks": hooks}) as service:
            client.wait_for(*urls)
            wait_until(lambda: len(service.events("job_succeeded")) == 3)
            assert service.stop() == 0, service.said()
    assert proxy.swallowed > 0
    assert sorted((tmp_path / "told").read_text().split()) == sorted(ids)


def test_the_permission_to_publish_is_lost_on_its_way(proxy: Proxy, redis_server: RedisServer, tmp_path: Path) -> None:
    client, gate = Client(redis_server.client()), Gate()
    settings = {"transfer": SINGLE, "supervisor": {"lease": "1s"}}
    with Origin(gate) as origin, Supervisor(tmp_path, proxy.url, settings) as service:
        ids, urls = push_numbered(client, origin, 1)
        wait_until(lambda: len(origin.requests) == 1)
        let_pass(1.5)  # a lease that stands needs no permission
        proxy.swallow_next(b"$0\r\n\r\n$5\r\njob-0\r\n")  # a beat that registers nobody: the question
        gate.open()
        client.wait_for(*urls)
        assert proxy.swallowed > 0
        assert_nobody_was_robbed(service)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)


def test_a_job_that_moved_to_the_inbox_without_a_reply_is_claimed_from_there(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, proxy.url, {"transfer": SINGLE}):
        proxy.swallow_next(b"BLMOVE")
        wait_until(lambda: not proxy.is_armed)  # it waits there now
        ids, urls = push_numbered(client, origin, 2)
        client.wait_for(*urls)
        assert proxy.swallowed > 0
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)


def test_a_push_whose_reply_was_lost_is_one_job_when_it_is_repeated(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    queue = Transitions(connect(RedisSettings(url=proxy.url), tmp_path), client.keys)
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, redis_server.url, {"transfer": SINGLE}):
        job = PushedJob.parse(compose_job(f"{origin.url}/a", "a.bin"))
        proxy.swallow_next(call_of(client, "push"))
        with pytest.raises(QueueAway):
            queue.push([(job, "job-a")])
        assert queue.push([(job, "job-a")]) == ["DUP"]
        wait_until(lambda: client.ends("job-a") == 1)
    assert_ended_once(client, "job-a")
    assert is_fetched_once(origin)


def test_a_push_from_a_shell_whose_reply_was_lost_says_what_to_repeat(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, redis_server.url, {"transfer": SINGLE}):
        arguments = ["push", f"{origin.url}/a", "a.bin", "--id", "job-a", "--redis-url", proxy.url]
        proxy.swallow_next(call_of(client, "push"))
        first = processes.run(*arguments)
        assert (first.code, "job-a" in first.err) == (20, True), first.err
        assert processes.run(*arguments).code == 0
        client.wait_for(f"{origin.url}/a")
        wait_until(lambda: client.ends("job-a") == 1)
    assert_ended_once(client, "job-a")
    assert is_fetched_once(origin)


# --- the whole way ---


@pytest.mark.parametrize("fault", ["blackhole", "refuse"])
def test_a_network_that_is_gone_for_longer_than_lease_and_grace_costs_nothing(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path, fault: str
) -> None:
    client, gate = Client(redis_server.client()), Gate()
    with Origin(gate) as origin, fleet(tmp_path, proxy.url, "a", "b", supervisor=SHORT, transfer=SINGLE) as both:
        ids, urls = push_numbered(client, origin, 13)  # three more than there are slots
        wait_until(lambda: len(origin.requests) == 10)
        getattr(proxy, fault)()
        wait_until(lambda: all(one.events("redis_unavailable") for one in both))
        let_pass(3.0)
        gate.open()
        proxy.pass_on()
        client.wait_for(*urls)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)


def test_a_supervisor_that_is_cut_off_alone_loses_its_jobs_and_harms_nothing(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It is a partition: the other takes its jobs, and records them; what comes late is refused by the fence."""
    client, gate = Client(redis_server.client()), Gate()
    settings = {"supervisor": {"lease": "1s", "grace": "1s"}, "transfer": SINGLE}
    out = {"paths": {"download_dir": tmp_path / "shared"}}
    cut = Supervisor(tmp_path / "cut", proxy.url, {**settings, **out})
    with Origin(gate) as origin, cut, waiting(tmp_path / "other", redis_server.url, {**settings, **out}) as other:
        cut_ids, cut_urls = push_numbered(client, origin, 3)
        wait_until(lambda: len(origin.requests) == 3)
        proxy.refuse()
        wait_until(lambda: all(heard(client)["job_recovered", job_id] for job_id in cut_ids))
        gate.open()
        proxy.pass_on()
        client.wait_for(*cut_urls)
        wait_until(lambda: len(cut.events("job_lost")) == 3)
        wait_until(lambda: len(cut.events("job_succeeded") + other.events("job_succeeded")) == 3)
    assert_ended_once(client, *cut_ids, starts=None)
    assert all((tmp_path / "shared" / f"{number}.bin").read_bytes() == DATA for number in range(3))


def test_connections_that_break_again_and_again_cost_nothing(
    proxy: Proxy, redis_server: RedisServer, tmp_path: Path
) -> None:
    client = Client(redis_server.client())
    with Origin(File(DATA)) as origin, Supervisor(tmp_path, proxy.url, {"transfer": SINGLE}) as service:
        ids, urls = push_numbered(client, origin, 30)
        for turn in range(5):
            wait_until(lambda: sum(client.ends(one) for one in ids) >= turn * 5)  # noqa: B023 - called here
            proxy.drop()
        client.wait_for(*urls)
        wait_until(lambda: len(service.events("job_succeeded")) == 30)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)


class FlakyProxy(Proxy):
    """Half of the connections break within their first twenty commands: that one is done, its reply is lost."""

    def __init__(self, upstream: Path, seed: int) -> None:
        super().__init__(upstream)
        self.broken = 0
        self._dice = random.Random(seed)
        self._left: dict[_Pair, int] = {}

    def _arm(self, pair: _Pair, data: bytes) -> None:
        with self._changed:
            if pair not in self._left:
                self._left[pair] = self._dice.randint(1, 20) if self._dice.random() < 0.5 else -1
            self._left[pair] -= 1
            if self._left[pair] == 0:
                pair.is_armed = True
                self.broken += 1


def test_half_of_all_connections_break_while_a_hundred_jobs_run(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())
    flaky = FlakyProxy(redis_server.socket, seed=7)
    with Origin(File(DATA)) as origin, flaky:
        ids, urls = push_numbered(client, origin, 100)
        with waiting(tmp_path, flaky.url, {"transfer": SINGLE}) as service:
            client.wait_for(*urls, timeout_s=120.0)
            wait_until(lambda: len(service.events("job_succeeded")) == 100)
    assert flaky.broken >= 5, flaky.broken
    assert_nobody_was_robbed(service)
    assert_ended_once(client, *ids)
    assert is_fetched_once(origin)
    assert all((service.out / f"{number}.bin").read_bytes() == DATA for number in range(100))
