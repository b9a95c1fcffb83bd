"""What scripts/bench service measures: the time from a push to the start of its job on an idle service, and a heartbeat
for 200 running jobs. The rate of jobs is the row ``jobs`` of ``scripts/bench``."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlpool.jobs.keys import QueueKeys  # noqa: E402
from dlpool.jobs.transitions import Transitions  # noqa: E402
from tests.fleet import Client, Supervisor  # noqa: E402
from tests.origin import Connection, File, Origin, Request  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder. All go at the end: ext4 is slow to make files for a while after many were removed."""
    os.sync()
    yield Path(tempfile.mkdtemp(dir=parent))


def measure_latency(folder: Path) -> None:
    """From before the LPUSH to the moment at which the origin has read the job's request."""
    asked: list[float] = []
    file = File(b"x" * 1000)

    def handle(request: Request, connection: Connection) -> None:
        asked.append(time.monotonic())
        file(request, connection)

    with scratch(folder) as place, RedisServer(place) as server, Origin(handle) as origin:
        client = Client(server.client())
        with Supervisor(place / "service", server.url):
            delays = []
            for number in range(60):
                time.sleep(0.05)
                began = time.monotonic()
                client.push(f"{origin.url}/{number}", str(number))
                client.wait_for(f"{origin.url}/{number}")
                delays.append((asked[-1] - began) * 1000)
    print(
        f"push to the job's first request, idle service: median {statistics.median(delays):.1f} ms, "
        f"largest {max(delays):.1f} ms (goal: median under 20 ms)"
    )


def measure_beat(folder: Path) -> None:
    with scratch(folder) as place, RedisServer(place) as server:
        transitions = Transitions(server.client(), QueueKeys())
        transitions.heartbeat("bench-00000000", [], lease_s=30, info={})
        for number in range(200):
            Client(server.client()).push(f"http://h/{number}", str(number))
        claim = transitions.claim("bench-00000000", [], 200, lease_s=30, order="fifo")
        assert claim is not None and len(claim.jobs) == 200
        jobs = [(one.lease, '{"done": 123456789, "size": 987654321, "phase": "downloading"}') for one in claim.jobs]
        times = []
        for _ in range(101):
            began = time.perf_counter()
            transitions.heartbeat("bench-00000000", jobs, lease_s=30, info={"slots": 200})
            times.append((time.perf_counter() - began) * 1000)
    print(f"beat for 200 running jobs: median {statistics.median(times):.1f} ms, largest {max(times):.1f} ms")


def main() -> None:
    argparse.ArgumentParser(prog="scripts/bench service", description=__doc__).parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    try:
        measure_beat(folder)
        measure_latency(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
