"""Several files at once, by tasks: ``python many.py URL...``."""

import sys
import time

from dlpool import DownloadEngine

URLS = sys.argv[1:]

with DownloadEngine(max_workers=3) as engine:
    tasks = [engine.download(u, "./downloads") for u in URLS]
    while any(t.status in ("pending", "downloading") for t in tasks):
        print(sum(t.status == "completed" for t in tasks), "of", len(tasks))
        time.sleep(1)
    stats = engine.stats
    print(
        f"{stats.completed} completed, {stats.failed} failed, "
        f"{stats.get_completed_bytes()} bytes"
    )
