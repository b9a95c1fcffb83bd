"""Decide which connections are too slow (pure functions), and end them.

Speeds count only the time spent waiting for the server, not the time of disk writes or
the pauses of rate limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from dlpool.dataclass import dataclass
from dlpool.errors import DlpoolError, TimedOut, TooSlow
from dlpool.transfer.chunks import MIN_TAIL_BYTES, Chunk
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.worker import ConnectionWorker

RATE_WINDOW_S = 2.0
MIN_SPAN_S = 0.05  # least waiting time from which a speed is computed
MIN_WAIT_S = 0.4  # waiting time before a connection is compared with its siblings
# waiting time from which a sibling counts in comparisons with older connections
OLD_S = 1.0
# round trips before a new connection is compared: TCP begins slowly (RFC 5681)
SLOW_START_TRIPS = 6.0
RECENT_S = 0.2  # of this waiting time, the latest speed is computed
SLOWER = 4.0  # factor below the fastest sibling that is too slow
MIN_GAIN_S = 0.6  # a connection that finishes within this time is not ended
# waiting time without a byte after which a connection counts as stalled
STALLED_S = 0.2
# bytes/s assumed for a stalled connection, so that its finish time is comparable
STALLED_RATE = 1.0
MAX_COMPARISON_DELAY_S = 60.0
MIN_ANSWER_S = 1.0  # waiting time before an answer counts as late
# factor above the usual response time that is too long while others are idle
ANSWER_FACTOR = 10.0


@dataclass
class SpeedSamples:
    """The latest samples of one connection, from ``RATE_WINDOW_S`` seconds of waiting.

    ``began_s``: how many seconds the worker had waited at the first sample.
    ``mark``: the sample at the last check of the minimum speed, which may be of an
    earlier connection. ``exchange``: the latest request.
    """

    samples: list[ExchangeStats] = field(default_factory=list)
    began_s: float = 0.0
    mark: ExchangeStats | None = None
    exchange: Exchange | None = None

    def follow(self, exchange: Exchange) -> None:
        """Forget the samples if ``exchange`` has a new connection."""
        if exchange is not self.exchange and not exchange.is_reused:
            self.samples.clear()
        self.exchange = exchange

    def add(self, sample: ExchangeStats) -> None:
        """Add a sample; of the samples older than the window, keep only the latest."""
        if not self.samples:
            self.began_s, self.mark = sample.waited_s, self.mark or sample
        self.samples.append(sample)
        while (
            len(self.samples) > 2
            and sample.waited_s - self.samples[1].waited_s >= RATE_WINDOW_S
        ):
            self.samples.pop(0)

    @property
    def rate(self) -> float:
        """The speed within the window, in bytes per second of waiting.

        0 while the samples span at most ``MIN_SPAN_S`` seconds.
        """
        if not self.samples:
            return 0.0
        first, last = self.samples[0], self.samples[-1]
        span = last.waited_s - first.waited_s
        return (last.received - first.received) / span if span > MIN_SPAN_S else 0.0

    @property
    def recent_rate(self) -> float:
        """The speed over the last ``RECENT_S`` seconds of waiting, or slightly more.

        0 while the samples span less.
        """
        if not self.samples:
            return 0.0
        last = self.samples[-1]
        spans = (
            (last.waited_s - one.waited_s, last.received - one.received)
            for one in reversed(self.samples)
        )
        return next((size / span for span, size in spans if span >= RECENT_S), 0.0)

    @property
    def effective_rate(self) -> float:
        """The rate, or ``STALLED_RATE`` for a stalled connection."""
        if not self.samples:
            return 0.0
        span = self.samples[-1].waited_s - self.samples[0].waited_s
        return self.rate or (STALLED_RATE if span >= STALLED_S else 0.0)

    @property
    def waited_s(self) -> float:
        return self.samples[-1].waited_s - self.began_s if self.samples else 0.0


def below_minimum(speed: SpeedSamples, limit: int, time_s: float) -> DlpoolError | None:
    """Return the error for a connection below ``limit`` bytes per second, or None.

    Checks the speed each time that the connection has waited for ``time_s`` seconds
    since the last check; between two checks the result is None. With a ``limit`` of 0,
    the result is always None.
    """
    now = speed.samples[-1]
    mark = speed.mark or now
    waited = now.waited_s - mark.waited_s
    if limit == 0 or waited < time_s:
        return None
    received = now.received - mark.received
    speed.mark = now
    if received >= limit * waited:
        return None
    return TooSlow(
        f"the connection moved {received} bytes in {waited:.0f} s, less than "
        f"low_speed_limit"
    )


def comparison_delay_s(replaced: int, first_s: float = MIN_WAIT_S) -> float:
    """Return the seconds before a connection is compared with others.

    ``replaced``: how many connections of the same chunk were replaced already. The
    result is ``first_s``, doubled for each of them, at most ``MAX_COMPARISON_DELAY_S``.
    """
    return min(MAX_COMPARISON_DELAY_S, first_s * 2.0 ** min(replaced, 10))


def slower_than_siblings(
    speed: SpeedSamples,
    siblings: Sequence[SpeedSamples],
    remaining: int,
    delay_s: float,
) -> DlpoolError | None:
    """Return the error for a connection much slower than the fastest sibling, or None.

    Siblings are the other connections of the download. New siblings do not count: some
    servers send the first seconds of each response at full speed. A sibling is new
    until it has waited ``OLD_S`` seconds, or half as long as the connection if that is
    less. The result is None before ``delay_s`` seconds of waiting, and for a connection
    that will finish its ``remaining`` bytes within ``MIN_GAIN_S``.
    """
    old_s = min(OLD_S, speed.waited_s / 2)
    best = max(
        (sibling.rate for sibling in siblings if sibling.waited_s >= old_s),
        default=0.0,
    )
    own = max(speed.rate, speed.recent_rate)  # it may be getting faster
    if speed.waited_s < delay_s or own * SLOWER >= best:
        return None
    if speed.rate > 0 and remaining / speed.rate < MIN_GAIN_S:
        return None
    reason = (
        f"the connection brings {speed.rate:.0f} bytes/s, its siblings up to {best:.0f}"
    )
    return TooSlow(reason, is_comparison=True)


def delays_completion(
    speed: SpeedSamples, remaining: int, delay_s: float
) -> DlpoolError | None:
    """Return the error for a connection that fetches the last bytes slowly, or None.

    Call it while another connection is idle. ``remaining``: bytes that the slow
    connection still has to fetch. The result is None if at least
    ``2 * MIN_TAIL_BYTES`` bytes remain, because an idle connection can then take a part
    of them. The result is also None before ``delay_s`` seconds of waiting, and for a
    connection that will finish within ``MIN_GAIN_S``.
    """
    if (
        speed.waited_s < delay_s
        or remaining >= 2 * MIN_TAIL_BYTES
        or remaining <= speed.rate * MIN_GAIN_S
    ):
        return None
    reason = (
        f"the connection receives {speed.rate:.0f} bytes/s, and others wait for its "
        f"last {remaining} bytes"
    )
    return TooSlow(reason, is_comparison=True)


def header_timed_out(
    elapsed_s: float, connect_timeout_s: float, read_timeout_s: float
) -> DlpoolError | None:
    """Return the error for a request whose response header took too long, or None.

    ``elapsed_s``: seconds since the request was sent. The limit is the sum of the two
    timeouts.
    """
    if elapsed_s < connect_timeout_s + read_timeout_s:
        return None
    return TimedOut(
        "the server did not complete its response header within the timeouts"
    )


def answer_timed_out(
    elapsed_s: float, usual_s: float, delay_s: float
) -> DlpoolError | None:
    """Return the error for a request whose answer is much later than usual, or None.

    ``elapsed_s``: seconds since the request was sent. ``usual_s``: the longest time in
    seconds that a worker of the download waited for its previous answer. Before
    ``delay_s`` seconds the result is None.
    """
    if elapsed_s < max(delay_s, usual_s * ANSWER_FACTOR):
        return None
    return TooSlow(
        f"no answer for {elapsed_s:.1f} s, earlier answers took {usual_s:.2f} s",
        is_comparison=True,
    )


class SpeedMonitor:
    """Measures the connections of an attempt and ends those that are too slow.

    Used by the timer thread.
    """

    def __init__(self, context: TransferContext) -> None:
        self._context = context
        self._speeds: dict[ConnectionWorker, SpeedSamples] = {}

    def check(self, workers: Sequence[ConnectionWorker]) -> bool:
        """Sample every worker, and end slow connections.

        Reports the present speeds to the scheduler. Returns whether the next check
        should follow soon: a worker is idle, or the speed of a connection is not
        settled.
        """
        self._speeds = {
            worker: speed for worker, speed in self._speeds.items() if worker in workers
        }
        busy = [
            (worker, exchange)
            for worker in list(workers)
            if (exchange := worker.exchange) is not None
        ]
        for worker, exchange in busy:
            speed = self._speeds.setdefault(worker, SpeedSamples())
            speed.follow(exchange)
            speed.add(worker.stats())
            if (chunk := worker.chunk) is not None:
                self._context.scheduler.set_rate(chunk, speed.effective_rate)
        for worker, exchange in busy:
            chunk = worker.chunk
            error = self._own_fault(worker, exchange) or self._comparative_fault(
                worker, exchange, chunk, workers
            )
            if error is not None:
                del self._speeds[worker]
                if chunk is not None:
                    chunk.replacements += 1
                exchange.cancel(error)
        return self._context.scheduler.has_idle_worker or any(
            speed.waited_s < OLD_S for speed in self._speeds.values()
        )

    def _own_fault(
        self, worker: ConnectionWorker, exchange: Exchange
    ) -> DlpoolError | None:
        """Return the error for a connection that is too slow regardless of others."""
        network = self._context.client.settings
        if exchange.sent_at is None:
            return None
        if exchange.answered_at is None:
            elapsed_s = self._context.clock() - exchange.sent_at
            return header_timed_out(
                elapsed_s, network.connect_timeout, network.read_timeout
            )
        return below_minimum(
            self._speeds[worker], network.low_speed_limit, network.low_speed_time
        )

    def _comparative_fault(
        self,
        worker: ConnectionWorker,
        exchange: Exchange,
        chunk: Chunk | None,
        workers: Sequence[ConnectionWorker],
    ) -> DlpoolError | None:
        """Return the error for a connection that is too slow compared with others."""
        others = [other for other in workers if other is not worker]
        if chunk is None or exchange.sent_at is None:
            return None
        if exchange.answered_at is not None:
            delay_s = max(
                comparison_delay_s(chunk.replacements),
                SLOW_START_TRIPS * (exchange.answer_s or 0.0),
            )
            speeds = [
                self._speeds[other]
                for other in others
                if other.exchange is not None and other in self._speeds
            ]
            error = slower_than_siblings(
                self._speeds[worker], speeds, chunk.remaining, delay_s
            )
            if error is None and self._context.scheduler.has_idle_worker:
                error = delays_completion(
                    self._speeds[worker], chunk.remaining, delay_s
                )
            return error
        usual = [
            answer_s
            for one in workers
            if (answer_s := one.usual_answer_s()) is not None
        ]
        if not usual or not self._has_idle(workers):
            return None
        return answer_timed_out(
            self._context.clock() - exchange.sent_at,
            max(usual),
            comparison_delay_s(chunk.replacements, MIN_ANSWER_S),
        )

    def _has_idle(self, workers: Sequence[ConnectionWorker]) -> bool:
        """Return whether a worker has no request in flight; ignore retired workers."""
        return any(
            worker.exchange is None and not worker.is_retired for worker in workers
        )
