"""The rate of small jobs: the service against job queues whose job is a download, each with a Redis of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlpool.jobs.keys import QueueKeys
from scripts.benchmarks.measuring import Measure, Outputs, Run
from scripts.benchmarks.peers import BIN
from scripts.benchmarks.servers import KIB, fill, nginx
from tests.fleet import Supervisor
from tests.redis_server import RedisServer

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = 500
JOBS = 2000
WARM = 0.2  # the first part of the jobs, which is not measured
WAIT_S = 300.0
SETTINGS: dict[str, dict[str, Any]] = {
    "supervisor": {"max_concurrent_downloads": 8, "workers": 2},
    "transfer": {"sync": "yes"},
}

# how each queue is filled, and the command of its workers: two processes with four threads, or eight processes
QUEUES: dict[str, tuple[str, list[str]]] = {
    "dramatiq": (
        "from scripts.benchmarks.dramatiq_jobs import fetch; send = fetch.send",
        [str(BIN / "dramatiq"), "-p", "2", "-t", "4", "scripts.benchmarks.dramatiq_jobs"],
    ),
    "celery": (
        "from scripts.benchmarks.celery_jobs import fetch; send = fetch.delay",
        [str(BIN / "celery"), "-A", "scripts.benchmarks.celery_jobs", "worker", "-c", "8", "-l", "ERROR"],
    ),
    "rq": (
        "import os, redis, rq; from scripts.benchmarks.peer_jobs import download\n"
        "queue = rq.Queue(connection=redis.Redis.from_url(os.environ['BENCH_REDIS']))\n"
        "send = lambda *given: queue.enqueue(download, *given, result_ttl=0)",
        [str(BIN / "rq"), "worker-pool", "-q", "-n", "8", "-w", "rq.worker.SimpleWorker"],
    ),
}


def setup(folder: Path) -> Iterator[Mapping[str, Measure]]:
    """Yield the measures; the wall time is that of the jobs after the first ones."""
    with nginx(folder) as urls:
        (folder / "www" / "s").mkdir()
        for number in range(FILES):
            fill(folder / "www" / "s" / str(number), 64 * KIB)
        outputs = Outputs(folder)
        url = f"{urls['plain']}/s"
        peers = {name: _measure(partial(run_peer, name, url), outputs) for name in QUEUES if find_spec(name)}
        yield {"dlpool": _measure(partial(run_dlpool, url), outputs), **peers}


def _measure(seconds: Callable[[Path], float], outputs: Outputs) -> Measure:
    def run() -> Run:
        os.sync()
        return Run(seconds(outputs.new()))

    return run


def duration(out: Path) -> float:
    """Return the seconds that ``JOBS`` jobs take, by the times of the files after the warm-up."""
    times = sorted(entry.stat().st_mtime_ns for entry in os.scandir(out))
    skipped = int(JOBS * WARM)
    return (times[-1] - times[skipped]) / 1e9 * JOBS / (JOBS - skipped)


def wait_for_files(out: Path, name: str) -> None:
    """Wait until all files are there. Looks rarely, so as not to disturb."""
    deadline = time.monotonic() + WAIT_S
    while sum(not entry.name.endswith((".part", ".meta", ".tmp")) for entry in os.scandir(out)) < JOBS:
        if time.monotonic() > deadline:
            sys.exit(f"{name} did not finish {JOBS} jobs")
        time.sleep(0.5)


def run_dlpool(url: str, folder: Path) -> float:
    """Run the jobs by a supervisor with two workers; return their seconds."""
    with RedisServer(folder) as server:
        service = Supervisor(folder / "service", server.url, SETTINGS)
        lines = [json.dumps({"url": f"{url}/{number % FILES}", "save_path": str(number)}) for number in range(JOBS)]
        server.client().lpush(QueueKeys().intake, *lines)
        with service:
            wait_for_files(service.out, "dlpool")
            return duration(service.out)


def run_peer(name: str, url: str, folder: Path) -> float:
    """Run the jobs by another queue's workers; return their seconds."""
    sender, workers = QUEUES[name]
    out = folder / "out"
    out.mkdir()
    with RedisServer(folder) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_REDIS": server.url, "RQ_REDIS_URL": server.url}
        filling = f"{sender}\nfor n in range({JOBS}): send(f'{url}/{{n % {FILES}}}', f'{out}/{{n}}')"
        subprocess.run([sys.executable, "-c", filling], check=True, env=environment, cwd=ROOT)
        process = subprocess.Popen(
            workers, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_files(out, name)
            return duration(out)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
