"""The history of figures: one sample each ten seconds whoever takes it, for a day, and never a harm."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.jobs.history import FIELDS, QueueHistory, thin
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.transitions import Transitions
from dlpool.service.monitor.metrics_collector import ByteRate
from tests.conftest import wait_until
from tests.desk import desk_of, running
from tests.redis_server import RedisServer


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    return redis_server.client()


def test_of_many_who_would_one_takes_a_sample(client: Any) -> None:
    keys = QueueKeys()
    for number, rate in enumerate((1000, 500)):
        Transitions(client, keys).heartbeat(f"n{number}-00000000", [], lease_s=30, info={"rate": rate})
    client.lpush(keys.intake, "{}", "{}")
    histories = [QueueHistory(client, keys) for _ in range(3)]
    assert sorted(one.record_sample() for one in histories) == [False, False, True]
    ((ms, *values),) = histories[0].since()
    assert values == [2, 0, 1500]
    assert abs(ms / 1000 - time.time()) < 60
    assert 0 < client.pttl(keys.sample_turn) <= 10_000
    assert histories[0].since(ms + 1) == []
    client.delete(keys.sample_turn)
    assert histories[1].record_sample() and len(histories[2].since()) == 2


def test_a_day_is_kept_and_answered_in_720_samples(client: Any) -> None:
    keys = QueueKeys()
    pipeline = client.pipeline(transaction=False)
    for number in range(9000):
        pipeline.xadd(keys.history, dict.fromkeys(FIELDS, number), id=f"{1000 + number}-0")
    pipeline.execute()
    assert QueueHistory(client, keys).record_sample()
    assert client.xlen(keys.history) < 8640 + 200
    samples = QueueHistory(client, keys).since()
    moments = [sample[0] for sample in samples]
    assert len(samples) == 720 and moments == sorted(set(moments))


@given(st.integers(0, 3000), st.integers(2, 800))
def test_thinning_is_even_and_keeps_both_ends(count: int, most: int) -> None:
    kept = thin(list(range(count)), most)
    assert len(kept) == min(count, most)
    assert kept[:1] == [0][:count] and kept[-1:] == [count - 1][:count]
    steps = {after - before for before, after in pairwise(kept)}
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_what_is_broken_in_it_is_nothing(client: Any) -> None:
    client.xadd(QueueKeys().history, {"waiting": "x"})
    assert [sample[1:] for sample in QueueHistory(client, QueueKeys()).since()] == [[0, 0, 0]]


def test_speed_is_that_of_the_last_ten_seconds() -> None:
    moments = iter([0.0, 5.0, 10.0, 15.0, 100.0, 105.0])
    speed = ByteRate(lambda: next(moments))
    assert [speed.update(total) for total in (0, 500, 1000, 2500, 2500, 2500)] == [0, 100, 100, 200, 0, 0]


def test_a_service_that_cannot_sample_continues(tmp_path: Path) -> None:
    with running(tmp_path) as (service, client), desk_of(service, client) as desk:
        wait_until(lambda: client.redis.xlen(client.keys.history) == 1)
        client.redis.delete(client.keys.history, client.keys.sample_turn)
        client.redis.set(client.keys.history, "of another type")
        wait_until(lambda: service.events("history_sample_failed") != [], 20)
        client.wait_for(desk.push())
        client.redis.delete(client.keys.history)
        assert service.stop() == 0
