"""An origin that misbehaves in every way that HTTP offers, until it is told to be good."""

from __future__ import annotations

import random
import threading

from tests.chaos.jobs import Job, Jobs
from tests.origin import Connection, File, Request

MANNERS = {
    "good": 64,
    "slow": 15,
    "unavailable": 4,
    "busy": 1,
    "broken": 1,
    "reset": 5,
    "short": 5,
    "whole": 3,
    "silent": 2,
}
BLOCK = 32 * 1024


class Site:
    """An origin's handler. Thread-safe; the lock guards chance and versions."""

    def __init__(self, seed: int, jobs: Jobs) -> None:
        self._jobs = jobs
        self._chance = random.Random(f"{seed}: site")
        self._lock = threading.Lock()
        self._versions: dict[int, int] = {}
        self._is_calm = threading.Event()

    def calm(self) -> None:
        """Be good from now on."""
        self._is_calm.set()

    def __call__(self, request: Request, connection: Connection) -> None:
        job = self._jobs.of_path(request.path)
        with self._lock:
            manner = self._manner()
            version = self._version(job)
            share = self._chance.random()
            busy = self._chance.choice([429, 503]), str(self._chance.randint(1, 3))
        file = File(self._jobs.content(job, version), etag=f'"v{version}"', last_modified=None, block=BLOCK)
        file.serves_ranges = job.kind != "no_ranges" and manner != "whole"
        if manner == "unavailable":
            connection.answer(503)
        elif manner == "busy":
            connection.answer(busy[0], {"Retry-After": busy[1]})
        elif manner == "broken":
            connection.answer(500, body=b"it is broken")
        elif manner == "silent":
            self._is_calm.wait(4)
            connection.hang_up()
        elif job.kind == "missing":
            connection.answer(404)
        elif manner in ("reset", "short"):
            self._break_off(file, connection, share, has_reset=manner == "reset")
        else:
            file.pause_s = 0.2 * share if manner == "slow" else 0.0
            file(request, connection)

    def _manner(self) -> str:
        return "good" if self._is_calm.is_set() else self._chance.choices(list(MANNERS), list(MANNERS.values()))[0]

    def _version(self, job: Job) -> int:
        version = self._versions.get(job.file, 0)
        if job.kind == "versions" and not self._is_calm.is_set() and self._chance.random() < 0.3:
            version = 1 - version
            self._versions[job.file] = version
        return version

    @staticmethod
    def _break_off(file: File, connection: Connection, share: float, *, has_reset: bool) -> None:
        """The whole file is announced, and a part of it comes."""
        head = {"Content-Length": str(len(file.data) + 1), **file.headers()}
        connection.answer(200, head, length=False)
        connection.send(file.data[: int(share * len(file.data))])
        if has_reset:
            connection.reset()
        connection.hang_up()
