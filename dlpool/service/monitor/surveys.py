"""Threads that look now and then at what the main thread must not wait for: the queue
in Redis, and file systems.

A survey that hangs (a network file system without its server) holds up nothing but
itself.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from dlpool.disk import space_of
from dlpool.errors import QueueError
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.transitions import OldestWaiting, Transitions
from dlpool.observe.log import Logger
from dlpool.observe.metrics import Metrics, set_each
from dlpool.service.queue.redis_state import RedisState

SURVEY_S = 5.0


class SurveyThread:
    """``serve`` is a thread that calls ``look`` every few seconds while ``is_wanted``,
    whatever it raises."""

    def __init__(
        self,
        look: Callable[[], None],
        is_wanted: Callable[[], bool],
        stopping: threading.Event,
        log: Logger,
    ) -> None:
        self._look = look
        self._is_wanted = is_wanted
        self._stopping = stopping
        self._log = log

    def serve(self) -> None:
        """Until all stop."""
        while not self._stopping.is_set():
            try:
                if self._is_wanted():
                    self._look()
            except Exception as error:  # noqa: BLE001 - top of a thread that the service can do without
                self._log.warning("survey_failed", error=error)
            self._stopping.wait(SURVEY_S)


class IntakeAge:
    """For how long, at least, the oldest job of the intake list has been there. Jobs of
    the list carry no time, so it is the time for which the list's old end has been seen
    to be the same job. Pure."""

    def __init__(self) -> None:
        self._mark = ""
        self._length = 0
        self._since = 0.0

    def sample(self, seen: OldestWaiting, now: float, *, is_fifo: bool) -> float:
        """Seconds until ``now``; 0 for an empty list. Of equal jobs it is told by the
        length that one was taken."""
        was_taken = is_fifo and seen.backlog < self._length
        if seen.fingerprint != self._mark or was_taken:
            self._since = now
        self._mark, self._length = seen.fingerprint, seen.backlog
        return now - self._since if seen.fingerprint else 0.0


class QueueSurvey:
    """``look`` reads the figures of the whole queue; they are forgotten while Redis is
    away. Used by one thread."""

    def __init__(
        self,
        transitions: Transitions,
        metrics: Metrics,
        link: RedisState,
        order: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._transitions = transitions
        self._views = QueueViews(transitions.client, transitions.keys)
        self._metrics = metrics
        self._link = link
        self._order = order
        self._clock = clock
        self._oldest = IntakeAge()

    def sample(self) -> None:
        """Once."""
        try:
            if self._link.error is None:
                self._read()
                return
        except QueueError as error:
            self._link.count_failure(
                error
            )  # what is away is for the others to say, who need it
        self._metrics.clear_queue()

    def _read(self) -> None:
        oldest, stats, metrics = (
            self._transitions.oldest_waiting(),
            self._views.stats(),
            self._metrics,
        )
        waited_s = self._oldest.sample(
            oldest, self._clock(), is_fifo=self._order() == "fifo"
        )
        set_each(
            metrics.queue_oldest, {"intake": waited_s, "ready": oldest.ready_age_s}
        )
        ready = {f"ready_{name}": count for name, count in stats.ready.items()}
        set_each(
            metrics.queue_jobs,
            {
                "intake": stats.backlog,
                "reserved": stats.reserved,
                **ready,
                "delayed": stats.delayed,
                "parked": stats.throttled,
                "paused": stats.paused,
                "running": stats.running,
            },
        )
        set_each(
            metrics.queue_hosts,
            {"waited_for": len(stats.waiting_hosts), "held": len(stats.held_hosts)},
        )
        metrics.queue_records.set(stats.failure_records)
        metrics.queue_supervisors.set(len(stats.supervisors))
        metrics.queue_halted.set(stats.is_halted)


class DiskSurvey:
    """``look`` sees how much room there is, and how many outcomes are spooled. Used by
    one thread."""

    def __init__(
        self, folders: Callable[[], Iterable[str]], spool: Path, metrics: Metrics
    ) -> None:
        self._folders = folders
        self._spool = spool
        self._metrics = metrics

    def sample(self) -> None:
        """Once. What cannot be asked is NaN."""
        for folder in self._folders():
            size, free = size_and_free(Path(folder))
            self._metrics.disk_size.labels(folder).set(size)
            self._metrics.disk_free.labels(folder).set(free)
        spooled = math.nan
        with suppress(OSError):
            spooled = sum(name.endswith(".json") for name in os.listdir(self._spool))
        self._metrics.spooled.set(spooled)


def size_and_free(folder: Path) -> tuple[float, float]:
    """Bytes of its file system, and how many of them this user may still write; a
    missing folder is its parent's."""
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
