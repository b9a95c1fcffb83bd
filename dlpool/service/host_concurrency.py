"""Adaptive concurrency per origin host: additive increase, multiplicative decrease, as
in RFC 5681.

A host is limited only if the number of slots of the node is adaptive. When a host
refuses many jobs, its limit becomes half the number of its jobs in flight. Without
further refusals, the limit rises by one every ``STEP_S`` seconds. A limit that reaches
the number of slots of the node is removed.
"""

from __future__ import annotations

from collections.abc import Callable

from dlpool.dataclass import dataclass
from dlpool.observe.log import Logger

# the limit is halved when 1/4 of the jobs that run at once are refused within WINDOW_S
REFUSED_PART = 4
# refusals are counted for this long, and ignored for this long after the limit was
# halved
WINDOW_S = 6.0
STEP_S = 10.0  # without a refusal, the limit rises by one this often


@dataclass
class _HostState:
    """The refusals and the limit of one host.

    Times are in seconds, by the clock of HostConcurrency. ``limit``: jobs at once, None
    for no limit.
    """

    window_start: float
    refused: int = 0
    ignore_until: float = 0.0
    limit: int | None = None
    changed_at: float = 0.0


class HostConcurrency:
    """The adaptive limits of hosts that refuse many jobs.

    Used by the main thread. Other threads may read ``limited_hosts``, the number of
    hosts with a limit.
    """

    def __init__(
        self, max_slots: int, *, is_auto: bool, log: Logger, clock: Callable[[], float]
    ) -> None:
        """Create an empty table. If ``is_auto`` is False, no host is ever limited."""
        self.limited_hosts = 0
        self._max_slots = max_slots
        self._is_auto = is_auto
        self._log = log
        self._clock = clock
        self._hosts: dict[str, _HostState] = {}

    def __repr__(self) -> str:
        limits = {name: one.limit for name, one in self._hosts.items()}
        return f"<HostConcurrency {limits}>"

    def record_refusal(self, name: str, count: Callable[[], int]) -> None:
        """Count a job that its host has refused; lower the limit after many refusals.

        ``count`` returns how many jobs of the host are in flight.
        """
        if not self._is_auto:
            return
        now = self._clock()
        host = self._hosts.setdefault(name, _HostState(now))
        if now < host.ignore_until:
            return
        if now - host.window_start > WINDOW_S:
            host.window_start, host.refused = now, 0
        host.refused += 1
        busy = count()
        if host.refused * REFUSED_PART >= busy:
            host.refused, host.ignore_until = 0, now + WINDOW_S
            self._set(name, host, max(1, busy // 2), "refused")

    def is_limited(self, name: str) -> bool:
        """Return whether a host has an adaptive limit."""
        host = self._hosts.get(name)
        return host is not None and host.limit is not None

    def has_free_slot(self, name: str, count: Callable[[], int]) -> bool:
        """Raise the limit of a host if that is due; return whether the host may get one
        more job.

        ``count`` returns how many jobs of the host are in flight.
        """
        host = self._hosts.get(name)
        if host is None or host.limit is None:
            return True
        steps = int((self._clock() - host.changed_at) / STEP_S)
        if steps:
            self._set(name, host, host.limit + steps, "growth")
        return host.limit is None or count() < host.limit

    def forget_idle(self) -> None:
        """Remove idle hosts, and update ``limited_hosts``.

        A host is idle ``WINDOW_S`` seconds after the first of its counted refusals. A
        host with a limit stays until the limit could have risen to the number of slots.
        """
        now = self._clock()
        self._hosts = {
            name: one
            for name, one in self._hosts.items()
            if (
                one.limit is not None
                and now - one.changed_at < self._max_slots * STEP_S
            )
            or now - one.window_start < WINDOW_S
        }
        self.limited_hosts = sum(one.limit is not None for one in self._hosts.values())

    def _set(self, name: str, host: _HostState, limit: int, reason: str) -> None:
        host.limit, host.changed_at = (
            (limit if limit < self._max_slots else None),
            self._clock(),
        )
        self._log.info(
            "host_jobs_changed",
            host=name,
            jobs=min(limit, self._max_slots),
            reason=reason,
        )
