"""Has transfers give their slots to jobs that wait: looks at them, asks who waits, and tells them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dlpool.config import Settings
from dlpool.service.ledger import Held, Ledger, part_of
from dlpool.service.meter import Meter, Speed
from dlpool.service.yielding import Rules, Running, chosen, may_yield

NEWS_S = 3.0  # for so long an answer about who waits is of use


class Yielder:
    """Used by the main thread only. ``ask`` has the answer come to ``heard``; ``tell`` takes a ticket and a reason."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        meter: Meter,
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
        self._speeds: dict[str, Speed] = {}
        self._waiting: Mapping[str, int] = {}
        self._heard_at = 0.0

    def __repr__(self) -> str:
        return f"<Yielder {dict(self._waiting)} wait>"

    def apply(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self._settings = settings

    def heard(self, waiting: Mapping[str, int]) -> None:
        """So many jobs of these hosts wait."""
        self._waiting, self._heard_at = waiting, self._clock()

    def tend(self) -> None:
        """Once a second: where no slot is free, tell those to yield that keep others waiting.

        An answer of Redis is used once, and none is used that is old: while Redis is away everything goes on.
        """
        held = [one for one in self._ledger.all() if one.worker is not None and one.takes_room and not one.is_lost]
        running = self._look(held)
        supervisor = self._settings.supervisor
        if not supervisor.yield_after or not self._ledger.is_full:
            self._waiting = {}
            return
        part = part_of(self._ledger.capacity, supervisor.host_share)
        rules = Rules(supervisor.yield_after, supervisor.slow_rate, part)
        recent, pending = self._meter.recent(), len(held) - len(running)
        waiting = self._waiting if self._clock() - self._heard_at <= NEWS_S else {}
        self._waiting = {}
        for one in chosen(running, waiting, rules, recent=recent, pending=pending):
            self._tell(one.ticket, one.reason)
        if may_yield(running, rules, recent=recent):
            self._ask()

    def _look(self, held: list[Held]) -> list[Running]:
        """Take a sample of each job; those that were told to yield are not among them."""
        speeds = {str(one.ticket): self._speeds.get(str(one.ticket)) or Speed(self._clock) for one in held}
        self._speeds = speeds
        running = []
        for one in held:
            speed = speeds[str(one.ticket)].now(one.progress.get("done") or 0) if _has_begun(one) else 0
            if one.yielding is None and one.verb is None:
                running.append(self._as_running(one, max(0, speed), len(held)))
        return running

    def _as_running(self, one: Held, rate: int, running: int) -> Running:
        size, done = one.progress.get("size"), one.progress.get("done") or 0
        return Running(
            str(one.ticket),
            one.authority,
            rate,
            age_s=self._clock() - one.dealt_at,
            left=None if size is None else max(0, size - done),
            yields=one.claimed.yields,
            cap=self._cap(one, running),
            is_kept=one.is_kept,
            is_moving=not _has_begun(one) or one.progress["phase"] == "downloading",
        )

    def _cap(self, one: Held, running: int) -> float | None:
        """Bytes a second that our own limits leave to a job."""
        node_rate, own = self._settings.supervisor.node_rate, one.job.limit_rate if one.job is not None else None
        caps = (own, self._settings.transfer.limit_rate, None if node_rate is None else node_rate / running)
        return min((cap for cap in caps if cap is not None), default=None)


def _has_begun(one: Held) -> bool:
    """Whether its server has answered."""
    return one.progress.get("phase") not in (None, "connecting")
