"""What all parts of one upload are given, and what they do about a failure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from dlpool.config import TransferSettings
from dlpool.errors import RetryRange
from dlpool.transfer.client import Client
from dlpool.transfer.exchange import Exchange, Figures
from dlpool.transfer.job import Notify
from dlpool.transfer.limits import RateLimits
from dlpool.transfer.retry import RetryPolicy
from dlpool.upload.board import Board
from dlpool.upload.localfile import LocalFile
from dlpool.upload.plan import Plan
from dlpool.upload.server import Server, Target

NETWORK_POLL_S = 2.0
MAX_STALE = 16  # idle connections in a row that had died


@dataclass(frozen=True)
class Context:
    """The surroundings of one upload."""

    file: LocalFile
    plan: Plan
    target: Target
    settings: TransferSettings
    client: Client
    server: Server
    board: Board
    rate: RateLimits
    notify: Notify
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def exchange(self) -> Exchange:
        """A new request, whose waits end with the upload."""
        return Exchange(self.clock, self.board.pause, Figures(0, 0.0))


class Patience:
    """How one thread meets failures: by the rules of downloads (``RetryPolicy``)."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policy = RetryPolicy.of(context.settings)
        self._stale = self._misses = 0
        self._away_since: float | None = None

    def renew(self) -> None:
        """Something went well."""
        self._stale = self._misses = 0
        self._away_since = None

    def rest_s(self, error: RetryRange, count: Callable[[], int]) -> float:
        """How long to rest after ``error``; ``count`` adds an attempt and returns how many in a row came to nothing.

        What says nothing about the server (a connection that had died idle, our own network) is not counted. Raises
        the error that ends the upload.
        """
        context = self._context
        if error.is_stale and self._stale < MAX_STALE:
            self._stale += 1
            return 0.0
        if self._is_network_away(error):
            context.notify("network_away", error=str(error))
            return NETWORK_POLL_S
        attempts = count()
        final = self._policy.verdict(error, attempts)
        if final is not None:
            raise final from error
        if error.retry_after_s:
            context.client.gate.hold(context.server.host, error.retry_after_s)
        self._misses += 1
        rest = self._policy.backoff_s(max(attempts, self._misses), context.chance())
        context.notify("retry", label=error.label, error=str(error), attempt=attempts, delay_s=round(rest, 3))
        return rest

    def _is_network_away(self, error: RetryRange) -> bool:
        """Whether our own network is away, and for less than ``network_wait``."""
        context = self._context
        if not error.is_own_network or not context.client.watch.is_away(context.server.host):
            self._away_since = None
            return False
        now = context.clock()
        self._away_since = now if self._away_since is None else self._away_since
        return now - self._away_since < context.settings.network_wait
