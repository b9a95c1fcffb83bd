"""Pushes jobs all through a run, in both ways, whatever happens to Redis meanwhile."""

from __future__ import annotations

import random
import threading
import time

import redis

from dlpool.errors import QueueError
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.transitions import Transitions
from tests.chaos.jobs import Job, Jobs

MAX_JOBS = 9000  # as many as Redis remembers, nearly
JOBS_A_SECOND = 15.0
BURST = 60  # half of the jobs come so many at once, as many as there are not slots for
GIVE_UP_S = 60.0
RAW_ONLY = ("malformed", "bad_field")


class Pusher:
    """A thread between ``start`` and ``finish``. ``client`` goes past the faults of the network."""

    def __init__(self, seed: int, jobs: Jobs, client: redis.Redis, seconds: float) -> None:
        self._chance = random.Random(f"{seed}: pusher")
        self._jobs = jobs
        self._client = client
        self._transitions = Transitions(client, QueueKeys())
        self._apart_s = 1 / min(JOBS_A_SECOND, MAX_JOBS / seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make no more jobs; what cannot be pushed yet is pushed when Redis is back."""
        self._stopping.set()

    def finish(self) -> None:
        """Wait until all is pushed."""
        self._thread.join(GIVE_UP_S)
        assert not self._thread.is_alive(), "the last jobs could not be pushed"

    def _serve(self) -> None:
        while not self._stopping.is_set() and len(self._jobs.made) < MAX_JOBS:
            for _ in range(self._chance.choices([1, BURST], [BURST, 1])[0]):
                for job in self._jobs.make():
                    self._push(job)
            self._stopping.wait(2 * self._apart_s * self._chance.uniform(0, 2))

    def _push(self, job: Job) -> None:
        if job.id is not None and job.kind not in RAW_ONLY and self._chance.random() < 0.5:
            self._push_by_id(job, job.id)
        else:
            self._push_raw(job)

    def _push_raw(self, job: Job) -> None:
        """LPUSH. It is never repeated after a lost reply, as that would be another job."""
        job.push = "in doubt"
        try:
            self._client.lpush(QueueKeys().intake, job.raw)
            job.push = "done"
        except (redis.ConnectionError, redis.TimeoutError):
            pass
        except redis.ResponseError:
            job.push = "refused"

    def _push_by_id(self, job: Job, job_id: str) -> None:
        """As ``dlpool push --id`` does: repeated until Redis has answered."""
        deadline = time.monotonic() + GIVE_UP_S
        job.push = "in doubt"
        while time.monotonic() < deadline:
            try:
                self._transitions.push([(PushedJob.parse(job.raw), job_id)])
            except QueueError:
                time.sleep(0.1)
            else:
                job.push = "done"
                return
