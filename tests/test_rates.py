"""Limits of bytes a second: for a node over all of its workers, and for a job."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import TransferSettings
from dlpool.service.scheduling import divide_rate
from dlpool.service.wire.frames import JobFrame
from dlpool.service.worker.job_run import settings_for_job
from tests.conftest import make_data, sha256, wait_until
from tests.desk import Desk, desk_of, running
from tests.origin import File

KIB, MIB = 1024, 1024 * 1024
TOLERANCE = 1.3
BURST_S = 0.5


def fetch(desk: Desk, size: int, *names: str, **own: Any) -> float:
    """Have files of that size fetched, all at once; the seconds that it took."""
    data = make_data(size)
    desk.serve(File(data, block=16 * KIB))
    began = time.monotonic()
    urls = [desk.push(name, **own) for name in names]
    desk.client.wait_for(*urls)
    took_s = time.monotonic() - began
    assert all(sha256((desk.folder / name).read_bytes()) == sha256(data) for name in names)
    return took_s


def check_rate(size: int, took_s: float, rate: int) -> None:
    """No more came than the rate allows, with some tolerance."""
    assert size <= rate * took_s * TOLERANCE + rate * BURST_S


# --- a node ---


@pytest.mark.parametrize(
    ("rate", "demands", "expected"),
    [
        (100_000, [], []),
        (100_000, [3], [100_000]),
        (100_000, [0, 0], [50_000, 50_000]),
        (100_000, [1, 0], [95_000, 5_000]),
        (100_000, [1, 3], [25_000, 75_000]),
        (100_000, [2, 0, 2, 0], [47_500, 2_500, 47_500, 2_500]),
    ],
)
def test_a_rate_is_dealt_by_jobs(rate: int, demands: list[int], expected: list[int]) -> None:
    assert divide_rate(rate, demands) == expected


@given(st.integers(64 * KIB, 2**62), st.lists(st.integers(0, 1024), min_size=1, max_size=256))
def test_all_have_a_share_and_together_no_more_than_the_rate(rate: int, demands: list[int]) -> None:
    shares = divide_rate(rate, demands)
    assert len(shares) == len(demands)
    assert min(shares) >= 1
    assert sum(shares) <= rate + sum(share == 1 for share in shares)
    assert sum(share for share, demand in zip(shares, demands, strict=True) if demand) >= (
        rate * 9 // 10 - len(demands) if any(demands) else 0
    )


def test_a_node_keeps_to_its_rate_over_all_workers_and_jobs(tmp_path: Path) -> None:
    rate = MIB
    limits = {"node_rate": rate, "workers": 2, "max_concurrent_downloads": 4}
    with running(tmp_path, supervisor=limits) as both, desk_of(*both) as desk:
        took_s = fetch(desk, MIB, "a", "b", "c", "d")
        check_rate(4 * MIB, took_s, rate)
        assert len({record["process.pid"] for record in desk.service.events("job_started")}) == 2
        alone_s = fetch(desk, MIB, "alone")
        check_rate(MIB, alone_s, rate)


def test_a_new_worker_has_its_share_from_the_beginning(tmp_path: Path) -> None:
    limits = {"node_rate": "512K", "workers": 1, "max_concurrent_downloads": 1}
    with running(tmp_path, supervisor=limits) as both, desk_of(*both) as desk:
        [worker] = desk.service.workers()
        worker.kill()
        wait_until(lambda: len(desk.service.events("worker_started")) == 2)
        check_rate(MIB, fetch(desk, MIB, "a"), 512 * KIB)


def test_a_reload_changes_the_rate_of_running_jobs(tmp_path: Path) -> None:
    data = make_data(20 * MIB)  # minutes, at the first rate
    limits = {"node_rate": "64K", "workers": 2}
    with running(tmp_path, supervisor=limits) as both, desk_of(*both) as desk:
        desk.serve(File(data, block=64 * KIB))
        url = desk.push()
        wait_until(lambda: bool(desk.service.events("job_started")))
        desk.service.configure(desk.service.url, {"supervisor": {"workers": 2}})
        desk.service.signal(signal.SIGHUP)
        desk.client.wait_for(url)
        assert sha256((desk.folder / "f").read_bytes()) == sha256(data)


# --- a job ---


def test_a_job_keeps_to_its_own_rate(tmp_path: Path) -> None:
    with running(tmp_path) as both, desk_of(*both) as desk:
        check_rate(MIB, fetch(desk, MIB, "a", limit_rate="256K"), 256 * KIB)
        url = desk.push("odd", limit_rate="fast")
        message = desk.client.wait_for_failure(url)["error_message"]
        assert "dlpool.limit_rate is not a rate of at least 1024 bytes per second" in message


@pytest.mark.parametrize(
    ("ours", "jobs", "expected"), [(None, None, None), (None, 9, 9), (8, None, 8), (8, 9, 8), (8, 7, 7)]
)
def test_of_the_services_limit_and_the_jobs_the_lower_one_holds(
    ours: int | None, jobs: int | None, expected: int | None
) -> None:
    frame = JobFrame("a.1", "a", 1, 0.0, 1, "http://h/", "f", "t", limit_rate=jobs)
    settings = settings_for_job(TransferSettings(limit_rate=ours, if_exists="skip"), frame)
    assert (settings.limit_rate, settings.if_exists) == (expected, "skip")
