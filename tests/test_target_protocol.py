"""The core of a download needs no more of its output than the ``Target`` protocol: here it writes to memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.freespace import Space
from dlpool.scan.scannedfile import ScannedFile
from dlpool.transfer import transfer as transfers
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Checksum, Job, TransferCallbacks
from dlpool.transfer.pipe import Pipe
from dlpool.transfer.scheduler import ChunkSnapshot
from dlpool.transfer.space_rules import SpaceRules
from dlpool.transfer.target.protocol import Target, TargetOptions
from dlpool.transfer.target.state import SavedState
from dlpool.transfer.transfer import Transfer
from tests.conftest import FAST, Fetcher, make_data, sha256
from tests.origin import File, Origin

SIZE = 4 << 20
DATA = make_data(SIZE)


@dataclass
class MemoryWriter:
    """Writes to, and reads from, the bytes of a ``MemoryTarget``."""

    data: bytearray

    def write(self, position: int, data: memoryview) -> None:
        self.data[position : position + len(data)] = data

    def splice(self, position: int, pipe: Pipe, size: int) -> int:
        return 0  # memory is no file

    def read(self, position: int, size: int) -> bytes:
        return bytes(self.data[position : position + size])

    def space(self) -> Space | None:
        return None

    def reserve(self, position: int, size: int) -> bool:
        return False

    def close(self) -> None:
        pass


@dataclass
class MemoryTarget:
    """A target that keeps its bytes in memory and records the calls of the core."""

    path: Path
    saved: SavedState | None = None
    unverifiable: RemoteResource | None = None
    has_other_query: bool = False
    has_failed: bool = False
    has_state: bool = False
    is_preallocated: bool = False
    data: bytearray = field(default_factory=bytearray)
    published: bytes | None = None
    calls: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.data)

    def restart(self, reason: str) -> None:
        self.calls.append("restart")
        self.data = bytearray()

    def drop_unverifiable(self) -> None:
        pass

    def enable_checkpoints(self, resource: RemoteResource) -> None:
        self.calls.append("enable_checkpoints")

    def preallocate(self, size: int, mode: str, rules: SpaceRules) -> None:
        self.calls.append("preallocate")
        self.data.extend(bytes(size))  # so that writers never have to extend it

    def writer(self) -> MemoryWriter:
        return MemoryWriter(self.data)

    main_writer = reader = writer

    def checkpoint(self, snapshot: ChunkSnapshot, last_error: errors.DlpoolError | None = None) -> None:
        self.calls.append("checkpoint")
        self.has_state = True

    def prepare(self, resource: RemoteResource, *, remote_time: bool) -> None:
        self.calls.append("prepare")

    def scanned_file(self) -> ScannedFile:
        raise NotImplementedError

    def publish(self, resource: RemoteResource, snapshot: ChunkSnapshot) -> None:
        self.calls.append("publish")
        self.published = bytes(self.data)

    def discard(self) -> None:
        self.calls.append("discard")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[MemoryTarget]:
    """The targets that downloads opened, in memory instead of files."""
    opened: list[MemoryTarget] = []

    def open_target(_job: Job, path: Path, _options: TargetOptions, **_callbacks: Any) -> Target:
        opened.append(MemoryTarget(path))
        return opened[-1]

    monkeypatch.setattr(transfers, "FileOutput", open_target)
    return opened


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_is_fetched_into_any_target(
    connections: int,
    has_ranges: bool,
    targets: list[MemoryTarget],
    serve: Callable[..., Origin],
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    origin = serve(File(DATA, serves_ranges=has_ranges))
    outcome = fetch(f"{origin.url}/f", tmp_path / "f", connections=connections, min_split_size=64 * 1024)
    assert (outcome.size, targets[0].published == DATA) == (SIZE, True)
    assert [call for call in targets[0].calls if call != "checkpoint"] == [
        *(["enable_checkpoints"] if has_ranges else []),
        "preallocate",
        "prepare",
        "publish",
        "close",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "refuses", "error", "expected"),
    [
        (DATA, False, None, ["preallocate", "prepare", "authorize", "publish", "close"]),
        (DATA, True, errors.LostJob, ["preallocate", "prepare", "authorize", "close"]),
        (DATA[:-1] + b"?", False, errors.ChecksumMismatch, ["preallocate", "discard", "close"]),
    ],
    ids=["right", "fenced off", "wrong checksum"],
)
def test_a_target_is_published_once_it_is_verified_and_authorized(
    data: bytes,
    refuses: bool,
    error: type[errors.DlpoolError] | None,
    expected: list[str],
    targets: list[MemoryTarget],
    serve: Callable[..., Origin],
    fetch: Fetcher,
    tmp_path: Path,
) -> None:
    def authorize() -> None:
        targets[0].calls.append("authorize")
        if refuses:
            raise errors.LostJob("another supervisor has it")

    origin = serve(File(data, serves_ranges=False))
    job = Job(f"{origin.url}/f", tmp_path / "f", checksum=Checksum("sha256", sha256(DATA)))
    transfer = Transfer(job, FAST, fetch.client(), TransferCallbacks(authorize_publish=authorize))
    if error is None:
        assert transfer.run().checksum == f"sha256:{sha256(DATA)}"
    else:
        with pytest.raises(error):
            transfer.run()
    assert targets[0].calls == expected
    assert (targets[0].published is not None) == (error is None)
