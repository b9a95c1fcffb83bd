"""A job that does not fit on its disk harms no other: it fails where it never can fit, and waits where it may."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.errors import DlpoolError, NodeFault, NoRoom, NoSpace, TooLarge
from dlpool.jobs.job_admin import JobAdmin
from dlpool.service.wire.results import attempt_result_of
from tests.conftest import Fetcher, make_data, sha256, wait_until
from tests.desk import Desk, desk_of, running
from tests.disks import mounted_image, needs_root, ramfs, tmpfs
from tests.fleet import Client, Supervisor
from tests.origin import Connection, File, Origin, Request

MIB = 1024 * 1024
SMALL = b"small\n"
pytestmark = needs_root


def by_size(**files: int) -> Any:
    """A handler with a file of so many MiB for each name, and small ones for all others."""
    data = {name: make_data(size * MIB) for name, size in files.items()}

    def handle(request: Request, connection: Connection) -> None:
        File(data.get(request.path.rpartition("/")[2], SMALL))(request, connection)

    return handle


def stream(mib: int) -> Any:
    """A handler whose ``stream`` has no length."""

    def handle(request: Request, connection: Connection) -> None:
        if not request.path.endswith("/stream"):
            File(SMALL)(request, connection)
            return
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/x-data\r\n\r\n")
        block = make_data(64 * 1024)
        for _ in range(mib * 16):
            connection.send(b"%x\r\n" % len(block) + block + b"\r\n")
        connection.send(b"0\r\n\r\n")

    return handle


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, Client, Path]]:
    """A service whose downloads go to 8 MiB of their own, of which one stays free."""
    folder = tmp_path_factory.mktemp("small")
    settings = {"fault_delay": "300ms", "min_free": "1M"}
    with (
        tmpfs(folder / "disk", "8m") as disk,
        running(folder, paths={"download_dir": disk}, supervisor=settings) as (service, client),
    ):
        yield service, client, disk
        assert service.events("node_fault") == []


@pytest.fixture
def small(shared: tuple[Supervisor, Client, Path]) -> Iterator[tuple[Desk, Path]]:
    service, client, disk = shared
    with desk_of(service, client) as desk:
        yield desk, disk
    (disk / "ballast").unlink(missing_ok=True)
    shutil.rmtree(disk / desk.name, ignore_errors=True)


def ends(desk: Desk, event: str) -> list[dict[str, Any]]:
    """The lines of the log with that event, of the jobs of this test."""
    return [one for one in desk.service.events(event) if f"/{desk.name}/" in one["url.full"]]


# --- a service ---


@pytest.mark.parametrize("large", [9, 30])
def test_a_job_that_can_never_fit_fails_and_the_node_stays_ready(small: tuple[Desk, Path], large: int) -> None:
    desk, disk = small
    desk.serve(by_size(large=large))
    url = desk.push("large", id=f"{desk.name}-large")
    others = [desk.push(number) for number in range(20)]
    record = desk.client.wait_for_failure(url)
    assert "can never fit" in record["error_message"] and str(large * MIB) in record["error_message"]
    desk.client.wait_for(*others)
    assert desk.client.ends(f"{desk.name}-large") == 1
    wait_until(lambda: ends(desk, "job_failed") != [])
    [failed] = ends(desk, "job_failed")
    assert failed["error.code"] == "no_space" and failed["dlpool.attempt"] == 1
    wait_until(lambda: not [name for name in os.listdir(disk / desk.name) if "large" in name])


def test_a_job_that_does_not_fit_now_waits_alone_until_it_does(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 4 * MIB)
    desk.serve(by_size(large=5))
    url = desk.push("large", id=f"{desk.name}-large")
    wait_until(lambda: len(ends(desk, "job_retried")) >= 2)
    ballast.unlink()
    others = [desk.push(number) for number in range(20)]
    desk.client.wait_for(*others)
    assert {one["error.code"] for one in ends(desk, "job_retried")} == {"no_space"}
    desk.client.wait_for(url)
    assert sha256((disk / desk.name / "large").read_bytes()) == sha256(make_data(5 * MIB))
    assert desk.client.ends(f"{desk.name}-large") == 1


def test_a_job_that_never_fits_now_fails_after_its_attempts(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    (disk / "ballast").write_bytes(b"x" * 4 * MIB)
    desk.serve(by_size(large=5))
    url = desk.push("large", max_attempts=2)
    record = desk.client.wait_for_failure(url)
    assert "are needed" in record["error_message"]
    assert desk.asked() == ["large"] * 2
    desk.client.wait_for(desk.push("after"))


@pytest.mark.parametrize("ballast", [0, 3])
def test_a_stream_without_a_size_that_fills_the_disk_fails_after_its_attempts(
    ballast: int, small: tuple[Desk, Path]
) -> None:
    desk, disk = small
    (disk / "ballast").write_bytes(b"x" * ballast * MIB)
    desk.serve(stream(10))
    url = desk.push("stream", max_attempts=2)
    record = desk.client.wait_for_failure(url)
    assert ("does not end before the disk is full" if ballast == 0 else "the disk is full") in record["error_message"]
    assert desk.asked() == ["stream"] * (1 if ballast == 0 else 2)
    wait_until(lambda: not [name for name in os.listdir(disk / desk.name) if "stream" in name])
    desk.client.wait_for(desk.push("after"))
    wait_until(lambda: ends(desk, "job_failed") != [])
    assert ends(desk, "job_failed")[0]["error.code"] == "no_space"


def announces(size: int, *, has_ranges: bool, gate: threading.Event) -> Any:
    """A handler whose ``large`` files have ``size`` bytes by their headers, of which 64 KiB come at once."""

    def handle(request: Request, connection: Connection) -> None:
        if "large" not in request.path:
            File(SMALL)(request, connection)
            return
        ranges = {"Content-Range": f"bytes 0-{MIB - 1}/{size}"} if has_ranges else {}
        length = MIB if has_ranges else size
        connection.answer(206 if ranges else 200, {"Content-Length": str(length), **ranges}, length=False)
        connection.send(make_data(64 * 1024))
        gate.wait(60)

    return handle


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize(("jobs", "size"), [(30, 10**15), (2, 13 * MIB // 2), (4, 4 * MIB), (1, 5 * MIB)])
def test_what_a_server_announces_keeps_no_other_job_waiting(
    jobs: int, size: int, has_ranges: bool, small: tuple[Desk, Path]
) -> None:
    desk, _ = small
    gate = threading.Event()
    desk.serve(announces(size, has_ranges=has_ranges, gate=gate))
    ids = [f"{desk.name}-{number}" for number in range(jobs)]
    large = [desk.push(f"large{job_id}", id=job_id) for job_id in ids]
    wait_until(lambda: len(desk.asked()) >= jobs)
    desk.client.wait_for(*(desk.push(number) for number in range(20)))
    if size > 6 * MIB:
        assert all("can never fit" in desk.client.wait_for_failure(url)["error_message"] for url in large)
        assert sorted(name for name in desk.asked() if "large" in name) == sorted(f"large{job_id}" for job_id in ids)
    gate.set()
    for job_id in ids:
        JobAdmin(desk.client.redis, desk.client.keys).execute("cancel", job_id)


def test_a_file_system_that_tells_no_size_has_room(tmp_path: Path) -> None:
    with (
        ramfs(tmp_path / "disk") as disk,
        running(tmp_path, paths={"download_dir": disk}) as both,
        desk_of(*both) as desk,
    ):
        desk.serve(by_size(large=3))
        desk.client.wait_for(desk.push("large"), desk.push("small"))
        assert (disk / desk.name / "large").stat().st_size == 3 * MIB
        assert desk.service.events("node_fault") == desk.service.events("disk_space_low") == []


# --- a download ---


@pytest.mark.parametrize("preallocate", ["auto", "falloc", "truncate", "none"])
@pytest.mark.parametrize(
    ("size", "ballast", "error"), [(9, 0, TooLarge), (8, 0, TooLarge), (5, 4, NoRoom), (6, 6, NoRoom)]
)
def test_what_can_never_fit_is_told_from_what_does_not_fit_now(
    size: int, ballast: int, error: type[DlpoolError], preallocate: str, tmp_path: Path, fetch: Fetcher
) -> None:
    with tmpfs(tmp_path / "disk", "8m") as disk, Origin(by_size(f=size)) as origin:
        (disk / "ballast").write_bytes(b"x" * ballast * MIB)
        with pytest.raises(error) as raised:
            fetch(f"{origin.url}/f", disk / "f", preallocate=preallocate)
        assert type(raised.value) is error and (raised.value.label, raised.value.exit_code) == ("no_space", 9)
        assert os.listdir(disk) == ["ballast"]


def test_what_the_file_system_keeps_for_root_does_not_count(tmp_path: Path) -> None:
    from dlpool.freespace import space_of

    with mounted_image("ext4", tmp_path / "disk", 64 * MIB) as disk:
        space = space_of(disk)
        status = os.statvfs(disk)
        assert space is not None and status.f_bfree > status.f_bavail
        assert space.usable == (status.f_blocks - (status.f_bfree - status.f_bavail)) * status.f_frsize


@pytest.mark.parametrize(
    ("error", "ending"),
    [(TooLarge("x"), "failed"), (NoRoom("x"), "no_room"), (NoSpace("x"), "node_fault"), (NodeFault("x"), "node_fault")],
)
def test_how_a_job_ends_by_its_error(error: DlpoolError, ending: str) -> None:
    assert attempt_result_of(error) == ending
