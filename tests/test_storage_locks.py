"""The store's locks in one process: exclusive and shared, over a flock(2) that locks, does not, or is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlpool import disk
from dlpool.storage.disk import file_locks, layout, staged_chunk
from dlpool.storage.disk.backend import DiskBackend
from dlpool.storage.errors import UploadError
from tests.test_storage_tus_recovery import open_below
from tests.uploads import ID, files_below, leftovers, list_of, refused, send, store_in

Flock = Callable[[int, int], None]
HOW = ["locks", "pretends", "refuses", "refuses later"]


def flock_of(how: str) -> Flock:
    """A flock(2) that works, grants the lock to everybody, or is refused, from the beginning or after a while."""
    calls = []

    def flock(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if how == "refuses" or (how == "refuses later" and len(calls) > 3):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        if how != "pretends":
            real_flock(descriptor, operation)

    return flock


real_flock = fcntl.flock


@pytest.fixture(autouse=True)
def untested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file system was tested yet, and the substitute has a folder of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(file_locks, "_has_flock", {})
    monkeypatch.setattr(file_locks, "_substitutes", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize("how", HOW)
def test_locks_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_of(how))
    folder = tmp_path / "own"
    folder.mkdir()
    path, other = folder / "lock", folder / "other"
    with file_locks.hold_lock(path):
        pass  # what is held by flock(2) before that is refused is not held by the substitute
    for _ in range(3):
        alone = file_locks.try_lock(path)
        assert alone is not None
        assert file_locks.try_lock(path) is None and file_locks.is_locked(path)
        beside = file_locks.try_lock(other)
        assert beside is not None
        file_locks.release(alone)
        assert not file_locks.is_locked(path) and file_locks.is_locked(other)
        file_locks.release(beside)
        both = [file_locks.lock_shared(path), file_locks.lock_shared(path)]
        assert file_locks.try_lock(path) is None
        for one in both:
            assert one is not None and file_locks.is_locked(path)
            file_locks.release(one)
        assert not file_locks.is_locked(path)
    assert files_below(folder) == ["lock", "other"], "the file of the test is removed"
    assert open_below(tmp_path) == []
    assert file_locks._substitutes == {}


@pytest.mark.parametrize("how", HOW)
def test_a_lock_is_given_back_after_a_block_and_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_of(how))
    path = tmp_path / "lock"
    with file_locks.hold_lock(path):
        pass
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), file_locks.hold_lock(path):
            assert file_locks.is_locked(path)
            raise ZeroDivisionError
        assert not file_locks.is_locked(path)
    assert open_below(tmp_path) == []


def test_a_file_system_is_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def flock(descriptor: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name.endswith(".probe"):
            tried.append(path.name)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    for name in ("one", "two", "one"):
        with file_locks.hold_lock(tmp_path / name):
            pass
    assert len(tried) == 2 and len(set(tried)) == 1
    assert file_locks._has_flock == {tmp_path.stat().st_dev: True}


@pytest.mark.parametrize(
    ("place", "number", "known"),
    [
        ("flock", errno.ENOLCK, {False}),
        ("flock", errno.EIO, set()),
        ("open", errno.ENOLCK, set()),
        ("open", errno.EROFS, set()),
    ],
)
def test_a_failed_flock_test_leaves_the_result_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, known: set[bool]
) -> None:
    """A folder where no file can be created is locked by flock all the same."""
    lock = tmp_path / "lock"
    lock.touch()
    real_open = os.open

    def is_probe(descriptor: int) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".probe")

    def flock(descriptor: int, operation: int) -> None:
        if place == "flock" and is_probe(descriptor):
            raise OSError(number, os.strerror(number))
        real_flock(descriptor, operation)

    def opened(path: object, *arguments: int) -> int:
        if place == "open" and str(path).endswith(".probe"):
            raise OSError(number, os.strerror(number))
        return real_open(str(path), *arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "open", opened)
    with file_locks.hold_lock(lock):
        assert file_locks.is_locked(lock)
    assert set(file_locks._has_flock.values()) == known
    assert files_below(tmp_path) == ["lock"] + ([f"tmp/dlpool-locks-{os.getuid()}"] if known else [])
    assert open_below(tmp_path) == []


def test_another_error_of_flock_is_raised_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    path.touch()

    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", flock)
    for use in (file_locks.try_lock, file_locks.lock_shared, file_locks.is_locked):
        with pytest.raises(OSError, match="broken"):
            use(path)
    with pytest.raises(OSError, match="broken"), file_locks.hold_lock(path):
        pass
    assert open_below(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "is_raised"),
    [(BlockingIOError(), False), (PermissionError(), False), (OSError(errno.EIO, "broken"), True)],
)
def test_errors_of_the_substitute_lock_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, is_raised: bool
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock_of("refuses"))

    def refuse(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    if is_raised:
        with pytest.raises(OSError, match="broken"):
            file_locks.try_lock(tmp_path / "lock")
    else:
        assert file_locks.try_lock(tmp_path / "lock") is None
    assert open_below(tmp_path) == []


def test_the_substitute_file_is_private_and_recently_modified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaners remove temporary files by their time."""
    monkeypatch.setattr(fcntl, "flock", flock_of("refuses"))
    path = tmp_path / "tmp" / f"dlpool-locks-{os.getuid()}"
    before = os.umask(0)
    try:
        with file_locks.hold_lock(tmp_path / "lock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    os.utime(path, (0, 0))
    with file_locks.hold_lock(tmp_path / "lock"):
        assert path.stat().st_mtime > time.time() - 1000


def test_a_lock_that_is_held_is_waited_for_with_growing_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pauses = tmp_path / "lock", []
    held_lock = file_locks.try_lock(path)
    assert held_lock is not None
    now = 100.0

    def pause(seconds: float) -> None:
        nonlocal now
        pauses.append(round(seconds, 6))
        now += seconds

    # Of that module alone: threads that other tests have left sleep, too.
    clock = SimpleNamespace(sleep=pause, monotonic=lambda: now)
    monkeypatch.setattr(file_locks, "time", clock)
    with pytest.raises(UploadError, match="busy") as raised, file_locks.hold_lock(path):
        pass
    assert (raised.value.code, raised.value.retry_after_s) == ("busy", 5)
    assert pauses[:7] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.02, 0.02]
    assert max(pauses) == 0.02 and 29.9 < sum(pauses) < 30.1
    with refused(503, "busy"):
        file_locks.lock_shared(path)
    pauses.clear()
    clock.sleep = lambda _seconds: file_locks.release(held_lock)
    with file_locks.hold_lock(path):
        assert file_locks.is_locked(path)
    assert open_below(tmp_path) == []


def test_what_is_not_there_is_neither_held_nor_shared(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    assert file_locks.lock_shared(tmp_path / "none") is None and file_locks.lock_shared(file / "below") is None
    assert not file_locks.is_locked(tmp_path / "none") and not file_locks.is_locked(tmp_path / "link")
    with pytest.raises(NotADirectoryError):
        file_locks.is_locked(file / "below")
    with pytest.raises(OSError, match="symbolic"):
        file_locks.try_lock(tmp_path / "link")
    assert not (tmp_path / "none").exists()


# --- races with a sweep ---


@pytest.mark.parametrize("comes", ["removes", "holds"])
def test_a_staged_chunk_removed_by_a_sweep_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    store = store_in(tmp_path)
    store.sweep()
    seen = swept(monkeypatch, staged_chunk, comes)
    with store.chunks.stage() as body:
        assert [path.exists() for path in seen] == [comes == "holds", True]
        assert body.path == seen[1]
        assert open_below(tmp_path) == [str(body.path)]


def swept(monkeypatch: pytest.MonkeyPatch, module: object, comes: str) -> list[Path]:
    """Let a sweep come just before the first lock; the paths that were locked."""
    seen: list[Path] = []

    def has_locked(descriptor: int, path: Path) -> bool:
        seen.append(path)
        if len(seen) == 1 and comes == "removes":
            path.rmdir() if path.is_dir() else path.unlink()
        return (len(seen) > 1 or comes == "removes") and file_locks.try_lock_descriptor(descriptor, path)

    monkeypatch.setattr(module, "try_lock_descriptor", has_locked)
    return seen


@pytest.mark.parametrize("comes", ["removes", "holds"])
def test_a_new_task_folder_removed_by_a_sweep_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    store = store_in(tmp_path)
    store.sweep()
    seen = swept(monkeypatch, layout, comes)
    path, descriptor = store.layout._create_temporary_folder()
    assert [one.exists() for one in seen] == [comes == "holds", True]
    assert path == seen[1] and path.suffix == ".new"
    assert open_below(tmp_path) == [str(path)]
    assert store.sweep().removed == (comes == "holds"), "what nobody holds goes"
    os.close(descriptor)
    assert store.sweep().removed == 1


def test_a_sweep_removes_everything_that_is_not_locked(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.sweep()
    tmp = tmp_path / "upload" / "tmp"
    (tmp / "folder.trash" / "inner").mkdir(parents=True)
    (tmp / "file.tmp").touch()
    (tmp / "held.tmp").touch()
    (tmp / "link.tmp").symlink_to(tmp_path)
    os.mkfifo(tmp / "fifo.tmp")
    held_lock = file_locks.try_lock(tmp / "held.tmp")
    assert held_lock is not None
    assert store.sweep().removed == 4
    assert [path.name for path in tmp.iterdir()] == ["held.tmp"]
    assert not layout.remove_abandoned(tmp / "none")
    file_locks.release(held_lock)
    assert store.sweep().removed == 1
    assert (leftovers(store), open_below(tmp_path)) == ([], [])


def test_what_a_sweep_cannot_remove_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: DiskBackend = store_in(tmp_path)
    store.sweep()
    tmp = tmp_path / "upload" / "tmp"
    (tmp / "file.tmp").touch()
    (tmp / "link.tmp").symlink_to(tmp_path)

    def unlink(*_arguments: object, **_options: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert store.sweep().removed == 0
    assert disk.exists(tmp / "link.tmp") and (tmp / "file.tmp").exists()
    assert open_below(tmp_path) == []


def test_a_task_is_deleted_whatever_fails_when_its_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: DiskBackend = store_in(tmp_path)
    send(store, 0, b"x")
    original = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".trash"):
            raise OSError(errno.EIO, "Input/output error")
        return original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        store.delete(ID, None)
    assert list_of(store, None)["total"] == 0
    assert (store.sweep().removed, open_below(tmp_path)) == (1, [])
