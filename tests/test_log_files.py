"""Test the log file with many writers: complete lines, none lost, despite renames, kills and full disks.

``python -m tests.test_log_files FOLDER NAME`` is a writer: it executes ``write N`` and ``tend`` from its stdin, and
answers ok.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LoggingSettings
from dlpool.errors import LocalFault
from dlpool.observe.log import Log
from dlpool.observe.logfile import LogFile
from dlpool.observe.processors import LogOrigin
from dlpool.observe.rotation import Rotation
from tests.conftest import wait_until
from tests.processes import ROOT

ALL = LoggingSettings(level="debug", compress_after=0)


def make_log(folder: Path, settings: LoggingSettings = ALL, **options: Any) -> Log:
    return Log(folder, settings, LogOrigin("dlpool", "n1", version="1.0"), **options)


def lines_of(folder: Path) -> list[bytes]:
    """Return every line of the live log and of the rotated ones, compressed or not."""
    found = []
    for path in sorted(folder.glob("dlpool.log*")):
        assert path.suffix != ".tmp"
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert data.endswith(b"\n") or not data
        found += data.split(b"\n")[:-1]
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(folder)]


def numbers_of(folder: Path) -> Counter[tuple[str, int]]:
    """Return how often each record of each writer is in the log."""
    return Counter((record["dlpool.writer"], record["dlpool.number"]) for record in records_of(folder))


class Writer:
    """A process that writes to the log on request."""

    def __init__(self, folder: Path, name: str) -> None:
        command = [sys.executable, "-m", "tests.test_log_files", str(folder), name]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.is_ready()

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def is_ready(self) -> bool:
        """Wait for the answer to the last command."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ok\n"
        return True

    def do(self, command: str) -> None:
        self.say(command)
        self.is_ready()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Writer]]:
    """Return a function that starts writers, which stop at the end of the test."""
    writers: list[Writer] = []

    def started(name: str) -> Writer:
        writers.append(Writer(tmp_path, name))
        return writers[-1]

    yield started
    for writer in writers:
        writer.end()


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process, and return its status: 0, or minus the number of its signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child must not go on as pytest
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- one process ---


def test_records_below_the_level_are_not_written(tmp_path: Path) -> None:
    log = make_log(tmp_path, LoggingSettings(level="warning"))
    logger = log.logger("a")
    logger.info("too_low")
    logger.warning("enough")
    log.apply(LoggingSettings(level="debug"))
    logger.debug("now_enough")
    assert [record["message"] for record in records_of(tmp_path)] == ["enough", "now_enough"]


def test_a_logger_may_have_a_level_of_its_own(tmp_path: Path) -> None:
    log = make_log(tmp_path, LoggingSettings(level="info", levels="jobs=warning, worker = debug"))
    early = log.logger("worker").bind(job_id="1")
    for name in ("jobs", "worker", "redis"):
        log.logger(name).debug(f"{name}_debug")
        log.logger(name).info(f"{name}_info")
    log.apply(LoggingSettings(levels="redis=debug"))
    early.debug("no_longer")
    log.logger("redis").debug("redis_now")
    shown = [record["message"] for record in records_of(tmp_path)]
    assert shown == ["worker_debug", "worker_info", "redis_info", "redis_now"]


def test_a_log_that_cannot_be_opened_is_a_local_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalFault, match=r"^cannot open the log .*/file/log/dlpool\.log: a part of the path is a file"):
        make_log(tmp_path / "file" / "log")


def test_a_log_that_another_program_locks_is_a_local_fault(tmp_path: Path) -> None:
    with open(tmp_path / "dlpool.log", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LocalFault, match="another program has locked it"):
            make_log(tmp_path)


def test_a_log_that_is_not_required_is_opened_when_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    log = make_log(tmp_path / "log", is_required=False)
    log.logger("a").info("lost")
    assert log.dropped == 1
    (tmp_path / "log").unlink()
    log.reopen()
    log.logger("a").info("kept")
    assert [record["message"] for record in records_of(tmp_path / "log")] == ["kept"]
    assert log.dropped == 1


def test_the_folder_of_the_log_is_made(tmp_path: Path) -> None:
    log = make_log(tmp_path / "a" / "b")
    log.logger("a").info("here")
    assert log.path == tmp_path / "a" / "b" / "dlpool.log"
    assert log.path.stat().st_size > 0


def test_a_forked_process_says_its_own_number(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.logger("a").info("parent")
    assert in_child(lambda: log.logger("a").info("child")) == 0
    parent, child = records_of(tmp_path)
    assert parent["process.pid"] == os.getpid()
    assert child["process.pid"] != os.getpid()


def test_records_after_the_end_are_counted_and_write_nowhere(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.close()
    log.logger("a").info("late")
    log.maintain()
    log.reopen()
    assert log.dropped == 1
    assert lines_of(tmp_path) == []


def test_threads_lose_no_line_while_the_log_is_moved_away(tmp_path: Path) -> None:
    log = make_log(tmp_path)

    def write(name: str) -> None:
        for number in range(400):
            log.logger("a").info("line_written", writer=name, number=number)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    moved = 0
    while any(thread.is_alive() for thread in threads):
        log.path.rename(tmp_path / f"dlpool.log.{moved}")
        log.reopen()
        moved += 1
    assert numbers_of(tmp_path) == {(f"t{thread}", number): 1 for thread in range(8) for number in range(400)}
    assert log.dropped == 0


def test_a_deleted_log_is_made_anew(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log")
    shutil.rmtree(tmp_path / "log")
    log.reopen()
    log.logger("a").info("still_here")
    assert [record["message"] for record in records_of(tmp_path / "log")] == ["still_here"]


def test_after_logrotate_and_sigusr1_the_new_file_is_written(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.logger("a").info("before")
    log.path.rename(tmp_path / "dlpool.log.1")
    log.path.touch()
    log.reopen()
    log.logger("a").info("after")
    assert json.loads((tmp_path / "dlpool.log.1").read_bytes())["message"] == "before"
    assert json.loads(log.path.read_bytes())["message"] == "after"


def test_a_rename_is_noticed_by_the_writer_itself(tmp_path: Path) -> None:
    now = 100.0
    file = LogFile(tmp_path / "dlpool.log", clock=lambda: now)
    file.path.rename(tmp_path / "old")
    file.append(b"1\n")
    now += 1.0
    file.append(b"2\n")
    assert (tmp_path / "old").read_bytes() == b"1\n"
    assert file.path.read_bytes() == b"2\n"


def test_a_log_that_is_renamed_while_it_is_opened_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock the file may be renamed, compressed and removed: nothing may be written to it."""
    path, locked = tmp_path / "dlpool.log", fcntl.flock

    def rename_first(descriptor: int, operation: int) -> None:
        if not (tmp_path / "old").exists():
            path.rename(tmp_path / "old")
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", rename_first)
    LogFile(path).append(b"1\n")
    assert path.read_bytes() == b"1\n"
    assert (tmp_path / "old").read_bytes() == b""


def test_a_log_that_cannot_be_made_anew_keeps_the_old_one(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.path.rename(tmp_path / "old")
    log.path.mkdir()
    log.reopen()
    log.logger("a").info("kept")
    assert json.loads((tmp_path / "old").read_bytes())["message"] == "kept"
    assert log.dropped == 0


@pytest.mark.parametrize("fragment", [b'{"cut', b'{"whole": 1}\n{"cut'])
def test_a_record_after_a_fragment_begins_on_a_line_of_its_own(tmp_path: Path, fragment: bytes) -> None:
    log = make_log(tmp_path)
    log.logger("a").info("before")
    with open(log.path, "ab") as other:
        other.write(fragment)
    log.logger("a").info("after")
    log.logger("a").info("last")
    *before, after, last = log.path.read_bytes().splitlines()
    assert before[1:] == fragment.splitlines()
    assert json.loads(after)["message"] == "after"
    assert json.loads(last)["message"] == "last"


# --- full disks ---


def test_a_write_that_is_cut_costs_its_own_record_only(tmp_path: Path) -> None:
    def work() -> None:
        log = make_log(tmp_path)
        log.logger("a").info("first")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 100, hard))
        log.logger("a").info("cut")
        log.logger("a").info("refused")
        assert log.dropped == 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.logger("a").info("after")
        assert log.dropped == 2

    assert in_child(work) == 0
    first, cut, after = lines_of(tmp_path)
    assert json.loads(first)["message"] == "first"
    assert len(cut) == 100
    assert json.loads(after)["message"] == "after"


def fill_disk(folder: Path) -> None:
    """Fill the small file system ``folder`` with a log, free some space, and write again; print the log."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(32 * 1024))
    log = make_log(folder)
    written = 0
    while log.dropped == 0:
        log.logger("a").info("filling", text="x" * 1000)
        written += 1
    log.maintain()
    log.reopen()
    ballast.unlink()
    log.logger("a").info("after")
    lines = log.path.read_bytes().decode().splitlines()
    print(json.dumps({"written": written - log.dropped, "lines": lines}))


def test_a_full_disk_costs_records_but_no_whole_line(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=64k none {tmp_path} && {sys.executable} -m tests.test_log_files {tmp_path} full"
    command = ["unshare", "-m", "sh", "-c", script] if os.geteuid() == 0 else ["unshare", "-rm", "sh", "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if ended.returncode != 0 and "Traceback" not in ended.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {ended.stderr.strip()}")
    shown = json.loads(ended.stdout)
    *whole, last = shown["lines"]
    assert json.loads(last)["message"] == "after"
    assert [json.loads(line)["message"] for line in whole[: shown["written"]]] == ["filling"] * shown["written"]
    assert len(whole) <= shown["written"] + 1  # and the fragment


# --- many processes ---


@contextmanager
def kept_rotating(log: Log) -> Iterator[None]:
    """Call ``log.maintain`` continuously in another thread."""
    is_over = threading.Event()

    def rotate() -> None:
        while not is_over.wait(0.005):
            log.maintain()

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_rotated_log_loses_no_line(tmp_path: Path, start: Callable[[str], Writer]) -> None:
    """Four processes write as fast as they can while the log is rotated and compressed."""
    settings = LoggingSettings(rotate_size=20_000, compress_after=0)
    log = make_log(tmp_path, settings)
    writers = [start(f"w{number}") for number in range(4)]
    with kept_rotating(log):
        for _ in range(6):
            for writer in writers:
                writer.say("write 1000")
            for writer in writers:
                writer.is_ready()
                writer.do("tend")
    log.maintain()
    for writer in writers:
        writer.do("tend")
    wait_until(lambda: is_compressed(log, tmp_path))
    assert log.dropped == 0
    log.close()
    assert len(list(tmp_path.glob("*.gz"))) >= 6
    assert numbers_of(tmp_path) == {(f"w{writer}", number): 1 for writer in range(4) for number in range(6000)}


def is_compressed(log: Log, folder: Path) -> bool:
    log.maintain()
    return all(path.suffix == ".gz" for path in folder.glob("dlpool.log.*"))


def test_an_old_log_is_compressed_only_when_all_writers_have_left_it(
    tmp_path: Path, start: Callable[[str], Writer]
) -> None:
    busy, idle = start("busy"), start("idle")
    busy.do("write 3")
    now = datetime.now(timezone.utc)
    rotation, settings = Rotation(tmp_path / "dlpool.log"), LoggingSettings(rotate_size=1, compress_after=0)
    assert rotation.rotate_if_due(settings, now)
    for leaver in (busy, idle):
        rotation.clean_up(settings, now)
        assert not list(tmp_path.glob("*.gz"))
        leaver.do("tend")
    rotation.clean_up(settings, now)
    assert len(list(tmp_path.glob("*.gz"))) == 1
    busy.do("write 3")
    assert numbers_of(tmp_path) == {("busy", number): 1 for number in range(6)}


def test_a_killed_writer_leaves_its_log_and_at_most_one_fragment(
    tmp_path: Path, start: Callable[[str], Writer]
) -> None:
    """SIGKILL may cut a write at a page of the file: the next record must stay complete."""
    log = make_log(tmp_path)
    for turn in range(3):
        writer = start(f"killed{turn}")
        before = log.path.stat().st_size
        writer.say("write 10000000")
        wait_until(lambda before=before: log.path.stat().st_size > before + 50_000)  # type: ignore[misc]
        writer.end()
        log.logger("a").info("survived", number=turn)
    lines = lines_of(tmp_path)
    fragments = [line for line in lines if not line.endswith(b"}")]
    survived = [json.loads(line)["dlpool.number"] for line in lines if b'"survived"' in line]
    assert survived == [0, 1, 2]
    assert len(fragments) <= 3
    assert all(json.loads(line) for line in lines if line not in fragments)
    settings = LoggingSettings(rotate_size=1)
    rotation = Rotation(log.path)
    assert rotation.rotate_if_due(settings, datetime.now(timezone.utc))
    log.reopen()
    rotation.clean_up(settings, datetime.now(timezone.utc))
    assert lines_of(tmp_path) == lines


def obey(folder: Path, name: str) -> None:
    """Run as a writer."""
    log = make_log(folder)
    logger, number = log.logger("writer", writer=name), 0
    print("ok", flush=True)
    for line in sys.stdin:
        command, *count = line.split()
        if command == "tend":
            log.reopen()
        for _ in range(int(count[0]) if count else 0):
            logger.info("line_written", number=number, text="x" * (number % 100))
            number += 1
        assert log.dropped == 0
        print("ok", flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "full":
        fill_disk(Path(sys.argv[1]))
    else:
        obey(Path(sys.argv[1]), sys.argv[2])
