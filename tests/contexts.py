"""The context of a download that has no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlpool.config import TransferSettings
from dlpool.transfer.board import Board
from dlpool.transfer.client import Client
from dlpool.transfer.context import Context
from dlpool.transfer.job import Checksum, Job, Notify
from dlpool.transfer.limits import HostGate, NetworkWatch, RateLimit, RateLimits
from dlpool.transfer.source import Source
from tests.conftest import PATIENT

URL = "http://h.test/f"


def context_of(
    board: Board,
    clock: Callable[[], float],
    notify: Notify,
    settings: TransferSettings,
    *,
    url: str = URL,
    checksum: Checksum | None = None,
) -> Context:
    """Return the context of a download of ``url`` to the file ``f``; all its times come from ``clock``."""
    client = Client(PATIENT, 4, HostGate(clock), NetworkWatch(clock), RateLimit(None, clock))
    job = Job(url, Path("f"), checksum=checksum)
    source, rate = Source(client, url, {}), RateLimits(client.rate)
    return Context(job, settings, client, source, board, rate, notify, lambda: None, clock, lambda: 1.0)
