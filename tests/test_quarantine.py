"""The quarantine keeps infected files complete and within its limits, whatever is killed or fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import dlpool.scan.quarantine
from dlpool.cli.main import main
from dlpool.errors import Infected, NotFound, TargetExists
from dlpool.scan.quarantine import ENTRY_BYTES, STALE_S, Quarantine, QuarantinedFile, ScanFinding
from dlpool.scan.scannedfile import ScannedFile
from tests.clamd import guard
from tests.fakes import Events

DATA = b"an infected file" * 1000
FINDING = ScanFinding("Some.Virus", "download", "http://h/f", "", "alice", "job-1")


@pytest.fixture(params=["same", "other"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for the suspect: on the file system of the quarantine, or on another one."""
    if request.param == "same":
        yield tmp_path
        return
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = Path(tempfile.mkdtemp(dir=shm))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def put(folder: Path, quarantine: Quarantine, data: bytes = DATA, name: str = "file.part") -> QuarantinedFile:
    (folder / name).write_bytes(data)
    descriptor = os.open(folder / name, os.O_RDWR)
    try:
        found = ScanFinding("Some.Virus", "download", "http://h/f", str(folder / "file"), "alice", "job-1")
        return quarantine.add(ScannedFile(descriptor, folder / name, len(data)), found)
    finally:
        os.close(descriptor)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_moved_with_its_record(elsewhere: Path, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    item = put(elsewhere, quarantine)
    assert not (elsewhere / "file.part").exists()
    assert quarantine.items() == [item] == [quarantine.item(item.id)]
    assert names(quarantine.folder) == [item.id, f"{item.id}.json"]
    assert (quarantine.folder / item.id).read_bytes() == DATA
    assert quarantine.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in quarantine.folder.iterdir())
    record = json.loads((quarantine.folder / f"{item.id}.json").read_text())
    assert record["signature"] == "Some.Virus" and record["owner"] == "alice" and record["source"] == "http://h/f"
    assert len(record["sha256"]) == 64 and record["size"] == len(DATA) and record["job_id"] == "job-1"


def test_a_name_that_means_another_file_by_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    descriptor = os.open(tmp_path / "file.part", os.O_RDWR)
    (tmp_path / "file.part").rename(tmp_path / "moved")
    (tmp_path / "file.part").write_bytes(b"of somebody else")
    item = Quarantine(tmp_path / "q", 1 << 30).add(ScannedFile(descriptor, tmp_path / "file.part", len(DATA)), FINDING)
    os.close(descriptor)
    assert (tmp_path / "q" / item.id).read_bytes() == DATA
    assert (tmp_path / "file.part").read_bytes() == b"of somebody else"


def trace_of(count: int, at_end: Callable[[], object]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that calls ``at_end`` at the ``count``-th line of the module, each counted once."""
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != dlpool.scan.quarantine.__file__:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
            if len(seen) == count:
                at_end()
        return trace

    return trace


def killed_at(count: int, step: Callable[[], object]) -> bool:
    """Run ``step`` in a child that is killed at that line; whether it was."""
    child = os.fork()
    if child == 0:
        sys.settrace(trace_of(count, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def test_whatever_is_killed_the_file_is_whole_in_one_of_both_places(elsewhere: Path, tmp_path: Path) -> None:
    kills = 0
    while True:
        quarantine = Quarantine(tmp_path / f"q{kills}", 1 << 30)
        source = elsewhere / "file.part"
        source.unlink(missing_ok=True)
        if not killed_at(kills + 1, lambda: put(elsewhere, quarantine)):  # noqa: B023 - called at once
            break
        kills += 1
        kept = quarantine.items()
        assert source.exists() or kept
        assert not source.exists() or source.read_bytes() == DATA
        for item in kept:
            assert (quarantine.folder / item.id).read_bytes() == DATA
            assert item.finding.signature == "Some.Virus"
        put(elsewhere, quarantine)  # the next scan finds it again
        assert not source.exists()
        assert len(quarantine.items()) in (1, 2)
    assert kills > 30


def test_whatever_is_killed_in_a_release_no_file_is_lost(tmp_path: Path) -> None:
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        folder.mkdir()
        quarantine = Quarantine(folder / "q", 1 << 30)
        item = put(folder, quarantine)
        if not killed_at(kills + 1, lambda: quarantine.release(item.id)):  # noqa: B023 - called at once
            break
        kills += 1
        target = folder / "file"
        if target.exists():
            assert target.read_bytes() == DATA
            with suppress(NotFound):
                quarantine.delete(item.id)
        else:
            assert quarantine.release(item.id)[1] == target
        assert quarantine.items() == [] and names(folder) == ["file", "q"]
    assert kills > 20


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    item = put(tmp_path, quarantine)
    old, young = "0" * 16, "1" * 16
    stale = [f"{old}.json", f"{old}.copying", f"{item.id}.copying", f"{old}.json.tmp"]
    for name in [*stale, f"{young}.json", f"{young}.copying", "notes.txt"]:
        (quarantine.folder / name).write_text("{}")
    for name in [*stale, item.id, f"{item.id}.json", "notes.txt"]:
        os.utime(quarantine.folder / name, (0, STALE_S))
    second = put(tmp_path, quarantine)
    kept = [
        item.id,
        f"{item.id}.json",
        second.id,
        f"{second.id}.json",
        f"{young}.copying",
        f"{young}.json",
        "notes.txt",
    ]
    assert names(quarantine.folder) == sorted(kept)
    assert {found.id for found in quarantine.items()} == {item.id, second.id}


def test_the_oldest_make_room(tmp_path: Path) -> None:
    room = 3 * (len(DATA) + ENTRY_BYTES)
    quarantine = Quarantine(tmp_path / "q", room)
    items = [put(tmp_path, quarantine) for _ in range(6)]
    assert [item.id for item in quarantine.items()] == [item.id for item in items[3:]]
    small = [put(tmp_path, quarantine, b"tiny") for _ in range(20)]
    assert [item.id for item in quarantine.items()] == [item.id for item in small[-len(quarantine.items()) :]]
    assert len(names(quarantine.folder)) * ENTRY_BYTES / 2 <= room


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"at": 1}', b"\xff" * 100, b'{"at":"a","sha256":"b"}'])
def test_an_item_with_a_damaged_record_is_still_listed(damage: bytes, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    item = put(tmp_path, quarantine)
    (quarantine.folder / f"{item.id}.json").write_bytes(damage)
    [found] = quarantine.items()
    assert (found.id, found.size, found.finding.signature) == (item.id, len(DATA), "unknown")
    assert quarantine.release(item.id, tmp_path / "back")[1].read_bytes() == DATA


@pytest.mark.parametrize(
    "item_id", ["", "..", "../q/0000000000000000", "0" * 15, "0" * 17, "0" * 16, "x" * 16, "/etc/passwd"]
)
def test_an_id_of_nothing_is_not_found(item_id: str, tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    put(tmp_path, quarantine)
    for call in (quarantine.item, quarantine.delete, quarantine.release):
        with pytest.raises(NotFound):
            call(item_id)


def test_a_release_replaces_nothing(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q", 1 << 30)
    item = put(tmp_path, quarantine)
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(TargetExists):
        quarantine.release(item.id)
    assert (tmp_path / "file").read_bytes() == b"mine" and quarantine.items() == [item]
    os.umask(umask := os.umask(0o022))
    _, path = quarantine.release(item.id, tmp_path / "new" / "name")
    assert path.read_bytes() == DATA and path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert quarantine.items() == [] and names(quarantine.folder) == []


def not_a_folder(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "file").write_text("")
    return {"quarantine_dir": str(tmp_path / "file" / "q")}


def too_small(_tmp_path: Path) -> dict[str, Any]:
    return {"quarantine_size": 1000}


@pytest.mark.parametrize("broken", [not_a_folder, too_small])
def test_a_file_that_cannot_be_kept_is_removed(broken: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    descriptor = os.open(tmp_path / "file.part", os.O_RDWR)
    told = Events()
    own = guard(tmp_path, command="sh -c 'exit 1'", **broken(tmp_path))
    try:
        with pytest.raises(Infected, match="removed, as it could not be moved to quarantine") as caught:
            own.check(ScannedFile(descriptor, tmp_path / "file.part", len(DATA)), FINDING, report=told)
    finally:
        os.close(descriptor)
    assert caught.value.quarantine is None and not (tmp_path / "file.part").exists()
    [(outcome, fields)] = told
    assert outcome == "infected" and fields["reason"]


def configured(tmp_path: Path) -> tuple[Quarantine, str]:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(f"[scan]\nquarantine_dir = {tmp_path}/q\n[paths]\nlog_dir = {tmp_path}/log\n")
    return Quarantine(tmp_path / "q", 1 << 30), str(ini)


def test_the_command_lists_shows_releases_and_deletes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quarantine, ini = configured(tmp_path)

    def said(*arguments: str, code: int = 0) -> str:
        assert main(["quarantine", *arguments, "-c", ini]) == code
        return capsys.readouterr().out

    assert said() == "ID\tAT\tSIZE\tSIGNATURE\tOWNER\tTARGET\n"
    one, two, three, four = (put(tmp_path, quarantine) for _ in range(4))
    assert [line.split("\t")[0] for line in said("list").splitlines()[1:]] == [one.id, two.id, three.id, four.id]
    assert [json.loads(line)["id"] for line in said("list", "--json").splitlines()] == [
        one.id,
        two.id,
        three.id,
        four.id,
    ]
    assert "sha256\t" + one.sha256 in said("show", one.id)
    assert json.loads(said("show", two.id, "--json")) == two.as_json()
    assert said("release", one.id) == f"{one.id}\treleased to {tmp_path}/file\n"
    assert said("release", two.id, code=13) == "" and said("show", "0" * 16, code=10) == ""
    assert said("release", two.id, "--to", f"{tmp_path}/other") == f"{two.id}\treleased to {tmp_path}/other\n"
    assert said("delete", three.id, "0" * 16, code=14) == f"{three.id}\tdeleted\n"
    assert said("delete", "--all", "-q") == "" and quarantine.items() == []
    log = [json.loads(line) for line in (tmp_path / "log" / "dlpool.log").read_text().splitlines()]
    changes = [record["event.action"] for record in log if record["event.action"] != "audit"]
    audited = [
        (one["dlpool.action"], one["dlpool.object"], one["dlpool.result"]) for one in log if "dlpool.actor" in one
    ]
    assert audited == [
        ("quarantine.release", one.id, "done"),
        ("quarantine.release", two.id, "target_exists"),
        ("quarantine.release", two.id, "done"),
        ("quarantine.delete", three.id, "done"),
        ("quarantine.delete", "0" * 16, "not_found"),
        ("quarantine.delete", four.id, "done"),
    ]
    assert changes == ["quarantine_released"] * 2 + ["quarantine_deleted"] * 2 and log[0]["user.name"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "x"],
        ["list", "--all"],
        ["show"],
        ["show", "--all"],
        ["release"],
        ["release", "--all"],
        ["delete"],
        ["delete", "x", "--all"],
        ["release", "x", "y", "--to", "p"],
        ["delete", "x", "--to", "p"],
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments: list[str], tmp_path: Path) -> None:
    assert main(["quarantine", *arguments, "-c", configured(tmp_path)[1]]) == 2
