"""Counts what happens to jobs and in workers, as the main thread of a supervisor hears of it."""

from __future__ import annotations

from collections.abc import Mapping

from dlpool.jobs.transitions import Finish
from dlpool.observe.metrics import MIB, Metrics
from dlpool.service.frames import EndedFrame
from dlpool.service.joblog import DISOWNED
from dlpool.service.spool import FINAL
from dlpool.service.tally import LOG_DROPPED, RANGE_SECONDS, RECEIVED, ranges_of, retries_of


class Meter:
    """Used by the main thread only. A job is counted when Redis has answered to its end, and so once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_dropped = 0
        self.received = 0  # bytes of body, since the start; other threads may read it

    def ended(self, ending: Finish, reply: str) -> None:
        """Redis knows how a job has left this node."""
        label = str(ending.note.get("label", ""))
        if reply in DISOWNED:
            self.lost("disowned")
        elif ending.outcome in FINAL:
            self._metrics.jobs.labels(ending.outcome, label).inc()
        else:
            self._metrics.requeued.labels(ending.outcome, label).inc()

    def lost(self, outcome: str = "lost") -> None:
        """A job was another node's by now."""
        self._metrics.requeued.labels(outcome, "").inc()

    def ran(self, frame: EndedFrame, seconds: float) -> None:
        """A job has left its worker, which had it for so long."""
        self._metrics.job_seconds.labels(frame.ending).observe(seconds)
        received, took_s = frame.result.get("received", 0), frame.result.get("seconds", 0.0)
        if received >= MIB and took_s > 0:
            self._metrics.job_speed.observe(received / took_s)

    def counted(self, new: Mapping[str, float]) -> None:
        """A worker has counted so much more since its last heartbeat."""
        metrics = self._metrics
        metrics.received.inc(new.get(RECEIVED, 0))
        self.received += int(new.get(RECEIVED, 0))
        metrics.log_dropped.inc(new.get(LOG_DROPPED, 0))
        for label, count in retries_of(new).items():
            metrics.retries.labels(label).inc(count)
        if RANGE_SECONDS in new:
            metrics.add_ranges(ranges_of(new), new[RANGE_SECONDS])

    def log_dropped(self, total: int) -> None:
        """So many records of the supervisor itself were lost until now."""
        self._metrics.log_dropped.inc(total - self._log_dropped)
        self._log_dropped = total
