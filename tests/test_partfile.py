"""The part file: its descriptors, length, permissions, reserved space, and its publish."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk, errors, filelock, freespace
from dlpool.freespace import Space
from dlpool.syscalls import MIN_FALLOC_BYTES
from dlpool.transfer.space_rules import SPACE_RESERVE
from dlpool.transfer.target.file import partwriter
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.file.partopen import MARK
from dlpool.transfer.target.file.partwriter import WRITEBACK_BYTES, PartWriter
from tests.conftest import open_descriptors
from tests.fakes import Events

MIB = 1024 * 1024


@pytest.fixture
def part(tmp_path: Path) -> Iterator[PartFile]:
    opened = PartFile(tmp_path / "f", sync=False)
    yield opened
    opened.close()


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(filelock, "_flock_works", {})


def failing(number: int, *, when: Callable[..., bool] = lambda *_: True, real: Any = None) -> Any:
    """A call that fails with an errno where ``when`` says so."""

    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return call


def is_below_proc(path: Any, *_: Any) -> bool:
    return str(path).startswith("/proc/")


# --- what it says of itself ---


@pytest.mark.parametrize("size", [0, 1, 100])
def test_it_says_what_it_held_when_it_was_locked(size: int, tmp_path: Path) -> None:
    first = PartFile(tmp_path / "f", sync=False)
    first.locked_writer().write(0, memoryview(b"x" * size))
    assert (first.is_new, first.was_empty, first.length) == (True, True, size)
    first.close()
    second = PartFile(tmp_path / "f", sync=False)
    assert (second.is_new, second.was_empty, second.length) == (False, size == 0, size)
    assert second.inode == (tmp_path / "f.part").stat().st_ino
    assert second.is_marked
    assert second.has_lock_file is False
    assert second.was_expired is False
    second.close()


def test_emptied_it_has_no_byte_left(part: PartFile) -> None:
    part.locked_writer().write(0, memoryview(b"abc"))
    part.truncate()
    assert part.length == 0


def test_closed_it_can_be_locked_again_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors(tmp_path)
    for _ in range(2):
        PartFile(tmp_path / "f", sync=False).close()
    assert open_descriptors(tmp_path) == before


def test_closed_it_leaves_no_lock_file(no_flock: None, tmp_path: Path) -> None:
    opened = PartFile(tmp_path / "f", sync=False)
    assert opened.has_lock_file
    assert (tmp_path / "f.part.lock").exists()
    opened.close()
    assert os.listdir(tmp_path) == ["f.part"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_only_its_own_name_is_removed(is_replaced: bool, part: PartFile) -> None:
    if is_replaced:
        part.path.unlink()
        part.path.write_bytes(b"another's")
    assert part.is_named() is not is_replaced
    part.discard()
    assert part.path.exists() is is_replaced


@pytest.mark.parametrize("kind", ["removed", "replaced", "folder"])
def test_what_became_of_the_name_is_said(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    opened = PartFile(folder / "f", sync=False)
    opened.check_ownership()
    opened.path.unlink()
    if kind == "folder":
        folder.rmdir()
    elif kind == "replaced":
        opened.path.write_bytes(b"another's")
    said = "the folder .*out was removed" if kind == "folder" else "another program removed or replaced .*f.part"
    for step in (opened.check_ownership, opened.restart, lambda: opened.publish(overwrite=True)):
        with pytest.raises(errors.LocalFault, match=said):
            step()
    opened.close()
    assert list(tmp_path.rglob("f*")) == ([folder / "f.part"] if kind == "replaced" else [])


def test_a_lock_file_that_another_download_took_is_said(no_flock: None, tmp_path: Path) -> None:
    opened = PartFile(tmp_path / "f", sync=False)
    opened.check_ownership()
    (tmp_path / "f.part.lock").unlink()
    with pytest.raises(errors.LocalFault, match="another download has taken over its lock file"):
        opened.check_ownership()
    opened.close()


# --- begun again ---


def test_begun_again_it_is_another_empty_file_of_the_same_name(part: PartFile) -> None:
    part.preallocate(2 * MIB, "falloc")
    late, inode, before = part.writer(), part.inode, open_descriptors(part.path.parent)
    part.restart()
    late.write(0, memoryview(b"late"))
    late.close()
    assert part.inode == part.path.stat().st_ino != inode
    assert (part.length, part.is_preallocated, part.is_new) == (0, False, True)
    assert open_descriptors(part.path.parent) == before - 1, "that of the late writer"


def test_what_a_late_writer_meets_is_no_fault_of_the_new_file(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    late = part.writer()
    part.restart()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing(errno.EIO))
        with pytest.raises(errors.DiskFailed):
            late.close()
    part.close_writers()


def test_begun_again_it_keeps_its_lock_file(no_flock: None, tmp_path: Path) -> None:
    opened = PartFile(tmp_path / "f", sync=False)
    lock = (tmp_path / "f.part.lock").read_bytes()
    opened.restart()
    assert (tmp_path / "f.part.lock").read_bytes() == lock
    opened.check_ownership()
    opened.close()
    assert os.listdir(tmp_path) == ["f.part"]


# --- permissions ---


@pytest.mark.parametrize("kind", ["link", "folder", "nothing"])
def test_only_a_file_passes_on_its_permissions(kind: str, part: PartFile) -> None:
    if kind == "link":
        (part.target.parent / "other").touch(mode=0o600)
        part.target.symlink_to("other")
    elif kind == "folder":
        part.target.mkdir(mode=0o700)
    mode = part.path.stat().st_mode
    part.copy_permissions()
    assert part.path.stat().st_mode == mode


@pytest.mark.parametrize("wanted", [0o600, 0o644, 0o640, 0o444, 0o400, 0o000, 0o755])
def test_the_owner_may_use_the_file_until_it_is_published(wanted: int, part: PartFile) -> None:
    part.target.write_bytes(b"old")
    part.target.chmod(wanted)
    part.copy_permissions()
    assert part.path.stat().st_mode & 0o7777 == wanted | 0o600
    part.publish(overwrite=True)
    assert part.target.stat().st_mode & 0o7777 == wanted


def test_a_mode_that_is_right_is_not_set(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    part.target.touch()
    part.target.chmod(part.path.stat().st_mode & 0o777)
    monkeypatch.setattr(os, "fchmod", failing(errno.EIO))
    part.copy_permissions()


@pytest.mark.parametrize(
    ("number", "own", "wanted", "is_refused"),
    [
        (errno.EPERM, 0o644, 0o666, False),
        (errno.EOPNOTSUPP, 0o644, 0o755, False),
        (errno.EPERM, 0o644, 0o600, True),
        (errno.EOPNOTSUPP, 0o664, 0o644, True),
        (errno.EIO, 0o644, 0o666, True),
        (errno.EIO, 0o644, 0o600, True),
    ],
)
def test_a_mode_that_cannot_be_set_matters_where_others_would_have_more_rights(
    number: int, own: int, wanted: int, is_refused: bool, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.path.chmod(own)
    part.target.touch()
    part.target.chmod(wanted)
    monkeypatch.setattr(os, "fchmod", failing(number))
    if is_refused:
        with pytest.raises(errors.LocalFault, match="cannot set the permissions"):
            part.copy_permissions()
    else:
        part.copy_permissions()


def test_an_access_control_list_is_passed_on(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    name, given = "system.posix_acl_access", list[tuple[str, bytes]]()
    part.target.touch()
    monkeypatch.setattr(os, "getxattr", lambda path, asked: b"acl" if (path, asked) == (part.target, name) else b"")
    monkeypatch.setattr(os, "setxattr", lambda _, asked, value: given.append((asked, value)))
    part.copy_permissions()
    assert given == [(name, b"acl")]


@pytest.mark.parametrize(("user", "owner"), [(0, 1234), (1, -1), (1000, -1)])
def test_only_root_gives_files_away(user: int, owner: int, part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    part.target.touch()
    old = os.stat(part.target)
    theirs = os.stat_result((*old[:4], 1234, 2345, *old[6:]))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "stat", lambda *_, **__: theirs)
    monkeypatch.setattr(os, "fchown", lambda _, uid, gid: given.append((uid, gid)))
    part.copy_permissions()
    assert given == [(owner, 2345)]


def test_a_file_of_the_same_owner_is_not_given_away(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    part.target.touch()
    monkeypatch.setattr(os, "fchown", failing(errno.EIO))
    part.copy_permissions()


@pytest.mark.parametrize(
    ("number", "is_raised"), [(errno.EPERM, False), (errno.EINVAL, False), (errno.EIO, True), (errno.EROFS, True)]
)
@pytest.mark.parametrize("call", ["fchown", "utime"])
def test_what_a_file_system_cannot_keep_is_left_out(
    call: str, number: int, is_raised: bool, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.target.touch()
    old = os.stat(part.target)
    theirs = os.stat_result((*old[:4], 1234, 2345, *old[6:]))
    monkeypatch.setattr(os, "stat", lambda *_, **__: theirs)
    monkeypatch.setattr(os, call, failing(number))

    def step() -> None:
        part.copy_permissions() if call == "fchown" else part.set_modified(1e9)

    if is_raised:
        with pytest.raises(errors.LocalFault):
            step()
    else:
        step()


def test_the_time_is_that_of_the_remote_file(part: PartFile) -> None:
    part.set_modified(1e9)
    assert part.path.stat().st_mtime == 1e9


# --- space ---


@pytest.mark.parametrize(
    ("how", "size", "length", "has_blocks"),
    [
        ("none", 2 * MIB, 0, False),
        ("truncate", 2 * MIB, 2 * MIB, False),
        ("truncate", 1, 1, False),
        ("falloc", 2 * MIB, 2 * MIB, True),
        ("falloc", 1, 1, True),
        ("falloc", 0, 0, False),
        ("auto", MIN_FALLOC_BYTES, 0, False),
    ],
)
def test_a_file_gets_its_length_as_asked(how: str, size: int, length: int, has_blocks: bool, part: PartFile) -> None:
    assert not part.is_preallocated
    part.preallocate(size, how)
    status = part.path.stat()
    assert (status.st_size, part.is_preallocated) == (length, has_blocks)
    assert (status.st_blocks * 512 >= length > 0) == has_blocks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_space_that_another_took_is_a_lack_of_room(
    number: int, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    with pytest.raises(errors.NoRoom):
        part.preallocate(MIB, "falloc")


ENOUGH = 10 * MIB + SPACE_RESERVE


@pytest.mark.parametrize(
    ("size", "allocated", "free", "usable", "expected"),
    [
        (10 * MIB, 0, ENOUGH, ENOUGH, None),
        (10 * MIB, 0, ENOUGH - 1, ENOUGH, errors.NoRoom),
        (10 * MIB, 0, ENOUGH - 1, ENOUGH - 1, errors.TooLarge),
        (10 * MIB, 0, 0, 100 * MIB, errors.NoRoom),
        (10 * MIB, 4 * MIB, ENOUGH - 4 * MIB, ENOUGH, None),
        (10 * MIB, 4 * MIB, ENOUGH - 4 * MIB - 1, ENOUGH, errors.NoRoom),
        (10 * MIB, 10 * MIB, 0, ENOUGH, None),
        (10 * MIB, 12 * MIB, 0, 1, None),
        (MIN_FALLOC_BYTES, 0, 0, 100 * MIB, errors.NoRoom),
        (MIN_FALLOC_BYTES - 1, 0, 0, 0, None),
    ],
)
def test_a_file_is_begun_if_what_is_missing_and_a_reserve_are_free(
    size: int,
    allocated: int,
    free: int,
    usable: int,
    expected: type[Exception] | None,
    part: PartFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if allocated:
        os.posix_fallocate(part.locked_writer()._descriptor, 0, allocated)
        assert part.path.stat().st_blocks * 512 == allocated
    monkeypatch.setattr(freespace, "space_or_none", lambda _: Space(usable, free))
    if expected is None:
        part.preallocate(size, "none")
    else:
        with pytest.raises(expected):
            part.preallocate(size, "none")


def test_a_lack_of_room_is_said_in_bytes(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freespace, "space_or_none", lambda _: Space(100 * MIB, 5))
    with pytest.raises(errors.NoRoom, match=f"has 5 bytes free, {ENOUGH} are needed"):
        part.preallocate(10 * MIB, "none")
    monkeypatch.setattr(freespace, "space_or_none", lambda _: None)
    part.preallocate(10 * MIB, "none")


# --- syncs and closes ---


@pytest.mark.parametrize("sync", [True, False])
def test_written_bytes_are_forced_to_disk_if_that_is_asked(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    opened = PartFile(tmp_path / "f", sync=sync)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    opened.sync_data()
    assert synced == [opened.locked_writer()._descriptor] * sync
    opened.close()


def test_asking_for_delayed_errors_leaves_no_descriptor(part: PartFile) -> None:
    before = open_descriptors(part.path.parent)
    part.report_delayed_errors()
    assert open_descriptors(part.path.parent) == before


@pytest.mark.parametrize("call", ["dup", "close"])
def test_a_delayed_error_is_told(call: str, part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed, match=r"cannot close .*f\.part"):
        patch.setattr(os, call, failing(errno.EIO))
        part.report_delayed_errors()


def test_all_writers_are_closed_and_the_first_error_is_told(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    before, writers = open_descriptors(part.path.parent), [part.writer() for _ in range(3)]
    bad = {writers[1]._descriptor: errno.EDQUOT, writers[2]._descriptor: errno.EIO}
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        if descriptor in bad:
            raise OSError(bad[descriptor], "late")

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(errors.NoSpace, match="quota"):
        part.close_writers()
    assert open_descriptors(part.path.parent) == before
    part.close_writers()


# --- writers ---


def test_writers_have_descriptors_of_their_own(part: PartFile) -> None:
    before = open_descriptors(part.path.parent)
    one, other = part.writer(), part.writer()
    assert open_descriptors(part.path.parent) == before + 2
    one.write(0, memoryview(b"ab"))
    other.write(4, memoryview(b"ef"))
    one.write(2, memoryview(b"cd"))
    assert one.read(0, 10) == part.path.read_bytes() == b"abcdef"
    one.close()
    other.close()
    assert open_descriptors(part.path.parent) == before


@pytest.mark.parametrize("sync", [True, False])
def test_the_kernel_is_asked_to_write_contiguous_bytes_that_will_be_synced(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(partwriter, "start_writeback", lambda _file, offset, size: asked.append((offset, size)))
    block = memoryview(bytes(WRITEBACK_BYTES // 4))
    opened = PartFile(tmp_path / "file", sync=sync)
    writer = opened.writer()
    for position in (0, 1, 2, 10, 11, 12, 13, 14, 3):  # blocks
        writer.write(position * len(block), block)
    writer.close()
    opened.close()
    assert asked == ([(10 * len(block), WRITEBACK_BYTES)] if sync else [])


@pytest.mark.parametrize("name", ["there", "removed", "another's", "unknown"])
def test_without_proc_a_writer_has_the_file_by_its_name_or_shares_the_descriptor(
    name: str, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_descriptors(part.path.parent)
    own = part.locked_writer()
    own.write(0, memoryview(b"0123456789"))
    monkeypatch.setattr(os, "open", failing(errno.ENOENT, when=is_below_proc, real=os.open))
    if name in ("removed", "another's"):
        part.path.unlink()
    if name == "another's":
        part.path.write_bytes(b"precious")
    with monkeypatch.context() as patch:
        if name == "unknown":
            patch.setattr(os, "fstat", failing(errno.ESTALE))
        writer = part.writer()
    assert open_descriptors(part.path.parent) == before + 1
    assert writer._is_shared is (name != "there")
    writer.write(2, memoryview(b"ab"))
    writer.write(6, memoryview(b"cd"))
    assert own.read(0, 20) == b"01ab45cd89"
    assert os.lseek(own._descriptor, 0, os.SEEK_CUR) == 10, "the offset of the owner is not moved"
    writer.close()
    assert name != "another's" or part.path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "steps",
    [
        [(0, b"a")],
        [(1, b"a")],
        [(0, b"abc"), (0, b"xyz")],
        [(0, b"abc"), (3, b"xyz")],
        [(10, b"abc"), (7, b"xyz")],
        [(10, b"abc"), (13, b"xyz"), (2, b"q")],
        [(4, b""), (0, b"abc")],
    ],
)
def test_bytes_go_where_they_belong(steps: list[tuple[int, bytes]], part: PartFile) -> None:
    expected = bytearray(20)
    part.locked_writer().write(0, memoryview(bytes(20)))
    writer = part.writer()
    for position, data in steps:
        writer.write(position, memoryview(data))
        expected[position : position + len(data)] = data
    writer.close()
    assert part.path.read_bytes() == expected


def test_after_a_failed_write_the_offset_is_not_trusted(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, real = part.writer(), os.write

    def half(descriptor: int, data: memoryview) -> int:
        real(descriptor, data[:1])
        raise OSError(errno.ENOSPC, "full")

    writer.write(0, memoryview(b"ab"))
    with monkeypatch.context() as patch, pytest.raises(errors.NoSpace, match=r"cannot write .*f\.part"):
        patch.setattr(os, "write", half)
        writer.write(2, memoryview(b"cd"))
    writer.write(2, memoryview(b"xy"))
    writer.close()
    assert part.path.read_bytes() == b"abxy"


def test_an_empty_write_after_the_end_is_no_error(part: PartFile) -> None:
    writer = part.writer()
    writer.close()
    writer.write(0, memoryview(b""))
    with pytest.raises(errors.LocalFault):
        writer.write(0, memoryview(b"late"))
    with pytest.raises(errors.LocalFault, match="cannot read"):
        writer.read(0, 1)


def test_a_writer_on_the_owners_descriptor_leaves_it_open(part: PartFile) -> None:
    part.locked_writer().close()
    part.locked_writer().write(0, memoryview(b"abc"))
    assert part.length == 3


def test_a_writer_closes_once_and_repeats_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    monkeypatch.setattr(os, "close", closed.append)
    writer = PartWriter(0, Path("f.part"))
    writer.close()
    writer.close()
    assert closed == [0]
    monkeypatch.setattr(os, "close", failing(errno.EIO))
    writer = PartWriter(0, Path("f.part"))
    for _ in range(2):
        with pytest.raises(errors.DiskFailed, match=r"cannot write f\.part"):
            writer.close()


def test_no_descriptor_is_closed_during_a_write(part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number could be another file's before the write begins."""
    writer, real, order = part.writer(), os.write, []

    def write(descriptor: int, data: memoryview) -> int:
        closer.start()
        closer.join(0.1)
        order.append("written")
        return real(descriptor, data)

    def close() -> None:
        writer.close()
        order.append("closed")

    closer = threading.Thread(target=close)
    monkeypatch.setattr(os, "write", write)
    writer.write(0, memoryview(b"abc"))
    closer.join(20)
    assert order == ["written", "closed"]
    assert part.path.read_bytes() == b"abc"


# --- publishing ---


@pytest.mark.parametrize("has_lock_file", [False, True])
def test_a_target_that_exists_is_refused_and_the_part_file_stays(
    has_lock_file: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if has_lock_file:
        request.getfixturevalue("no_flock")
    opened = PartFile(tmp_path / "f", sync=False)
    (tmp_path / "f").write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(errors.TargetExists, match="exists already"):
        opened.publish(overwrite=False)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before
    opened.retarget(tmp_path / "g")
    opened.publish(overwrite=False)
    opened.close()
    assert sorted(os.listdir(tmp_path)) == ["f", "g"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_publishing_that_fails_is_told_and_leaves_the_part_file(
    overwrite: bool, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(errors.DiskFailed, match=r"cannot publish .*/f:"):
        patch.setattr(disk, "replace" if overwrite else "publish_exclusive", failing(errno.EIO))
        part.publish(overwrite=overwrite)
    assert os.listdir(part.path.parent) == ["f.part"]


def test_a_private_name_that_cannot_be_linked_is_removed_and_the_usual_one_used(
    no_flock: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the link was made and reported as failed."""
    opened, real = PartFile(tmp_path / "f", sync=False), os.link

    def link(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise OSError(errno.EIO, "late")

    monkeypatch.setattr(os, "link", link)
    opened.publish(overwrite=True)
    opened.close()
    assert os.listdir(tmp_path) == ["f"]


def is_marked(path: Path) -> bool:
    return MARK in os.listxattr(path)


@pytest.mark.parametrize("can_remove", [True, False])
def test_a_published_file_has_a_mark_as_long_as_it_has_the_old_name(
    can_remove: bool, part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is published by a link."""
    tries: list[str] = []

    def remove(name: str) -> None:
        tries.append(name)
        raise OSError(errno.EIO, "it stays")

    monkeypatch.setattr(disk, "publish_exclusive", lambda source, target, **_: os.link(source, target))
    with monkeypatch.context() as patch:
        if not can_remove:
            patch.setattr(disk, "remove", remove)
        part.publish(overwrite=False)
    assert part.path.exists() is not can_remove
    assert is_marked(part.target) is not can_remove
    assert tries == [str(part.path)] * (0 if can_remove else 2)


def test_another_file_that_has_the_old_name_by_then_is_not_removed(
    part: PartFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(source: str, target: Path, **_: Any) -> None:
        os.link(source, target)
        Path(source).rename(target.with_name("third"))
        Path(source).write_bytes(b"another's")

    monkeypatch.setattr(disk, "publish_exclusive", publish)
    part.publish(overwrite=False)
    assert part.path.read_bytes() == b"another's"
    assert is_marked(part.target)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("number", [None, errno.EIO, errno.EOPNOTSUPP])
def test_the_name_is_forced_to_disk_if_that_is_asked(
    number: int | None, sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    synced: list[int] = []

    opened = PartFile(tmp_path / "f", sync=sync, notify=events)

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if number is not None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk, "_reported", set())
    monkeypatch.setattr(os, "fsync", fsync)
    opened.publish(overwrite=True)
    opened.close()
    assert synced == [tmp_path.stat().st_ino] * sync
    told = [("folder_not_synced", {"folder": str(tmp_path), "reason": os.strerror(number)})] if number and sync else []
    assert events == told
    assert (tmp_path / "f").exists()
