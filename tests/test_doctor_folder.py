"""``dlpool doctor --folder``: on what the promises about files stand there, where file systems can do more or less."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.disk_faults import FAIL, PRETEND, build, start
from tests.disks import exfat, needs_root, ramfs, tmpfs
from tests.origin import File, Origin
from tests.processes import run

MIB = 1024 * 1024
ALL = {
    "free space",
    "lock",
    "marks",
    "preallocation",
    "sync",
    "rename",
    "folder sync",
    "exclusive names",
    "letter case",
}


def examined(*arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    ended = run("doctor", "--json", *arguments)
    return ended.code, {one["check"]: one for one in ended.json["checks"]}


def test_a_folder_that_can_do_all_is_all_right(tmp_path: Path) -> None:
    code, found = examined("--folder", tmp_path)
    assert code == 0
    assert set(found) == {"configuration", *ALL}
    assert {name for name in ALL if found[name]["state"] != "ok"} <= {"free space", "preallocation"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_url_are_examined_together(serve: Callable[..., Origin], tmp_path: Path) -> None:
    origin = serve(File(bytes(100_000)))
    code, found = examined(f"{origin.url}/f", "--folder", tmp_path / "new" / "folder")
    assert code == 0
    assert {"lock", "validator", "plan"} <= set(found) and "redis" not in found
    assert list(tmp_path.iterdir()) == []


def test_a_file_as_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code, found = examined("--folder", tmp_path / "file")
    assert code == 1
    assert found["file system"]["state"] == "failed" and str(tmp_path / "file") in found["file system"]["found"]


MOUNTS: dict[str, tuple[Callable[[Path], AbstractContextManager[Path]], dict[str, str], str]] = {
    "tmpfs": (lambda folder: tmpfs(folder, "64m"), {}, ""),
    "ramfs": (ramfs, {"marks": "ok", "preallocation": "warning"}, "no limit is applied"),
    "exfat": (
        lambda folder: exfat(folder, 64 * MIB),
        {"preallocation": "warning", "exclusive names": "warning", "letter case": "warning"},
        "",
    ),
}


@needs_root
@pytest.mark.parametrize("kind", MOUNTS)
def test_real_file_systems_are_distinguished(kind: str, tmp_path: Path) -> None:
    mount, different, space = MOUNTS[kind]
    with mount(tmp_path / "disk") as folder:
        code, found = examined("--folder", folder)
    assert code == 0
    expected = dict.fromkeys(ALL, "ok") | different
    assert {name: found[name]["state"] for name in ALL} == expected
    assert space in found["free space"]["found"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))


LACKS: dict[str, tuple[list[dict[str, Any]], str, str, str]] = {
    "flock without effect": ([{"kind": "flock", "action": PRETEND}], "lock", "warning", "lock files"),
    "flock refused": ([{"kind": "flock", "action": FAIL, "number": errno.ENOLCK}], "lock", "warning", "lock files"),
    "no marks": ([{"kind": "setxattr", "number": errno.EOPNOTSUPP}], "marks", "ok", "state file"),
    "no space told": ([{"kind": "statvfs", "action": PRETEND}], "free space", "ok", "no limit"),
    "no folder sync": (
        [{"kind": "fsync", "number": errno.EINVAL, "ending": "/"}],
        "folder sync",
        "warning",
        "cannot sync folders",
    ),
    "no rename flags": ([{"kind": "renameat2", "number": errno.EINVAL}], "exclusive names", "ok", "hard links"),
    "neither": (
        [{"kind": "renameat2", "number": errno.ENOSYS}, {"kind": "link", "number": errno.EPERM}],
        "exclusive names",
        "warning",
        "exclude each other",
    ),
    "disk broken": ([{"kind": "fdatasync", "number": errno.EIO}], "file system", "failed", "input/output"),
}


@pytest.mark.parametrize("lack", LACKS)
def test_missing_features_of_a_file_system_are_reported(lack: str, library: Path, tmp_path: Path) -> None:
    faults, check, state, text = LACKS[lack]
    lines = start(library, "tests.disk_doctor", str(tmp_path), *map(json.dumps, faults)).splitlines()
    found = {one["check"]: one for one in map(json.loads, lines)}
    assert (found[check]["state"], text in found[check]["found"]) == (state, True), found
