"""The environment of an attempt, and the plan that its first response leads to."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dlpool.cancel import CancelScope
from dlpool.config import TransferSettings
from dlpool.dataclass import dataclass
from dlpool.errors import RetryRange, ServerTrouble
from dlpool.kinds import AUTO
from dlpool.transfer.evidence import Evidence
from dlpool.transfer.http.answer import Answer, ByteRange, read_answer
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import RateLimits
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply, Source
from dlpool.transfer.http.urls import authority
from dlpool.transfer.job import Checksum, Job, Notify
from dlpool.transfer.retry import RetryPolicy
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.space_rules import ENTIRE_DISK, SpaceRules
from dlpool.transfer.target.protocol import Target

if TYPE_CHECKING:
    from dlpool.scan.guard import Guard


@dataclass(frozen=True)
class TransferContext:
    """What the threads of one attempt share: settings, client, scheduler and others."""

    job: Job
    settings: TransferSettings
    client: HttpClient
    source: Source
    scheduler: ChunkScheduler
    rate: RateLimits
    notify: Notify
    authorize_publish: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    previous_resource: RemoteResource | None = None  # what the previous attempt found
    evidence: Evidence = field(default_factory=Evidence)
    guard: Guard | None = None  # checks the file for malware, if ``scan`` is set
    space: SpaceRules = ENTIRE_DISK

    @property
    def scope(self) -> CancelScope:
        """Return the scope that cancels the attempt."""
        return self.scheduler.scope

    @property
    def reserves_blocks(self) -> bool:
        """Return whether blocks of the disk are reserved as bytes arrive."""
        how = self.settings.preallocate
        return how == "auto" or (how == "falloc" and self.space.is_monitored)

    def max_bytes(self, *, is_stream: bool) -> int | None:
        """Return the largest accepted size of the file in bytes, None for no limit.

        ``is_stream``: the length of the file is unknown.
        """
        limit = self.settings.max_file_size
        return self.space.stream_limit if limit is None and is_stream else limit

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy.of(self.settings)

    @property
    def is_adaptive(self) -> bool:
        """Return whether the number of connections is adaptive."""
        return self.settings.connections == AUTO

    @property
    def host(self) -> str:
        """Return the host of the job's URL, not that of a redirect."""
        return authority(self.source.url)

    def initial_connections(self) -> int:
        """Return the number of connections that a large file starts with."""
        fixed = self.settings.connections
        if isinstance(fixed, int):
            return self.client.host_connections.max_connections(self.host, fixed)
        return self.client.host_connections.level(
            self.host, self.settings.max_connections
        )

    def report_limit(self, reason: str, connections: int) -> None:
        """Report, once per process and reason, that this machine limits connections."""
        if reason not in self.client.reported_limits:
            self.client.reported_limits.add(reason)
            self.notify("connections_limited", connections=connections, reason=reason)

    def new_exchange(self, before: ExchangeStats) -> Exchange:
        """Return a new exchange; cancelling the download ends its pauses.

        Its statistics continue from ``before``.
        """
        return Exchange(self.clock, self.scheduler.sleep, before)

    def judge(self, reply: Reply, requested: ByteRange | None) -> Answer:
        """Return the answer that a reply contains.

        Raises the errors of ``read_answer``. If the error has a ``Retry-After`` of at
        most ``max_retry_after`` seconds, all downloads of the process stop sending
        requests to the host of the reply until this time has passed (``HostHolds``).
        """
        try:
            return read_answer(
                reply.status,
                reply.headers,
                requested,
                datetime.now(timezone.utc),
                host_of(reply),
            )
        except ServerTrouble as error:
            wait = error.retry_after_s
            if wait and wait <= self.settings.max_retry_after:
                self.client.host_holds.hold(authority(reply.url), wait)
            raise

    def expected_checksum(self, resource: RemoteResource) -> Checksum | None:
        """Return the checksum to verify: the job's, else the server's.

        None if there is none, or if verification is disabled.
        """
        if not self.settings.verify:
            return None
        return self.job.checksum or (
            Checksum(*resource.digest) if resource.digest else None
        )


@dataclass(frozen=True)
class DownloadPlan:
    """The facts from the first response: file, target, whether ranges work."""

    resource: RemoteResource
    target: Target
    has_ranges: bool
    resumed_from: int

    @property
    def missing_bytes(self) -> int:
        """Return the bytes that were missing when the plan was made.

        0 for a file of unknown size.
        """
        return (self.resource.size or 0) - self.resumed_from


class Requester:
    """Sends requests one after another. One thread sends; others read ``exchange``.

    ``exchange``: the request in flight, None between requests. Cancelling the scope of
    the attempt cancels this request.
    """

    def __init__(self, context: TransferContext) -> None:
        self.exchange: Exchange | None = None
        self._context = context
        self._latest: Exchange | None = None
        self._earlier_answer_s: float | None = None

    def usual_answer_s(self) -> float | None:
        """Return the seconds from the latest answered request to its response header.

        None if no request has been answered.
        """
        latest = self._latest.answer_s if self._latest is not None else None
        return self._earlier_answer_s if latest is None else latest

    def stats(self) -> ExchangeStats:
        """Return bytes and seconds over all exchanges of this object."""
        latest = self._latest
        return latest.stats() if latest is not None else ExchangeStats(0, 0.0)

    def _create_exchange(self) -> Exchange:
        return self._context.new_exchange(self.stats())

    def _new_exchange(self) -> Exchange:
        """Replace the exchange. Raises the error of a cancelled attempt."""
        self._end_exchange()
        self._earlier_answer_s = self.usual_answer_s()
        exchange = self._create_exchange()
        self._context.scope.add(exchange)
        self.exchange = self._latest = exchange
        return exchange

    def _end_exchange(self) -> None:
        if self.exchange is not None:
            self._context.scope.discard(self.exchange)
        self.exchange = None


class NetworkOutage:
    """Measures an outage of the local network from the failures of one thread.

    Only that thread uses the object.
    """

    def __init__(self, context: TransferContext) -> None:
        self._context = context
        self._down_since: float | None = None

    def end(self) -> None:
        """Record that the network works."""
        self._down_since = None

    def is_tolerated(self, error: RetryRange) -> bool:
        """Return whether ``error`` is due to a tolerated outage.

        An outage is tolerated for ``network_wait`` seconds.
        """
        context = self._context
        if not error.is_own_network or not context.client.network_monitor.is_away(
            context.source.host
        ):
            self._down_since = None
            return False
        now = context.clock()
        self._down_since = now if self._down_since is None else self._down_since
        return now - self._down_since < context.settings.network_wait


def host_of(reply: Reply) -> str:
    """Return the host and port that sent the reply."""
    return authority(reply.url)
