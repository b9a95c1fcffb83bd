"""The job as an actor of dramatiq."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from scripts.benchmarks.peer_jobs import download

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_REDIS"]))
fetch = dramatiq.actor(download, max_retries=5)
