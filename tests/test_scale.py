"""Many jobs: none is lost when a supervisor dies again and again, and those that wait cost nothing but the list."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.conftest import make_data, wait_until
from tests.fleet import Client, Supervisor, fleet
from tests.held import HeldFile, check_folder, wait_for_run
from tests.origin import File, Origin
from tests.outage import heard
from tests.redis_server import RedisServer

DATA = make_data(40_000)
JOBS = 2_000
EACH_S = 5.0
LATE_S = 240.0
WAITING = 100_000
OVERHEAD = 1024 * 1024  # bytes: of one running job, two registered clients, figures and events


def test_two_supervisors_one_killed_every_5_s_end_each_of_2000_jobs_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    client, shared = Client(redis_server.client()), tmp_path / "shared"
    shared.mkdir()
    settings: dict[str, Any] = {
        "supervisor": {"workers": 2, "max_concurrent_downloads": 8},
        "paths": {"download_dir": shared},
    }
    names = [f"f{number}" for number in range(JOBS)]
    with (
        Origin(File(DATA, block=10_000, pause_s=0.06)) as origin,
        fleet(tmp_path, redis_server.url, "a", "b", **settings) as (service, other),
    ):
        for name in names:
            client.push(f"{origin.url}/{name}", name, id=name)
        killed, deadline = 0, time.monotonic() + LATE_S
        while client.redis.zcard(client.keys.done) < JOBS:
            assert time.monotonic() < deadline
            time.sleep(EACH_S)
            service.kill()
            service.start()
            killed += 1
        assert killed > 1
        check_folder(shared, DATA, *names)
        assert [service.stop(), other.stop()] == [0, 0]
    told = heard(client)
    assert {name: told["job_succeeded", name] for name in names} == dict.fromkeys(names, 1)
    assert sum(client.redis.exists(client.keys.success(f"{origin.url}/{name}")) for name in names) == JOBS
    assert client.redis.hlen(client.keys.failed) == 0
    assert client.leftovers() == []


def test_100000_waiting_jobs_cost_redis_no_more_than_their_list(redis_server: RedisServer, tmp_path: Path) -> None:
    client = Client(redis_server.client())

    def used() -> int:
        return int(client.redis.info("memory")["used_memory"])

    with HeldFile(DATA * 10) as file, Origin(file) as origin:
        for start in range(0, WAITING, 10_000):
            jobs = [f'{{"url":"{origin.url}/{n}","save_path":"{n}"}}' for n in range(start, start + 10_000)]
            client.redis.lpush(client.keys.intake, *jobs)
        client.redis.rpush(client.keys.intake, f'{{"url":"{origin.url}/f","save_path":"f","dlpool":{{"id":"f"}}}}')
        alone = used()
        settings = {"supervisor": {"max_concurrent_downloads": 1, "workers": 1}}
        with Supervisor(tmp_path, redis_server.url, settings) as service:
            wait_for_run(service, "f")
            wait_until(lambda: client.redis.zcard(client.keys.leases) == 1)
            assert client.redis.llen(client.keys.intake) == WAITING
            assert used() < alone + OVERHEAD
