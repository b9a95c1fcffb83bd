"""The connection threads of a round: wanted and actual."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dlpool import threads
from dlpool.errors import NoThread
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.host_connections import ConnectionShare
from dlpool.transfer.worker import ConnectionWorker

HELP_S = 10.0  # seconds
DESCRIPTORS = (
    3  # of a connection: the socket, its duplicate (Breaker), and one to write with
)
RESERVE = 12  # descriptors left for the state file, folders, name look-ups and the log


class ConnectionWorkers:
    """Used by the thread that runs the round; others read ``all`` and ``received``.

    A thread that has ended stays in ``all``, as what it received counts, unless it was
    dismissed.
    """

    def __init__(self, context: TransferContext) -> None:
        self.all: tuple[ConnectionWorker, ...] = ()
        self.most_at_once = 1  # at once
        self._context = context
        self._threads: dict[ConnectionWorker, threading.Thread] = {}
        self._received = 0  # by those that were dismissed
        self._share: ConnectionShare | None = None
        self._shown = 0

    @property
    def received(self) -> int:
        """Bytes of body that came over the network."""
        return self._received + sum(lane.stats().received for lane in self.all)

    def add(self, lane: ConnectionWorker) -> ConnectionWorker:
        """One more, whose work its caller begins."""
        self.all = (*self.all, lane)
        return lane

    def start_first(self, lane: ConnectionWorker, work: Callable[[], None]) -> bool:
        """Run the first lane on a thread; return False if this machine allows no
        further thread or descriptors.

        The calling thread does it then.
        """
        if not threads.has_free_descriptors(DESCRIPTORS + RESERVE):
            self._limited("too_many_files")
            return False
        try:
            self.spawn(lane, work)
        except NoThread:
            self._limited("no_threads")
            return False
        return True

    def spawn(self, lane: ConnectionWorker, work: Callable[[], None]) -> None:
        """Run the lane on a thread. Raises NoThread.

        They are daemons, because a name look-up cannot be broken.
        """
        self._threads[lane] = threads.start_thread(work, f"dlpool-lane-{len(self.all)}")
        self.most_at_once = max(self.most_at_once, len(self._serving()))

    def start(self, plan: DownloadPlan, connections: int, most: int) -> None:
        """Add lanes until there are so many; where their number is found by trying, it
        changes from now on.

        ``most``: connections that the file is worth.
        """
        if most > 1 and self._context.is_adaptive:
            context = self._context
            most = context.client.host_connections.max_connections(context.host, most)
            self._share = context.client.host_connections.join(
                context.host, most, limit=context.settings.max_connections
            )
            connections = self._share.wanted
        self._grow(plan, connections)
        self._shown = connections

    def add_second(self, plan: DownloadPlan) -> None:
        """Add a second connection if the only one will need longer than ``HELP_S``.

        A file that is worth one connection by its size may have got a slow one. Called
        by the ticker's thread; the one that runs the round adds none meanwhile, as the
        file is worth no more.
        """
        context = self._context
        is_alone = (
            len(self.all) == 1
            and self._share is None
            and plan.has_ranges
            and not plan.resource.refuses_ranges
        )
        if (
            is_alone
            and context.scheduler.slowest_s() >= HELP_S
            and context.initial_connections() > 1
        ):
            self._grow(plan, 2)

    def adapt(self, plan: DownloadPlan) -> None:
        """Compare wanted with actual; again and again, while it goes on."""
        share = self._share
        if share is None:
            return
        self._reap()
        reason = share.report(
            self.received, sum(lane.exchange is not None for lane in self._serving())
        )
        wanted = share.wanted
        if wanted != self._shown:
            self._shown = wanted
            self._context.notify(
                "connections_changed",
                host=share.host,
                connections=wanted,
                reason=reason,
            )
        self._grow(plan, wanted)
        for lane in self._least(len(self._serving()) - wanted):
            self._context.scheduler.retire(lane)

    def release_share(self) -> None:
        """Others may have our connections."""
        share, self._share = self._share, None
        if share is not None:
            share.leave()

    def join(self, seconds: float) -> None:
        """Wait for the threads, at most so long in all."""
        clock = self._context.clock
        until = clock() + seconds
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - clock()))

    def _grow(self, plan: DownloadPlan, wanted: int) -> None:
        """Add lanes, as far as this machine allows threads and descriptors for them."""
        while len(self._serving()) < wanted:
            if not threads.has_free_descriptors(DESCRIPTORS + RESERVE):
                self._limited("too_many_files")
                return
            lane = self.add(ConnectionWorker(self._context, plan))
            try:
                self.spawn(lane, lane.run)
            except NoThread:
                self.all = tuple(one for one in self.all if one is not lane)
                self._limited("no_threads")
                return

    def _limited(self, reason: str) -> None:
        context = self._context
        context.report_limit(reason, len(self._serving()))
        if self._share is not None:
            context.client.host_connections.refused(self._share.host, reason)

    def _serving(self) -> list[ConnectionWorker]:
        return [lane for lane in self.all if not lane.is_retired]

    def _least(self, count: int) -> list[ConnectionWorker]:
        """Those of whose connections the least is lost: first who has none, then the
        youngest."""
        oldest_first = sorted(self._serving(), key=lambda lane: lane.exchange is None)
        return oldest_first[len(oldest_first) - max(0, count) :]

    def _reap(self) -> None:
        """Forget the dismissed whose threads have ended."""
        for lane in self.all:
            if lane.is_retired and not self._threads[lane].is_alive():
                received = lane.stats().received
                self.all = tuple(one for one in self.all if one is not lane)
                self._received += received
                del self._threads[lane]
                self._context.scheduler.remove_worker(lane)
