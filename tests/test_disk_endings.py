"""How a job ends that met a fault of the disk: alone, or as a fault of the node for which all wait."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk_errors, freespace
from dlpool.errors import LocalFault, NoRoom, TooLarge
from dlpool.service.node.disk_faults import EndedRun, classify_disk_error
from dlpool.service.node.disk_rules import can_write
from dlpool.transfer.target.file.partfile import PartFile
from tests.conftest import make_data, sha256, wait_until
from tests.desk import Gate, desk_of, running
from tests.disks import needs_root, remount, tmpfs
from tests.origin import File

MIB = 1024 * 1024
URL = "http://host/f"


def fault(number: int) -> LocalFault:
    """The error of a download for this errno, as it is raised at the boundary."""
    with pytest.raises(LocalFault) as raised, disk_errors.translated("look at the part file"):
        raise OSError(number, os.strerror(number))
    return raised.value


def ended(
    error: LocalFault, target: Path, *, size: int | None = 1000, done: int = 0, writes: bool | list[bool] = True
) -> str:
    """How a run ends; ``writes``: whether small writes in the folder of all downloads succeed, each in its turn."""
    turns = iter(writes if isinstance(writes, list) else [writes, writes])
    return classify_disk_error(error, EndedRun(URL, target, size, done, [target.parent.parent], lambda _: next(turns)))


def begun(target: Path) -> Path:
    """The part file of a download that has ended."""
    part = PartFile(target, sync=False)
    part.close()
    return part.path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads" / "a"
    folder.mkdir(parents=True)
    return folder / "f"


OF_THE_JOB = {
    errno.ENOSPC: "no_room",
    errno.EDQUOT: "no_room",
    errno.EIO: "retry",
    errno.ESTALE: "retry",
    errno.ETIMEDOUT: "retry",
    errno.EROFS: "retry",
    errno.EMFILE: "retry",
    errno.EACCES: "retry",
    errno.EPERM: "retry",
    errno.ENOENT: "retry",
}


@pytest.mark.parametrize("number", OF_THE_JOB, ids=errno.errorcode.get)
@pytest.mark.parametrize("does_write", [True, False])
def test_a_fault_is_the_nodes_only_if_a_second_write_fails(number: int, does_write: bool, target: Path) -> None:
    expected = OF_THE_JOB[number] if does_write else "node_fault"
    assert ended(fault(number), target, writes=does_write) == expected


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.EILSEQ, errno.EISDIR])
def test_what_only_the_job_can_have_caused_fails_it(number: int, target: Path) -> None:
    assert ended(fault(number), target, writes=[]) == "failed"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_removed_download_folder_is_a_fault_of_the_node(number: int, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    assert classify_disk_error(fault(number), EndedRun(URL, root / "a" / "f", 1000, 0, [root])) == "node_fault"


@needs_root
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_fault_of_a_disk_that_only_some_jobs_lead_to_is_theirs(number: int, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "mounted", "1m") as disk:
        remount(disk, "ro")
        run = EndedRun(URL, disk / "f", 1000, 0, [tmp_path])
        assert classify_disk_error(fault(number), run) == OF_THE_JOB[number]


def test_a_folder_of_its_own_that_a_job_may_not_use_is_its_own_fault(target: Path) -> None:
    assert ended(fault(errno.EACCES), target.parent / "not there" / "f") == "failed"


@pytest.mark.parametrize(
    ("done", "writes", "ending"),
    [
        (0, [True], "no_room"),
        (9 * MIB, [True], "no_room"),
        (0, [False], "node_fault"),
        (MIB - 1, [False], "node_fault"),
        (MIB, [False, True], "no_room"),
        (9 * MIB, [False, True], "no_room"),
        (9 * MIB, [False, False], "node_fault"),
    ],
)
@pytest.mark.parametrize("size", [None, 10 * MIB])
def test_a_job_that_fills_the_disk_gives_its_bytes_back_before_the_disk_is_judged(
    size: int | None, done: int, writes: list[bool], ending: str, target: Path
) -> None:
    part = begun(target)
    assert ended(fault(errno.ENOSPC), target, size=size, done=done, writes=list(writes)) == ending
    assert part.exists() == (writes[0] or done < MIB)


@pytest.mark.parametrize(("done", "is_kept"), [(0, True), (MIB - 1, True), (MIB, False)])
def test_a_file_that_finds_no_more_room_gives_back_what_it_took(done: int, is_kept: bool, target: Path) -> None:
    part = begun(target)
    assert ended(NoRoom("x"), target, done=done, writes=[]) == "no_room"
    assert part.exists() == is_kept


def test_a_file_larger_than_its_disk_fails_whatever_the_disk_says(target: Path) -> None:
    assert ended(TooLarge("x"), target, writes=[]) == "failed"
    assert ended(fault(errno.ENOSPC), target, size=2**60, writes=[]) == "failed"


@needs_root
@pytest.mark.parametrize("ballast", [0, 4])
def test_a_small_write_succeeds_where_there_is_room_and_leaves_nothing(ballast: int, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "4m") as disk:
        (disk / "ballast").write_bytes(bytes(ballast * MIB))
        assert can_write(disk) == (ballast == 0)
        remount(disk, "ro")
        assert not can_write(disk)
        assert os.listdir(disk) == ["ballast"]


@pytest.mark.parametrize("ending", [errno.EISDIR, errno.EOPNOTSUPP])
def test_a_small_write_needs_no_unnamed_files(ending: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def without_unnamed(path: str, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(ending, os.strerror(ending))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without_unnamed)
    assert can_write(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("space", "size", "ending"),
    [
        (None, 1000, "no_room"),
        (freespace.Space(1000, 10), 1000, "no_room"),
        (freespace.Space(1000, 10), 1001, "failed"),
        (freespace.Space(1000, 10, 5), 995, "no_room"),
        (freespace.Space(1000, 10, 5), 996, "failed"),
    ],
)
def test_a_file_that_never_fits_fails_and_one_that_may_fit_waits(
    space: freespace.Space | None, size: int, ending: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlpool.service.node.disk_faults.space_or_none", lambda _folder: space)
    assert ended(fault(errno.ENOSPC), target, size=size) == ending


def test_a_download_folder_that_is_removed_meanwhile_fails_no_job(tmp_path: Path) -> None:
    data = make_data(100_000)
    with running(tmp_path, supervisor={"fault_delay": "300ms"}) as both, desk_of(*both) as desk:
        gate = Gate(File(data))
        desk.serve(gate)
        urls = [desk.push(number) for number in range(3)]
        wait_until(lambda: gate.waiting == 3)
        shutil.rmtree(desk.service.out)
        gate.open()
        desk.client.wait_for(*urls)
        assert all(sha256((desk.folder / str(number)).read_bytes()) == sha256(data) for number in range(3))
        assert desk.service.events("job_failed") == []
