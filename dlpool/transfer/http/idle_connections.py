"""Close idle connections, even while the process sends no requests."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

MAX_HOSTS = 64  # hosts with idle connections
MAX_IDLE_S = 30.0
LEAST_WAIT_S = 0.01


class IdlePool(Protocol):
    """A pool of connections to one host."""

    def close_idle(self, max_idle_s: float) -> float | None:
        """Close connections that were idle for ``max_idle_s`` seconds or more.

        Returns the seconds until the next connection expires, or None if no idle
        connection is left.
        """


class IdleCloser:
    """A closer of idle connections, with a daemon thread of its own.

    Thread-safe; the lock guards the pools and the thread.
    """

    def __init__(self, max_idle_s: float | None = None) -> None:
        """Prepare the closer; its thread starts with the first idle connection.

        ``max_idle_s``: seconds that a connection may be idle; None means
        ``MAX_IDLE_S``.
        """
        self.max_idle_s = MAX_IDLE_S if max_idle_s is None else max_idle_s
        self._lock = threading.Lock()
        self._pools: weakref.WeakSet[IdlePool] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()

    def __repr__(self) -> str:
        return f"<IdleCloser after {self.max_idle_s:g} s, {len(self._pools)} pools>"

    def watch(self, pool: IdlePool) -> None:
        """Watch a pool to which a connection was returned."""
        if pool in self._pools:
            return
        with self._lock:
            self._pools.add(pool)
            if self._thread is None:
                self._begin()

    def close(self) -> None:
        """Stop the thread. The caller has to close the pools."""
        with self._lock:
            self._pools.clear()
            self._woken.set()

    def _begin(self) -> None:
        self._thread = threading.Thread(
            target=self._run, name="dlpool-idle", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            # no thread can be started: the next request closes idle connections instead
            self._thread = None
            self._pools.clear()

    def _run(self) -> None:
        wait_s = self.max_idle_s
        while True:
            self._woken.wait(wait_s)
            self._woken.clear()
            waits = [
                pool_s
                for pool in self._take_pools()
                if (pool_s := self._close_idle(pool)) is not None
            ]
            with self._lock:
                if not self._pools:
                    self._thread = None
                    return
            wait_s = max(LEAST_WAIT_S, min(waits, default=self.max_idle_s))

    def _take_pools(self) -> list[IdlePool]:
        """Empty the set of watched pools, and return these pools."""
        with self._lock:
            pools = list(self._pools)
            self._pools.clear()
            return pools

    def _close_idle(self, pool: IdlePool) -> float | None:
        wait_s = pool.close_idle(self.max_idle_s)
        if wait_s is not None:
            with self._lock:
                self._pools.add(pool)
        return wait_s
