"""Reads the events of the queue as they come, as the stream is capped."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any, NamedTuple

import redis

from dlpool.jobs.keys import QueueKeys

AT_ONCE = 2000
LOOK_S = 0.1
ENDS = ("job_succeeded", "job_failed", "job_cancelled")


class Seen(NamedTuple):
    """An event: when by the clock of Redis (ms), its name, and its other fields."""

    at_ms: int
    event: str
    fields: dict[str, str]


class Witness:
    """A thread until ``stop``. ``of_job`` is what it has seen, by job id."""

    def __init__(self, client: redis.Redis) -> None:
        self._client: Any = client
        self._stopping = threading.Event()
        self._last = b"-"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.of_job: dict[str, list[Seen]] = defaultdict(list)
        self.ended = 0
        self._thread.start()

    def stop(self) -> None:
        """See what there is, and end."""
        self._stopping.set()
        self._thread.join()
        while self._look():
            pass

    def is_over(self, job_id: str) -> bool:
        """Whether a job has come to its end, and was not retried since."""
        return self.last(job_id) in ENDS

    def last(self, job_id: str) -> str:
        """The last event of a job."""
        events = self.of_job.get(job_id)
        return events[-1].event if events else ""

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._look() < AT_ONCE:
                    self._stopping.wait(LOOK_S)
            except redis.RedisError:
                time.sleep(LOOK_S)

    def _look(self) -> int:
        found = self._client.xrange(QueueKeys().events, self._last, "+", AT_ONCE)
        for number, fields in found:
            text = {name.decode(): value.decode() for name, value in fields.items()}
            event = text.pop("event")
            self.of_job[text.pop("id")].append(Seen(int(number.partition(b"-")[0]), event, text))
            self.ended += event in ENDS
            self._last = b"(" + number
        return len(found)
