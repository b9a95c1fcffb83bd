"""The context of a download that has no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlpool.config import TransferSettings
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit, RateLimits
from dlpool.transfer.http.source import Source
from dlpool.transfer.job import Checksum, Job, Notify
from dlpool.transfer.scheduler import ChunkScheduler
from tests.conftest import PATIENT

URL = "http://h.test/f"


def context_of(
    scheduler: ChunkScheduler,
    clock: Callable[[], float],
    notify: Notify,
    settings: TransferSettings,
    *,
    url: str = URL,
    checksum: Checksum | None = None,
) -> TransferContext:
    """Return the context of a download of ``url`` to the file ``f``; all its times come from ``clock``."""
    client = HttpClient(PATIENT, 4, HostHolds(clock), NetworkMonitor(clock), RateLimit(None, clock))
    job = Job(url, Path("f"), checksum=checksum)
    source, rate = Source(client, url, {}), RateLimits(client.rate_limit)
    return TransferContext(job, settings, client, source, scheduler, rate, notify, lambda: None, clock, lambda: 1.0)
