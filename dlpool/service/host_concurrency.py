"""How many jobs at once each origin host bears on this node, where slots are found by
trying.

A host that turns many of its jobs away gets half as many, and then one more at a time
until it has as many as there are slots (AIMD, as RFC 5681); all other hosts keep
theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlpool.observe.log import Logger

# a quarter of the jobs that run at once, turned away within a while, is a bad sign
REFUSED_PART = 4
# for so long refusals add up; and what was begun before a step back counts no more
WHILE_S = 6.0
STEP_S = 10.0  # one more job at once after so long without a bad sign


@dataclass
class _Host:
    """``level`` is None as long as there is no limit; the others are about its
    refusals, by the clock."""

    since: float
    refused: int = 0
    deaf_until: float = 0.0
    level: int | None = None
    changed: float = 0.0


class HostConcurrency:
    """Used by the main thread; others read ``limited``, the number of hosts with fewer
    jobs than there are slots."""

    def __init__(
        self, most: int, *, is_auto: bool, log: Logger, clock: Callable[[], float]
    ) -> None:
        self.limited = 0
        self._most = most
        self._is_auto = is_auto
        self._log = log
        self._clock = clock
        self._hosts: dict[str, _Host] = {}

    def __repr__(self) -> str:
        return (
            f"<HostConcurrency "
            f"{ ({name: one.level for name, one in self._hosts.items()}) }>"
        )

    def record_refusal(self, name: str, count: Callable[[], int]) -> None:
        """A host has turned a job away; ``count`` says of how many at once."""
        if not self._is_auto:
            return
        now = self._clock()
        host = self._hosts.setdefault(name, _Host(now))
        if now < host.deaf_until:
            return
        if now - host.since > WHILE_S:
            host.since, host.refused = now, 0
        host.refused += 1
        busy = count()
        if host.refused * REFUSED_PART >= busy:
            host.refused, host.deaf_until = 0, now + WHILE_S
            self._set(name, host, max(1, busy // 2), "refused")

    def is_limited(self, name: str) -> bool:
        """Whether a host gets fewer jobs than there are slots."""
        host = self._hosts.get(name)
        return host is not None and host.level is not None

    def has_free_slot(self, name: str, count: Callable[[], int]) -> bool:
        """Whether a host may have one job more than those that ``count`` says."""
        host = self._hosts.get(name)
        if host is None or host.level is None:
            return True
        steps = int((self._clock() - host.changed) / STEP_S)
        if steps:
            self._set(name, host, host.level + steps, "growth")
        return host.level is None or count() < host.level

    def forget_idle(self) -> None:
        """Forget hosts that have been good for long."""
        now = self._clock()
        self._hosts = {
            name: one
            for name, one in self._hosts.items()
            if (one.level is not None and now - one.changed < self._most * STEP_S)
            or now - one.since < WHILE_S
        }
        self.limited = sum(one.level is not None for one in self._hosts.values())

    def _set(self, name: str, host: _Host, level: int, reason: str) -> None:
        host.level, host.changed = (
            (level if level < self._most else None),
            self._clock(),
        )
        self._log.info(
            "host_jobs_changed", host=name, jobs=min(level, self._most), reason=reason
        )
