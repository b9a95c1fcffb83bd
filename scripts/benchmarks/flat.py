"""The cost for each unit of work, for few and for many units: it should be the same.

Bytes of one file, files of a list, jobs of a queue, downloads at once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from dlpool.jobs.keys import QueueKeys
from scripts.bench_servers import paced_server
from scripts.benchmarks.jobs import SETTINGS
from scripts.benchmarks.measuring import Run, measure_command, peak_memory
from scripts.benchmarks.peers import DLPOOL
from scripts.benchmarks.servers import GIB, KIB, fill
from tests.conftest import free_port, run_nginx, wait_until
from tests.fleet import Supervisor
from tests.redis_server import RedisServer

SIZES_GIB = (1, 4, 16, 64, 100)  # those for which the disk has room
LISTS = (100, 1_000, 10_000, 100_000, 1_000_000)
QUEUES = (1_000, 10_000, 100_000, 1_000_000)
JOBS = 1_000  # run of each queue
AT_ONCE = (1, 8, 64, 256)  # the last is the most of --jobs
PUSHED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Cost:
    """What was measured, the number of units, seconds of wall and CPU, and peak memory in MB."""

    what: str
    units: int
    wall: float
    cpu: float
    peak: float

    @classmethod
    def of(cls, what: str, units: int, run: Run) -> Cost:
        return cls(what, units, round(run.wall, 3), round(run.cpu, 3), round(run.peak, 1))


def measure(folder: Path, most: int) -> list[dict[str, object]]:
    """Measure and print all costs; ``most``: units above which a list or a queue is left out."""
    found = []
    for part in (_bytes(folder), _lists(folder, most), _queues(folder, most), _at_once(folder)):
        for cost in part:
            unit_us = cost.cpu / cost.units * 1e6
            print(
                f"{cost.what:24} {cost.units:>9,}: {cost.wall:8.2f} s, {unit_us:10.1f} us a unit, {cost.peak:4.0f} MB",
                flush=True,
            )
            found.append(asdict(cost))
    return found


@contextmanager
def _nginx(folder: Path, directives: str) -> Iterator[str]:
    """Run nginx with one server; yields its URL."""
    port = free_port()
    with run_nginx(folder, f"server {{ listen 127.0.0.1:{port}; {directives} }}", port, processes="auto"):
        yield f"http://127.0.0.1:{port}"


def _bytes(folder: Path) -> Iterator[Cost]:
    """Fetch sparse files, which the server need not read from a disk."""
    with _nginx(folder, f"root {folder}/www; tcp_nopush on;") as url:
        for size in SIZES_GIB:
            if shutil.disk_usage(folder).free < (size + 8) * GIB:
                continue
            with (folder / "www" / "sparse").open("wb") as file:
                file.truncate(size * GIB)
            target = folder / "sparse"
            run = measure_command([*DLPOOL, f"{url}/sparse", str(target), "--no-sync"])
            target.unlink()
            yield Cost.of("GiB of a file", size, run)


def _lists(folder: Path, most: int) -> Iterator[Cost]:
    """Fetch lists of files of one byte, which nginx makes up."""
    with _nginx(folder, "location / { return 200 x; }") as url:
        for count in (one for one in LISTS if one <= most):
            lines = "".join(f"{url}/{number}\n" for number in range(count))
            (folder / "list").write_text(lines)
            out = folder / f"list{count}"
            out.mkdir()
            run = measure_command([*DLPOOL, "-i", str(folder / "list"), str(out), "-j", "8", "--no-sync"])
            yield Cost.of("files of a list", count, run)


def _queues(folder: Path, most: int) -> Iterator[Cost]:
    """Run the first jobs of queues of different lengths."""
    with _nginx(folder, "location / { return 200 x; }") as url:
        for waiting in (one for one in QUEUES if one <= most):
            place = folder / f"queue{waiting}"
            place.mkdir()
            with RedisServer(place) as server:
                _push(server, url, waiting)
                service = Supervisor(place / "service", server.url, SETTINGS)
                with service:
                    yield Cost.of(f"jobs, with {waiting:,} waiting", JOBS, _first_jobs(service))


def _push(server: RedisServer, url: str, count: int) -> None:
    for start in range(0, count, PUSHED_AT_ONCE):
        numbers = range(start, min(count, start + PUSHED_AT_ONCE))
        lines = [json.dumps({"url": f"{url}/{number}", "save_path": str(number)}) for number in numbers]
        server.client().lpush(QueueKeys().intake, *lines)


def _first_jobs(service: Supervisor) -> Run:
    assert service.process is not None
    began = time.monotonic()
    wait_until(lambda: sum(1 for _ in os.scandir(service.out)) >= JOBS, timeout_s=120)
    wall = time.monotonic() - began
    processes = [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return Run(wall, sum(one.user + one.system for one in times), max(peak_memory(one.pid) for one in processes))


def _at_once(folder: Path) -> Iterator[Cost]:
    """Fetch files at once that take some seconds each."""
    path = fill(folder / "half", 512 * KIB)
    with paced_server(path, fast=128 * KIB) as server:
        for count in AT_ONCE:
            (folder / "list").write_text("".join(f"{server.url} {number}\n" for number in range(count)))
            out = folder / f"once{count}"
            out.mkdir()
            server.begin()
            run = measure_command([*DLPOOL, "-i", str(folder / "list"), str(out), "-j", str(count), "--no-sync"])
            yield Cost.of("downloads at once", count, run)
