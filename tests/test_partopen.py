"""How a part file is found or created, also where the file system lacks a feature or another process is faster."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk, errors, filelock
from dlpool.filelock import FileLock
from dlpool.lock_files import LockHeld
from dlpool.transfer.target.file import partopen
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.partopen import MARK, PartOpener
from dlpool.transfer.target.file.statefile import StateFile
from tests.conftest import open_descriptors
from tests.fakes import Events

LACKS = ["nothing", "names", "marks", "links", "names and marks", "links and marks"]


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def lacking(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make this process's file system lack files without a name, extended attributes or hard links."""
    real = os.open

    def open_(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(path, flags, *arguments, **options)

    if "names" in what:
        monkeypatch.setattr(os, "open", open_)
    if "marks" in what:
        for name in ("setxattr", "getxattr"):
            monkeypatch.setattr(os, name, failing(errno.EOPNOTSUPP))
    if "links" in what:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))


@pytest.fixture(params=[True, False], ids=["flock", "lock file"])
def has_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether flock(2) locks."""
    if not request.param:
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        monkeypatch.setattr(filelock, "_flock_works", {})
    return bool(request.param)


@pytest.fixture
def leaves_no_descriptor(tmp_path: Path) -> Iterator[None]:
    before = open_descriptors(tmp_path)
    yield
    assert open_descriptors(tmp_path) == before


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("what", LACKS)
def test_a_part_file_is_created_locked_and_known_as_ours(
    what: str, has_flock: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, what)
    target = tmp_path / "new" / "folder" / "f"
    lock = [] if has_flock else ["f.part.lock"]
    marks = ["f.part.meta"] if "marks" in what else []
    for is_new in (True, False):
        part = PartFile(target, sync=False)
        assert (part.is_new, part.is_marked, part.has_lock_file) == (is_new, "marks" not in what, not has_flock)
        assert files(target.parent) == sorted(["f.part", *lock, *marks])
        with pytest.raises(errors.Locked, match=r"another download is writing to .*/f"):
            PartFile(target, sync=False)
        part.restart()
        part.check_ownership()
        assert (part.is_new, part.is_marked, part.has_lock_file) == (True, "marks" not in what, not has_flock)
        with pytest.raises(errors.Locked):
            PartFile(target, sync=False)
        part.close()
        assert files(target.parent) == sorted(["f.part", *marks])


def test_a_part_file_has_its_name_only_when_it_is_locked_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(partopen, "FileLock", _looking(tmp_path, FileLock, seen))
    monkeypatch.setattr(partopen, "_mark", _looking(tmp_path, partopen._mark, seen))
    PartFile(tmp_path / "f", sync=False).close()
    assert seen == [[], []]


def _looking(folder: Path, call: Callable[..., Any], seen: list[list[str]]) -> Any:
    def look(*arguments: Any, **options: Any) -> Any:
        seen.append(files(folder))
        return call(*arguments, **options)

    return look


def test_the_folders_are_made_durable_if_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Events()

    monkeypatch.setattr(disk, "_reported", set())
    monkeypatch.setattr(os, "fsync", failing(errno.EOPNOTSUPP))
    PartFile(tmp_path / "a" / "f", sync=False, notify=told).close()
    assert told == []
    PartFile(tmp_path / "b" / "f", sync=True, notify=told).close()
    reason = os.strerror(errno.EOPNOTSUPP)
    assert told == [("folder_not_synced", {"folder": str(tmp_path), "reason": reason})]


def test_an_error_without_a_text_is_told_as_it_is(tmp_path: Path) -> None:
    told = Events()
    PartOpener(tmp_path / "f", sync=True, notify=told).on_unsynced("out", OSError("odd"))
    assert told == [("folder_not_synced", {"folder": "out", "reason": "odd"})]


# --- what has the name already ---


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link"])
def test_what_is_no_regular_file_is_refused(kind: str, leaves_no_descriptor: None, tmp_path: Path) -> None:
    path = tmp_path / "f.part"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        if kind == "link":
            (tmp_path / "other").write_bytes(b"precious")
        path.symlink_to("other")
    before = files(tmp_path)
    said = "not a regular file" if kind == "pipe" else "f.part"
    with pytest.raises(errors.LocalFault, match=said):
        PartFile(tmp_path / "f", sync=False)
    assert files(tmp_path) == before


def left(folder: Path, content: bytes = b"ours") -> Path:
    """Leave a part file of ours."""
    part = PartFile(folder / "f", sync=False)
    part.locked_writer().write(0, memoryview(content))
    part.close()
    return folder / "f.part"


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_published_file_keeps_only_the_targets_name(
    is_marked: bool, leaves_no_descriptor: None, tmp_path: Path
) -> None:
    """As after a kill between a link to the target and the removal of the old name."""
    path = left(tmp_path)
    os.link(path, tmp_path / "f")
    if not is_marked:
        os.removexattr(path, MARK)
    part = PartFile(tmp_path / "f", sync=False)
    assert (part.is_new, part.length) == (True, 0)
    part.close()
    assert (tmp_path / "f").read_bytes() == b"ours"
    assert (tmp_path / "f").stat().st_nlink == 1


def test_a_part_file_with_a_further_name_is_not_written_to(leaves_no_descriptor: None, tmp_path: Path) -> None:
    os.link(left(tmp_path), tmp_path / "copy")
    part = PartFile(tmp_path / "f", sync=False)
    assert (part.is_new, part.length) == (True, 0)
    part.close()
    assert (tmp_path / "copy").read_bytes() == b"ours"


@pytest.mark.parametrize("state", [b"", b'{"version":1', b"precious", None])
@pytest.mark.parametrize("what", ["nothing", "marks"])
def test_a_file_without_a_mark_is_ours_by_its_state(
    what: str, state: bytes | None, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.part").write_bytes(b"bytes")
    if state is not None:
        (tmp_path / "f.part.meta").write_bytes(state)
    lacking(monkeypatch, what)
    if state != b'{"version":1':
        with pytest.raises(errors.ForeignFile, match=r"f\.part was not made by dlpool"):
            PartFile(tmp_path / "f", sync=False)
        return
    part = PartFile(tmp_path / "f", sync=False)
    assert (part.is_new, part.is_marked, part.length) == (False, what == "nothing", 5)
    part.close()


@pytest.mark.parametrize(
    ("number", "is_foreign"), [(errno.ENODATA, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)]
)
def test_a_mark_that_cannot_be_read_now_is_neither_there_nor_missing(
    number: int, is_foreign: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(errors.ForeignFile if is_foreign else errors.DiskFailed):
        patch.setattr(os, "getxattr", failing(number))
        PartFile(tmp_path / "f", sync=False)


@pytest.mark.parametrize(
    ("names", "is_so", "found"),
    [
        ([], True, "f.PART"),
        (["f.PART"], True, "f.PART"),
        (["other", "x.part"], True, "f.PART"),
        (["F.part"], False, "F.part"),
        (["F.part", "f.PART"], True, "f.PART"),
    ],
)
def test_a_name_may_be_spelt_otherwise_in_the_folder(names: list[str], is_so: bool, found: str, tmp_path: Path) -> None:
    opener = PartOpener(tmp_path / "f", sync=False, notify=lambda *_, **__: None)
    opener.name = str(tmp_path / "f.PART")
    for name in names:
        (tmp_path / name).touch()
    assert opener._has_exact_name() is is_so
    assert Path(opener.name).name == found


def test_composed_and_decomposed_letters_are_one_spelling(tmp_path: Path) -> None:
    opener = PartOpener(tmp_path / "\u00e9", sync=False, notify=lambda *_, **__: None)
    (tmp_path / "e\u0301.part").touch()
    assert not opener._has_exact_name()
    assert Path(opener.name).name == "e\u0301.part"


# --- another process is quicker ---


def test_a_part_file_that_was_published_meanwhile_is_opened_again(
    leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark has gone between the opening and the look, and another one has the name."""
    path, real = left(tmp_path, b"old"), os.getxattr
    left(tmp_path / "next", b"new")

    def getxattr(descriptor: int, name: str) -> bytes:
        monkeypatch.setattr(os, "getxattr", real)
        os.replace(path, tmp_path / "f")
        (tmp_path / "next" / "f.part").rename(path)
        os.removexattr(tmp_path / "f", MARK)
        return real(descriptor, name)

    monkeypatch.setattr(os, "getxattr", getxattr)
    part = PartFile(tmp_path / "f", sync=False)
    assert (part.is_new, part.length, part.path.read_bytes()) == (False, 3, b"new")
    part.close()


def test_a_part_file_that_was_replaced_before_the_lock_is_opened_again(
    has_flock: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left(tmp_path, b"old")
    left(tmp_path / "next", b"new")

    def lock(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(partopen, "FileLock", FileLock)
        (tmp_path / "next" / "f.part").replace(path)
        return FileLock(*arguments, **options)

    monkeypatch.setattr(partopen, "FileLock", lock)
    part = PartFile(tmp_path / "f", sync=False)
    assert part.path.read_bytes() == b"new"
    part.check_ownership()
    part.close()
    assert files(tmp_path) == ["f.part", "next"]


@pytest.mark.parametrize("what", ["nothing", "names", "marks", "names and marks"])
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_file_that_is_created_meanwhile_is_looked_at(
    is_marked: bool,
    what: str,
    has_flock: bool,
    leaves_no_descriptor: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "f.part"
    real_reserve, real_mark = StateFile.write_placeholder, partopen._mark

    def create() -> None:
        if not path.exists():
            path.write_bytes(b"another's")
            if is_marked and "marks" not in what:
                os.setxattr(path, MARK, b"1")

    def reserve(state_file: StateFile) -> None:
        real_reserve(state_file)
        create()

    def mark(descriptor: int) -> bool:
        is_done = real_mark(descriptor)
        create()
        return is_done

    lacking(monkeypatch, what)
    monkeypatch.setattr(StateFile, "write_placeholder", reserve)
    monkeypatch.setattr(partopen, "_mark", mark)
    if what == "nothing" and not is_marked:
        with pytest.raises(errors.ForeignFile):
            PartFile(tmp_path / "f", sync=False)
        assert files(tmp_path) == ["f.part"]
        return
    part = PartFile(tmp_path / "f", sync=False)
    assert (part.is_new, part.path.read_bytes()) == (False, b"another's")
    part.close()
    needs_placeholder = "marks" in what or (what == "names" and not is_marked)
    assert files(tmp_path) == ["f.part", *(["f.part.meta"] if needs_placeholder else [])]


@pytest.mark.parametrize("has_link", [True, False])
def test_a_link_that_was_made_and_reported_as_failed_is_made(
    has_link: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(*arguments: Any, **options: Any) -> None:
        if has_link:
            real(*arguments, **options)
        raise OSError(errno.EIO, "late")

    monkeypatch.setattr(os, "link", link)
    part = PartFile(tmp_path / "f", sync=False)
    part.check_ownership()
    assert (part.is_new, part.is_marked, files(tmp_path)) == (True, True, ["f.part"])
    part.close()


def test_a_name_that_is_never_free_and_never_there_is_an_error(
    has_flock: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    monkeypatch.setattr(partopen, "MAX_OPEN_ATTEMPTS", 3)

    def link(*_: object, **__: object) -> None:
        tries.append(1)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(errors.LocalFault, match="another program keeps replacing it"):
        PartFile(tmp_path / "f", sync=False)
    assert len(tries) == 3
    assert files(tmp_path) == []


def test_a_restart_that_loses_its_name_to_another_download_is_locked_out(
    leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, real = PartFile(tmp_path / "f", sync=False), disk.remove

    def remove(name: str) -> None:
        real(name)
        Path(name).write_bytes(b"another's")

    with monkeypatch.context() as patch, pytest.raises(errors.Locked, match="another download is writing to"):
        patch.setattr(disk, "remove", remove)
        part.restart()
    part.close()
    assert (tmp_path / "f.part").read_bytes() == b"another's"


@pytest.mark.parametrize("what", LACKS)
def test_a_restart_that_fails_keeps_the_lock_file_that_is_held(
    what: str, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(filelock, "_flock_works", {})
    lacking(monkeypatch, what)
    part = PartFile(tmp_path / "f", sync=False)
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed):
        patch.setattr(partopen, "_mark", failing(errno.EIO))
        part.restart()
    assert "f.part.lock" in files(tmp_path)
    part.close()
    assert "f.part.lock" not in files(tmp_path)


# --- errors while it is created ---


@pytest.mark.parametrize("what", ["nothing", "names", "names and marks"])
@pytest.mark.parametrize("step", ["lock", "mark"])
def test_an_error_leaves_neither_lock_nor_descriptor(
    step: str,
    what: str,
    has_flock: bool,
    leaves_no_descriptor: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch, what)
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed, match=r"cannot open .*f\.part"):
        patch.setattr(partopen, "FileLock" if step == "lock" else "_mark", failing(errno.EIO))
        PartFile(tmp_path / "f", sync=False)
    assert "f.part.lock" not in files(tmp_path)
    PartFile(tmp_path / "f", sync=False).close()


@pytest.mark.parametrize("is_created", [True, False])
def test_a_part_file_that_cannot_be_created_leaves_no_placeholder(
    is_created: bool, leaves_no_descriptor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the file was created, and the call reported as failed."""
    real = os.open

    def open_(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        if str(path).endswith("f.part") and flags & os.O_EXCL:
            if is_created:
                os.close(real(path, flags, *arguments, **options))
            raise OSError(errno.EIO, "late")
        return real(path, flags, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed):
        patch.setattr(os, "open", open_)
        PartFile(tmp_path / "f", sync=False)
    assert files(tmp_path) == (["f.part", "f.part.meta"] if is_created else [])


@pytest.mark.parametrize(("holder", "said"), [("", "f$"), ("process 7 on h", r"f \(process 7 on h\)$")])
def test_who_holds_the_lock_is_said_if_it_is_known(
    holder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(*_: object, **__: object) -> Any:
        raise LockHeld(holder)

    monkeypatch.setattr(partopen, "FileLock", lock)
    with pytest.raises(errors.Locked, match=f"another download is writing to .*{said}"):
        PartFile(tmp_path / "f", sync=False)


def test_a_foreign_file_in_place_of_the_lock_file_is_named_and_stays(tmp_path: Path, has_flock: bool) -> None:
    (tmp_path / "f.part.lock").write_bytes(b"precious")
    if has_flock:
        PartFile(tmp_path / "f", sync=False).close()
    else:
        with pytest.raises(errors.ForeignFile, match=r"f\.part\.lock was not made by dlpool: move it away"):
            PartFile(tmp_path / "f", sync=False)
    assert (tmp_path / "f.part.lock").read_bytes() == b"precious"
