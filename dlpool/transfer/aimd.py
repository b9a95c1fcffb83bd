"""How many should work at once, found by trying: more while it pays, fewer after a bad
sign. Pure: no clock, no thread.

As TCP does it (RFC 5681): doubling at first, one more at a time after the first step
that did not pay, less at once after a bad sign; and as in RFC 7661, what is not made
use of proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

# of the growth must come as throughput: a doubling pays from 1.25 times the bytes a
# second on
GAIN = 0.25
USED = 0.9  # of the level must have worked for a measure to count
LATE = 4.0  # times the usual answer time, and LATE_S more, is late
LATE_S = 0.5
# in a row are a bad sign: one may have been a file that its server had to look for
LATE_ANSWERS = 2


@dataclass(frozen=True)
class ControlParameters:
    """Seconds: after a change until it shows, of a measure, and until the next try
    after one that was in vain."""

    settle_s: float
    measure_s: float
    rest_s: float
    most_rest_s: float


@dataclass
class Measurement:
    """What was done and how many worked since ``began``."""

    began: float
    done: int
    until: float = 0.0
    worked_s: float = 0.0  # seconds of all that worked, added up


class Aimd:
    """A level between ``low`` and ``high``. Used by one thread at a time; times in
    seconds of any one clock.

    ``reason`` says why the level is what it is: start, growth, no_gain, or what was
    given for a retreat.
    """

    def __init__(
        self, low: int, high: int, start: int, tempo: ControlParameters
    ) -> None:
        self.level = max(low, min(start, high))
        self.reason = "start"
        self.rate = 0.0  # what was done a second, in the last measure
        self._low = low
        self._high = high
        self._tempo = tempo
        self._is_doubling = True
        self._good = 0  # the highest level that has paid; 0 while none is known
        self._good_rate = 0.0
        self._rest_s = tempo.rest_s
        self._next_try = 0.0
        self._deaf_until = float(
            "-inf"
        )  # bad signs come in bursts, from what was begun before the retreat
        self._usual_s: float | None = None
        self._late = 0
        self._changed: float | None = None
        self._measure: Measurement | None = None

    def __repr__(self) -> str:
        return f"<Aimd {self.level} ({self.reason}), {self.rate:.0f}/s>"

    def sample(self, now: float, done: int, busy: int) -> None:
        """Look: ``done`` in all (it only grows; bytes), and how many have worked since
        the last look."""
        if self._changed is None:
            self._changed = now
        measure = self._measure
        if measure is None:
            if now - self._changed >= self._tempo.settle_s:
                self._measure = Measurement(now, done, now)
            return
        measure.worked_s += busy * (now - measure.until)
        measure.until = now
        span = now - measure.began
        if span < self._tempo.measure_s:
            return
        self._measure = Measurement(now, done, now)
        if measure.worked_s >= USED * self.level * span:
            self._judge(now, (done - measure.done) / span)

    def record_refusal(self, now: float, reason: str) -> bool:
        """A bad sign: back to the level that was good, else to half of this one.
        Returns whether that was done."""
        if now < self._deaf_until:
            return False
        self._deaf_until = now + self._tempo.settle_s + self._tempo.measure_s
        is_try = 0 < self._good < self.level
        self._retreat(
            now, self._good if is_try else max(self._low, self.level // 2), reason
        )
        return True

    def record_latency(self, now: float, seconds: float) -> bool:
        """An answer took so long. Returns whether that was a bad sign, and the level
        has changed."""
        usual = self._usual_s
        if usual is not None and seconds > LATE * usual + LATE_S:
            self._late += 1
        else:
            self._late = 0
        self._usual_s = (
            seconds if usual is None else min(seconds, usual + (seconds - usual) / 10)
        )
        return (
            self._late >= LATE_ANSWERS
            and self.level > self._low
            and self.record_refusal(now, "latency")
        )

    def restart(self) -> None:
        """Nothing was done for a while: what is known of throughput is old, the level
        stays."""
        self._good, self._changed, self._measure = 0, None, None

    def _judge(self, now: float, rate: float) -> None:
        """The level has been used for a whole measure, with this throughput."""
        self.rate = rate
        if 0 < self._good < self.level:
            growth = (self.level - self._good) / self._good
            if rate < self._good_rate * (1.0 + GAIN * growth):
                self._retreat(now, self._good, "no_gain")
                return
            self._rest_s = self._tempo.rest_s
        self._good, self._good_rate = self.level, rate
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
        self._next_try = now + self._rest_s
        self._rest_s = min(self._tempo.most_rest_s, self._rest_s * 2)
        self._set(now, level, reason)

    def _set(self, now: float, level: int, reason: str) -> None:
        self.level, self.reason = level, reason
        self._changed, self._measure = now, None
