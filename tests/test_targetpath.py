"""Which paths may be the target of a download, and the record that a file was published for a job."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.job import Job
from dlpool.transfer.target.file.publish import has_mark, set_mark
from dlpool.transfer.target.file.targetpath import resolve_target
from dlpool.transfer.target.names import MAX_NAME_BYTES


def test_a_free_name_and_a_file_are_targets(tmp_path: Path) -> None:
    assert resolve_target(tmp_path / "f") == (tmp_path / "f", False)
    (tmp_path / "f").touch()
    assert resolve_target(tmp_path / "f") == (tmp_path / "f", True)


def test_a_link_is_followed_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "again").symlink_to("link")
    assert resolve_target(tmp_path / "again") == (tmp_path / "f", True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dangling", "is a symbolic link to .*nowhere, which does not exist"),
        ("folder", "is a folder, not a file"),
        ("link to folder", "is a folder, not a file"),
        ("pipe", "exists and is not a regular file"),
    ],
)
def test_what_is_no_file_is_no_target(kind: str, said: str, tmp_path: Path) -> None:
    target = tmp_path / "f"
    if kind == "dangling":
        target.symlink_to("nowhere")
    elif kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        (tmp_path / "folder").mkdir()
        target.symlink_to("folder")
    with pytest.raises(errors.LocalFault, match=said):
        resolve_target(target)


@pytest.mark.parametrize("suffix", [".part", ".part.meta", ".part.lock"])
@pytest.mark.parametrize("is_link", [True, False])
def test_names_that_dlpool_keeps_are_no_targets(is_link: bool, suffix: str, tmp_path: Path) -> None:
    target = kept = tmp_path / f"f{suffix}"
    if is_link:
        kept.touch()
        target = tmp_path / "link"
        target.symlink_to(kept.name)
    with pytest.raises(errors.PolicyRefused, match="which dlpool keeps for unfinished files"):
        resolve_target(target)


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
def test_a_name_has_a_largest_length_in_bytes(letter: str, tmp_path: Path) -> None:
    longest = (letter * MAX_NAME_BYTES).encode()[:MAX_NAME_BYTES].decode(errors="ignore").ljust(1)
    longest += "x" * (MAX_NAME_BYTES - len(longest.encode()))
    assert resolve_target(tmp_path / longest) == (tmp_path / longest, False)
    with pytest.raises(errors.LocalFault, match=f"longer than {MAX_NAME_BYTES} bytes"):
        resolve_target(tmp_path / f"{longest}x")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_target_that_cannot_be_looked_at_is_an_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "lstat", fail)
    with pytest.raises(errors.LocalFault, match="cannot use the path"):
        resolve_target(tmp_path / "f")


# --- the mark ---

ASKED = Job("http://host/f", Path("f"), id="j1", claim="c1")


def test_a_mark_names_one_job_and_goes_along(tmp_path: Path) -> None:
    with open(tmp_path / "f", "wb") as file:
        assert has_mark(tmp_path / "f", ASKED) is False
        assert set_mark(file.fileno(), ASKED) is True
    (tmp_path / "f").rename(tmp_path / "g")
    assert has_mark(tmp_path / "g", ASKED) is True
    assert has_mark(tmp_path / "g", replace(ASKED, id="j2")) is False
    assert has_mark(tmp_path / "f", ASKED) is False


@pytest.mark.parametrize(
    ("number", "is_raised"), [(errno.EOPNOTSUPP, False), (errno.EPERM, False), (errno.EIO, True), (errno.ESTALE, True)]
)
def test_a_mark_that_cannot_be_read_or_set(
    number: int, is_raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "getxattr", fail)
    monkeypatch.setattr(os, "setxattr", fail)
    assert set_mark(0, ASKED) is False
    if is_raised:
        with pytest.raises(errors.LocalFault, match="cannot access"):
            has_mark(tmp_path / "f", ASKED)
    else:
        assert has_mark(tmp_path / "f", ASKED) is False
