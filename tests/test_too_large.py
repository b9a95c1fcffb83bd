"""A job that does not fit on its disk harms no other: it fails where it never can fit, and waits where it may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.errors import DlpoolError, NodeFault, NoRoom, NoSpace, TooLarge
from dlpool.service.endings import ending_of
from tests.conftest import Fetcher, make_data, sha256, wait_until
from tests.desk import Desk, desk_of, running
from tests.disks import mounted_image, needs_root, ramfs, tmpfs
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


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Desk, Path]]:
    """A service whose downloads go to 8 MiB of their own."""
    settings = {"fault_delay": "300ms", "min_free": 0}
    with (
        tmpfs(tmp_path / "disk", "8m") as disk,
        running(tmp_path, paths={"download_dir": disk}, supervisor=settings) as both,
        desk_of(*both) as desk,
    ):
        yield desk, disk


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
    assert desk.service.events("node_fault") == []
    wait_until(lambda: desk.service.events("job_failed") != [])
    [failed] = desk.service.events("job_failed")
    assert failed["error.code"] == "no_space" and failed["dlpool.attempt"] == 1
    wait_until(lambda: not [name for name in os.listdir(disk / desk.name) if "large" in name])


def test_a_job_that_does_not_fit_now_waits_alone_until_it_does(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 4 * MIB)
    desk.serve(by_size(large=5))
    url = desk.push("large", id=f"{desk.name}-large")
    wait_until(lambda: len(desk.service.events("job_released")) >= 3)
    others = [desk.push(number) for number in range(20)]
    desk.client.wait_for(*others)
    assert desk.service.events("node_fault") == []
    assert {one["error.code"] for one in desk.service.events("job_released")} == {"no_space"}
    ballast.unlink()
    desk.client.wait_for(url)
    assert sha256((disk / desk.name / "large").read_bytes()) == sha256(make_data(5 * MIB))
    assert desk.client.ends(f"{desk.name}-large") == 1


def test_a_stream_without_a_size_that_fills_the_disk_fails_after_its_attempts(small: tuple[Desk, Path]) -> None:
    desk, disk = small
    desk.serve(stream(10))
    url = desk.push("stream", max_attempts=2)
    record = desk.client.wait_for_failure(url)
    assert "disk is full" in record["error_message"]
    wait_until(lambda: not [name for name in os.listdir(disk / desk.name) if "stream" in name])
    desk.client.wait_for(desk.push("after"))
    wait_until(lambda: desk.service.events("job_failed") != [])
    assert desk.service.events("job_failed")[0]["error.code"] == "no_space"


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
    from dlpool.disk import space_of

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
    assert ending_of(error) == ending
