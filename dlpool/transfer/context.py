"""What all parts of one download are given, and the plan that its first request leads
to. Values only."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from urllib.parse import urlsplit

from dlpool.config import TransferSettings
from dlpool.errors import RetryRange, ServerTrouble
from dlpool.kinds import AUTO
from dlpool.scan.guard import Guard
from dlpool.transfer.evidence import Evidence
from dlpool.transfer.http.answer import Answer, ByteRange, read_answer
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import RateLimits
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.http.source import Reply, Source
from dlpool.transfer.job import Checksum, Job, Notify
from dlpool.transfer.retry import RetryPolicy
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.space_rules import ENTIRE_DISK, SpaceRules
from dlpool.transfer.target.protocol import Target


@dataclass(frozen=True)
class TransferContext:
    """The surroundings of one round (from a beginning to an end or a restart)."""

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
    previous_resource: RemoteResource | None = (
        None  # the resource that the previous round found
    )
    evidence: Evidence = field(default_factory=Evidence)
    guard: Guard | None = None  # checks the file for malware, if ``scan`` is set
    space: SpaceRules = ENTIRE_DISK

    @property
    def reserves_blocks(self) -> bool:
        """Whether blocks of the disk are reserved as bytes arrive."""
        how = self.settings.preallocate
        return how == "auto" or (how == "falloc" and self.space.is_monitored)

    def max_bytes(self, *, is_stream: bool) -> int | None:
        """Return at how many bytes the file is refused, None for no limit;
        ``is_stream``: its length is unknown."""
        limit = self.settings.max_file_size
        return self.space.stream_limit if limit is None and is_stream else limit

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy.of(self.settings)

    @property
    def is_adaptive(self) -> bool:
        """Whether the number of connections is found by trying."""
        return self.settings.connections == AUTO

    @property
    def host(self) -> str:
        """The host of the job's URL, wherever that redirects to."""
        return urlsplit(self.source.url).netloc.lower()

    def initial_connections(self) -> int:
        """How many a file that is large enough begins with."""
        fixed = self.settings.connections
        if isinstance(fixed, int):
            return self.client.host_connections.max_connections(self.host, fixed)
        return self.client.host_connections.level(
            self.host, self.settings.max_connections
        )

    def report_limit(self, reason: str, connections: int) -> None:
        """Report, once per process, that this machine allows only ``connections``
        connections."""
        if reason not in self.client.reported_limits:
            self.client.reported_limits.add(reason)
            self.notify("connections_limited", connections=connections, reason=reason)

    def new_exchange(self, before: ExchangeStats) -> Exchange:
        """A new request whose waits end with the download, and whose figures go on from
        ``before``."""
        return Exchange(self.clock, self.scheduler.sleep, before)

    def judge(self, reply: Reply, asked: ByteRange | None) -> Answer:
        """What the reply is worth; a Retry-After holds back every thread that would ask
        the same host."""
        try:
            return read_answer(
                reply.status,
                reply.headers,
                asked,
                datetime.now(timezone.utc),
                host_of(reply),
            )
        except ServerTrouble as error:
            wait = error.retry_after_s
            if wait and wait <= self.settings.max_retry_after:
                self.client.host_holds.hold(urlsplit(reply.url).netloc, wait)
            raise

    def expected_checksum(self, resource: RemoteResource) -> Checksum | None:
        """Return the checksum to verify: the job's, else the server's; None if the user
        disabled verification."""
        if not self.settings.verify:
            return None
        return self.job.checksum or (
            Checksum(*resource.digest) if resource.digest else None
        )


@dataclass(frozen=True)
class DownloadPlan:
    """What the first answer showed: the file, where it goes, and whether it can be
    fetched in ranges."""

    resource: RemoteResource
    target: Target
    has_ranges: bool
    resumed_from: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that were still to be fetched when it was made; 0 if the size is not
        known."""
        return (self.resource.size or 0) - self.resumed_from


class NetworkOutage:
    """Measures for how long our own network has been away, by the failures of one
    thread. Used by that thread."""

    def __init__(self, context: TransferContext) -> None:
        self._context = context
        self._since: float | None = None

    def end(self) -> None:
        """Record that the network works."""
        self._since = None

    def is_tolerated(self, error: RetryRange) -> bool:
        """Return whether ``error`` means that our own network is away, and for less
        than ``network_wait``."""
        context = self._context
        if not error.is_own_network or not context.client.network_monitor.is_away(
            context.source.host
        ):
            self._since = None
            return False
        now = context.clock()
        self._since = now if self._since is None else self._since
        return now - self._since < context.settings.network_wait


def host_of(reply: Reply) -> str:
    """Return the host and port that sent the reply."""
    return urlsplit(reply.url).netloc.lower()
