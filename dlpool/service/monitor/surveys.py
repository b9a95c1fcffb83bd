"""Measurements that may block, each in a thread of its own: the queue in Redis, and the
file systems.

A survey that hangs, for instance in a network file system without its server, delays
nothing else.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from dlpool.errors import QueueError
from dlpool.freespace import space_of
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.transitions import OldestWaiting, Transitions
from dlpool.observe.log import Logger
from dlpool.observe.metrics import Metrics, set_each
from dlpool.service.queue.redis_state import RedisState

SURVEY_S = 5.0


class SurveyThread:
    """The loop that calls ``survey`` every ``SURVEY_S`` seconds while ``is_wanted``
    returns true. One thread runs ``serve``."""

    def __init__(
        self,
        survey: Callable[[], None],
        is_wanted: Callable[[], bool],
        stopping: threading.Event,
        log: Logger,
    ) -> None:
        self._survey = survey
        self._is_wanted = is_wanted
        self._stopping = stopping
        self._log = log

    def serve(self) -> None:
        """Run until the supervisor stops. An error of a survey is logged."""
        while not self._stopping.is_set():
            try:
                if self._is_wanted():
                    self._survey()
            except Exception as error:  # noqa: BLE001 - top of a thread; metrics must not stop the service
                self._log.warning("survey_failed", error=error)
            self._stopping.wait(SURVEY_S)


class IntakeAge:
    """A lower bound for the age of the oldest job in the intake list. Does no I/O.

    Jobs in the list have no timestamp. The age is the time since the survey first saw
    the oldest job at the old end of the list.
    """

    def __init__(self) -> None:
        self._fingerprint = ""
        self._backlog = 0
        self._since = 0.0

    def sample(self, oldest: OldestWaiting, now: float, *, is_fifo: bool) -> float:
        """Return the age in seconds at the time ``now``; 0 for an empty list.

        If a fifo list has become shorter, a supervisor has taken the oldest job, and
        the age restarts at 0. The fingerprint alone does not show this: the next job
        may have the same one.
        """
        was_taken = is_fifo and oldest.backlog < self._backlog
        if oldest.fingerprint != self._fingerprint or was_taken:
            self._since = now
        self._fingerprint, self._backlog = oldest.fingerprint, oldest.backlog
        return now - self._since if oldest.fingerprint else 0.0


class QueueSurvey:
    """The survey of the whole queue, for the metrics. Used by one thread.

    While Redis is unavailable, the metrics of the queue have no values.
    """

    def __init__(
        self,
        transitions: Transitions,
        metrics: Metrics,
        redis: RedisState,
        order: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._transitions = transitions
        self._views = QueueViews(transitions.client, transitions.keys)
        self._metrics = metrics
        self._redis = redis
        self._order = order
        self._clock = clock
        self._intake_age = IntakeAge()

    def sample(self) -> None:
        """Update the metrics of the queue."""
        try:
            if self._redis.error is None:
                self._read()
                return
        except QueueError as error:
            # the threads that need Redis report the outage
            self._redis.count_failure(error)
        self._metrics.clear_queue()

    def _read(self) -> None:
        oldest, stats, metrics = (
            self._transitions.oldest_waiting(),
            self._views.stats(),
            self._metrics,
        )
        intake_s = self._intake_age.sample(
            oldest, self._clock(), is_fifo=self._order() == "fifo"
        )
        set_each(
            metrics.queue_oldest, {"intake": intake_s, "ready": oldest.ready_age_s}
        )
        ready = {f"ready_{name}": count for name, count in stats.ready.items()}
        set_each(
            metrics.queue_jobs,
            {
                "intake": stats.backlog,
                "reserved": stats.reserved,
                **ready,
                "delayed": stats.delayed,
                "throttled": stats.throttled,
                "paused": stats.paused,
                "running": stats.running,
            },
        )
        set_each(
            metrics.queue_hosts,
            {"waiting": len(stats.waiting_hosts), "held": len(stats.held_hosts)},
        )
        metrics.queue_records.set(stats.failure_records)
        metrics.queue_supervisors.set(len(stats.supervisors))
        metrics.queue_paused.set(stats.is_halted)


class DiskSurvey:
    """The survey of the free space of folders, and of the number of spooled results.
    Used by one thread."""

    def __init__(
        self, folders: Callable[[], Iterable[str]], spool: Path, metrics: Metrics
    ) -> None:
        self._folders = folders
        self._spool = spool
        self._metrics = metrics

    def sample(self) -> None:
        """Update the metrics of the disks; a value that cannot be measured is NaN."""
        for folder in self._folders():
            size, free = size_and_free(Path(folder))
            self._metrics.disk_size.labels(folder).set(size)
            self._metrics.disk_free.labels(folder).set(free)
        spooled = math.nan
        with suppress(OSError):
            spooled = sum(name.endswith(".json") for name in os.listdir(self._spool))
        self._metrics.spooled.set(spooled)


def size_and_free(folder: Path) -> tuple[float, float]:
    """Return the size of a folder's file system, and how much this user may still write
    there, in bytes.

    If the folder does not exist, its nearest existing parent is used. Both results are
    NaN if they cannot be measured.
    """
    try:
        found = space_of(folder)
    except FileNotFoundError:
        return size_and_free(folder.absolute().parent)
    except OSError:
        return math.nan, math.nan
    return (
        (math.nan, math.nan)
        if found is None
        else (float(found.size), float(found.free))
    )
