"""Which connections are to be ended because they bring too little: pure rules, and the
watch that applies them.

Each connection is judged by the time that it kept us waiting: what we spend at the
disk, or asleep in a rate limit, is not its fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlpool.errors import DlpoolError, TimedOut, TooSlow
from dlpool.transfer.chunks import MIN_TAIL_BYTES, Chunk
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.worker import ConnectionWorker

RATE_WINDOW_S = 2.0  # over which a speed is measured
LEAST_SPAN_S = 0.05  # of waiting, below which a speed would be noise
LEAST_WAIT_S = 1.0  # of waiting before a connection is compared with its siblings
SLOWER = 5.0  # times slower than the fastest sibling is too slow
LEAST_GAIN_S = 2.0  # a connection that will be done by then is left alone
STALLED_S = 0.5  # of waiting without a byte, after which a connection counts as stalled
# bytes/s assumed for a stalled connection, so that its finish time can be compared
STALLED_RATE = 1.0
MAX_PATIENCE_S = 60.0
ANSWER_FACTOR = (
    10.0  # times the usual wait for an answer is too long, if others are idle meanwhile
)


@dataclass
class SpeedSamples:
    """What the watch remembers of one connection since ``samples`` began."""

    samples: list[ExchangeStats] = field(default_factory=list)
    began_s: float = 0.0
    mark: ExchangeStats = field(default_factory=lambda: ExchangeStats(0, 0.0))

    def add(self, sample: ExchangeStats) -> None:
        """Take a new sample; those older than the window go, but for the last of
        them."""
        if not self.samples:
            self.began_s, self.mark = sample.waited_s, sample
        self.samples.append(sample)
        while (
            len(self.samples) > 2
            and sample.waited_s - self.samples[1].waited_s >= RATE_WINDOW_S
        ):
            self.samples.pop(0)

    @property
    def rate(self) -> float:
        """Bytes a second over the last seconds of waiting; 0 while there is too little
        to say."""
        if not self.samples:
            return 0.0
        first, last = self.samples[0], self.samples[-1]
        span = last.waited_s - first.waited_s
        return (last.received - first.received) / span if span > LEAST_SPAN_S else 0.0

    @property
    def effective_rate(self) -> float:
        """The rate, but ``STALLED_RATE`` for a connection that has received nothing for
        ``STALLED_S``."""
        if not self.samples:
            return 0.0
        span = self.samples[-1].waited_s - self.samples[0].waited_s
        return self.rate or (STALLED_RATE if span >= STALLED_S else 0.0)

    @property
    def waited_s(self) -> float:
        return self.samples[-1].waited_s - self.began_s if self.samples else 0.0


def below_minimum(gauge: SpeedSamples, limit: int, time_s: float) -> DlpoolError | None:
    """The error for a connection that stayed below ``limit`` bytes/s during ``time_s``
    of waiting."""
    now = gauge.samples[-1]
    waited = now.waited_s - gauge.mark.waited_s
    if limit == 0 or waited < time_s:
        return None
    received = now.received - gauge.mark.received
    gauge.mark = now
    if received >= limit * waited:
        return None
    return TooSlow(
        f"the connection moved {received} bytes in {waited:.0f} s, less than "
        f"low_speed_limit"
    )


def comparison_delay_s(replaced: int) -> float:
    """How long a connection is waited for before it is compared: longer each time a new
    one was no better."""
    return min(MAX_PATIENCE_S, LEAST_WAIT_S * 2.0 ** min(replaced, 10))


def slower_than_siblings(
    gauge: SpeedSamples,
    siblings: Sequence[SpeedSamples],
    remaining: int,
    patience: float,
) -> DlpoolError | None:
    """The error for a connection much slower than the fastest of its siblings, if
    replacing it is worth it.

    Young siblings prove nothing: some servers give the first seconds of each answer at
    full speed.
    """
    best = max(
        (sibling.rate for sibling in siblings if sibling.waited_s >= LEAST_WAIT_S),
        default=0.0,
    )
    if gauge.waited_s < patience or gauge.rate * SLOWER >= best:
        return None
    if gauge.rate > 0 and remaining / gauge.rate < LEAST_GAIN_S:
        return None
    reason = (
        f"the connection brings {gauge.rate:.0f} bytes/s, its siblings up to {best:.0f}"
    )
    return TooSlow(reason, is_comparison=True)


def delays_completion(
    gauge: SpeedSamples, remaining: int, patience: float
) -> DlpoolError | None:
    """Return the error for a connection that is slow with its last bytes while others
    are idle.

    For more than ``2 * LEAST_TAIL`` bytes it returns None: idle connections steal a
    part of them.
    """
    if (
        gauge.waited_s < patience
        or remaining >= 2 * MIN_TAIL_BYTES
        or remaining <= gauge.rate * LEAST_GAIN_S
    ):
        return None
    reason = (
        f"the connection receives {gauge.rate:.0f} bytes/s, and others wait for its "
        f"last {remaining} bytes"
    )
    return TooSlow(reason, is_comparison=True)


def header_timed_out(
    asked_s: float, connect_timeout_s: float, read_timeout_s: float
) -> DlpoolError | None:
    """The error for a request that has had no complete answer header for ``asked_s``,
    however its bytes trickle."""
    if asked_s < connect_timeout_s + read_timeout_s:
        return None
    return TimedOut("the server did not complete its answer within the time limits")


def answer_timed_out(
    asked_s: float, usual_s: float, patience: float
) -> DlpoolError | None:
    """The error for a request unanswered far longer than its siblings' were, while a
    connection has no work."""
    if asked_s < max(patience, usual_s * ANSWER_FACTOR):
        return None
    return TooSlow(
        f"no answer for {asked_s:.1f} s, its siblings waited {usual_s:.2f} s",
        is_comparison=True,
    )


class SpeedMonitor:
    """Looks at all connections of a download, again and again, and ends those that
    bring too little.

    Used by the ticker's thread.
    """

    def __init__(self, context: TransferContext) -> None:
        self._context = context
        self._gauges: dict[ConnectionWorker, SpeedSamples] = {}

    def check(self, lanes: Sequence[ConnectionWorker]) -> None:
        """Take a sample of every lane, tell the board their speeds, and abort what is
        hopeless."""
        self._gauges = {
            lane: gauge for lane, gauge in self._gauges.items() if lane in lanes
        }
        busy = [
            (lane, exchange)
            for lane in list(lanes)
            if (exchange := lane.exchange) is not None
        ]
        for lane, _exchange in busy:
            gauge = self._gauges.setdefault(lane, SpeedSamples())
            gauge.add(lane.stats())
            if (chunk := lane.chunk) is not None:
                self._context.scheduler.set_rate(chunk, gauge.effective_rate)
        for lane, exchange in busy:
            chunk = lane.chunk
            error = self._hopeless(lane, exchange) or self._outdone(
                lane, exchange, chunk, lanes
            )
            if error is not None:
                del self._gauges[lane]
                if chunk is not None:
                    chunk.replacements += 1
                exchange.cancel(error)

    def _hopeless(
        self, lane: ConnectionWorker, exchange: Exchange
    ) -> DlpoolError | None:
        """What is too slow by itself."""
        network = self._context.client.settings
        if exchange.sent_at is None:
            return None
        if exchange.answered_at is None:
            asked_s = self._context.clock() - exchange.sent_at
            return header_timed_out(
                asked_s, network.connect_timeout, network.read_timeout
            )
        return below_minimum(
            self._gauges[lane], network.low_speed_limit, network.low_speed_time
        )

    def _outdone(
        self,
        lane: ConnectionWorker,
        exchange: Exchange,
        chunk: Chunk | None,
        lanes: Sequence[ConnectionWorker],
    ) -> DlpoolError | None:
        """Return the error for a connection that is too slow compared with the others
        of the download."""
        others = [other for other in lanes if other is not lane]
        if chunk is None or exchange.sent_at is None:
            return None
        patience = comparison_delay_s(chunk.replacements)
        if exchange.answered_at is not None:
            gauges = [
                self._gauges[other]
                for other in others
                if other.exchange is not None and other in self._gauges
            ]
            error = slower_than_siblings(
                self._gauges[lane], gauges, chunk.remaining, patience
            )
            if error is None and self._context.scheduler.has_idle_worker:
                error = delays_completion(self._gauges[lane], chunk.remaining, patience)
            return error
        usual = [
            answer_s
            for other in others
            if (answer_s := other.latest_answer_s()) is not None
        ]
        if not usual or not self._has_idle(lanes):
            return None
        return answer_timed_out(
            self._context.clock() - exchange.sent_at, max(usual), patience
        )

    def _has_idle(self, lanes: Sequence[ConnectionWorker]) -> bool:
        """Whether a connection has no request in flight."""
        return any(lane.exchange is None and not lane.is_retired for lane in lanes)
