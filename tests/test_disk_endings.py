"""How a job ends that met a fault of the disk: alone, or as a fault of the node for which all wait."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from dlpool import disk
from dlpool.errors import LocalFault
from dlpool.service.diskfaults import FILLED, ending_on_disk
from tests.conftest import make_data, sha256, wait_until
from tests.desk import Gate, desk_of, running
from tests.origin import File

MIB = 1024 * 1024


def fault(number: int) -> LocalFault:
    """The error of a download for this errno, as it is raised at the boundary."""
    with pytest.raises(LocalFault) as raised, disk.translated("look at the part file"):
        raise OSError(number, os.strerror(number))
    return raised.value


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (errno.ESTALE, "node_fault"),
        (errno.EIO, "node_fault"),
        (errno.ETIMEDOUT, "node_fault"),
        (errno.EROFS, "node_fault"),
        (errno.ENOSPC, "node_fault"),
        (errno.EDQUOT, "node_fault"),
        (errno.EACCES, "node_fault"),
        (errno.EPERM, "node_fault"),
        (errno.ENOENT, "retry"),
        (errno.ENOTDIR, "failed"),
        (errno.ENAMETOOLONG, "failed"),
    ],
)
def test_what_a_fault_leads_to_where_the_folders_are_usable(number: int, ending: str, tmp_path: Path) -> None:
    assert ending_on_disk(fault(number), tmp_path / "f", 1000, 0, [str(tmp_path)]) == ending


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT])
def test_a_removed_download_folder_is_a_fault_of_the_node(number: int, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    assert ending_on_disk(fault(number), root / "a" / "f", 1000, 0, [str(root)]) == "node_fault"


def test_a_folder_of_its_own_that_a_job_may_not_use_is_its_own_fault(tmp_path: Path) -> None:
    assert ending_on_disk(fault(errno.EACCES), tmp_path / "not there" / "f", 1000, 0, [str(tmp_path)]) == "failed"


@pytest.mark.parametrize(
    ("done", "ending"), [(0, "node_fault"), (MIB - 1, "node_fault"), (MIB, FILLED), (9 * MIB, FILLED)]
)
def test_a_stream_of_unknown_size_is_told_from_a_disk_that_was_full(done: int, ending: str, tmp_path: Path) -> None:
    assert ending_on_disk(fault(errno.ENOSPC), tmp_path / "f", None, done, [str(tmp_path)]) == ending


@pytest.mark.parametrize(
    ("space", "size", "ending"),
    [
        (None, 1000, "node_fault"),
        (disk.Space(1000, 10), 1000, "node_fault"),
        (disk.Space(1000, 10), 1001, "failed"),
        (disk.Space(1000, 10, 5), 995, "node_fault"),
        (disk.Space(1000, 10, 5), 996, "failed"),
    ],
)
def test_a_file_that_never_fits_fails_and_one_that_may_fit_waits(
    space: disk.Space | None, size: int, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlpool.service.diskfaults.known_space", lambda _folder: space)
    assert ending_on_disk(fault(errno.ENOSPC), tmp_path / "f", size, 0, [str(tmp_path)]) == ending


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
