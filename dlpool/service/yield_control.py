"""Yield control: makes slow transfers yield their slots to waiting jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from dlpool.config import Settings
from dlpool.dataclass import dataclass
from dlpool.service.inflight import (
    InFlightJob,
    InFlightPhase,
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

# a host counts as slow for this long after one of its transfers yielded for being slow
SLOW_S = 300.0
FAIR_S = 5.0  # a transfer must be measured for this long before it can clear its host
MAX_SLOW_HOSTS = 200
ANSWER_VALID_S = 3.0  # an answer about waiting jobs is used for this long


@dataclass
class _TransferSpeed:
    """The speed of a transfer: ``rate`` in bytes/s, smoothed.

    ``since``: when its measurement began, in seconds of the controller's clock.
    """

    speed: ByteRate
    since: float
    rate: int = 0


class YieldController:
    """Measures transfers, requests the number of waiting jobs, and applies the policy.

    Used by the main thread only.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlightTable,
        collector: MetricsCollector,
        yield_slot: Callable[[str, str], None],
        request_waiting_hosts: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a controller of the transfers in ``in_flight``.

        ``yield_slot`` makes a transfer yield; its arguments are a lease id and a
        reason. ``request_waiting_hosts`` requests the number of waiting jobs by host.
        The caller passes the answer to ``handle_waiting``.
        """
        self._settings = settings
        self._in_flight = in_flight
        self._collector = collector
        self._yield_slot = yield_slot
        self._request_waiting_hosts = request_waiting_hosts
        self._clock = clock
        self._speeds: dict[str, _TransferSpeed] = {}  # by lease id
        self._waiting: Mapping[str, int] = {}  # jobs by host, from the last answer
        self._answered_at = 0.0
        self._slow_until: dict[str, float] = {}  # when each slow host is cleared

    def __repr__(self) -> str:
        return f"<YieldController {dict(self._waiting)} wait>"

    def apply(self, settings: Settings) -> None:
        """Use reloaded settings."""
        self._settings = settings

    def handle_waiting(self, waiting: Mapping[str, int]) -> None:
        """Make transfers yield to waiting jobs. ``waiting``: number of jobs by host."""
        self._waiting, self._answered_at = waiting, self._clock()
        self._choose()

    def tick(self) -> None:
        """Measure transfers; request the number of waiting jobs if a transfer can
        yield.

        Called once a second. The controller uses each answer once, and only within
        ``ANSWER_VALID_S`` seconds.
        """
        self._sample()
        if self._choose():
            self._request_waiting_hosts()

    def _choose(self) -> bool:
        """Make transfers yield to waiting jobs.

        Return whether any transfer could yield if more jobs waited.
        """
        held = [
            one for one in self._in_flight.all() if one.phase is InFlightPhase.RUNNING
        ]
        running = [
            self._as_running(one, len(held))
            for one in held
            if one.yield_reason is None and one.requested_action is None
        ]
        settings = self._settings.supervisor
        quota = host_quota(self._in_flight.capacity, settings.host_share)
        rules, recent = (
            YieldRules(settings.yield_after, settings.slow_rate, quota),
            self._collector.recent_speeds(),
        )
        self._clear_slow_hosts(running, rules, recent)
        slow_quota = slow_hosts_quota(self._in_flight.capacity, quota)
        rules = replace(rules, slow_hosts=self._slow_until, slow_quota=slow_quota)
        waiting = (
            self._waiting if self._clock() - self._answered_at <= ANSWER_VALID_S else {}
        )
        self._waiting = {}
        if not settings.yield_after or not self._in_flight.is_full:
            return False
        waiting = {
            host: count
            for host, count in waiting.items()
            if host not in self._slow_until
        }
        hosts = {one.lease_id: one.host for one in running}
        for one in choose_yields(
            running, waiting, rules, recent=recent, pending=len(held) - len(running)
        ):
            self._yield_slot(one.lease_id, one.reason)
            if one.reason != HOST_SHARE:
                self._mark_slow(hosts[one.lease_id])
        return may_yield(running, rules, recent=recent)

    def _mark_slow(self, host: str) -> None:
        """Limit the slots of a host after one of its slow transfers has yielded.

        Without the limit, other jobs of the host would take the free slot.
        """
        self._slow_until.pop(host, None)
        self._slow_until[host] = self._clock() + SLOW_S
        while len(self._slow_until) > MAX_SLOW_HOSTS:
            del self._slow_until[next(iter(self._slow_until))]
        self._in_flight.slow_hosts = tuple(self._slow_until)

    def _clear_slow_hosts(
        self, running: list[RunningTransfer], rules: YieldRules, recent: list[float]
    ) -> None:
        """End the limit of each slow host after ``SLOW_S`` seconds.

        The limit ends earlier if one of the host's transfers is fast enough.
        """
        if not self._slow_until:
            return
        now = self._clock()
        measured = {
            lease_id
            for lease_id, speed in self._speeds.items()
            if now - speed.since >= FAIR_S
        }
        cleared = {
            one.host
            for one in running
            if one.lease_id in measured and is_fast_enough(one, running, rules, recent)
        }
        self._slow_until = {
            host: until
            for host, until in self._slow_until.items()
            if until > now and host not in cleared
        }
        self._in_flight.slow_hosts = tuple(self._slow_until)

    def _sample(self) -> None:
        """Measure the speed of each transfer."""
        now = self._clock()
        begun = [one for one in self._in_flight.all() if _has_begun(one)]
        self._speeds = {
            str(one.lease): self._speeds.get(str(one.lease))
            or _TransferSpeed(ByteRate(self._clock), now)
            for one in begun
        }
        for one in begun:
            speed = self._speeds[str(one.lease)]
            speed.rate = max(0, speed.speed.update(one.progress.get("done") or 0))

    def _as_running(self, one: InFlightJob, running: int) -> RunningTransfer:
        speed = self._speeds.get(str(one.lease))
        size, done = one.progress.get("size"), one.progress.get("done") or 0
        return RunningTransfer(
            str(one.lease),
            one.authority,
            speed.rate if speed is not None else 0,
            age_s=self._clock() - one.assigned_at,
            remaining=None if size is None else max(0, size - done),
            yields=one.claimed.yields,
            rate_limit=self._rate_limit(one, running),
            is_resumable=one.is_resumable,
            is_moving=not _has_begun(one) or one.progress["phase"] == "downloading",
        )

    def _rate_limit(self, one: InFlightJob, running: int) -> float | None:
        """Return the lowest rate limit of a transfer in bytes/s, None for no limit.

        Three limits count: the limit of the job, the limit of the settings, and the
        transfer's share of the node's limit. ``running``: the number of transfers that
        share the node's limit.
        """
        node_rate = self._settings.supervisor.node_rate
        limits = (
            one.job.limit_rate if one.job is not None else None,
            self._settings.transfer.limit_rate,
            None if node_rate is None else node_rate / running,
        )
        return min((limit for limit in limits if limit is not None), default=None)


def _has_begun(one: InFlightJob) -> bool:
    """Return whether the server of the transfer has answered."""
    return one.progress.get("phase") not in (None, "connecting")
