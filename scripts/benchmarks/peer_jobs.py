"""The job of the job queues that dlpool is compared with: download one URL to one path, durably and atomically.

One function, registered with dramatiq, Celery and RQ; ``BENCH_REDIS`` is the URL of their Redis.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import requests

_local = threading.local()


def download(url: str, path: str) -> None:
    """Download as dlpool does: the same syncs, an atomic rename."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    with _local.session.get(url, stream=True, timeout=30) as answer, temporary.open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(64 * 1024):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
    os.replace(temporary, target)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
