"""An operator who does whatever comes to mind, and remembers what was answered."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import redis

from dlpool.errors import QueueError
from dlpool.jobs.client_records import CANCELLED
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import PRIORITIES, QueueKeys
from dlpool.jobs.queue_admin import QueueAdmin
from tests.chaos.jobs import Jobs
from tests.chaos.witness import Witness

VERBS = {"pause": 20, "resume": 20, "retry": 20, "promote": 12, "priority": 12, "cancel": 12, "switch": 4}
APART_S = (0.0, 0.03)  # two calls
WAITING = ("job_queued", "job_requeued", "job_recovered")
FIT = {  # the last event of a job with which that can be done
    "cancel": ("job_started", *WAITING),
    "pause": ("job_started",),
    "resume": ("job_paused",),
    "retry": ("job_failed", "job_cancelled"),
    "promote": WAITING,
    "priority": WAITING,
}
RECENT = 150  # of these jobs some wait, some run and some have just ended
IN_DOUBT = "in doubt"  # the reply of a call whose reply was lost


class Operator:
    """``begin`` and ``calm`` from one thread; between them a thread of its own does the calls.

    ``said``: by job id how often a verb had a reply. ``client`` goes past the faults of the network.
    """

    def __init__(self, seed: int, jobs: Jobs, witness: Witness, client: redis.Redis) -> None:
        self._chance = random.Random(f"{seed}: operator")
        self._jobs = jobs
        self._witness = witness
        self._redis: Any = client
        self._controls = JobAdmin(client, QueueKeys())
        self._steering = QueueAdmin(client, QueueKeys())
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._paused: set[str] = set()  # what was asked to pause, and may be paused still
        self.said: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)

    @property
    def calls(self) -> str:
        """How many there were about jobs, and how many of each verb ran into work."""
        counts = sum(self.said.values(), Counter[tuple[str, str]]())
        done = Counter(
            verb for (verb, reply), count in counts.items() if reply in ("OK", "ASKED") for _ in range(count)
        )
        asked = sum(count for (_, reply), count in counts.items() if reply == "ASKED")
        return f"{counts.total()} calls, done were {dict(done)}, {asked} of them asked of supervisors"

    def begin(self, seconds: float) -> None:
        """A storm of calls from now on."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, args=(time.monotonic() + seconds,), daemon=True)
        self._thread.start()

    def calm(self) -> None:
        """End it, and undo what would hold jobs back for good. Raises QueueError; then it has to be called again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for job_id in sorted(self._paused):  # also one that is not paused yet: it will not be
            self._controls.execute("resume", job_id)
            self._paused.discard(job_id)
        for node in self._steering.drained_nodes():
            self._steering.undrain(node)
        self._steering.resume()

    def _serve(self, until: float) -> None:
        while time.monotonic() < until and not self._stopping.is_set():
            verb = self._chance.choices(list(VERBS), list(VERBS.values()))[0]
            try:
                self._switch() if verb == "switch" else self._control(verb)
            except (QueueError, redis.RedisError):
                self._stopping.wait(0.05)
            self._stopping.wait(self._chance.uniform(*APART_S))

    def _control(self, verb: str) -> None:
        job_id = self._someone(verb)
        if job_id is None:
            return
        reply = IN_DOUBT
        if verb == "pause":
            self._paused.add(job_id)
        level = self._chance.choice(PRIORITIES) if verb == "priority" else ""
        try:
            reply = self._controls.execute(verb, job_id, priority=level, message=CANCELLED, at=time.time())
        finally:
            self.said[job_id][verb, reply] += 1

    def _someone(self, verb: str) -> str | None:
        """Mostly a job with which that can be done; also one that nobody has heard of yet, or that has ended."""
        heard = list(self._witness.of_job)[-RECENT:]  # also of those without an id of their own
        found = [job.id for job in list(self._jobs.made.values())[-RECENT:] if job.id is not None] + heard
        if self._chance.random() < 0.7:
            found = [one for one in heard if self._witness.last(one) in FIT[verb]] or found
        return self._chance.choice(found) if found else None

    def _switch(self) -> None:
        """Stop or start the queue, or a node."""
        sids = [sid.decode() for sid in self._redis.zrange(QueueKeys().supervisors, 0, -1)]
        node = self._chance.choice(sids).rpartition("-")[0] if sids else ""
        calls: list[Callable[[], object]] = [self._steering.pause, self._steering.resume, self._steering.resume]
        if node:
            calls += [lambda: self._steering.drain(node), lambda: self._steering.undrain(node)]
        self._chance.choice(calls)()
