"""Has transfers give their slots to jobs that wait: looks at them, asks who waits, and
tells them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dlpool.config import Settings
from dlpool.service.inflight import (
    InFlightJob,
    InFlightTable,
    host_quota,
    slow_hosts_quota,
)
from dlpool.service.monitor.metrics_collector import ByteRate, MetricsCollector
from dlpool.service.yield_policy import (
    HOST_SHARE,
    RunningTransfer,
    YieldRules,
    choose_yields,
    is_fast_enough,
    may_yield,
)

# for so long a host counts as slow after a transfer of it had to yield for that
SLOW_S = 300.0
FAIR_S = 5.0  # for so long a transfer is measured before it clears its host of that
MOST_SLOW = 200  # hosts that are remembered
NEWS_S = 3.0  # for so long an answer about who waits is of use


@dataclass
class _TransferSpeed:
    """How fast a transfer is: ``rate`` in bytes/s, smoothed; measured ``since``."""

    speed: ByteRate
    since: float
    rate: int = 0


class YieldController:
    """Used by the main thread only. ``ask`` has the answer come to ``heard``; ``tell``
    takes a ticket and a reason."""

    def __init__(
        self,
        settings: Settings,
        ledger: InFlightTable,
        meter: MetricsCollector,
        tell: Callable[[str, str], None],
        ask: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._meter = meter
        self._ask = ask
        self._tell = tell
        self._clock = clock
        self._gauges: dict[str, _TransferSpeed] = {}  # by ticket
        self._waiting: Mapping[str, int] = {}
        self._heard_at = 0.0
        self._slow: dict[str, float] = {}  # hosts, and until when they count as slow

    def __repr__(self) -> str:
        return f"<Yielder {dict(self._waiting)} wait>"

    def apply(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self._settings = settings

    def handle_waiting(self, waiting: Mapping[str, int]) -> None:
        """So many jobs of these hosts wait: those that keep them waiting are told at
        once."""
        self._waiting, self._heard_at = waiting, self._clock()
        self._look()

    def tick(self) -> None:
        """Once a second: where no slot is free and a transfer may have to yield, ask
        who waits.

        An answer of Redis is used once, and none is used that is old: while Redis is
        away everything goes on.
        """
        self._sample()
        if self._look():
            self._ask()

    def _look(self) -> bool:
        """Tell those to yield that keep others waiting. Returns whether any might, if
        more waited."""
        held = [
            one
            for one in self._ledger.all()
            if one.worker_pid is not None and one.occupies_slot and not one.is_lost
        ]
        running = [
            self._as_running(one, len(held))
            for one in held
            if one.yield_reason is None and one.requested_action is None
        ]
        supervisor = self._settings.supervisor
        part = host_quota(self._ledger.capacity, supervisor.host_share)
        rules, recent = (
            YieldRules(supervisor.yield_after, supervisor.slow_rate, part),
            self._meter.recent_speeds(),
        )
        self._forget_slow(running, rules, recent)
        rules = replace(
            rules,
            slow=self._slow,
            slow_part=slow_hosts_quota(self._ledger.capacity, part),
        )
        waiting = self._waiting if self._clock() - self._heard_at <= NEWS_S else {}
        self._waiting = {}
        if not supervisor.yield_after or not self._ledger.is_full:
            return False
        waiting = {
            host: count for host, count in waiting.items() if host not in self._slow
        }
        hosts = {one.lease_id: one.host for one in running}
        for one in choose_yields(
            running, waiting, rules, recent=recent, pending=len(held) - len(running)
        ):
            self._tell(one.lease_id, one.reason)
            if one.reason != HOST_SHARE:
                self._note_slow(hosts[one.lease_id])
        return may_yield(running, rules, recent=recent)

    def _note_slow(self, host: str) -> None:
        """Its jobs are not to take the slots that it has just left."""
        self._slow.pop(host, None)
        self._slow[host] = self._clock() + SLOW_S
        while len(self._slow) > MOST_SLOW:
            del self._slow[next(iter(self._slow))]
        self._ledger.slow_hosts = tuple(self._slow)

    def _forget_slow(
        self, running: list[RunningTransfer], rules: YieldRules, recent: list[float]
    ) -> None:
        """Hosts whose time has passed, or of which a transfer is as fast as others."""
        if not self._slow:
            return
        now = self._clock()
        known = {
            ticket
            for ticket, gauge in self._gauges.items()
            if now - gauge.since >= FAIR_S
        }
        fair = {
            one.host
            for one in running
            if one.lease_id in known and is_fast_enough(one, running, rules, recent)
        }
        self._slow = {
            host: until
            for host, until in self._slow.items()
            if until > now and host not in fair
        }
        self._ledger.slow_hosts = tuple(self._slow)

    def _sample(self) -> None:
        """Measure how fast each job is."""
        now = self._clock()
        begun = [one for one in self._ledger.all() if _has_begun(one)]
        self._gauges = {
            str(one.lease): self._gauges.get(str(one.lease))
            or _TransferSpeed(ByteRate(self._clock), now)
            for one in begun
        }
        for one in begun:
            gauge = self._gauges[str(one.lease)]
            gauge.rate = max(0, gauge.speed.update(one.progress.get("done") or 0))

    def _as_running(self, one: InFlightJob, running: int) -> RunningTransfer:
        gauge = self._gauges.get(str(one.lease))
        size, done = one.progress.get("size"), one.progress.get("done") or 0
        return RunningTransfer(
            str(one.lease),
            one.authority,
            gauge.rate if gauge is not None else 0,
            age_s=self._clock() - one.assigned_at,
            remaining=None if size is None else max(0, size - done),
            yields=one.claimed.yields,
            rate_limit=self._cap(one, running),
            is_resumable=one.is_resumable,
            is_moving=not _has_begun(one) or one.progress["phase"] == "downloading",
        )

    def _cap(self, one: InFlightJob, running: int) -> float | None:
        """Bytes a second that our own limits leave to a job."""
        node_rate, own = (
            self._settings.supervisor.node_rate,
            one.job.limit_rate if one.job is not None else None,
        )
        caps = (
            own,
            self._settings.transfer.limit_rate,
            None if node_rate is None else node_rate / running,
        )
        return min((cap for cap in caps if cap is not None), default=None)


def _has_begun(one: InFlightJob) -> bool:
    """Whether its server has answered."""
    return one.progress.get("phase") not in (None, "connecting")
