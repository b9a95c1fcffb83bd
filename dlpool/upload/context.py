"""The values that all parts of an upload attempt share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dlpool.cancel import CancelScope
from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import RateLimits
from dlpool.transfer.job import Notify
from dlpool.upload.api_client import UploadApiClient, UploadTarget
from dlpool.upload.localfile import LocalFile
from dlpool.upload.plan import UploadPlan
from dlpool.upload.scheduler import UploadScheduler


@dataclass(frozen=True)
class UploadContext:
    """The file, settings, client and scope of one attempt, shared by its threads.

    ``jitter`` returns random numbers from 0 to 1 (exclusive), for delays.
    """

    file: LocalFile
    settings: TransferSettings
    client: HttpClient
    server: UploadApiClient
    scope: CancelScope
    rate: RateLimits
    notify: Notify
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    @contextmanager
    def open_exchange(self) -> Iterator[Exchange]:
        """Open an exchange for one request of the calling thread.

        Cancelling the scope cancels the exchange.
        """
        exchange = Exchange(self.clock, self.scope.sleep, ExchangeStats(0, 0.0))
        self.scope.add(exchange)
        try:
            with exchange:
                yield exchange
        finally:
            self.scope.discard(exchange)


@dataclass(frozen=True)
class ServerTask:
    """A task at the server, with the local plan of its chunks and their progress."""

    context: UploadContext
    plan: UploadPlan
    target: UploadTarget
    scheduler: UploadScheduler

    def hash_chunk(self, digest: Any, index: int, buffer: memoryview) -> None:
        """Update ``digest`` with the bytes of a chunk.

        Raises the errors of ``LocalFile.hash``, and the scope's error if the scope is
        cancelled.
        """
        context = self.context
        context.file.hash(
            digest, self.plan.span(index), buffer, context.scope.raise_if_cancelled
        )
