"""What scripts/bench service measures: the rate of small jobs against dramatiq's, in pairs on one machine; the time
from a push to the start of its job on an idle service; and a beat for 200 running jobs. Read the ratios."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
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
from scripts.bench import fill, nginx  # noqa: E402
from tests.fleet import Client, Supervisor  # noqa: E402
from tests.origin import Connection, File, Origin, Request  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402

FILES = 500
SIZE = 64 * 1024
WARM = 0.2  # the first part of the jobs, which is not measured


def rate(out: Path, jobs: int) -> float:
    """Jobs a second, by the times of the files; what was done while everything warmed up is left out."""
    times = sorted(entry.stat().st_mtime_ns for entry in os.scandir(out))
    skipped = int(jobs * WARM)
    return (jobs - skipped) / ((times[-1] - times[skipped]) / 1e9)


def wait_for(out: Path, jobs: int, name: str) -> None:
    """Until all files are there; looks rarely, so as not to disturb."""
    deadline = time.monotonic() + 300
    while sum(not entry.name.endswith((".part", ".meta", ".tmp")) for entry in os.scandir(out)) < jobs:
        if time.monotonic() > deadline:
            sys.exit(f"{name} did not finish")
        time.sleep(0.5)


def run_dlpool(url: str, folder: Path, jobs: int) -> float:
    with RedisServer(folder) as server:
        connection = server.client()
        settings = {
            "supervisor": {"max_concurrent_downloads": 8, "workers": 2},
            "transfer": {"sync": "yes"},
        }
        service = Supervisor(folder / "service", server.url, settings)
        lines = [json.dumps({"url": f"{url}/s/{number % FILES}", "save_path": str(number)}) for number in range(jobs)]
        connection.lpush(QueueKeys().intake, *lines)
        with service:
            wait_for(service.out, jobs, "dlpool")
            return rate(service.out, jobs)


def run_dramatiq(url: str, folder: Path, jobs: int) -> float:
    out = folder / "out"
    out.mkdir()
    with RedisServer(folder) as server:
        os.environ["BENCH_REDIS"] = server.url
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        filling = (
            "import sys; from scripts.bench_dramatiq import fetch\n"
            f"for n in range({jobs}): fetch.send(f'{url}/s/{{n % {FILES}}}', f'{out}/{{n}}')"
        )
        subprocess.run([sys.executable, "-c", filling], check=True, env=environment, cwd=ROOT)
        command = [str(Path(sys.executable).parent / "dramatiq"), "-p", "2", "-t", "4", "scripts.bench_dramatiq"]
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(out, jobs, "dramatiq")
            return rate(out, jobs)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder. All go at the end: ext4 is slow to make files for a while after many were removed."""
    os.sync()
    yield Path(tempfile.mkdtemp(dir=parent))


def compare_rates(url: str, folder: Path, jobs: int, runs: int) -> None:
    pairs = []
    for number in range(runs):
        results = {}
        for measure in (run_dlpool, run_dramatiq) if number % 2 == 0 else (run_dramatiq, run_dlpool):
            with scratch(folder) as place:
                results[measure] = measure(url, place, jobs)
        pairs.append((results[run_dlpool], results[run_dramatiq]))
        print(f"  {pairs[-1][0]:.0f} / {pairs[-1][1]:.0f} jobs/s", flush=True)
    ratio = statistics.median(mine / peer for mine, peer in pairs)
    mine, peer = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"{jobs} jobs of 64 KiB / dramatiq -p 2 -t 4: {mine:.0f} / {peer:.0f} jobs/s = {ratio:.2f} (goal 1.0)")


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2000)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    folder = Path(tempfile.mkdtemp(prefix="dlpool-bench-", dir=os.environ.get("BENCH_DIR")))
    folder.chmod(0o755)
    (folder / "www" / "s").mkdir(parents=True)
    try:
        for number in range(FILES):
            fill(folder / "www" / "s" / str(number), SIZE)
        with nginx(folder) as urls:
            measure_beat(folder)
            measure_latency(folder)
            compare_rates(urls["plain"], folder, arguments.jobs, arguments.runs)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
