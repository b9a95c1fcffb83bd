"""Locks where flock(2) is refused or has no effect: with real processes, under a library that simulates it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlpool import disk, errors, filelock, lock_files
from dlpool.filelock import FileLock
from dlpool.lock_files import STALE_S, LockForeign, LockHeld, LockHolder
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.job import Job
from dlpool.transfer.target.file.output import FileOutput
from dlpool.transfer.target.file.partfile import PartFile
from dlpool.transfer.target.protocol import TargetOptions
from tests import disk_command
from tests.conftest import make_data, open_descriptors, wait_until
from tests.disk_faults import ALWAYS, FAIL, PRETEND, Fault, build
from tests.origin import Connection, File, Origin, Request
from tests.processes import finish, run

SIZE = 3 * 1024 * 1024
NO_FLOCK = [
    pytest.param(Fault("flock", 1, PRETEND, 0, ALWAYS), id="without effect"),
    *(
        pytest.param(Fault("flock", 1, FAIL, number, ALWAYS), id=errno.errorcode[number])
        for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
    ),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


def slow(data: bytes) -> File:
    return File(data, block=64 * 1024, pause_s=0.03)


# --- two processes ---


@pytest.mark.parametrize("fault", NO_FLOCK)
def test_of_two_processes_one_writes_and_the_other_ends_with_13(fault: Fault, library: Path, tmp_path: Path) -> None:
    first, second, gate = make_data(SIZE), make_data(SIZE, seed=2), threading.Event()
    folder = tmp_path / "out"
    folder.mkdir()

    def held(request: Request, connection: Connection) -> None:
        gate.wait(60)
        File(first)(request, connection)

    with Origin(held) as one, Origin(File(second)) as other:
        running = disk_command.start(library, folder, [fault], "fetch", f"{one.url}/f", folder / "f", "--json", "-q")
        wait_until(lambda: (folder / "f.part.lock").exists() and (folder / "f.part").exists())
        late = disk_command.start(library, folder, [fault], "fetch", f"{other.url}/f", folder / "f", "--json", "-q")
        refused = finish(late)
        gate.set()
        ended = finish(running)
    assert (refused.code, ended.code) == (13, 0), (refused, ended)
    assert refused.json["error"]["label"] == "locked"
    assert f"process {running.pid} on " in refused.json["error"]["message"]
    assert (folder / "f").read_bytes() == first
    assert os.listdir(folder) == ["f"]


@pytest.mark.parametrize("fault", NO_FLOCK)
def test_processes_that_begin_together_never_mix_their_bytes(fault: Fault, library: Path, tmp_path: Path) -> None:
    data = [make_data(SIZE, seed=seed) for seed in range(3)]
    folder = tmp_path / "out"
    origins = [Origin(slow(one)).__enter__() for one in data]
    try:
        processes = [
            disk_command.start(library, folder, [fault], "fetch", f"{origin.url}/f", folder / "f", "--json", "-q")
            for origin in origins
        ]
        ended = [finish(process) for process in processes]
    finally:
        for origin in origins:
            origin.__exit__(None, None, None)
    assert sorted({end.code for end in ended}) in ([0], [0, 13]), ended
    assert (folder / "f").read_bytes() in [one for one, end in zip(data, ended, strict=True) if end.code == 0]
    assert "f.part.lock" not in os.listdir(folder)


@pytest.mark.parametrize("fault", NO_FLOCK[:2])
def test_a_killed_holder_is_followed_at_once_and_its_bytes_are_kept(
    fault: Fault, library: Path, tmp_path: Path
) -> None:
    data, folder = make_data(SIZE), tmp_path / "out"
    options = ["--json", "-q", "-c", "2", "--min-split-size", "256K"]
    with Origin(File(data, block=16 * 1024, pause_s=0.05)) as origin:
        killed = disk_command.start(library, folder, [fault], "fetch", f"{origin.url}/f", folder / "f", *options)
        wait_until(lambda: (folder / "f.part.meta").exists())
        killed.kill()
        killed.communicate()
        assert (folder / "f.part.lock").exists()
        origin.handler = File(data)
        ended = finish(disk_command.start(library, folder, [fault], "fetch", f"{origin.url}/f", folder / "f", *options))
    assert ended.code == 0, ended
    assert 0 < ended.json["received"] < SIZE
    assert (folder / "f").read_bytes() == data
    assert os.listdir(folder) == ["f"]


def test_where_flock_works_there_is_no_lock_file(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "f", sync=False)
    try:
        assert sorted(os.listdir(tmp_path)) == ["f.part"]
        with pytest.raises(errors.Locked, match=rf"another download is writing to .*f \(process {os.getpid()}, "):
            PartFile(tmp_path / "f", sync=False)
    finally:
        part.close()


def test_twenty_refused_locks_leak_no_descriptor(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "f", sync=False)
    try:
        before = open_descriptors(tmp_path)
        for _ in range(20):
            with pytest.raises(errors.Locked):
                PartFile(tmp_path / "f", sync=False)
        assert open_descriptors(tmp_path) == before
    finally:
        part.close()


# --- the lock file ---


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process flock(2) locks nothing."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(filelock, "_flock_works", {})


@pytest.fixture
def locked(no_flock: None, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file and a descriptor of it."""
    path = tmp_path / "f"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, descriptor
    os.close(descriptor)


def left_by(path: Path, *, age_s: float, **changes: object) -> None:
    """Put a lock file beside ``path``: of a living process of another host, not renewed for ``age_s`` seconds."""
    fields = vars(LockHolder.this_process()) | {"host": "elsewhere", "boot": "another", "token": "theirs"} | changes
    write_lock(path, json.dumps({"dlpool_lock": fields}).encode(), age_s)


def write_lock(path: Path, content: bytes, age_s: float) -> None:
    lock = path.with_name("f.lock")
    lock.write_bytes(content)
    os.utime(lock, (time.time() - age_s,) * 2)


def test_a_lock_file_is_held_once_and_goes_with_its_release(locked: tuple[Path, int], tmp_path: Path) -> None:
    path, descriptor = locked
    lock = FileLock(descriptor, path)
    assert (lock.uses_lock_file, lock.was_expired, lock.is_held()) == (True, False, True)
    with pytest.raises(LockHeld, match=f"process {os.getpid()} on "):
        FileLock(descriptor, path)
    assert sorted(os.listdir(tmp_path)) == ["f", "f.lock"]
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == ["f"]
    FileLock(descriptor, path).release()


@pytest.mark.parametrize("content", ["", "of another host"])
def test_a_lock_that_is_renewed_is_respected_and_one_that_is_not_is_taken_over(
    content: str, locked: tuple[Path, int], tmp_path: Path
) -> None:
    path, descriptor = locked
    for age_s, is_taken in [(STALE_S / 2, False), (STALE_S + 30, True)]:
        left_by(path, age_s=age_s) if content else write_lock(path, b"", age_s)
        if not is_taken:
            with pytest.raises(LockHeld, match="elsewhere" if content else "^$"):
                FileLock(descriptor, path)
            continue
        lock = FileLock(descriptor, path)
        assert (lock.was_expired, lock.is_held()) == (True, True)
        lock.release()
    assert os.listdir(tmp_path) == ["f"]


def test_the_age_of_a_lock_is_judged_by_the_clock_of_the_file_server(
    locked: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours may be hours off: it is not asked."""
    path, descriptor = locked
    left_by(path, age_s=0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(LockHeld):
        FileLock(descriptor, path)


@pytest.mark.parametrize("started", ["the same", "another"])
def test_the_lock_of_a_process_that_has_ended_here_is_taken_over_at_once(
    started: str, locked: tuple[Path, int]
) -> None:
    path, descriptor = locked
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own = vars(LockHolder.this_process())
    begun = lock_files._start_time(child.pid)
    left_by(path, age_s=0, **own | {"pid": child.pid, "started": begun if started == "the same" else begun + 1})
    if started == "the same":
        with pytest.raises(LockHeld, match=f"process {child.pid}"):
            FileLock(descriptor, path)
    else:  # the number is another process's by now
        FileLock(descriptor, path).release()
        left_by(path, age_s=0, **own | {"pid": child.pid, "started": begun})
    child.communicate()
    lock = FileLock(descriptor, path)
    assert not lock.was_expired
    lock.release()


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespace": "another"}, {"boot": ""}])
def test_a_process_of_another_boot_or_namespace_is_not_known_to_have_ended(
    changes: dict[str, str], locked: tuple[Path, int]
) -> None:
    path, descriptor = locked
    left_by(path, age_s=0, **vars(LockHolder.this_process()) | {"pid": 2**22 - 1, "started": 1} | changes)
    with pytest.raises(LockHeld):
        FileLock(descriptor, path)


@pytest.mark.parametrize("content", [b"precious", b"[1]", b'{"dlpool_lock": 1}', b'{"dlpool_lock": {"pid": 1}}'])
def test_a_file_that_is_no_lock_is_left_alone(content: bytes, locked: tuple[Path, int]) -> None:
    path, descriptor = locked
    write_lock(path, content, 10 * STALE_S)
    with pytest.raises(LockForeign):
        FileLock(descriptor, path)
    assert path.with_name("f.lock").read_bytes() == content


def put(kind: str, path: Path) -> None:
    """Make something at ``path`` that is no regular file, older than any lock may be."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        other = path.with_name("other")
        if kind == "link":
            other.touch()
        path.symlink_to(other)
    os.utime(path, (time.time() - 10 * STALE_S,) * 2, follow_symlinks=False)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link", "link that leads nowhere"])
@pytest.mark.parametrize("name", ["f.lock", "f.lock.tmp"])
def test_what_is_no_regular_file_is_no_lock_and_is_left_alone(name: str, kind: str, locked: tuple[Path, int]) -> None:
    path, descriptor = locked
    left_by(path, age_s=2 * STALE_S)
    found = path.with_name(name)
    found.unlink(missing_ok=True)
    put(kind, found)
    before = os.lstat(found)
    with pytest.raises(LockForeign, match=f"{name}$"):
        FileLock(descriptor, path)
    assert os.lstat(found) == before


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=["refused", "memory"])
def test_without_a_thread_a_lock_is_renewed_by_its_holder(
    error: Exception, locked: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: threading.Thread) -> None:
        raise error

    path, descriptor = locked
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        lock = FileLock(descriptor, path)
    made = path.with_name("f.lock")
    os.utime(made, (0, 0))
    assert lock.is_held()
    assert made.stat().st_mtime > 0
    with pytest.raises(LockHeld):
        FileLock(descriptor, path)
    lock.release()
    assert not made.exists()


def test_of_many_that_take_over_a_stale_lock_one_has_it(locked: tuple[Path, int]) -> None:
    path, descriptor = locked
    for _ in range(20):
        left_by(path, age_s=2 * STALE_S)
        start = threading.Barrier(4)
        won: list[FileLock] = []
        failed: list[Exception] = []

        def take(start: threading.Barrier = start, won: list[FileLock] = won, failed: list[Exception] = failed) -> None:
            start.wait(30)
            try:
                won.append(FileLock(descriptor, path))
            except LockHeld as error:
                failed.append(error)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (len(won), len(failed)) == (1, 3)
        assert won[0].is_held()
        won[0].release()
        assert not path.with_name("f.lock.tmp").exists()


def test_a_take_over_that_was_killed_half_way_hinders_nobody(locked: tuple[Path, int], tmp_path: Path) -> None:
    path, descriptor = locked
    left_by(path, age_s=2 * STALE_S)
    (tmp_path / "f.lock").rename(tmp_path / "f.lock.tmp")
    left_by(path, age_s=2 * STALE_S)
    FileLock(descriptor, path).release()
    assert os.listdir(tmp_path) == ["f"]


def test_a_holder_is_renewed_while_it_works(locked: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_files, "HEARTBEAT_S", 0.01)
    path, descriptor = locked
    lock = FileLock(descriptor, path)
    os.utime(path.with_name("f.lock"), (1, 1))
    wait_until(lambda: path.with_name("f.lock").stat().st_mtime > 1)
    lock.release()


def test_a_holder_that_lost_its_lock_file_knows_it_and_leaves_the_other_one(locked: tuple[Path, int]) -> None:
    path, descriptor = locked
    lock = FileLock(descriptor, path)
    os.unlink(path.with_name("f.lock"))
    left_by(path, age_s=0)
    assert not lock.is_held()
    lock.release()
    assert path.with_name("f.lock").exists()


# --- what that means for a download ---


def place(folder: Path) -> FileOutput:
    job = Job("http://h/f", folder / "f")
    return FileOutput(
        job, job.target, TargetOptions("overwrite", resume=True, sync=False), notify=lambda *_a, **_k: None
    )


def test_a_download_that_lost_its_lock_file_publishes_nothing(no_flock: None, tmp_path: Path) -> None:
    from dlpool.transfer.scheduler import ChunkSnapshot

    mine = place(tmp_path)
    mine.part.locked_writer().write(0, memoryview(b"mine"))
    left_by(tmp_path / "f.part", age_s=0)
    (tmp_path / "f.lock").rename(tmp_path / "f.part.lock")
    with pytest.raises(errors.LocalFault, match="another download has taken over its lock file"):
        mine.publish(RemoteResource(size=4), ChunkSnapshot([], 4))
    mine.close()
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part.lock").exists()


def test_after_an_expired_lock_the_earlier_holder_can_write_only_to_a_file_of_its_own(
    no_flock: None, tmp_path: Path
) -> None:
    stalled = place(tmp_path)
    writer = stalled.part.writer()
    left_by(tmp_path / "f.part", age_s=2 * STALE_S)
    (tmp_path / "f.lock").rename(tmp_path / "f.part.lock")
    mine = place(tmp_path)
    mine.part.locked_writer().write(0, memoryview(b"mine"))
    writer.write(0, memoryview(b"late"))
    writer.close()
    assert (tmp_path / "f.part").read_bytes() == b"mine"
    mine.part.publish(overwrite=True)
    with pytest.raises(errors.LocalFault):
        stalled.part.publish(overwrite=True)
    stalled.close()
    mine.close()
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("if_exists", ["overwrite", "fail"])
def test_a_download_under_a_lock_file_publishes_its_own_inode(no_flock: None, if_exists: str, tmp_path: Path) -> None:
    """By a link of the open file: the name could be the next holder's by now."""
    part = PartFile(tmp_path / "f", sync=False)
    part.locked_writer().write(0, memoryview(b"mine"))
    real = disk.replace if if_exists == "overwrite" else disk.publish_exclusive
    (tmp_path / "other").write_bytes(b"the next holder's")

    def late(source: Path, *arguments: object, **options: object) -> None:
        os.replace(tmp_path / "other", tmp_path / "f.part")
        real(source, *arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, real.__name__, late)
        part.publish(overwrite=if_exists == "overwrite")
    part.close()
    assert (tmp_path / "f").read_bytes() == b"mine"
    assert (tmp_path / "f.part").read_bytes() == b"the next holder's"


# --- other locks ---


def no_flock_command(library: Path, folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return disk_command.start(library, folder, [Fault("flock", 1, FAIL, errno.ENOLCK, ALWAYS)], *arguments)


def test_a_list_with_a_session_does_without_flock(library: Path, tmp_path: Path) -> None:
    data = make_data(1000)
    with Origin(File(data)) as origin:
        (tmp_path / "list").write_text(f"{origin.url}/a\n{origin.url}/b\n")
        options: list[str | Path] = ["-i", tmp_path / "list", tmp_path / "out", "--session", tmp_path / "session", "-q"]
        for _ in range(2):
            ended = finish(no_flock_command(library, tmp_path, "fetch", *options))
            assert ended.code == 0, ended
        assert len(origin.requests) == 2
    assert sorted(os.listdir(tmp_path)) == ["list", "out", "session"]


def test_a_part_file_of_a_process_with_flock_is_reused_without(library: Path, tmp_path: Path) -> None:
    data, options = make_data(SIZE), ["--json", "-q", "-c", "2", "--min-split-size", "256K"]
    with Origin(File(data, block=16 * 1024, pause_s=0.02)) as origin:
        cut = run("fetch", f"{origin.url}/f", tmp_path / "f", *options, "--deadline", "1")
        assert cut.code == 4, cut
        origin.handler = File(data)
        ended = finish(no_flock_command(library, tmp_path, "fetch", f"{origin.url}/f", tmp_path / "f", *options))
    assert ended.code == 0, ended
    assert ended.json["received"] < SIZE
    assert os.listdir(tmp_path) == ["f"]


def test_a_state_folder_does_without_flock_and_is_one_supervisors(
    no_flock: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlpool.service.node.node import Node

    node = Node.open(tmp_path / "state")
    try:
        with pytest.raises(errors.AlreadyRunning, match=f"pid {os.getpid()}"):
            Node.open(tmp_path / "state")
    finally:
        node.close()
    Node.open(tmp_path / "state").close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_log_sessions_and_node_locks_are_open_where_flock_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlpool.engine.engine_session import EngineSession
    from dlpool.observe.logfile import LogFile
    from dlpool.service.node.node import Node, hold_worker_lock

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(filelock, "_flock_works", {})
    steps: list[Callable[[], object]] = [
        lambda: LogFile(tmp_path / "log").append(b"{}\n"),
        lambda: EngineSession(tmp_path / "session").close(),
        lambda: Node.open(tmp_path / "state").close(),
        lambda: os.close(hold_worker_lock(tmp_path / "state")),
    ]
    for step in steps:
        step()
