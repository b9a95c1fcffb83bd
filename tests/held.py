"""Downloads that stand still where a test wants to kill somebody, and what is known of them then."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dlpool.transfer.target.file.publish import read_mark
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Origin, Request

BLOCK = 64 * 1024
LATE_S = 60.0


class HeldFile(File):
    """A file of which each request gets the first block at once, and the rest when the gate is open.

    A context: the gate is open at its end. A request from 0 on is answered in full, so that one range ends soon.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data, block=BLOCK)
        self.gate = threading.Event()

    def __enter__(self) -> HeldFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()

    def stream(self, connection: Connection, status: int, headers: dict[str, str], start: int, end: int) -> None:
        connection.answer(status, {"Content-Length": str(end - start), **headers}, length=False)
        first = end if start == 0 and end < len(self.data) else min(end, start + self.block)
        connection.send(self.data[start:first])
        self.gate.wait(120)
        connection.send(self.data[first:end])


def committed(target: Path) -> list[tuple[int, int]]:
    """The spans that the state beside ``target`` says are on disk."""
    with suppress(FileNotFoundError):
        state = json.loads(target.with_name(f"{target.name}.part.meta").read_bytes())
        return [(chunk["start"], chunk["position"]) for chunk in state["chunks"] if chunk["position"] > chunk["start"]]
    return []


def is_recorded(target: Path, job_id: str) -> bool:
    """Whether it is on disk that ``target`` was published for that job: in its state, or in the file itself."""
    with suppress(FileNotFoundError):
        state = json.loads(target.with_name(f"{target.name}.part.meta").read_bytes())
        return bool(state["publishing"] and state["publishing"]["job"] == job_id)
    return read_mark(target).startswith(f"{job_id} ")


def wait_for_commit(*targets: Path) -> None:
    """Wait until something of each target is on disk, and its state says so."""
    wait_until(lambda: all(committed(target) for target in targets), LATE_S)


def fetched_again(requests: Sequence[Request], spans: Sequence[tuple[int, int]]) -> list[Request]:
    """Those of ``requests`` that ask for a byte of ``spans``."""
    asked = [(request, request.range) for request in requests]
    return [
        request
        for request, span in asked
        if span is None or any(span.start < high and (span.end or high) > low for low, high in spans)
    ]


def of_path(origin: Origin, path: str) -> list[Request]:
    """The requests for one path so far."""
    return [request for request in list(origin.requests) if request.path == path]


def runs(service: Supervisor, job_id: str) -> list[int]:
    """The pids of the workers in which the job has begun, in order."""
    started = [record for record in service.events("job_started") if record["service.name"] == "dlpool-worker"]
    return [int(record["process.pid"]) for record in started if record["dlpool.job.id"] == job_id]


def wait_for_run(service: Supervisor, job_id: str, number: int = 1) -> int:
    """Wait until the job has begun so often; the pid of its present worker."""
    wait_until(lambda: len(runs(service, job_id)) >= number, LATE_S)
    return runs(service, job_id)[-1]


def events_of(client: Client, job_id: str) -> list[tuple[int, str]]:
    """What the stream of events says of a job: ms by the clock of Redis, and the event."""
    found = client.redis.xrange(client.keys.events)
    return [
        (int(number.partition(b"-")[0]), fields[b"event"].decode())
        for number, fields in found
        if fields[b"id"] == job_id.encode()
    ]


def check_folder(folder: Path, data: bytes, *names: str) -> None:
    """These files are there, exact, and in the end nothing else."""
    wait_until(lambda: sorted(path.name for path in folder.iterdir()) == sorted(names), LATE_S)
    assert all((folder / name).read_bytes() == data for name in names)
