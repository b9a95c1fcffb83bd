"""Thread pools of a worker: one for requests in general, and one for each kind of
probe.

Probes have threads of their own, so that they are answered while all other threads wait
for slow bodies or disks.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from dlpool.dataclass import dataclass
from dlpool.request_heads import parse_target

RESERVED = 256  # connections of a process that are kept for probes and incomplete heads


class ElasticExecutor(ThreadPoolExecutor):
    """A thread pool that uses its existing threads if no further thread can be started.

    Submitting raises RuntimeError only if the pool has no thread at all.
    """

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


@dataclass
class RequestPool:
    """Threads for a class of requests; ``limit`` bounds running and queued requests.

    Only the main loop reads and writes ``in_use``.
    """

    executor: ThreadPoolExecutor
    limit: int
    in_use: int = 0

    @property
    def is_full(self) -> bool:
        """Return whether the pool must reject further requests."""
        return self.in_use >= self.limit


class RequestPools:
    """The pools of a worker process. ``probes``: the paths of each kind of probe."""

    def __init__(
        self, probes: Iterable[frozenset[str]], connections: int, threads: int
    ) -> None:
        reserved = min(RESERVED, connections // 4)
        self._of_probes: dict[str, RequestPool] = {}
        for paths in probes:
            pool = _start_single_thread(max(1, reserved // 4))
            if pool is not None:
                self._of_probes |= dict.fromkeys(paths, pool)
        self.main = RequestPool(ElasticExecutor(threads), connections - reserved)

    def pool_for(self, head: bytes) -> RequestPool:
        """Return the pool for a request with this head."""
        method, path = parse_target(head)
        if method not in ("GET", "HEAD"):
            return self.main
        return self._of_probes.get(path.rstrip("/"), self.main)


def _start_single_thread(limit: int) -> RequestPool | None:
    """Return a pool with one running thread, None if no thread can be started.

    Without a thread of their own, probes use the main pool.
    """
    executor = ElasticExecutor(max_workers=1)
    try:
        executor.submit(int)
    except RuntimeError:
        return None
    return RequestPool(executor, limit)
