"""A small file is received completely and written once; whatever else happens, the ordinary path continues."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.transfer.small_body import MAX_BYTES
from tests.conftest import Fetcher, make_data, sha256, wait_until
from tests.origin import Connection, File, Origin, Range, Request
from tests.processes import start

Serve = Callable[..., Origin]

SIZE = 64 * 1024
DATA = make_data(SIZE)
HALF = SIZE // 2
SPLIT = 1024 * 1024
# of one small durable file over an open connection: 22 for the file, 7 for the network, and 2 for each further read
MOST_CALLS = 33
FILES = 20

# Fetches FILES files on one connection, one after another, after a first one that opens it.
PROGRAM = """
import sys, time
from pathlib import Path
from dlpool.config import NetworkSettings, TransferSettings
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.job import Job
from dlpool.transfer.transfer import Transfer
client = HttpClient(NetworkSettings(network="any"), 2, HostHolds(time.monotonic), NetworkMonitor(time.monotonic))
for number in range(int(sys.argv[3])):
    Transfer(Job(f"{sys.argv[1]}/{number}", Path(sys.argv[2], str(number))), TransferSettings(), client).run()
"""


class Writes:
    """Counts the writes to the part file, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self.sizes.append(len(data))
            return real(descriptor, data)

        monkeypatch.setattr(os, "write", write)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def pausing(go: threading.Event) -> Callable[[Request, Connection], None]:
    """Sends half of the first body, and the rest of it when ``go`` is set."""

    class Half(File):
        def stream(self, connection: Connection, status: int, headers: dict[str, str], start: int, end: int) -> None:
            connection.answer(status, {"Content-Length": str(end - start), **headers}, length=False)
            connection.send(self.data[start:HALF])
            if start < HALF:
                go.wait(20.0)
            connection.send(self.data[max(start, HALF) : end])

    return Half(DATA)


def cut(request: Request, connection: Connection) -> None:
    """Closes the first connection in the middle of the body."""
    file = File(DATA)
    if request.number == 1:
        head = {"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}", "Content-Length": str(SIZE), **file.headers()}
        connection.answer(206, head, DATA[:HALF], length=False)
        connection.hang_up()
    file(request, connection)


@pytest.mark.parametrize("size", [1, SIZE, MAX_BYTES])
@pytest.mark.parametrize("serves_ranges", [True, False])
def test_a_small_file_needs_one_request_and_one_write(
    size: int, serves_ranges: bool, fetch: Fetcher, serve: Serve, writes: Writes, tmp_path: Path
) -> None:
    data = make_data(size)
    origin = serve(File(data, serves_ranges=serves_ranges))
    options = {"checksum": f"sha256:{sha256(data)}", "min_split_size": SPLIT}
    result = fetch(f"{origin.url}/f", tmp_path / "f", **options)
    assert (tmp_path / "f").read_bytes() == data
    assert (result.size, result.received, result.checksum) == (size, size, f"sha256:{sha256(data)}")
    assert (len(origin.requests), writes.sizes) == (1, [size])
    assert [event for event, _ in fetch.events] == [
        "job_started",
        "range_fetched",
        "body_complete",
        "checksum_verified",
        "job_succeeded",
    ]


def test_a_wrong_checksum_publishes_nothing(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(errors.ChecksumMismatch):
        fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", checksum=f"sha256:{sha256(b'')}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("serves_ranges", [True, False])
def test_a_file_above_the_bound_is_written_while_it_arrives(
    serves_ranges: bool, fetch: Fetcher, serve: Serve, writes: Writes, tmp_path: Path
) -> None:
    data = make_data(MAX_BYTES + 1)
    fetch(f"{serve(File(data, serves_ranges=serves_ranges)).url}/f", tmp_path / "f", min_split_size=SPLIT)
    assert (tmp_path / "f").read_bytes() == data
    assert sum(writes.sizes) == len(data)
    assert len(writes.sizes) > 1


def test_a_limited_rate_is_kept_to(fetch: Fetcher, serve: Serve, writes: Writes, tmp_path: Path) -> None:
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f", limit_rate=2 * SIZE)
    assert (tmp_path / "f").read_bytes() == DATA
    assert len(writes.sizes) > 1


def test_after_a_broken_connection_only_the_rest_is_requested(
    fetch: Fetcher, serve: Serve, writes: Writes, tmp_path: Path
) -> None:
    origin = serve(cut)
    result = fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert origin.ranges() == [Range(0, origin.ranges()[0].end), Range(HALF, SIZE)]
    assert (result.received, result.retries, writes.sizes) == (SIZE, 1, [HALF, HALF])
    assert [event["start"] for event in fetch.named("range_retry")] == [HALF]


def test_after_a_broken_connection_that_stays_broken_the_next_run_resumes(
    fetch: Fetcher, serve: Serve, tmp_path: Path
) -> None:
    broken = serve(cut)
    broken.handler = lambda request, connection: cut(request, connection) if request.number == 1 else connection.reset()
    with pytest.raises(errors.RetryRange):
        fetch(f"{broken.url}/f", tmp_path / "f", retries=1)
    assert sorted(os.listdir(tmp_path)) == ["f.part", "f.part.meta"]
    broken.handler = File(DATA)
    asked = len(broken.requests)
    result = fetch(f"{broken.url}/f", tmp_path / "f")
    assert (result.resumed_from, (tmp_path / "f").read_bytes()) == (HALF, DATA)
    assert [request.range for request in broken.requests[asked:]] == [Range(HALF, SIZE)]


def test_a_slow_body_is_written_while_it_arrives(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    """It is read in small pieces, so that the patience ends between two of them."""
    origin = serve(File(DATA, block=1024, pause_s=0.02))
    transfer = fetch.transfer(f"{origin.url}/f", tmp_path / "f")
    thread = threading.Thread(target=transfer.run)
    thread.start()
    part = tmp_path / "f.part"
    wait_until(lambda: part.exists() and 0 < part.stat().st_size < SIZE)
    assert 0 < transfer.progress().done < SIZE
    thread.join(20.0)
    assert (tmp_path / "f").read_bytes() == DATA
    assert len(origin.requests) == 1


def test_cancelled_while_the_server_pauses_it_ends_and_resumes(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    go = threading.Event()
    origin = serve(pausing(go))
    transfer, ends = fetch.transfer(f"{origin.url}/f", tmp_path / "f"), []

    def run() -> None:
        try:
            transfer.run()
        except errors.DlpoolError as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: len(origin.requests) == 1)
    transfer.cancel()
    thread.join(20.0)
    go.set()
    assert [type(end) for end in ends] == [errors.Cancelled]
    result = fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert result.resumed_from in (0, HALF)


def test_killed_while_the_server_pauses_the_next_run_ends_right(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    go = threading.Event()
    origin = serve(pausing(go))
    process = start("fetch", f"{origin.url}/f", tmp_path / "f", "-q")
    wait_until(lambda: len(origin.requests) == 1 and (tmp_path / "f.part").exists())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    go.set()
    assert not (tmp_path / "f").exists()
    fetch(f"{origin.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["f"]


def test_a_second_process_is_locked_out_while_the_server_pauses(fetch: Fetcher, serve: Serve, tmp_path: Path) -> None:
    go = threading.Event()
    origin = serve(pausing(go))
    thread = threading.Thread(target=fetch.transfer(f"{origin.url}/f", tmp_path / "f").run)
    thread.start()
    wait_until(lambda: len(origin.requests) == 1)
    with pytest.raises(errors.Locked):
        fetch(f"{origin.url}/f", tmp_path / "f")
    go.set()
    thread.join(20.0)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_full_disk_ends_the_download(
    fetch: Fetcher, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    origin = serve(File(DATA))
    with monkeypatch.context() as patch, pytest.raises(errors.NoSpace):
        patch.setattr(os, "write", write)
        fetch(f"{origin.url}/f", tmp_path / "f")
    assert os.listdir(tmp_path) == []
    wait_until(lambda: origin.open_connections == 1)


def test_the_system_calls_of_a_small_file_are_bounded(serve: Serve, tmp_path: Path) -> None:
    origin = serve(File(DATA))
    counts = [_calls(origin, tmp_path, files) for files in (1, 1 + FILES)]
    assert len(origin.requests) == 2 + FILES
    added = counts[1] - counts[0]
    assert sum(added.values()) / FILES <= MOST_CALLS, {name: number / FILES for name, number in added.items()}
    assert added["clone3"] + added["clone"] == 0


def _calls(origin: Origin, folder: Path, files: int) -> Counter[str]:
    """Return how many system calls of each kind a process makes that fetches ``files`` files."""
    place, log = folder / f"of-{files}", folder / f"log-{files}"
    place.mkdir()
    ended = subprocess.run(
        ["strace", "-f", "-qq", "-o", log, sys.executable, "-c", PROGRAM, origin.url, place, str(files)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    lines = log.read_text(errors="replace").splitlines()
    return Counter(line.split(maxsplit=1)[1].partition("(")[0] for line in lines if "(" in line and "<... " not in line)
