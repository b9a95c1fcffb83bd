"""Files of other programs with the suffixes of dlpool's own files are never changed, renamed or removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dlpool import errors
from dlpool.transfer.target.file.cleanup import remove_part_files
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.partopen import MARK
from tests.conftest import Fetcher, make_data
from tests.disks import exfat, needs_root, ramfs
from tests.origin import File, Origin
from tests.processes import run

Serve = Callable[..., Origin]

SIZE = 1_000_003
DATA = make_data(SIZE)


def seen(path: Path) -> tuple[int, int, bytes]:
    """All that must stay: the file, the time of its last change, and its content."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


@pytest.mark.parametrize("if_exists", ["overwrite", "skip", "fail", "rename"])
@pytest.mark.parametrize("content", [b"", b"precious", DATA, b'{"version"'], ids=["empty", "short", "equal", "like"])
@pytest.mark.parametrize("suffix", [".part", ".part.meta"])
def test_a_foreign_part_or_state_file_is_refused_and_left_alone(
    suffix: str, content: bytes, if_exists: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    foreign = tmp_path / f"movie.bin{suffix}"
    foreign.write_bytes(content)
    before = seen(foreign)
    origin = serve(File(DATA))
    if (suffix, if_exists) == (".part", "rename"):  # the name is taken: the next one is not
        fetch(f"{origin.url}/f", tmp_path / "movie.bin", if_exists=if_exists)
        assert seen(foreign) == before
        return
    with pytest.raises(errors.ForeignFile, match=rf"movie\.bin{suffix} was not made by dlpool: move it away") as raised:
        fetch(f"{origin.url}/f", tmp_path / "movie.bin", if_exists=if_exists)
    assert (raised.value.exit_code, raised.value.label) == (13, "foreign_file")
    assert seen(foreign) == before
    assert os.listdir(tmp_path) == [foreign.name]
    assert origin.requests == []


def test_a_foreign_part_file_with_a_second_name_keeps_both(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"precious")
    os.link(tmp_path / "mine", tmp_path / "f.part")
    with pytest.raises(errors.ForeignFile):
        fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    assert sorted(os.listdir(tmp_path)) == ["f.part", "mine"]
    assert (tmp_path / "mine").read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".part.tmp", ".part.meta.tmp", ".part.lock", ".tmp"])
@pytest.mark.parametrize("resume", [True, False])
def test_other_files_beside_the_target_are_not_touched(
    suffix: str, resume: bool, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    foreign = tmp_path / f"f{suffix}"
    foreign.write_bytes(b"precious")
    before = seen(foreign)
    file = File(DATA, block=16 * 1024, pause_s=0.1)
    origin = serve(file)
    with pytest.raises(errors.DeadlineExceeded):
        fetch(f"{origin.url}/f", tmp_path / "f", deadline=0.5)
    assert (tmp_path / "f.part.meta").exists(), "a state was committed beside it"
    file.pause_s = 0.0
    fetch(f"{origin.url}/f", tmp_path / "f", resume=resume)
    assert (tmp_path / "f").read_bytes() == DATA
    assert seen(foreign) == before
    assert sorted(os.listdir(tmp_path)) == sorted(["f", foreign.name])


@pytest.mark.parametrize("suffix", [".part", ".part.meta", ".part.meta.tmp"])
def test_clean_up_after_a_job_leaves_foreign_files(suffix: str, tmp_path: Path) -> None:
    foreign = tmp_path / f"f{suffix}"
    foreign.write_bytes(b"precious")
    before = seen(foreign)
    remove_part_files(tmp_path / "f", "http://h/f")
    assert seen(foreign) == before
    assert os.listdir(tmp_path) == [foreign.name]


def test_clean_up_of_a_foreign_state_leaves_our_part_file_too(tmp_path: Path) -> None:
    PartFile(tmp_path / "f", sync=False).close()
    (tmp_path / "f.part.meta").write_bytes(b"precious")
    remove_part_files(tmp_path / "f", "http://h/f")
    assert (tmp_path / "f.part.meta").read_bytes() == b"precious"


# --- ours ---


def test_a_part_file_has_a_mark_and_the_published_file_has_none(serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    part = PartFile(tmp_path / "g", sync=False)
    assert os.getxattr(tmp_path / "g.part", MARK)
    part.close()
    fetch(f"{serve(File(DATA)).url}/f", tmp_path / "f")
    assert os.listxattr(tmp_path / "f") == []


@pytest.mark.parametrize("has_state", [True, False])
def test_a_copied_part_file_is_ours_by_its_state(has_state: bool, serve: Serve, fetch: Fetcher, tmp_path: Path) -> None:
    """As cp(1) and many backups drop extended attributes."""
    file = File(DATA, block=16 * 1024, pause_s=0.1)
    origin = serve(file)
    with pytest.raises(errors.DeadlineExceeded):
        fetch(f"{origin.url}/f", tmp_path / "f", deadline=0.5)
    os.removexattr(tmp_path / "f.part", MARK)
    file.pause_s = 0.0
    if has_state:
        assert fetch(f"{origin.url}/f", tmp_path / "f").resumed_from > 0
        assert (tmp_path / "f").read_bytes() == DATA
    else:
        (tmp_path / "f.part.meta").unlink()
        with pytest.raises(errors.ForeignFile):
            fetch(f"{origin.url}/f", tmp_path / "f")


OPENING = ["open:open:1", "open:open:2", "open:open:3", "open:link:1", "open:replace:1", "open:write:1", "data:write:1"]


def killed_and_run_again(folder: Path, when: str, step: str) -> None:
    options = ["--json", "-q", "-c", "2", "--min-split-size", "256K"]
    target = folder / "f"
    with Origin(File(DATA, block=64 * 1024, pause_s=0.02)) as origin:
        log = folder.parent / f"{folder.name}.log"
        killed = run(log, when, step, "--", "fetch", f"{origin.url}/f", target, *options, module="tests.faults")
        assert killed.code in (-signal.SIGKILL, 0), killed
        ended = run("fetch", f"{origin.url}/f", target, *options)
    assert ended.code == 0, (step, ended.err)
    assert target.read_bytes() == DATA
    assert os.listdir(folder) == ["f"], step


@needs_root
@pytest.mark.parametrize("kind", ["ramfs", "exfat"])
@pytest.mark.parametrize("when", ["kill-before", "kill-after"])
def test_where_no_file_can_be_marked_what_a_kill_leaves_is_ours(when: str, kind: str, tmp_path: Path) -> None:
    """ramfs and exFAT have no extended attributes: a placeholder of the state says whose the part file is."""
    with exfat(tmp_path / "disk", 64 << 20) if kind == "exfat" else ramfs(tmp_path / "disk") as disk:
        for step in OPENING:
            folder = disk / step.replace(":", "-")
            folder.mkdir()
            killed_and_run_again(folder, when, step)


@needs_root
@pytest.mark.parametrize("kind", ["ramfs", "exfat"])
@pytest.mark.parametrize("suffix", [".part", ".part.meta"])
def test_where_no_file_can_be_marked_foreign_files_are_left_alone(
    suffix: str, kind: str, serve: Serve, fetch: Fetcher, tmp_path: Path
) -> None:
    with exfat(tmp_path / "disk", 16 << 20) if kind == "exfat" else ramfs(tmp_path / "disk") as disk:
        (disk / f"f{suffix}").write_bytes(b"precious")
        with pytest.raises(errors.ForeignFile):
            fetch(f"{serve(File(DATA)).url}/f", disk / "f")
        assert os.listdir(disk) == [f"f{suffix}"]
        assert (disk / f"f{suffix}").read_bytes() == b"precious"
