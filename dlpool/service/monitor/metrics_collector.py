"""Counts what happens to jobs and in workers, as the main thread of a supervisor hears
of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.metrics import MIB, Metrics
from dlpool.service.job_log import DISOWNED
from dlpool.service.queue.spool import FINAL_OUTCOMES
from dlpool.service.wire.counters import (
    LOG_DROPPED,
    RANGE_SECONDS,
    RECEIVED,
    ranges_of,
    retries_of,
    scans_of,
)
from dlpool.service.wire.frames import EndedFrame

SPEED_S = 10.0
RECENT, RECENT_S = 20, 600.0  # downloads that tell what is usual here
TELLING = 64 * 1024  # bytes: of a smaller file the speed says nothing


class ByteRate:
    """Bytes a second over the last ten seconds. Used by one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, total: int) -> int:
        """The speed, now that ``total`` bytes have come; 0 when it is asked for the
        first time."""
        now = self._clock()
        self._seen.append((now, total))
        while len(self._seen) > 2 and self._seen[1][0] <= now - SPEED_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return round((total - before) / (now - since)) if now > since else 0


class MetricsCollector:
    """Used by the main thread only. A job is counted when Redis has answered to its
    end, and so once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_dropped = 0
        self.received_bytes = (
            0  # bytes of body, since the start; other threads may read it
        )
        self._speed = ByteRate(time.monotonic)
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def receive_rate(self) -> int:
        """Bytes a second over the last ten seconds. For the beat thread alone."""
        return self._speed.update(self.received_bytes)

    def count_result(self, ending: FinishRequest, reply: str) -> None:
        """Redis knows how a job has left this node."""
        label = str(ending.note.get("label", ""))
        if reply in DISOWNED:
            self.count_lost("disowned")
        elif ending.disposition in FINAL_OUTCOMES:
            self._metrics.jobs.labels(ending.disposition, label).inc()
        else:
            self._metrics.requeued.labels(ending.disposition, label).inc()

    def count_lost(self, outcome: str = "lost") -> None:
        """A job was another node's by now."""
        self._metrics.requeued.labels(outcome, "").inc()

    def observe_run(self, frame: EndedFrame, seconds: float) -> None:
        """A job has left its worker, which had it for so long."""
        self._metrics.job_seconds.labels(frame.attempt_result).observe(seconds)
        received, took_s = (
            frame.statistics.get("received", 0),
            frame.statistics.get("seconds", 0.0),
        )
        if received >= TELLING and took_s > 0:
            self._recent.append((time.monotonic(), received / took_s))
        if received >= MIB and took_s > 0:
            self._metrics.job_speed.observe(received / took_s)

    def recent_speeds(self) -> list[float]:
        """The speeds of the last downloads, in bytes a second, of those that ended
        within ten minutes."""
        return [speed for at, speed in self._recent if at > time.monotonic() - RECENT_S]

    def add_worker_counters(self, new: Mapping[str, float]) -> None:
        """A worker has counted so much more since its last heartbeat."""
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
        """So many records of the supervisor itself were lost until now."""
        self._metrics.log_dropped.inc(total - self._log_dropped)
        self._log_dropped = total
