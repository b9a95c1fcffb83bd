"""The peer of scripts/bench service: an actor that downloads one URL to one path, durably and atomically."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import dramatiq
import requests
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS"]))
_local = threading.local()


@dramatiq.actor(max_retries=5)
def fetch(url: str, path: str) -> None:
    """The same download, the same syncs, an atomic rename."""
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
