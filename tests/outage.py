"""What tests of a queue that goes away share: downloads that wait for the test, and what Redis has heard of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests import conftest
from tests.conftest import make_data
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Origin, Range, Request

DATA = make_data(200_000)
ENDED = ("job_succeeded", "job_failed")
SINGLE: dict[str, Any] = {"connections": 1}  # a file is one request: a second one would be seen
PATIENCE_S = 45.0
HELD_S = 25.0  # the longest that a gate holds a download: its supervisor takes it for dead soon after


class Gate:
    """An origin's handler: half of each file comes, and the rest when ``open`` says so. /missing... is a 404 then."""

    def __init__(self, data: bytes = DATA) -> None:
        self._file = File(data)
        self._data = data
        self._is_open = threading.Event()

    def open(self) -> None:
        self._is_open.set()

    def __call__(self, request: Request, connection: Connection) -> None:
        if request.path.startswith("/missing"):
            self._is_open.wait(HELD_S)
            connection.answer(404)
            return
        half = len(self._data) // 2
        connection.answer(200, {"Content-Length": str(len(self._data)), **self._file.headers()}, length=False)
        connection.send(self._data[:half])
        self._is_open.wait(HELD_S)
        connection.send(self._data[half:])


def wait_until(condition: Callable[[], bool]) -> None:
    """With the patience that many processes on few cores need."""
    conftest.wait_until(condition, PATIENCE_S)


@contextmanager
def waiting(
    folder: Path, url: str, settings: dict[str, dict[str, Any]] | None = None, *options: object
) -> Iterator[Supervisor]:
    """A supervisor that may not be able to work yet."""
    service = Supervisor(folder, url, settings)
    try:
        yield service.start(*options, is_ready=False)
    finally:
        service.__exit__(None, None, None)


def push_numbered(client: Client, origin: Origin, count: int, start: int = 0) -> tuple[list[str], list[str]]:
    """Push so many jobs; their ids and URLs. The one with id "job-1" is /1, and its file 1.bin."""
    numbers = range(start, start + count)
    for number in numbers:
        client.push(f"{origin.url}/{number}", f"{number}.bin", id=f"job-{number}")
    return [f"job-{number}" for number in numbers], [f"{origin.url}/{number}" for number in numbers]


def heard(client: Client) -> Counter[tuple[str, str]]:
    """How often Redis has heard of each event of each job: (event, id)."""
    events = [fields for _, fields in client.redis.xrange(client.keys.events)]
    return Counter((fields[b"event"].decode(), fields[b"id"].decode()) for fields in events)


def assert_ended_once(client: Client, *ids: str, starts: int | None = 1) -> None:
    """Each job has one end and ``starts`` claims (None: any number); none was taken from its owner."""
    counts = heard(client)
    for job_id in ids:
        assert sum(counts[event, job_id] for event in ENDED) == 1, (job_id, counts)
        assert starts is None or counts["job_started", job_id] == starts, (job_id, counts)
        assert starts is None or counts["job_recovered", job_id] == 0, (job_id, counts)


def assert_nobody_was_robbed(*services: Supervisor) -> None:
    """No job was taken from a supervisor that lives."""
    for service in services:
        assert service.events("jobs_recovered") == [] == service.events("job_lost") == service.events("job_fenced")


def let_pass(seconds: float) -> None:
    """An outage lasts so long: its length is what is tested."""
    until = time.monotonic() + seconds
    conftest.wait_until(lambda: time.monotonic() >= until, seconds + PATIENCE_S)


def spooled(service: Supervisor) -> int:
    """How many outcomes are on the disk."""
    return len(list((service.state_dir / "spool").glob("*.json")))


def is_fetched_once(origin: Origin) -> bool:
    """Whether no byte of any file was asked for twice."""
    asked: dict[str, list[Range]] = {}
    for request in origin.requests:
        asked.setdefault(request.path, []).append(request.range or Range(0, None))
    return all(not _overlap(ranges) for ranges in asked.values())


def _overlap(ranges: list[Range]) -> bool:
    ordered = sorted(ranges)
    return any(one.end is None or one.end > other.start for one, other in pairwise(ordered))
