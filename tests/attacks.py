"""Attacks of origins, jobs and clients on a running service, and the honest work beside them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import make_data
from tests.disks import tmpfs
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Origin, Request
from tests.redis_server import RedisServer
from tests.web import WebServer

JOBS, UPLOADS, CHUNKS = 20, 50, 2
SLOTS = 8
DATA = make_data(1024 * 1024)
BLOCK, PAUSE_S = 64 * 1024, 0.03  # of honest clients
ORIGIN_PAUSE_S = 0.12  # of the honest origin: a job takes two seconds
HUGE = 10**15
SLOW = File(make_data(60_000), block=150, pause_s=0.1)  # 1.5 KB/s
LARGE_BODY = 4 * 1000 * 1000
PATIENCE_S = 300.0
TRIES = 100
TURN_S = 0.1


@dataclass
class Place:
    """A service and an HTTP side of its own, with an honest origin. ``rounds``: how often honest work was done."""

    service: Supervisor
    client: Client
    web: WebServer
    origin: Origin
    downloads: Path
    rounds: int = 0


@dataclass(frozen=True)
class Taken:
    """Seconds until all honest jobs, and all honest uploads, had ended; and the most tries that one request took."""

    jobs_s: float
    uploads_s: float
    tries: int


@contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    """A Redis, a supervisor with a disk of 256 MiB, dlpool-web with a job API, and an origin. Needs root."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder / "redis"))
        disk = stack.enter_context(tmpfs(folder / "disk", "256m"))
        origin = stack.enter_context(Origin(File(DATA, block=BLOCK, pause_s=ORIGIN_PAUSE_S)))
        settings: dict[str, dict[str, Any]] = {
            "supervisor": {"max_concurrent_downloads": SLOTS, "workers": 2, "min_free": "16M"},
            "paths": {"download_dir": disk},
            "transfer": {"connections": 1},
        }
        service = stack.enter_context(Supervisor(folder / "service", redis.url, settings))
        more: dict[str, dict[str, Any]] = {
            "redis": {"url": redis.url},
            "paths": {"download_dir": folder / "web-downloads"},
        }
        web = stack.enter_context(WebServer(folder / "web", more))
        yield Place(service, Client(redis.client()), web, origin, disk)


def honest(place: Place, jobs: int = JOBS, uploads: int = UPLOADS) -> Taken:
    """Pass honest jobs and uploads. Raises AssertionError if one fails, or if a file is another one."""
    place.rounds += 1
    with ThreadPoolExecutor(uploads + 1) as pool:
        passing = pool.submit(_pass_jobs, place, [f"{place.rounds}-{number}" for number in range(jobs)])
        began = time.monotonic()
        sending = [pool.submit(_upload, place, number) for number in range(uploads)]
        tries = max(one.result() for one in sending)
        uploads_s = time.monotonic() - began
        return Taken(passing.result(), uploads_s, tries)


def _pass_jobs(place: Place, names: list[str]) -> float:
    began = time.monotonic()
    for name in names:
        place.client.push(f"{place.origin.url}/{name}", name)
    place.client.wait_for(*(f"{place.origin.url}/{name}" for name in names), timeout_s=PATIENCE_S)
    seconds = time.monotonic() - began
    for name in names:
        assert (place.downloads / name).read_bytes() == DATA, name
        (place.downloads / name).unlink()
    return seconds


def _upload(place: Place, number: int) -> int:
    """Send DATA as a client with an address of its own; returns the most tries of one request."""
    task, size = f"honest-{place.rounds}-{number}", len(DATA) // CHUNKS
    sender = Sender(place.web.port, f"127.0.1.{number + 1}")
    tries = []
    for index in range(CHUNKS):
        path = f"/go-uploader/upload_chunk?file_id={task}&chunk_index={index}&total_chunks={CHUNKS}"
        data = DATA[index * size : (index + 1) * size]
        tries.append(sender.ask("POST", path, data, "application/octet-stream"))
    merge = {"file_id": task, "filename": task, "total_chunks": CHUNKS}
    tries.append(sender.ask("POST", "/go-uploader/merge_chunks", json.dumps(merge).encode(), "application/json"))
    merged = place.web.merged_dir / task
    assert merged.read_bytes() == DATA, task
    merged.unlink()
    return max(tries)


@dataclass(frozen=True)
class Sender:
    """A client at an address of 127.0.0.0/8 that paces its bodies, and comes again when it is told to."""

    port: int
    address: str

    def ask(self, method: str, path: str, body: bytes, media_type: str) -> int:
        """Ask until it is answered with 200; returns how often. Raises AssertionError for another answer."""
        for tries in range(1, TRIES + 1):
            status, wait_s = self._once(method, path, body, media_type)
            if status == 200:
                return tries
            assert status in (0, 429, 503), (status, path)
            time.sleep(wait_s)
        raise AssertionError(f"{path}: refused {TRIES} times")

    def _once(self, method: str, path: str, body: bytes, media_type: str) -> tuple[int, float]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=PATIENCE_S, source_address=(self.address, 0)
        )
        headers = {"Content-Type": media_type, "Content-Length": str(len(body))}
        with suppress(OSError):  # refused before the end of the body; there may be an answer
            connection.request(method, path, _paced(body), headers)
        try:
            answer = connection.getresponse()
            answer.read()
            return answer.status, float(answer.headers.get("Retry-After", TURN_S))
        except (OSError, http.client.HTTPException):
            return 0, TURN_S
        finally:
            connection.close()


def _paced(body: bytes) -> Iterator[bytes]:
    for begin in range(0, len(body), BLOCK):
        yield body[begin : begin + BLOCK]
        time.sleep(PAUSE_S)


# --- attacks: contexts; each is under way when the context begins, until it ends ---

Attack = Callable[[Place], AbstractContextManager[None]]


@contextmanager
def huge_files(place: Place) -> Iterator[None]:
    """30 jobs that announce 10^15 bytes, one that has no end, and one that announces all free space and drips it."""

    def answer(request: Request, connection: Connection) -> None:
        if request.path == "/endless":
            headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/x-data"}
            connection.answer(200, headers, length=False)
            while True:
                connection.send(b"10000\r\n" + DATA[:65536] + b"\r\n")
        size = 230 * 1024 * 1024 if request.path == "/all" else HUGE
        connection.answer(200, {"Content-Length": str(size), "ETag": '"a"'}, length=False)
        while True:
            connection.send(bytes(150))
            time.sleep(TURN_S)

    names = [f"huge-{number}" for number in range(30)]
    with _attacking_jobs(place, answer, [*names, "endless", "all"]):
        yield


@contextmanager
def slow_origins(place: Place) -> Iterator[None]:
    """Jobs of an origin that sends 1.5 KB/s, five for each slot."""
    with _attacking_jobs(place, SLOW, [f"slow-{number}" for number in range(5 * SLOTS)]):
        yield


@contextmanager
def _attacking_jobs(place: Place, answer: Callable[[Request, Connection], None], names: list[str]) -> Iterator[None]:
    with Origin(answer, host="127.0.0.2") as origin:
        for name in names:
            place.client.push(f"{origin.url}/{name}", f"attack-{place.rounds}/{name}")
        _wait_for(lambda: bool(origin.requests))
        yield
    place.client.redis.delete(place.client.keys.intake)


@contextmanager
def many_lists(place: Place, tasks: int = 8000) -> Iterator[None]:
    """8 clients that ask for the list of ``tasks`` tasks all the time."""
    _make_tasks(place, tasks)

    def ask(stopped: threading.Event, number: int) -> None:
        while not stopped.is_set():
            _get(place, f"127.0.2.{number + 1}", "GET", "/go-uploader/tasks", b"")

    with _threads(8, ask):
        yield


@contextmanager
def large_bodies(place: Place) -> Iterator[None]:
    """8 clients that send arrays of 4 MB to the job API all the time."""
    body = b"[" + b"1," * (LARGE_BODY // 2 - 1) + b"1]"

    def ask(stopped: threading.Event, number: int) -> None:
        while not stopped.is_set():
            _get(place, f"127.0.2.{number + 1}", "POST", "/api/v1/jobs", body)

    with _threads(8, ask):
        yield


@contextmanager
def slow_bodies(place: Place) -> Iterator[None]:
    """64 clients that send a chunk at 1.2 KB/s, and begin again when they are refused."""

    def drip(stopped: threading.Event, number: int) -> None:
        while not stopped.is_set():
            connection = _connection(place, f"127.0.2.{number + 1}")
            with suppress(OSError):
                connection.connect()
                path = f"/go-uploader/upload_chunk?file_id=drip-{number}&chunk_index=0&total_chunks=1"
                headers = "Host: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000000"
                connection.sock.sendall(f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                while not stopped.wait(TURN_S):
                    connection.sock.sendall(bytes(120))
            connection.close()

    with _threads(64, drip):
        yield


@contextmanager
def silent_connections(place: Place) -> Iterator[None]:
    """2,000 connections that say nothing, or half of a head."""
    with ExitStack() as stack:
        for number in range(2000):
            connection = _connection(place, f"127.0.2.{number % 200 + 1}")
            stack.callback(connection.close)
            with suppress(OSError):
                connection.connect()
                if number % 2:
                    connection.sock.sendall(b"GET /go-uploader/health HTTP/1.1\r\nHos")
        yield


ATTACKS: dict[str, Attack] = {
    "huge files": huge_files,
    "many lists": many_lists,
    "large bodies": large_bodies,
    "slow origins": slow_origins,
    "slow bodies": slow_bodies,
    "silent connections": silent_connections,
}


def _make_tasks(place: Place, number: int) -> None:
    """Tasks of one chunk each, sent over eight connections."""

    def make(first: int) -> None:
        connection = _connection(place, f"127.0.3.{first + 1}")
        for task in range(first, number, 8):
            path = f"/go-uploader/upload_chunk?file_id=task-{task}&chunk_index=0&total_chunks=2"
            connection.request("POST", path, b"x", {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        for one in [pool.submit(make, first) for first in range(8)]:
            one.result()


def _get(place: Place, address: str, method: str, path: str, body: bytes) -> None:
    """Ask once; whatever is answered, or not."""
    connection = _connection(place, address)
    with suppress(OSError, http.client.HTTPException):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        connection.getresponse().read()
    connection.close()


def _connection(place: Place, address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", place.web.port, timeout=PATIENCE_S, source_address=(address, 0))


@contextmanager
def _threads(number: int, act: Callable[[threading.Event, int], Any]) -> Iterator[None]:
    """Threads that act until the context ends. Raises what one of them raised."""
    stopped = threading.Event()
    with ThreadPoolExecutor(number) as pool:
        acting: list[Future[Any]] = [pool.submit(act, stopped, index) for index in range(number)]
        try:
            time.sleep(1.0)  # so that all are under way
            yield
        finally:
            stopped.set()
    for one in acting:
        one.result()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
