"""A running service that many tests share: each has URLs, a folder and an origin of its own."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Handler, Origin, Request
from tests.redis_server import RedisServer

DATA = b"one small file\n"
NOT_FOUND = 404

_numbers = itertools.count(1)


class Gate:
    """A handler that answers when it is opened; ``waiting`` counts the requests that came before."""

    def __init__(self, then: Handler | None = None) -> None:
        self.waiting = 0
        self._then = then or File(DATA)
        self._open = threading.Event()

    def __call__(self, request: Request, connection: Connection) -> None:
        self.waiting += 1
        self._open.wait(60)
        self._then(request, connection)

    def open(self) -> None:
        self._open.set()


class InTurn:
    """A handler that gives the first requests to the first handlers, and all later ones to the last."""

    def __init__(self, *handlers: Handler) -> None:
        self._handlers = handlers
        self._numbers = itertools.count()

    def __call__(self, request: Request, connection: Connection) -> None:
        number = min(next(self._numbers), len(self._handlers) - 1)
        self._handlers[number](request, connection)


def answer(status: int, **headers: str) -> Handler:
    """A handler that only says this status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request, connection: connection.answer(status, named)


class Desk:
    """What one test has of the service: ``url()`` and ``path()`` are nobody else's."""

    def __init__(self, service: Supervisor, client: Client, origin: Origin) -> None:
        self.service = service
        self.client = client
        self.origin = origin
        self.name = f"t{next(_numbers)}"
        self.folder = service.out / self.name

    def serve(self, handler: Handler) -> None:
        self.origin.handler = handler

    def url(self, file: object = "f") -> str:
        return f"{self.origin.url}/{self.name}/{file}"

    def path(self, file: object = "f") -> str:
        return f"{self.name}/{file}"

    def push_raw(self, raw: str | bytes | dict[str, Any]) -> None:
        """LPUSH a job as it stands."""
        text = json.dumps(raw) if isinstance(raw, dict) else raw
        self.client.redis.lpush(self.client.keys.intake, text)

    def push(self, file: object = "f", save_path: str | None = None, **own: Any) -> str:
        """LPUSH a job for ``url(file)``, and return its URL."""
        self.client.push(self.url(file), self.path(file) if save_path is None else save_path, **own)
        return self.url(file)

    def asked(self) -> list[str]:
        """The files that were asked for, in order."""
        return [request.path.rpartition("/")[2] for request in self.origin.requests]

    def waiting(self) -> int:
        """The length of the list that clients watch."""
        return int(self.client.redis.llen(self.client.keys.intake))

    def lines(self, job_id: str) -> list[dict[str, Any]]:
        """What the log says of a job."""
        return [record for record in self.service.records() if record.get("dlpool.job.id") == job_id]

    def files(self) -> list[str]:
        """The names in this test's folder."""
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []


@contextmanager
def running(
    folder: Path, *options: object, group: str | None = None, **settings: dict[str, Any]
) -> Iterator[tuple[Supervisor, Client]]:
    """A Redis and a supervisor of their own; ``settings`` are sections of its INI."""
    with RedisServer(folder / "redis") as server:
        service = Supervisor(folder / "node", server.url, settings)
        given = [*options, "--group", group] if group else options
        try:
            yield service.start(*given), Client(server.client(), group)
        finally:
            service.__exit__(None, None, None)


@contextmanager
def desk_of(service: Supervisor, client: Client) -> Iterator[Desk]:
    """A desk for one test."""
    with Origin(File(DATA)) as origin:
        yield Desk(service, client, origin)
