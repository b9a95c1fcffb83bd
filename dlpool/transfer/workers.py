"""Start and retire the connection threads of one attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dlpool import threads
from dlpool.errors import NoThread
from dlpool.transfer.context import DownloadPlan, TransferContext
from dlpool.transfer.http.host_connections import ConnectionShare
from dlpool.transfer.worker import ConnectionWorker

SLOW_DOWNLOAD_S = 10.0  # a download that needs longer gets a second connection
# per connection: the socket, its duplicate (SocketShutdown), and the part file
DESCRIPTORS = 3
# descriptors left for the state file, folders, name look-ups and the log
RESERVED_DESCRIPTORS = 12


class ConnectionWorkers:
    """The connection workers of an attempt.

    The attempt's thread uses it; other threads read ``all`` and ``received``. ``all``
    keeps finished workers, so that their bytes count; only retired workers are removed.
    """

    def __init__(self, context: TransferContext) -> None:
        self.all: tuple[ConnectionWorker, ...] = ()
        self.most_at_once = 1
        self._context = context
        self._threads: dict[ConnectionWorker, threading.Thread] = {}
        self._received = 0  # by retired workers
        self._share: ConnectionShare | None = None
        self._reported = 0

    @property
    def received(self) -> int:
        """The bytes of body received over the network."""
        return self._received + sum(worker.stats().received for worker in self.all)

    def add(self, worker: ConnectionWorker) -> ConnectionWorker:
        """Add a worker; the caller must start it."""
        self.all = (*self.all, worker)
        return worker

    def start_first(self, worker: ConnectionWorker, work: Callable[[], None]) -> bool:
        """Start the first worker on a thread.

        Returns False if this machine allows no further thread or descriptor. The caller
        must then run the worker itself.
        """
        if not threads.has_free_descriptors(DESCRIPTORS + RESERVED_DESCRIPTORS):
            self._report_limit("too_many_files")
            return False
        try:
            self.spawn(worker, work)
        except NoThread:
            self._report_limit("no_threads")
            return False
        return True

    def spawn(self, worker: ConnectionWorker, work: Callable[[], None]) -> None:
        """Start a thread that runs ``work`` for the worker.

        It is a daemon thread, because a name look-up cannot be interrupted. Raises
        NoThread.
        """
        self._threads[worker] = threads.start_thread(
            work, f"dlpool-connection-{len(self.all)}"
        )
        self.most_at_once = max(self.most_at_once, len(self._active()))

    def start(self, plan: DownloadPlan, connections: int, most: int) -> None:
        """Start workers until ``connections`` of them exist.

        ``most``: the number of connections that the size of the file justifies. If the
        number of connections is adaptive and ``most`` exceeds 1, ``connections`` is
        ignored: this download starts its share of the connections that all downloads
        from the host may have together.
        """
        if most > 1 and self._context.is_adaptive:
            context = self._context
            most = context.client.host_connections.max_connections(context.host, most)
            self._share = context.client.host_connections.join(
                context.host, most, limit=context.settings.max_connections
            )
            connections = self._share.wanted
        self._grow(plan, connections)
        self._reported = connections

    def add_second(self, plan: DownloadPlan) -> None:
        """Add a second connection if the only one is slow.

        It is slow if it still needs ``SLOW_DOWNLOAD_S`` seconds or more. This is for
        files whose size justifies only one connection. The timer thread calls this; the
        attempt's thread adds no workers to such a file.
        """
        context = self._context
        is_single = (
            len(self.all) == 1
            and self._share is None
            and plan.has_ranges
            and not plan.resource.refuses_ranges
        )
        if (
            is_single
            and context.scheduler.slowest_s() >= SLOW_DOWNLOAD_S
            and context.initial_connections() > 1
        ):
            self._grow(plan, 2)

    def adapt(self, plan: DownloadPlan) -> None:
        """Adjust the number of workers to this download's share of the connections.

        All downloads of this process from one host share the connections to this host.
        """
        share = self._share
        if share is None:
            return
        self._reap()
        reason = share.report(
            self.received, sum(worker.exchange is not None for worker in self._active())
        )
        wanted = share.wanted
        if wanted != self._reported:
            self._reported = wanted
            self._context.notify(
                "connections_changed",
                host=share.host,
                connections=wanted,
                reason=reason,
            )
        self._grow(plan, wanted)
        for worker in self._cheapest_to_retire(len(self._active()) - wanted):
            self._context.scheduler.retire(worker)

    def release_share(self) -> None:
        """Give back this download's share of the connections to its host."""
        share, self._share = self._share, None
        if share is not None:
            share.leave()

    def join(self, seconds: float) -> None:
        """Wait for the threads, at most ``seconds`` in total."""
        clock = self._context.clock
        until = clock() + seconds
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - clock()))

    def _grow(self, plan: DownloadPlan, wanted: int) -> None:
        """Add workers up to ``wanted``, within the limits of this machine."""
        while len(self._active()) < wanted:
            if not threads.has_free_descriptors(DESCRIPTORS + RESERVED_DESCRIPTORS):
                self._report_limit("too_many_files")
                return
            worker = self.add(ConnectionWorker(self._context, plan))
            try:
                self.spawn(worker, worker.run)
            except NoThread:
                self.all = tuple(one for one in self.all if one is not worker)
                self._report_limit("no_threads")
                return

    def _report_limit(self, reason: str) -> None:
        context = self._context
        context.report_limit(reason, len(self._active()))
        if self._share is not None:
            context.client.host_connections.refused(self._share.host, reason)

    def _active(self) -> list[ConnectionWorker]:
        return [worker for worker in self.all if not worker.is_retired]

    def _cheapest_to_retire(self, count: int) -> list[ConnectionWorker]:
        """Return the ``count`` workers that cost least to retire.

        Workers without a request cost least, then the newest workers.
        """
        oldest_first = sorted(
            self._active(), key=lambda worker: worker.exchange is None
        )
        return oldest_first[len(oldest_first) - max(0, count) :]

    def _reap(self) -> None:
        """Remove retired workers whose threads have finished."""
        for worker in self.all:
            if worker.is_retired and not self._threads[worker].is_alive():
                received = worker.stats().received
                self.all = tuple(one for one in self.all if one is not worker)
                self._received += received
                del self._threads[worker]
                self._context.scheduler.remove_worker(worker)
