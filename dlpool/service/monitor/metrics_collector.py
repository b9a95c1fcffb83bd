"""The counters of jobs and workers, updated by the main thread of a supervisor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from dlpool.jobs.states import TERMINAL_DISPOSITIONS
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.metrics import MIB, Metrics
from dlpool.service.job_log import LEASE_LOST_REPLIES
from dlpool.service.wire.counters import (
    LOG_DROPPED,
    RANGE_SECONDS,
    RECEIVED,
    ranges_of,
    retries_of,
    scans_of,
)
from dlpool.service.wire.frames import EndedFrame

RATE_WINDOW_S = 10.0
# number and greatest age of the downloads that show the usual speed of this node
RECENT, RECENT_S = 20, 600.0
MIN_RECENT_BYTES = 64 * 1024  # the speed of a smaller file says nothing


class ByteRate:
    """The rate at which a byte counter has grown over the last ten seconds. Used by one
    thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, total: int) -> int:
        """Add the present value of the counter, and return the rate in bytes per
        second; 0 for the first value."""
        now = self._clock()
        self._samples.append((now, total))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return round((total - before) / (now - since)) if now > since else 0


class MetricsCollector:
    """The updater of the metrics of jobs and workers. Used by the main thread, except
    ``receive_rate``.

    A result is counted once, when Redis has confirmed that it is recorded.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_dropped = 0
        self.received_bytes = 0  # since the start; other threads may read it
        self._rate = ByteRate(time.monotonic)
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def receive_rate(self) -> int:
        """Return the received bytes per second, over the last ten seconds. Called by
        the heartbeat thread only."""
        return self._rate.update(self.received_bytes)

    def count_result(self, request: FinishRequest, reply: str) -> None:
        """Count the result of a job. ``reply``: the answer of Redis to ``request``."""
        label = str(request.note.get("label", ""))
        if reply in LEASE_LOST_REPLIES:
            self.count_lost("fenced")
        elif request.disposition in TERMINAL_DISPOSITIONS:
            self._metrics.jobs.labels(request.disposition, label).inc()
        else:
            self._metrics.requeued.labels(request.disposition, label).inc()

    def count_lost(self, disposition: str = "lost") -> None:
        """Count an attempt whose job another supervisor has taken over.

        ``disposition``: the value of the metric's label, ``lost`` or ``fenced``.
        """
        self._metrics.requeued.labels(disposition, "").inc()

    def observe_run(self, frame: EndedFrame, seconds: float) -> None:
        """Record the duration and the speed of a run. ``seconds``: the duration in the
        worker."""
        self._metrics.job_seconds.labels(frame.attempt_result).observe(seconds)
        received, took_s = (
            frame.statistics.get("received", 0),
            frame.statistics.get("seconds", 0.0),
        )
        if received >= MIN_RECENT_BYTES and took_s > 0:
            self._recent.append((time.monotonic(), received / took_s))
        if received >= MIB and took_s > 0:
            self._metrics.job_speed.observe(received / took_s)

    def recent_speeds(self) -> list[float]:
        """Return the speeds, in bytes per second, of up to 20 downloads that ended in
        the last ten minutes. Small downloads are left out."""
        return [speed for at, speed in self._recent if at > time.monotonic() - RECENT_S]

    def add_worker_counters(self, new: Mapping[str, float]) -> None:
        """Add the increase of a worker's counters to the metrics."""
        metrics = self._metrics
        metrics.received.inc(new.get(RECEIVED, 0))
        self.received_bytes += int(new.get(RECEIVED, 0))
        metrics.log_dropped.inc(new.get(LOG_DROPPED, 0))
        for label, count in retries_of(new).items():
            metrics.retries.labels(label).inc(count)
        for outcome, count in scans_of(new).items():
            metrics.scans.labels(outcome).inc(count)
        if RANGE_SECONDS in new:
            metrics.add_ranges(ranges_of(new), new[RANGE_SECONDS])

    def set_log_dropped(self, total: int) -> None:
        """Set the number of log records that the supervisor itself has lost since its
        start."""
        self._metrics.log_dropped.inc(total - self._log_dropped)
        self._log_dropped = total
