"""Where a link stands below a root, and where it leads: a job's file, or an upload, goes nowhere else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dlpool.config import PathSettings
from dlpool.errors import PolicyRefused
from dlpool.jobs.confinement import Confinement
from dlpool.storage.disk.safe_open import open_below, open_file_below
from dlpool.storage.errors import UploadError
from dlpool.web.errors import http_error

DEPTHS = {"first": "", "second": "a/", "third": "a/b/"}
OUTSIDE = {"folder": "outside", "file": "outside/file", "nothing": "outside/new", "sibling": "root-2", "above": ".."}


@pytest.fixture(params=["download_dir", "another root"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that jobs may write below, with folders in it; beside it others that they may not."""
    folder = tmp_path / ("root" if request.param == "download_dir" else "other")
    for path in (tmp_path / "root", folder / "a" / "b", folder / "inside", tmp_path / "outside", tmp_path / "root-2"):
        path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside" / "file").write_text("secret")
    return folder


def confinement(tmp_path: Path) -> Confinement:
    settings = replace(
        PathSettings(),
        download_dir=str(tmp_path / "root"),
        allowed_roots=f"{tmp_path / 'root'}:{tmp_path / 'other'}",
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "log"),
    )
    return Confinement(settings)


def link(root: Path, depth: str, leads_to: str | Path) -> str:
    """Plant a link below the root; returns its path relative to that."""
    path = root / DEPTHS[depth] / "link"
    path.symlink_to(leads_to)
    return str(path.relative_to(root))


def relative(tmp_path: Path, root: Path, path: str) -> str:
    """As a job says it: relative to the download folder, or else absolute."""
    return path if root == tmp_path / "root" else str(root / path)


@pytest.mark.parametrize("behind", ["", "/file", "/deeper/file", "/"])
@pytest.mark.parametrize("leads_to", OUTSIDE)
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_job_leaves_its_root_by_no_link(tmp_path: Path, root: Path, depth: str, leads_to: str, behind: str) -> None:
    path = link(root, depth, tmp_path / OUTSIDE[leads_to]) + behind
    with pytest.raises(PolicyRefused, match="outside"):
        confinement(tmp_path).target(relative(tmp_path, root, path))
    with pytest.raises(PolicyRefused, match="outside"):
        confinement(tmp_path).check_resolved_name(root / path)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_link_that_stays_below_the_root_is_followed(tmp_path: Path, root: Path, depth: str) -> None:
    path = link(root, depth, root / "inside")
    found = confinement(tmp_path).target(relative(tmp_path, root, f"{path}/file"))
    assert found.path == root / "inside" / "file"
    assert confinement(tmp_path).target(relative(tmp_path, root, path)).is_folder


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_link_into_a_folder_of_our_own_is_refused(tmp_path: Path, root: Path, depth: str) -> None:
    settings = replace(
        PathSettings(),
        download_dir=str(tmp_path / "root"),
        allowed_roots=str(tmp_path),
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "log"),
    )
    (tmp_path / "state").mkdir()
    path = link(root, depth, tmp_path / "state")
    with pytest.raises(PolicyRefused, match="itself uses"):
        Confinement(settings).target(str(root / path / "file"))


@pytest.mark.parametrize("make", [False, True])
@pytest.mark.parametrize("leads_to", [*OUTSIDE, "inside"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_an_upload_goes_through_no_link(tmp_path: Path, root: Path, depth: str, leads_to: str, make: bool) -> None:
    """Not even through one that leads to another folder below the root."""
    path = link(root, depth, tmp_path / OUTSIDE[leads_to] if leads_to in OUTSIDE else root / "inside")
    parts = tuple(path.split("/"))
    for more in ((), ("deeper",)):
        with pytest.raises(UploadError) as raised:
            os.close(open_below(str(root), (*parts, *more), make=make))
        assert (http_error(raised.value).status, raised.value.code) == (400, "bad_path")
    with pytest.raises(UploadError) as raised:
        os.close(open_file_below(str(root), f"{path}/file"))
    assert (http_error(raised.value).status, raised.value.code) == (400, "bad_path")
    with pytest.raises(UploadError) as raised:
        os.close(open_file_below(str(root), path))
    assert (http_error(raised.value).status, raised.value.code) == (404, "not_found")
    assert sorted(os.listdir(tmp_path / "outside")) == ["file"]
