"""What an upload costs, counted and not timed: hashed bytes, reads, writes and copied bytes, at either end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import NetworkSettings, TransferSettings
from dlpool.storage import digests
from dlpool.storage.upload_requests import ChunkRequest
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.upload import connection_worker, file_hash
from dlpool.upload.api_client import UploadApiClient
from dlpool.upload.upload import FileUpload
from dlpool.upload.values import FileUploadRequest
from dlpool.web.body import BLOCK_SIZE, RequestBody
from tests.conftest import make_data
from tests.test_assembled_file import count_copied
from tests.upload_origin import UploadOrigin, composite
from tests.uploads import ID, merge, store_in

SIZE, COUNT = 2**20, 8  # of the chunks of a file
DATA = [make_data(SIZE, seed=number) for number in range(COUNT)]
PER_CHUNK = 95  # system calls for a chunk, without those that depend on its size; 91 were counted


class CountingHash:
    """A hash object that counts its bytes."""

    def __init__(self, algorithm: str, counts: Counter[str]) -> None:
        self._hash = digests.new_hash(algorithm)
        self._counts = counts
        self.digest, self.hexdigest = self._hash.digest, self._hash.hexdigest

    def update(self, data: bytes) -> None:
        self._counts["hashed"] += len(data)
        self._hash.update(data)


@contextmanager
def counted_calls(counts: Counter[str]) -> Iterator[None]:
    """Count the calls of the functions of ``os`` and ``fcntl`` by this thread, by name."""

    def note(_frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__module__ in ("posix", "fcntl") and function.__name__ != "fspath":
            counts[function.__name__] += 1

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


class Stream:
    """A client that is always ahead: each read gets all that it asks for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.read: Callable[[int], bytes] = self._read

    def _read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def test_the_server_hashes_and_writes_each_byte_once_and_copies_one_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counter[str]()
    hashing = "dlpool.storage.disk.{}.new_hash"
    for module in ("staged_chunk", "assembly", "published_file"):
        monkeypatch.setattr(hashing.format(module), lambda algorithm: CountingHash(algorithm, counts))
    store = store_in(tmp_path, enable_atomic_operations=True)
    for index, data in enumerate(DATA):
        digest = digests.new_hash("sha256")
        digest.update(data)
        request = ChunkRequest(ID, index, None, total_chunks=COUNT, file_size=COUNT * SIZE, sha256=digest.hexdigest())
        body, calls = RequestBody(Stream(data), SIZE, SIZE), Counter[str]()
        with counted_calls(calls), store.chunks.stage() as staged:
            store.chunks.check(staged, request, SIZE)
            staged.reserve(SIZE)
            for block in body.blocks():
                staged.write(block)
            store.chunks.commit(staged, request)
        writes = calls.pop("pwrite", 0)
        assert writes == (-(-SIZE // BLOCK_SIZE) if index else 0)
        if index:
            assert calls["fsync"] + calls["fdatasync"] <= 3, calls
            assert sum(calls.values()) <= PER_CHUNK, calls
    assert counts["hashed"] == COUNT * SIZE
    copied = count_copied(monkeypatch)
    result = merge(store, COUNT, expected_composite_sha256=composite(DATA)[1])
    assert (counts["hashed"], sum(copied)) == (COUNT * SIZE, SIZE)
    assert Path(result.path).read_bytes() == b"".join(DATA)


@pytest.mark.parametrize(("algorithm", "passes"), [("md5", 2), ("sha256", 1)])
def test_the_client_hashes_each_byte_once_for_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, passes: int
) -> None:
    path, counts = tmp_path / "f", Counter[str]()
    path.write_bytes(b"".join(DATA))
    for module in (connection_worker, file_hash):
        monkeypatch.setattr(module, "new_hash", lambda name: CountingHash(name, counts))
    client = HttpClient(NetworkSettings(network="any"), 4, HostHolds(time.monotonic), NetworkMonitor(time.monotonic))
    with UploadOrigin(algorithm=algorithm) as origin:
        server = UploadApiClient(client, origin.api, {})
        request = FileUploadRequest(path, connections=2, chunk_size=SIZE)
        result = FileUpload(request, server, client, TransferSettings()).run()
        client.close()
        assert origin.merged == {"f": b"".join(DATA)}
    composites = 32 * COUNT if algorithm == "sha256" else 0
    assert (result.sent, counts["hashed"]) == (COUNT * SIZE, passes * COUNT * SIZE + composites)
