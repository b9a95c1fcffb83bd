"""What scripts/bench lists measures: many lists of many uploads at once, and how long other requests wait beside them.

After a start the first lists read all uploads; then one list after another shows what an unchanged store costs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import requests

from tests.listings import make_tasks
from tests.web import WebServer

TIMEOUT_S = 300.0


def timed(url: str) -> tuple[float, int]:
    """Ask once; seconds and status."""
    begun_at = time.monotonic()
    status = requests.get(url, timeout=TIMEOUT_S).status_code
    return time.monotonic() - begun_at, status


def measure(server: WebServer, name: str, lists: int) -> None:
    """Ask for ``lists`` lists at once, and for one upload again and again meanwhile."""
    with ThreadPoolExecutor(lists) as pool:
        begun_at = time.monotonic()
        asked = [pool.submit(timed, f"{server.url}/tasks") for _ in range(lists)]
        others = []
        while wait(asked, 0.05).not_done:
            others.append(timed(f"{server.url}/upload_status?file_id=x")[0])
        answers = [one.result() for one in asked]
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(Counter(one[1] for one in answers).items()))
    print(
        f"{name}: {time.monotonic() - begun_at:.2f} s for {lists} lists ({statuses}), "
        f"the longest {max(answers)[0]:.2f} s; another request at most {max(others, default=0.0):.2f} s"
    )


def main() -> None:
    """Measure with a server of two processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uploads", type=int, default=8000)
    parser.add_argument("--lists", type=int, default=70)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        make_tasks(folder, options.uploads)
        with WebServer(folder) as server:
            measure(server, "after the start", options.lists)
            measure(server, "then", options.lists)
            single = statistics.median(timed(f"{server.url}/tasks")[0] for _ in range(20))
            print(f"one by one: {1000 * single:.1f} ms")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
