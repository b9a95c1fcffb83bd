"""Find how many workers to use: more while throughput grows, fewer after a refusal.

Pure: no clock, no thread. As in TCP (RFC 5681), the level doubles until the first step
without gain, then grows by one, and shrinks at once after a refusal. As in RFC 7661, a
measurement counts only if nearly all workers of the level were busy.
"""

from __future__ import annotations

from dlpool.dataclass import dataclass

# If the level grows by a share g, the throughput must grow by GAIN * g at least: a
# doubled level must bring 1.25 times the throughput.
GAIN = 0.25
USED = 0.9  # share of the level that must have been busy for a measurement to count
LATE = 4.0  # a response is late after LATE times the usual time plus LATE_S
LATE_S = 0.5
# consecutive late responses count as a refusal: one may be due to a file in cold
# storage
LATE_RESPONSES = 2


@dataclass(frozen=True)
class ControlParameters:
    """The timing of a controller, in seconds.

    ``settle_s``: the time that a change of the level needs to take effect.
    ``measure_s``: the duration of a measurement. After a reduction of the level, the
    controller waits ``pause_s`` before the next increase. The pause doubles with each
    further reduction, up to ``max_pause_s``.
    """

    settle_s: float
    measure_s: float
    pause_s: float
    max_pause_s: float


@dataclass
class Measurement:
    """A measurement in progress.

    ``began``: the time of its beginning; ``done``: the total work done at that time.
    ``until``: the time of the latest sample; ``worked_s``: the working seconds of all
    workers from ``began`` to ``until``, added up.
    """

    began: float
    done: int
    until: float = 0.0
    worked_s: float = 0.0


class Aimd:
    """A controlled number, ``level``, between ``low`` and ``high``.

    Used by one thread at a time. Times are in seconds; any clock may be used.
    ``reason`` says why the level is what it is: start, growth, no_gain, or the reason
    of the refusal that reduced it.
    """

    def __init__(
        self, low: int, high: int, start: int, tempo: ControlParameters
    ) -> None:
        self.level = max(low, min(start, high))
        self.reason = "start"
        self.rate = 0.0  # work per second in the last measurement
        self._low = low
        self._high = high
        self._parameters = tempo
        self._is_doubling = True
        self._good_level = 0  # the highest level with a gain; 0 while unknown
        self._good_rate = 0.0
        self._pause_s = tempo.pause_s
        self._next_try = 0.0
        # refusals arrive in bursts, from requests sent before the retreat
        self._ignore_refusals_until = float("-inf")
        self._usual_latency_s: float | None = None
        self._late_responses = 0
        self._changed: float | None = None
        self._measurement: Measurement | None = None

    def __repr__(self) -> str:
        return f"<Aimd {self.level} ({self.reason}), {self.rate:.0f}/s>"

    def sample(self, now: float, done: int, busy: int) -> None:
        """Record a sample.

        ``done``: the total work done so far. ``busy``: the number of workers that were
        busy since the last sample.
        """
        if self._changed is None:
            self._changed = now
        measurement = self._measurement
        if measurement is None:
            if now - self._changed >= self._parameters.settle_s:
                self._measurement = Measurement(now, done, now)
            return
        measurement.worked_s += busy * (now - measurement.until)
        measurement.until = now
        span = now - measurement.began
        if span < self._parameters.measure_s:
            return
        self._measurement = Measurement(now, done, now)
        if measurement.worked_s >= USED * self.level * span:
            self._judge(now, (done - measurement.done) / span)

    def record_refusal(self, now: float, reason: str) -> bool:
        """Reduce the level after a refusal; return False if the refusal is ignored.

        If the level was raised and no measurement has shown a gain yet, the level
        returns to the last level with a gain. Otherwise the level is halved, but stays
        at least ``low``. A refusal shortly after another refusal is ignored.
        """
        if now < self._ignore_refusals_until:
            return False
        self._ignore_refusals_until = (
            now + self._parameters.settle_s + self._parameters.measure_s
        )
        is_try = 0 < self._good_level < self.level
        self._retreat(
            now, self._good_level if is_try else max(self._low, self.level // 2), reason
        )
        return True

    def record_latency(self, now: float, seconds: float) -> bool:
        """Record a response time; return whether the level was reduced.

        Several late responses in a row count as a refusal.
        """
        usual_s = self._usual_latency_s
        if usual_s is not None and seconds > LATE * usual_s + LATE_S:
            self._late_responses += 1
        else:
            self._late_responses = 0
        self._usual_latency_s = (
            seconds
            if usual_s is None
            else min(seconds, usual_s + (seconds - usual_s) / 10)
        )
        return (
            self._late_responses >= LATE_RESPONSES
            and self.level > self._low
            and self.record_refusal(now, "latency")
        )

    def restart(self) -> None:
        """Forget the known throughput after an idle period; the level stays."""
        self._good_level, self._changed, self._measurement = 0, None, None

    def _judge(self, now: float, rate: float) -> None:
        """Choose the next level from the throughput ``rate`` (work per second).

        Called after each measurement that counts.
        """
        self.rate = rate
        if 0 < self._good_level < self.level:
            growth = (self.level - self._good_level) / self._good_level
            if rate < self._good_rate * (1.0 + GAIN * growth):
                self._retreat(now, self._good_level, "no_gain")
                return
            self._pause_s = self._parameters.pause_s
        self._good_level, self._good_rate = self.level, rate
        if now >= self._next_try and self.level < self._high:
            self._set(
                now,
                min(
                    self._high, self.level * 2 if self._is_doubling else self.level + 1
                ),
                "growth",
            )

    def _retreat(self, now: float, level: int, reason: str) -> None:
        self._is_doubling = False
        self._next_try = now + self._pause_s
        self._pause_s = min(self._parameters.max_pause_s, self._pause_s * 2)
        self._set(now, level, reason)

    def _set(self, now: float, level: int, reason: str) -> None:
        self.level, self.reason = level, reason
        self._changed, self._measurement = now, None
