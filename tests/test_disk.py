"""Durable files: on real file systems where they can produce the case, else with one failing call of ``os``."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk, disk_errors, errors, freespace, syscalls
from tests.disks import exfat, needs_root, ramfs, tmpfs

MIB = 1024 * 1024


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make one function of ``os`` (or ``disk.rename_noreplace``) fail, before or after it has been performed."""

    def install(name: str, number: int, *, is_done: bool = False, when: Callable[..., bool] = lambda *_: True) -> Any:
        owner = disk if name == "rename_noreplace" else os
        real = getattr(owner, name)
        calls: list[str] = []

        def failing(*args: Any, **kwargs: Any) -> Any:
            if not when(*args):
                return real(*args, **kwargs)
            calls.append(name)
            if is_done:
                real(*args, **kwargs)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(owner, name, failing)
        return calls

    return install


# --- what an errno means ---


@pytest.mark.parametrize(
    ("number", "kind", "expected", "label"),
    [
        (errno.ENOSPC, "no_space", errors.NoSpace, "no_space"),
        (errno.EDQUOT, "no_space", errors.NoSpace, "no_space"),
        (errno.EROFS, "read_only", errors.ReadOnly, "read_only"),
        (errno.EIO, "disk_failed", errors.DiskFailed, "disk_failed"),
        (errno.ESTALE, "disk_failed", errors.DiskFailed, "disk_failed"),
        (errno.ENOTCONN, "disk_failed", errors.DiskFailed, "disk_failed"),
        (errno.EUCLEAN, "disk_failed", errors.DiskFailed, "disk_failed"),
        (errno.EACCES, "permission", errors.NotPermitted, "permission"),
        (errno.EPERM, "permission", errors.NotPermitted, "permission"),
        (errno.ENOENT, "gone", errors.LocalFault, "local_io"),
        (errno.ENOTDIR, "not_a_folder", errors.LocalFault, "local_io"),
        (errno.EMFILE, "too_many_files", errors.OutOfFiles, "too_many_files"),
        (errno.ENFILE, "too_many_files", errors.OutOfFiles, "too_many_files"),
        (errno.EOPNOTSUPP, "unsupported", errors.LocalFault, "local_io"),
        (errno.ENOTEMPTY, "storage", errors.LocalFault, "local_io"),
    ],
)
def test_an_errno_is_one_fault_with_a_kind_a_label_and_a_reason(
    number: int, kind: str, expected: type[errors.LocalFault], label: str
) -> None:
    error = OSError(number, os.strerror(number))
    assert disk_errors.fault_of(error).kind == kind
    with pytest.raises(errors.LocalFault, match=r"^cannot write it: .+") as raised, disk_errors.translated("write it"):
        raise error
    assert type(raised.value) is expected
    assert raised.value.label == label
    assert raised.value.__cause__ is error


def test_every_errno_of_the_table_has_a_reason() -> None:
    assert all(fault.reason for fault in disk_errors.FAULTS.values())


def test_an_error_without_number_or_text_still_says_something() -> None:
    assert str(disk_errors.local_fault("write it", OSError())) == "cannot write it: OSError"
    assert (
        str(disk_errors.local_fault("use it", ValueError("embedded null byte"))) == "cannot use it: embedded null byte"
    )


# --- write_all ---


@pytest.mark.parametrize("offset", [None, 7])
def test_short_writes_are_continued(offset: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "write" if offset is None else "pwrite"
    real = getattr(os, name)
    monkeypatch.setattr(os, name, lambda fd, data, *rest: real(fd, data[:3], *rest))
    descriptor = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
    try:
        disk.write_all(descriptor, b"0123456789", offset)
    finally:
        os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == b"\0" * (offset or 0) + b"0123456789"


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        disk.write_all(1, b"x")


# --- atomic_write, replace ---


@pytest.mark.parametrize("sync", [False, True])
def test_a_write_replaces_the_content_at_once(tmp_path: Path, sync: bool) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "f.tmp").write_bytes(b"left by a kill, and longer")
    disk.atomic_write(tmp_path / "f", b"new", sync=sync)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_created_with_its_content_and_never_replaced(sync: bool, tmp_path: Path) -> None:
    (tmp_path / "f.tmp").write_bytes(b"left by a kill, and longer")
    disk.atomic_create(tmp_path / "f", b"new", sync=sync, mode=0o600)
    with pytest.raises(FileExistsError):
        disk.atomic_create(tmp_path / "f", b"newer", sync=sync)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["write", "fsync", "close", "rename_noreplace", "fstat"])
def test_a_file_that_cannot_be_created_leaves_no_temporary_file(
    name: str, tmp_path: Path, fails: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        calls = fails(name, errno.EIO, is_done=name == "close")
        with pytest.raises(OSError, match="Input/output error"):
            disk.atomic_create(tmp_path / "f", b"new", sync=True)
        monkeypatch.undo()
    assert calls and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["fsync", "close"])
def test_a_new_file_whose_last_write_fails_late_is_removed(
    name: str, tmp_path: Path, fails: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context():
        fails(name, errno.EIO, is_done=name == "close")
        with pytest.raises(OSError, match="Input/output error"), disk.new_file(tmp_path / "f", sync=True) as descriptor:
            disk.write_all(descriptor, b"new")
        monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_new_file_is_removed_if_its_content_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk.new_file(tmp_path / "f", sync=False):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_an_open_file_gets_another_name(tmp_path: Path) -> None:
    with disk.new_file(tmp_path / "f", 0o600, sync=False) as descriptor:
        disk.write_all(descriptor, b"new")
        disk.link_open_file(descriptor, tmp_path / "g")
        with pytest.raises(FileExistsError):
            disk.link_open_file(descriptor, tmp_path / "g")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"new", "g": b"new"}


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        disk.atomic_write(tmp_path / "f", b"new", sync=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["write", "fsync", "close", "replace", "fstat"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(
    name: str, number: int, tmp_path: Path, fails: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with monkeypatch.context():
        calls = fails(name, number, is_done=name == "close")
        with pytest.raises(OSError) as raised:
            disk.atomic_write(tmp_path / "f", b"new", sync=True)
        monkeypatch.undo()
    assert raised.value.errno == number
    assert calls
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EEXIST, errno.ESTALE, errno.EINVAL])
def test_a_rename_that_was_done_and_is_reported_as_failed_is_done(
    number: int, tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    assert fails("replace", number, is_done=True) == []
    disk.atomic_write(tmp_path / "f", b"new", sync=True)
    assert (tmp_path / "f").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["f"]


def test_a_rename_that_was_not_done_is_an_error_although_the_target_is_there(
    tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    identity = disk.identity_of(os.stat(tmp_path / "new"))
    fails("replace", errno.ENOENT)
    with pytest.raises(FileNotFoundError):
        disk.replace(tmp_path / "new", tmp_path / "f", identity=identity)
    assert (tmp_path / "f").read_bytes() == b"old"


# --- publish_exclusive ---


@pytest.fixture(params=["rename", "link", "neither"])
def kind_of_file_system(
    request: pytest.FixtureRequest, fails: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Which of its three methods ``publish_exclusive`` can use."""
    if request.param != "rename":
        fails("rename_noreplace", errno.EINVAL)
    if request.param == "neither":
        fails("link", errno.EPERM)
    yield request.param


def source(folder: Path) -> tuple[Path, disk.Identity]:
    path = folder / "source"
    path.write_bytes(b"new")
    return path, disk.identity_of(os.stat(path))


def test_a_free_name_is_given_and_the_source_is_gone(kind_of_file_system: str, tmp_path: Path) -> None:
    path, identity = source(tmp_path)
    disk.publish_exclusive(path, tmp_path / "f", identity=identity)
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").stat().st_nlink == 1


def test_a_taken_name_is_never_replaced(kind_of_file_system: str, tmp_path: Path) -> None:
    path, identity = source(tmp_path)
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        disk.publish_exclusive(path, tmp_path / "f", identity=identity)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"source": b"new", "f": b"other"}


def test_a_name_in_an_open_folder_is_given(kind_of_file_system: str, tmp_path: Path) -> None:
    _, identity = source(tmp_path)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        disk.publish_exclusive("source", "f", identity=identity, dir_fd=folder)
    finally:
        os.close(folder)
    assert os.listdir(tmp_path) == ["f"]


def test_of_two_that_publish_one_name_one_wins(kind_of_file_system: str, tmp_path: Path) -> None:
    for _ in range(30):
        start = threading.Barrier(2)
        won: list[int] = []

        def publish(number: int, start: threading.Barrier = start, won: list[int] = won) -> None:
            path = tmp_path / str(number)
            path.write_bytes(b"%d" % number)
            identity = disk.identity_of(os.stat(path))
            start.wait(30)
            try:
                disk.publish_exclusive(path, tmp_path / "f", identity=identity)
                won.append(number)
            except FileExistsError:
                path.unlink()

        threads = [threading.Thread(target=publish, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (tmp_path / "f").read_bytes() == b"%d" % won[0]
        assert (len(won), os.listdir(tmp_path)) == (1, ["f"])
        (tmp_path / "f").unlink()


def test_a_folder_that_another_program_keeps_locked_is_waited_for_and_then_used(
    fails: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FOLDER_LOCK_ATTEMPTS", 3)
    fails("rename_noreplace", errno.EINVAL)
    fails("link", errno.EPERM)
    path, identity = source(tmp_path)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        disk.publish_exclusive(path, tmp_path / "f", identity=identity)
    finally:
        os.close(folder)
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["rename_noreplace", "link", "replace", "unlink"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.EIO])
def test_a_publishing_that_was_done_and_is_reported_as_failed_is_done(
    call: str, number: int, tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    path, identity = source(tmp_path)
    if call != "rename_noreplace":
        fails("rename_noreplace", errno.EINVAL)
    if call == "replace":
        fails("link", errno.EOPNOTSUPP)
    calls = fails(call, number, is_done=True)
    disk.publish_exclusive(path, tmp_path / "f", identity=identity)
    assert calls
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["rename_noreplace", "link", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.ENOENT])
def test_a_publishing_that_failed_is_an_error_and_nothing_has_the_name(
    call: str, number: int, tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    path, identity = source(tmp_path)
    if call != "rename_noreplace":
        fails("rename_noreplace", errno.ENOSYS)
    if call == "replace":
        fails("link", errno.EMLINK)
    fails(call, number)
    with pytest.raises(OSError) as raised:
        disk.publish_exclusive(path, tmp_path / "f", identity=identity)
    assert raised.value.errno == number
    assert os.listdir(tmp_path) == ["source"]


@needs_root
def test_an_exfat_over_fuse_publishes_and_replaces(tmp_path: Path) -> None:
    with exfat(tmp_path / "disk", 16 * MIB) as folder:
        path, identity = source(folder)
        with pytest.raises(OSError) as raised:
            syscalls.rename_noreplace(path, folder / "f")
        assert raised.value.errno in disk_errors.CANNOT_RENAME_NOREPLACE, "this file system tests what it is to test"
        with pytest.raises(OSError) as raised:
            os.link(path, folder / "f")
        assert raised.value.errno in disk_errors.CANNOT_LINK
        disk.publish_exclusive(path, folder / "f", identity=identity)
        assert os.listdir(folder) == ["f"]
        path, identity = source(folder)
        with pytest.raises(FileExistsError):
            disk.publish_exclusive(path, folder / "F", identity=identity)
        assert sorted(os.listdir(folder)) == ["f", "source"]
        disk.atomic_write(folder / "f", b"newer", sync=True)
        assert (folder / "f").read_bytes() == b"newer"


# --- remove ---


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_removal_that_was_done_and_is_reported_as_failed_is_done(
    number: int, tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    (tmp_path / "f").touch()
    assert fails("unlink", number, is_done=True) == []
    disk.remove(tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_a_removal_that_failed_is_an_error(tmp_path: Path, fails: Callable[..., list[str]]) -> None:
    (tmp_path / "f").touch()
    fails("unlink", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        disk.remove(tmp_path / "f")


# --- folders ---


@pytest.mark.parametrize(
    ("call", "number"),
    [
        *(("fsync", number) for number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, 524)),
        *((call, number) for call in ("fsync", "open") for number in (errno.EACCES, errno.EPERM)),
    ],
)
def test_a_folder_that_cannot_be_synced_is_reported_once(
    call: str, number: int, tmp_path: Path, fails: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_reported", set())
    told: list[tuple[str, int | None]] = []
    assert fails(call, number) == []
    for _ in range(3):
        assert not disk.sync_folder(tmp_path, on_unsynced=lambda folder, error: told.append((folder, error.errno)))
    assert told == [(str(tmp_path), number)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EROFS])
def test_a_folder_whose_sync_failed_is_an_error(number: int, tmp_path: Path, fails: Callable[..., list[str]]) -> None:
    fails("fsync", number)
    with pytest.raises(OSError) as raised:
        disk.sync_folder(tmp_path)
    assert raised.value.errno == number


def test_a_folder_that_may_be_written_to_and_not_be_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir(mode=0o300)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.chown(tmp_path / "drop", 65534, 65534)
                tmp_path.chmod(0o755)
                os.chdir(tmp_path)
                os.setresuid(65534, 65534, 65534)
            else:
                os.chdir(tmp_path)
            os._exit(0 if disk.sync_folder("drop") is False else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_open_folder_is_synced_and_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert disk.sync_folder(folder)
        assert synced == [folder]
        os.fstat(folder)
    finally:
        os.close(folder)


def test_missing_folders_are_made_also_if_the_call_is_reported_as_failed(
    tmp_path: Path, fails: Callable[..., list[str]]
) -> None:
    assert fails("mkdir", errno.EEXIST, is_done=True) == []
    disk.make_folders(tmp_path / "a" / "b", sync=True)
    assert (tmp_path / "a" / "b").is_dir()


# --- free space ---


@needs_root
def test_a_file_system_without_figures_has_no_limit(tmp_path: Path) -> None:
    with ramfs(tmp_path / "disk") as folder:
        assert os.statvfs(folder).f_blocks == 0
        assert freespace.space_of(folder) is None
        assert freespace.space_or_none(folder) is None


@needs_root
def test_free_space_is_what_may_be_written(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "2m") as folder:
        assert freespace.space_or_none(folder) == freespace.Space(2 * MIB, 2 * MIB)
        (folder / "f").write_bytes(bytes(MIB))
        assert freespace.space_of(folder) == freespace.Space(2 * MIB, MIB)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_system_that_cannot_say_it_has_no_limit(number: int, fails: Callable[..., list[str]]) -> None:
    fails("statvfs", number)
    assert freespace.space_or_none("/") is None
