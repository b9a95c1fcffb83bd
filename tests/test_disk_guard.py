"""Test the disk guard: no job starts while a file system of targets has too little space, and running ones continue."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import PathSettings, Settings, SupervisorSettings
from dlpool.errors import LocalFault
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from dlpool.service.node import disk_guard
from dlpool.service.node.disk_guard import HYSTERESIS, DiskGuard, FileSystemSpace, nearest_folder
from dlpool.service.node.disk_rules import GIB
from tests.bench import job_of
from tests.conftest import make_data, sha256, wait_until
from tests.desk import Desk, Gate, desk_of, running
from tests.disks import needs_root, remount, tmpfs
from tests.fakes import Clock, Lines
from tests.fleet import Client
from tests.metrics import Watched
from tests.origin import Connection, File, Origin, Request
from tests.processes import run
from tests.redis_server import RedisServer

MIB = 1024 * 1024
NEWS = {"lease": "3s"}  # a beat a second says what is free


# --- what is too little ---


@pytest.mark.parametrize(
    ("size", "given_least", "least"),
    [(100 * GIB, None, GIB), (10 * GIB, None, GIB // 2), (100 * GIB, 5 * GIB, 5 * GIB), (GIB, 5 * GIB, 5 * GIB)],
)
def test_a_gigabyte_or_a_twentieth_stays_free_if_nothing_is_said(size: int, given_least: int, least: int) -> None:
    assert FileSystemSpace("/", size, 0, 0).required_free(given_least) == least


@given(st.integers(0, 2**50), st.integers(0, 2**50), st.integers(0, 2**40))
def test_what_running_jobs_will_take_is_not_free_and_a_little_more_ends_it(
    free: int, reserved: int, least: int
) -> None:
    room = FileSystemSpace("/", 2**50, free, reserved)
    assert room.is_low(least, was_low=False) == (least > 0 and free < reserved + least)
    assert room.is_low(least, was_low=True) == (least > 0 and free - reserved < least * HYSTERESIS)


def test_the_nearest_folder_that_is_there_tells_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (
        nearest_folder(f"{tmp_path}/a/b/c")
        == nearest_folder(f"{tmp_path}/file")
        == nearest_folder(str(tmp_path))
        == str(tmp_path)
    )
    assert nearest_folder("no\0path/a") in (".", "/")


# --- what the guard makes of it ---


class Guarded:
    """A disk guard over one file system of 1000 bytes, of which 100 stay free."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.free = folder, 200
        settings = Settings(supervisor=SupervisorSettings(min_free=100), paths=PathSettings(download_dir=str(folder)))
        patch.setattr("dlpool.service.node.disk_guard._measure", self._room)
        self.in_flight, self.lines, self.told = InFlightTable(), Lines(), 0
        log: Any = self.lines
        self.guard = DiskGuard(settings, self.in_flight, log, self._tell)

    def _room(self, folder: str, reserved: int) -> FileSystemSpace | None:
        return None if self.free < 0 else FileSystemSpace(folder, 1000, self.free, reserved)

    def _tell(self) -> None:
        self.told += 1

    def look(self, free: int) -> tuple[bool, int, list[str]]:
        """Sample this free space, and return whether it is low, the number of notifications and the logged events."""
        self.free, self.told = free, 0
        self.lines.kept.clear()
        self.guard.sample()
        return self.guard.is_low, self.told, self.lines.events

    def job(self, name: str, missing: int, **fields: Any) -> InFlightJob:
        held = InFlightJob(job_of(name), 0.0, PushedJob.parse(compose_job("http://h/x", f"{self.folder}/{name}")))
        held.worker_pid, held.missing_bytes = 1, missing
        for field, value in fields.items():
            setattr(held, field, value)
        self.in_flight.add(held)
        return held


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    return Guarded(tmp_path, monkeypatch)


def test_no_job_begins_before_the_first_look(watched: Guarded) -> None:
    assert watched.guard.is_low and watched.guard.free_after_jobs is None and watched.guard.low_folders == []
    assert watched.look(200) == (False, 1, []) and watched.guard.free_after_jobs == 200


def test_what_is_low_is_said_once_and_so_is_its_end(watched: Guarded) -> None:
    watched.look(200)
    assert watched.look(100) == (False, 0, [])
    assert watched.look(99) == (True, 1, ["disk_space_low"])
    ((level, _, fields),) = watched.lines.kept
    folder = str(watched.folder)
    assert (level, fields) == ("warning", {"folder": folder, "free": 99, "reserved": 0, "min_free": 100})
    assert watched.guard.low_folders == [folder]
    assert watched.look(104) == (True, 0, [])
    assert watched.look(105) == (False, 1, ["disk_space_available"])
    assert watched.lines.kept == [("info", "disk_space_available", {"folder": folder, "free": 105})]


def test_a_file_system_without_figures_keeps_nobody_waiting(watched: Guarded) -> None:
    watched.look(0)
    assert watched.look(-1) == (False, 1, ["disk_space_available"]) and watched.guard.free_after_jobs is None


def test_what_running_jobs_will_take_is_reserved(watched: Guarded) -> None:
    watched.look(200)
    watched.job("runs", 60)
    watched.job("too", 30)
    watched.job("waits", 1000, worker_pid=None)
    watched.job("none", 1000, job=None)
    watched.job("ending", 1000, phase=InFlightPhase.RECORDING)
    assert watched.look(190) == (False, 0, []) and watched.guard.free_after_jobs == 100
    assert watched.look(189) == (True, 1, ["disk_space_low"])
    assert watched.lines.kept[0].fields["reserved"] == 90


def test_folders_that_cannot_be_resolved_are_for_workers_to_say(
    watched: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_paths: PathSettings, **_owned: object) -> None:
        raise LocalFault("gone")

    monkeypatch.setattr("dlpool.service.node.disk_guard.Confinement", refuse)
    assert watched.look(0) == (False, 0, [])


# --- a fault of the node ---


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DiskGuard, Clock, list[bool]]:
    """Return a disk guard of a folder, its clock, and the results of small writes; the last result repeats."""
    clock, answers = Clock(), [True]
    settings = Settings(paths=PathSettings(download_dir=str(tmp_path / "out")))
    monkeypatch.setattr(disk_guard, "time", clock)
    monkeypatch.setattr(disk_guard, "can_write", lambda _: answers.pop(0) if len(answers) > 1 else answers[0])
    logger: Any = Lines()
    return DiskGuard(settings, InFlightTable(), logger, lambda: None), clock, answers


def test_a_fault_lasts_until_a_small_write_succeeds(guard: tuple[DiskGuard, Clock, list[bool]]) -> None:
    found, clock, answers = guard
    found.sample()
    assert found.fault_s is None
    found.report_fault()
    answers[:] = [False, False, True]
    for left in (30.0, 10.0):
        found.sample()
        assert found.fault_s == left
        clock.now += 20.0
    for _ in range(2):
        found.sample()
        assert found.fault_s == 30.0, "the write failed: it is tried again after fault_delay"
        clock.now += 30.0
    found.sample()
    assert found.fault_s is None


def test_a_removed_download_folder_is_made_again(guard: tuple[DiskGuard, Clock, list[bool]], tmp_path: Path) -> None:
    found, clock, _ = guard
    found.report_fault()
    clock.now += 30.0
    found.sample()
    assert (tmp_path / "out").is_dir() and found.fault_s is None


# --- a real one ---


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Desk, Path]]:
    """Run a service on a small file system, of which 4 MiB stay free."""
    with (
        tmpfs(tmp_path / "disk", "16m") as disk,
        running(
            tmp_path, paths={"download_dir": disk}, supervisor={**NEWS, "min_free": "4M", "fault_delay": "300ms"}
        ) as both,
        desk_of(*both) as desk,
    ):
        yield desk, disk


def node(desk: Desk) -> dict[str, object]:
    """Return what ``dlpool nodes`` shows of the only node."""
    said = run("nodes", "--json", "--redis-url", desk.service.url)
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def wait_until_low(desk: Desk) -> None:
    """Wait until no further job may start; reserved ones continue."""

    def holds_none() -> bool:
        desk.service.signal(signal.SIGUSR2)
        return any(" of 0>" in one["dlpool.supervisor"] for one in desk.service.events("state_dumped"))

    wait_until(holds_none)


def fill(disk: Path, size: int) -> Path:
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * size)
    return ballast


@needs_root
def test_new_jobs_wait_for_space_and_those_that_find_none_give_way(guarded: tuple[Desk, Path]) -> None:
    desk, disk = guarded
    data = make_data(MIB)
    gate = Gate(File(data))
    desk.serve(gate)
    running_url = desk.push("runs")
    wait_until(lambda: gate.waiting == 1)
    ballast = fill(disk, 13 * MIB)
    wait_until_low(desk)
    waiting_urls = [desk.push(number) for number in range(3)]
    gate.open()
    wait_until(lambda: desk.service.events("job_retried") != [])
    assert desk.waiting() >= 2  # one may be reserved
    wait_until(lambda: bool(node(desk)["is_low_on_space"]))
    assert set(desk.asked()) == {"runs"}
    assert run("nodes", "--redis-url", desk.service.url).out.split("\n")[1].split("\t")[1] == "low on space"
    ballast.unlink()
    desk.client.wait_for(running_url, *waiting_urls)
    assert all(sha256((disk / desk.name / str(number)).read_bytes()) == sha256(data) for number in range(3))
    wait_until(lambda: desk.service.events("disk_space_available") != [])
    [low], [back] = desk.service.events("disk_space_low"), desk.service.events("disk_space_available")
    assert (low["log.level"], low["dlpool.folder"], low["dlpool.min_free"]) == ("warning", str(disk), 4 * MIB)
    assert back["dlpool.folder"] == str(disk)
    assert not desk.service.events("node_fault")


@needs_root
def test_as_many_bytes_count_as_taken_as_a_running_job_has_brought(tmp_path: Path) -> None:
    data = make_data(6 * MIB)
    gate = threading.Event()

    def handle(_request: Request, connection: Connection) -> None:
        connection.answer(200, {"Content-Length": str(len(data))}, length=False)
        connection.send(data[: 3 * MIB])
        gate.wait(60)
        connection.send(data[3 * MIB :])

    with (
        tmpfs(tmp_path / "disk", "16m") as disk,
        running(
            tmp_path,
            paths={"download_dir": disk},
            supervisor={**NEWS, "min_free": "8M"},
            transfer={"preallocate": "none"},
        ) as both,
        desk_of(*both) as desk,
    ):
        desk.serve(handle)
        url = desk.push()
        wait_until(lambda: abs(int(str(node(desk)["free"] or 0)) - 10 * MIB) < MIB)  # None before the first look
        assert not node(desk)["is_low_on_space"]
        remount(disk, "size=13m")
        wait_until(lambda: bool(node(desk)["is_low_on_space"]))
        [low] = desk.service.events("disk_space_low")
        assert 3 * MIB - MIB // 4 < low["dlpool.reserved"] <= 3 * MIB
        gate.set()
        remount(disk, "size=16m")
        desk.client.wait_for(url)


@needs_root
def test_a_disk_that_only_jobs_lead_to_is_guarded_too(tmp_path: Path) -> None:
    with (
        tmpfs(tmp_path / "node" / "out" / "mounted", "8m") as disk,
        running(tmp_path, supervisor={**NEWS, "min_free": "2M"}) as both,
        desk_of(*both) as desk,
    ):
        gate = Gate(File(make_data(1000)))
        desk.serve(gate)
        first = desk.push("a", "mounted/a")
        wait_until(lambda: gate.waiting == 1)
        ballast = fill(disk, 7 * MIB)
        wait_until_low(desk)
        [low] = desk.service.events("disk_space_low")
        assert low["dlpool.folder"] == str(disk)
        second = desk.push("b", "elsewhere")
        gate.open()
        desk.client.wait_for(first)
        assert desk.asked() == ["a"]
        ballast.unlink()
        desk.client.wait_for(second)


def test_a_node_without_space_is_not_ready_until_there_is(tmp_path: Path, redis_server: RedisServer) -> None:
    client = Client(redis_server.client())
    settings = {"supervisor": {"min_free": "1000000T"}}
    with Origin(File(b"x")) as origin, Watched(tmp_path, redis_server.url, settings) as service:
        service.wait_for("dlpool_low_on_space", 1)
        status, text = service.get("/readyz?verbose")
        assert (status, "[-]space failed: less than min_free is left" in text) == (503, True)
        assert service.get("/livez")[0] == 200
        client.push(f"{origin.url}/x", "x")
        listen = f"127.0.0.1:{service.port}"
        service.configure(redis_server.url, {"supervisor": {"min_free": "0"}, "metrics": {"listen": listen}})
        service.signal(signal.SIGHUP)
        client.wait_for(f"{origin.url}/x")
        service.wait_for("dlpool_low_on_space", 0)
        wait_until(lambda: service.get("/readyz")[0] == 200)
