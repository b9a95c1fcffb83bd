"""Test ``archive_command``: real commands on real logs, one at a time, with retries, never delaying the service."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dlpool.config import LoggingSettings
from dlpool.errors import ConfigurationError
from dlpool.observe.log import Log
from dlpool.observe.rotation import rotated_name
from dlpool.service.hooks import archiving, process
from dlpool.service.hooks.archiving import LogArchiver, check_archive_command
from dlpool.service.hooks.process import CommandResult
from tests.conftest import wait_until
from tests.desk import desk_of, running
from tests.fakes import Clock, Lines
from tests.test_log_files import make_log

NOW = datetime.now(timezone.utc)
Make = Callable[..., LogArchiver]


def script(folder: Path, text: str) -> str:
    """Return a command that runs ``text`` in a shell, with the log as ``$1``."""
    path = folder / "archive.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def pack(log: Path, *ages_s: int) -> list[str]:
    """Write compressed logs of these ages, and return their names."""
    paths = [Path(f"{rotated_name(log, NOW - timedelta(seconds=age))}.gz") for age in ages_s]
    for path in paths:
        path.write_bytes(gzip.compress(path.name.encode()))
    return [path.name for path in paths]


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "dlpool.log").read_bytes().splitlines())
    return [record for record in records if record["message"] == name]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = make_log(tmp_path / "log")
    yield made
    made.close()


@pytest.fixture
def make(log: Log) -> Iterator[Make]:
    """Return a factory of archivers, which stop at the end of the test."""
    made: list[LogArchiver] = []

    def one(command: str, **settings: Any) -> LogArchiver:
        options = {"archive_retry_delay": 0.01, **settings}
        made.append(LogArchiver(LoggingSettings(archive_command=command, **options), log.path, log.logger("log")))
        return made[-1]

    yield one
    for archiver in made:
        archiver.stop()


def tended(archiver: LogArchiver, condition: Callable[[], bool]) -> None:
    """Call ``archive_new_logs``, as the supervisor does every second, until ``condition`` holds."""

    def looked() -> bool:
        archiver.archive_new_logs()
        return condition()

    wait_until(looked)


def test_each_compressed_log_is_archived_once_oldest_first(tmp_path: Path, log: Log, make: Make) -> None:
    names = pack(log.path, 30, 20, 10)
    rotated_name(log.path, NOW).write_text("not compressed yet\n")
    command = script(tmp_path, f'basename "$1" >> {tmp_path}/seen; gzip -t "$1" && cp "$1" {tmp_path}')
    tended(make(command), lambda: len(events(log.path.parent, "log_archived")) == 3)
    restarted = make(command)
    names += pack(log.path, 5)
    tended(restarted, lambda: len(events(log.path.parent, "log_archived")) == 4)
    assert (tmp_path / "seen").read_text().split() == names
    assert (tmp_path / names[0]).read_bytes() == (log.path.parent / names[0]).read_bytes()
    assert (log.path.parent / "dlpool.log.archived").read_text().split() == names


def test_a_failure_is_logged_and_tried_again_and_later_logs_wait(tmp_path: Path, log: Log, make: Make) -> None:
    names = pack(log.path, 20, 10)
    archiver = make(
        script(tmp_path, f'basename "$1" >> {tmp_path}/seen; test -e {tmp_path}/there || {{ echo no >&2; exit 3; }}')
    )
    tended(archiver, lambda: len(events(log.path.parent, "log_not_archived")) == 2)
    (tmp_path / "there").touch()
    tended(archiver, lambda: len(events(log.path.parent, "log_archived")) == 2)
    failed, *_ = events(log.path.parent, "log_not_archived")
    assert (failed["dlpool.reason"], failed["dlpool.stderr"]) == ("exit code 3", "no")
    assert failed["file.path"] == str(log.path.parent / names[0])
    *tries, last = (tmp_path / "seen").read_text().split()
    assert set(tries) == {names[0]}
    assert last == names[1]


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path, log: Log, make: Make) -> None:
    pack(log.path, 10)
    archiver = make(script(tmp_path, "exec sleep 1000"), archive_timeout=0.2, archive_retry_delay=1000)
    tended(archiver, lambda: len(events(log.path.parent, "log_not_archived")) == 1)
    (failed,) = events(log.path.parent, "log_not_archived")
    assert failed["dlpool.reason"] == "it took longer than 0.2 s"


def test_the_end_of_the_supervisor_ends_a_command(tmp_path: Path, log: Log, make: Make) -> None:
    pack(log.path, 10)
    archiver = make(script(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000"))
    tended(archiver, lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    archiver.stop()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    (failed,) = events(log.path.parent, "log_not_archived")
    assert failed["dlpool.reason"] == "the supervisor stops"
    assert not (log.path.parent / "dlpool.log.archived").exists()


def test_what_cannot_be_noted_is_archived_again(tmp_path: Path, log: Log, make: Make) -> None:
    pack(log.path, 10)
    obstacle = log.path.parent / "dlpool.log.archived.tmp"
    obstacle.mkdir()
    archiver = make(script(tmp_path, "exit 0"))
    tended(archiver, lambda: events(log.path.parent, "log_not_archived") != [])
    obstacle.rmdir()
    tended(archiver, lambda: (log.path.parent / "dlpool.log.archived").exists())
    failed, *_ = events(log.path.parent, "log_not_archived")
    assert failed["error.type"] == "IsADirectoryError"


def test_a_log_that_is_gone_hinders_nothing(tmp_path: Path, log: Log, make: Make) -> None:
    first, second = pack(log.path, 20, 10)
    archiver = make(
        script(tmp_path, f'basename "$1" >> {tmp_path}/seen; rm -f {log.path.parent}/{second}; test "$1" = x')
    )
    tended(archiver, lambda: events(log.path.parent, "log_not_archived") != [])
    (log.path.parent / first).unlink()
    third = pack(log.path, 5)
    archiver.settings = LoggingSettings(archive_command="true", archive_retry_delay=0.01)
    tended(archiver, lambda: len(events(log.path.parent, "log_archived")) == 1)
    assert set((tmp_path / "seen").read_text().split()) == {first}  # tried again, perhaps, before it was gone
    assert (log.path.parent / "dlpool.log.archived").read_text().split() == third


def test_the_service_compresses_and_archives_while_jobs_run(tmp_path: Path) -> None:
    """A command that never exits delays no job, and the stop of the service only by its time limit."""
    command = script(tmp_path, f'cp "$1" {tmp_path}/cold.gz && exec sleep 1000')
    settings = {"compress_after": "0", "archive_command": command}
    with running(tmp_path, logging=settings) as both, desk_of(*both) as desk:
        service, client = both
        rotated_name(service.log_file, NOW).write_bytes(b'{"@timestamp": "x"}\n')
        wait_until(lambda: (tmp_path / "cold.gz").exists() and (tmp_path / "cold.gz").stat().st_size > 0)
        client.wait_for(desk.push())
        assert service.stop() == 0
        (failed,) = service.events("log_not_archived")
    assert failed["dlpool.reason"] == "the supervisor stops"
    assert gzip.decompress((tmp_path / "cold.gz").read_bytes()) == b'{"@timestamp": "x"}\n'


def test_a_program_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    with running(tmp_path) as (service, _):
        service.stop()
        service.configure(service.url, {"logging": {"archive_command": "no-such-program --to x"}})
        service.start(is_ready=False)
        assert service.wait() == 78
        assert "[logging] archive_command: cannot find executable program" in service.errors.read_text()


# --- one step at a time ---


class Stepped(LogArchiver):
    """An archiver with a fake clock and commands with given results."""

    def __init__(self, live: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.clock, self.lines = Clock(), Lines()
        monkeypatch.setattr(archiving, "time", self.clock)
        monkeypatch.setattr(archiving, "run_command", self._ran)
        self.ran: list[tuple[Any, ...]] = []
        self.results: list[Any] = []
        self.takes_s: tuple[float, ...] = (0.0,)
        self.endings: list[str] = []
        log: Any = self.lines
        given = {"archive_command": "/bin/x 'a b'", "archive_retry_delay": 60.0, **settings}
        super().__init__(LoggingSettings(**given), live, log)

    def _ran(self, command: list[str], given: bytes, _environment: Any, must_end: Callable[[], str]) -> Any:
        self.ran.append((command, given))
        for seconds in self.takes_s:
            self.clock.now += seconds
            self.endings.append(must_end())
        return self.results.pop(0) if self.results else CommandResult("")

    def look(self) -> int:
        """Archive new logs, wait for that, and return the number of commands that ran."""
        self.ran.clear()
        self.archive_new_logs()
        if self._thread is not None:
            self._thread.join(30)
        return len(self.ran)


def test_a_failure_is_tried_again_after_its_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = tmp_path / "dlpool.log"
    names = pack(live, 20, 10)
    one = Stepped(live, monkeypatch)
    one.takes_s, one.results = (1.23456,), [CommandResult("exit code 3", "no")]
    assert one.look() == 1
    path = tmp_path / names[0]
    fields = {"path": path, "reason": "exit code 3", "stderr": "no", "seconds": 1.235}
    assert one.lines.kept == [("warning", "log_not_archived", fields)]
    one.takes_s = (0.5,)
    failed_at = one.clock.now
    one.clock.now = failed_at + 59.5
    assert one.look() == 0
    one.clock.now = failed_at + 60
    assert one.look() == 2
    assert one.ran[0] == (["/bin/x", "a b", str(path)], b"")
    assert one.lines.kept[1:] == [("info", "log_archived", {"path": tmp_path / name, "seconds": 0.5}) for name in names]
    thread = one._thread
    assert one.look() == 0 and one._thread is thread, "all has been seen"
    pack(live, 5)
    assert one.look() == 1


@pytest.mark.parametrize(
    ("takes_s", "stop_s", "endings"),
    [
        ((29.5, 0.5), None, ["", "it took longer than 30 s"]),
        ((4.5, 0.5), 5.0, ["", "the supervisor stops"]),
        ((30.0,), 5.0, ["it took longer than 30 s"]),
    ],
)
def test_until_when_a_command_may_run(
    takes_s: tuple[float, ...],
    stop_s: float | None,
    endings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack(tmp_path / "dlpool.log", 10)
    one = Stepped(tmp_path / "dlpool.log", monkeypatch, archive_timeout=30.0)
    one.takes_s = takes_s
    one._stop_at = float("inf") if stop_s is None else one.clock.now + stop_s
    one.look()
    assert one.endings == endings


def test_nothing_begins_without_a_command_or_after_the_time_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "dlpool.log", 10)
    without = Stepped(tmp_path / "dlpool.log", monkeypatch, archive_command=None)
    assert without.look() == 0 and without._thread is None
    stopped = Stepped(tmp_path / "dlpool.log", monkeypatch)
    stopped._stop_at = stopped.clock.now
    assert stopped.look() == 0 and stopped.lines.kept == []
    assert not (tmp_path / "dlpool.log.archived").exists()


def test_a_stop_waits_for_the_command_until_it_must_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(tmp_path / "dlpool.log", monkeypatch)
    one.stop()
    joined: list[float] = []
    one._thread = SimpleNamespace(join=joined.append)  # type: ignore[assignment]
    one.stop()
    assert joined == [archiving.STOP_S + process.TERMINATE_S + 1.0]
    assert one._stop_at == one.clock.now + archiving.STOP_S


def test_what_keeps_a_look_from_beginning_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "dlpool.log", 10)
    one = Stepped(tmp_path / "dlpool.log", monkeypatch)
    error = OSError(errno.EIO, "broken")

    def fail() -> list[Path]:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(one._rotation, "compressed_logs", fail)
        assert one.look() == 0
    assert one.lines.kept == [("warning", "log_not_archived", {"error": error})]
    assert one.look() == 0
    one.clock.now += 60
    assert one.look() == 1


@pytest.mark.parametrize(("command", "is_there"), [(None, True), ("sh -c x", True), ("no-such-program x", False)])
def test_a_command_must_be_there(command: str | None, is_there: bool) -> None:
    if is_there:
        check_archive_command(LoggingSettings(archive_command=command))
        return
    with pytest.raises(ConfigurationError, match=r"^\[logging\] archive_command.*cannot find executable program"):
        check_archive_command(LoggingSettings(archive_command=command))
