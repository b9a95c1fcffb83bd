"""Jobs of different URLs for one path, on one node and on two that share a storage: one at a time, never mixed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.conftest import make_data, sha256, wait_until
from tests.fleet import Client, fleet
from tests.origin import Connection, File, Origin, Request
from tests.redis_server import RedisServer

MIB = 1024 * 1024
LATE_S = 60.0
FAST = {"locked_delay": "200ms", "max_concurrent_downloads": 4}


class Versions:
    """An origin with several files, sent slowly; it knows which of them were being sent at the same time."""

    def __init__(self, *sizes: int) -> None:
        self.data = [make_data(size) for size in sizes]
        self.met: set[frozenset[str]] = set()
        self._lock = threading.Lock()
        self._sending: list[str] = []

    def __call__(self, request: Request, connection: Connection) -> None:
        with self._lock:
            self._sending.append(request.path)
            self.met.add(frozenset(self._sending))
        try:
            File(self.data[int(request.path[1:])], block=64 * 1024, pause_s=0.01)(request, connection)
        finally:
            with self._lock:
                self._sending.remove(request.path)

    def sums(self) -> set[str]:
        return {sha256(data) for data in self.data}


@pytest.mark.parametrize("nodes", [["one"], ["one", "two"]])
def test_jobs_for_one_path_take_turns_and_each_has_its_record(
    nodes: list[str], tmp_path: Path, redis_server: RedisServer
) -> None:
    client, versions = Client(redis_server.client()), Versions(3 * MIB, 2 * MIB + 1, 4 * MIB - 1)
    shared = tmp_path / "shared"
    shared.mkdir()
    paths = {"download_dir": shared}
    with Origin(versions) as origin, fleet(tmp_path, redis_server.url, *nodes, supervisor=FAST, paths=paths):
        urls = [f"{origin.url}/{number}" for number in range(3)]
        for url in urls:
            client.push(url, "sub/same.bin")
        target, seen = shared / "sub" / "same.bin", set()

        def are_done() -> bool:
            if target.exists():
                seen.add(sha256(target.read_bytes()))
            return all(client.success(url) for url in urls)

        wait_until(are_done, LATE_S)
        assert [client.failure(url) for url in urls] == [None] * 3
        sizes = {client.success(url)["file_size"] for url in urls}  # type: ignore[index]
    assert sizes == {len(data) for data in versions.data}
    assert seen <= versions.sums(), "never a mixture"
    assert sha256(target.read_bytes()) in versions.sums()
    assert all(len(together) == 1 for together in versions.met), "one at a time"
    assert sorted(path.name for path in target.parent.iterdir()) == ["same.bin"]
