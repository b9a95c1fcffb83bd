"""Test hooks: real commands for jobs of a real service, which they cannot disturb."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dlpool.config import HookSettings, LoggingSettings
from dlpool.config.layers import load
from dlpool.errors import ConfigurationError
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.service.hooks import process, runner
from dlpool.service.hooks.runner import HookRunner, check_hooks
from dlpool.service.inflight import InFlightJob
from tests.conftest import wait_until
from tests.desk import DATA, Desk, answer, desk_of, running
from tests.fakes import Clock, Lines
from tests.processes import finish, start


def script(folder: Path, text: str, name: str = "hook") -> Path:
    """Write an executable shell script."""
    path = folder / f"{name}.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@contextmanager
def desk(folder: Path, **settings: Any) -> Iterator[Desk]:
    """Run a service with a client."""
    with running(folder, **settings) as both, desk_of(*both) as one:
        yield one


def given(folder: Path, name: object) -> dict[str, Any]:
    """Wait for the input of a hook, and return it."""
    path = folder / str(name)
    wait_until(path.exists)
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def kept(folder: Path) -> str:
    """Return a command that writes its input to a file named by the job's id, atomically."""
    folder.mkdir(exist_ok=True)
    copy = f'cat > "{folder}/.$DLPOOL_JOB_ID" && mv "{folder}/.$DLPOOL_JOB_ID" "{folder}/$DLPOOL_JOB_ID"'
    return f"/bin/sh -c {shlex.quote(copy)}"


def ended(job_id: str = "a", outcome: str = "success", **note: Any) -> tuple[InFlightJob, FinishRequest]:
    """Return an ended job as the dispatcher passes it to the hooks."""
    job = PushedJob.parse(compose_job("http://h/ü", "f"))
    ticket = JobLease(job_id, 1)
    return InFlightJob(ClaimedJob(ticket, job.raw, len(job.raw), 2, 0, 0, 0, "normal"), 0.0, job, "t"), FinishRequest(
        ticket, Disposition(outcome), note={"path": "/x/f", "size": 3, **note}
    )


class Bench:
    """A hook runner without a service, and the lines of its log."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / "log"
        log = Log(self.folder, LoggingSettings(level="debug"), LogOrigin("x", "n", version="0"))
        self.hooks = HookRunner(HookSettings(**settings), "n", log.logger("hooks"))

    def lines(self, event: str) -> list[dict[str, Any]]:
        text = (self.folder / "dlpool.log").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        return [record for record in records if record["event.action"] == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.lines(event)) >= count)
        return self.lines(event)


# --- with a service ---


def test_hooks_get_the_job_as_json_after_its_record(tmp_path: Path) -> None:
    command = kept(tmp_path / "hooks")
    with desk(tmp_path, hooks={"on_success": command, "on_failure": command}) as one:
        good = one.push("gö?secret=1", id="good", user_id="Zoë", trace_id="t1", headers={"X-Token": "hidden"})
        success = given(tmp_path / "hooks", "good")
        assert one.client.success(good) is not None
        path = str(one.folder / "gö?secret=1")
        assert success.pop("seconds") >= 0
        assert success.pop("node")
        assert success == {
            "id": "good",
            "outcome": "success",
            "url": good,
            "save_path": one.path("gö?secret=1"),
            "path": path,
            "size": len(DATA),
            "label": None,
            "message": None,
            "attempt": 1,
            "trace_id": "t1",
            "user_id": "Zoë",
        }
        assert Path(path).read_bytes() == DATA
        one.serve(answer(404))
        bad = one.push("bad", id="bad")
        failure = given(tmp_path / "hooks", "bad")
        assert one.client.failure(bad) is not None
        assert (failure["outcome"], failure["url"], failure["attempt"]) == ("failure", bad, 1)
        assert (failure["label"], failure["size"]) == ("not_found", None)
        assert "404" in failure["message"]
        assert one.service.events("hook_failed") == []


def test_a_job_that_cannot_be_run_has_its_hook_too(tmp_path: Path) -> None:
    with desk(tmp_path, hooks={"on_failure": kept(tmp_path / "hooks")}) as one:
        one.push_raw({"url": one.url(), "save_path": "x", "dlpool": {"id": "odd", "max_attempts": 0}})
        failure = given(tmp_path / "hooks", "odd")
        assert (failure["label"], failure["url"], failure["save_path"]) == ("bad_job", one.url(), None)


def test_retries_have_no_hook_and_the_last_failure_has_one(tmp_path: Path) -> None:
    count = f"/bin/sh -c 'echo $DLPOOL_OUTCOME >> {tmp_path}/count'"
    with desk(tmp_path, hooks={"on_success": count, "on_failure": count}, transfer={"retries": 0}) as one:
        one.serve(answer(500))
        url = one.push(max_attempts=3)
        one.client.wait_for_failure(url)
        assert one.service.stop() == 0  # a stop waits for hooks
        assert len(one.asked()) == 3
        assert (tmp_path / "count").read_text() == "failure\n"


def test_a_hundred_jobs_do_not_wait_for_a_slow_hook(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hook = script(tmp_path, f"while [ ! -e {gate} ]; do sleep 0.05; done\necho x >> {tmp_path}/count")
    with desk(tmp_path, hooks={"on_success": hook, "max_running": 2, "timeout": "60s"}) as one:
        urls = [one.push(number) for number in range(100)]
        one.client.wait_for(*urls)
        assert not (tmp_path / "count").exists()  # all jobs are done, no hook is
        gate.touch()
        wait_until(lambda: (tmp_path / "count").exists() and len((tmp_path / "count").read_text()) == 200)


def test_a_hook_that_hangs_is_ended_at_shutdown(tmp_path: Path) -> None:
    hook = script(tmp_path, f"trap '' TERM\necho $$ > {tmp_path}/pid\nwhile :; do sleep 1; done")
    with desk(tmp_path, hooks={"on_success": hook, "timeout": "1h"}) as one:
        one.client.wait_for(one.push())
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        assert one.service.stop() == 0
        assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
        [line] = one.service.events("hook_failed")
        assert line["dlpool.reason"] == "the supervisor stops"


def test_a_hook_goes_on_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = f"touch {tmp_path}/begun\nwhile [ ! -e {gate} ]; do sleep 0.05; done\n"
    hook = script(tmp_path, f"{waits}cat > {tmp_path}/.given && mv {tmp_path}/.given {tmp_path}/given")
    with desk(tmp_path, hooks={"on_success": hook}) as one:
        one.client.wait_for(one.push(id="a"))
        wait_until((tmp_path / "begun").exists)
        os.kill(one.service.pid, signal.SIGKILL)
        one.service.wait()
        gate.touch()
        assert given(tmp_path, "given")["id"] == "a"


def test_a_reload_changes_the_hooks_and_refuses_a_program_that_is_not_there(tmp_path: Path) -> None:
    with desk(tmp_path) as one:
        one.client.wait_for(one.push(1, id="before"))
        wait_until(lambda: len(one.service.events("job_succeeded")) == 1)  # its hooks would have begun
        one.service.configure(one.service.url, {"hooks": {"on_success": kept(tmp_path / "hooks")}})
        one.service.signal(signal.SIGHUP)
        wait_until(lambda: len(one.service.events("configuration_reloaded")) == 1)
        one.push(2, id="after")
        assert given(tmp_path / "hooks", "after")["id"] == "after"
        one.service.configure(one.service.url, {"hooks": {"on_success": "/nowhere/program"}})
        one.service.signal(signal.SIGHUP)
        wait_until(lambda: len(one.service.events("reload_refused")) == 1)
        one.push(3, id="still")
        assert given(tmp_path / "hooks", "still")["id"] == "still"
        assert not (tmp_path / "hooks" / "before").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/nowhere/program", "cannot find executable program '/nowhere/program'"),
        ("no-such-program -x", "cannot find executable program 'no-such-program'"),
        ("/etc/passwd", "cannot find executable program"),
        ("sh 'open", "it is not a command line"),
        ("''", "it is not a command line"),
    ],
)
def test_a_hook_that_cannot_be_run_is_one_sentence_at_the_start(command: str, reason: str, tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(
        f"[paths]\nstate_dir = {tmp_path}/state\nlog_dir = {tmp_path}/log\n[hooks]\non_failure = {command}\n"
    )
    said = finish(start("-c", ini, module="dlpool.cli.supervisor"))
    assert said.code == 78
    assert "[hooks] on_failure" in said.err
    assert reason in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "state").exists()


# --- without one ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo first >&2; echo last words ü >&2; exit 3", "exit code 3"),
        ("kill -KILL $$", "killed by SIGKILL"),
        ("kill -40 $$", "killed by signal 40"),
    ],
)
def test_a_hook_that_fails_is_one_line_with_its_last_words(text: str, reason: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, on_failure=str(script(tmp_path, text)))
    bench.hooks.schedule(*ended("j1", "failed", label="x", message="m"))
    [line] = bench.wait_for("hook_failed")
    assert (line["log.level"], line["dlpool.job.id"], line["dlpool.reason"]) == ("warning", "j1", reason)
    assert line["dlpool.stderr"] == ("first\nlast words ü" if "last" in text else "")


def test_of_much_standard_error_the_end_is_kept(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, on_success=f"/bin/sh -c {shlex.quote('yes noise | head -c 3000000 >&2; echo end >&2; exit 1')}"
    )
    bench.hooks.schedule(*ended())
    [line] = bench.wait_for("hook_failed")
    assert line["dlpool.stderr"].endswith("noise\nend")
    assert len(line["dlpool.stderr"]) <= process.MAX_STDERR


def test_a_hook_over_its_time_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    hook = script(tmp_path, f"trap '' TERM\nsleep 1000 & echo $! > {tmp_path}/pid\nwhile :; do wait; done")
    bench = Bench(tmp_path, on_success=str(hook), timeout=1.0)
    bench.hooks.schedule(*ended())
    [line] = bench.wait_for("hook_failed")
    assert line["dlpool.reason"] == "it took longer than 1 s"
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("command", ["/bin/true", "/bin/sh -c 'exec <&-; sleep 0.1'"])
def test_a_hook_need_not_read_its_input(command: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, on_success=command)
    bench.hooks.schedule(*ended(path="x" * 200_000))
    bench.wait_for("hook_succeeded")
    assert bench.lines("hook_failed") == []


def test_a_hook_that_leaves_something_running_is_done_when_it_ends_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path, on_success=f"/bin/sh -c 'sleep 1000 & echo $! > {tmp_path}/pid'")
    bench.hooks.schedule(*ended())
    bench.wait_for("hook_succeeded")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_hook_has_a_clean_environment_a_session_and_no_descriptor_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "x")
    show = (
        f"cd {tmp_path}/shown; env > env; ls -l /proc/$$/fd > descriptors; cat /proc/$$/stat > stat; echo $$ > pid",
        "echo $OLDPWD > folder",
    )
    (tmp_path / "shown").mkdir()
    bench = Bench(tmp_path, on_success=str(script(tmp_path, "; ".join(show))))
    with (tmp_path / "mine").open("w") as mine:
        os.set_inheritable(mine.fileno(), True)
        bench.hooks.schedule(*ended())
        bench.wait_for("hook_succeeded")
    shown = {path.name: path.read_text() for path in (tmp_path / "shown").iterdir()}
    names = {line.partition("=")[0] for line in shown["env"].splitlines()}
    assert {"PATH", "DLPOOL_JOB_ID", "DLPOOL_OUTCOME"} <= names
    assert names <= {*runner.ENVIRONMENT, "DLPOOL_JOB_ID", "DLPOOL_OUTCOME", "PWD", "OLDPWD", "SHLVL", "_"}
    assert "mine" not in shown["descriptors"]
    assert "dlpool.log" not in shown["descriptors"]
    session = shown["stat"].rpartition(")")[2].split()[3]
    assert session == shown["pid"].strip()
    assert shown["folder"] == "/\n"


def test_the_line_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_WAITING", 5)
    gate = tmp_path / "gate"
    hook = script(tmp_path, f"while [ ! -e {gate} ]; do sleep 0.02; done\necho x >> {tmp_path}/count")
    bench = Bench(tmp_path, on_success=str(hook), max_running=2)
    for number in range(2):
        bench.hooks.schedule(*ended(str(number)))
    wait_until(lambda: "0 waiting" in repr(bench.hooks))
    for number in range(10):
        bench.hooks.schedule(*ended(str(number)))
    assert repr(bench.hooks) == "<HookRunner 2 of 2 running, 5 waiting>"
    gate.touch()
    bench.hooks.stop()
    assert (tmp_path / "count").read_text() == "x\n" * 7
    assert sum(line["dlpool.dropped"] for line in bench.lines("hooks_dropped")) == 5
    assert repr(bench.hooks) == "<HookRunner 0 of 2 running, 0 waiting>"


def test_a_stop_ends_what_runs_and_drops_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STOP_S", 0.2)
    bench = Bench(tmp_path, on_success="sleep 1000", max_running=1)
    for number in range(3):
        bench.hooks.schedule(*ended(str(number)))
    began = time.monotonic()
    bench.hooks.stop()
    assert time.monotonic() - began < process.TERMINATE_S  # SIGTERM was enough
    assert [line["dlpool.reason"] for line in bench.lines("hook_failed")] == ["the supervisor stops"]
    assert [line["dlpool.dropped"] for line in bench.lines("hooks_dropped")] == [2]


def test_a_program_that_has_gone_since_the_start_is_a_failure_of_the_hook(tmp_path: Path) -> None:
    bench = Bench(tmp_path, on_success=str(tmp_path / "gone"))
    bench.hooks.schedule(*ended())
    [line] = bench.wait_for("hook_failed")
    assert line["dlpool.reason"] == "it cannot be started: No such file or directory"


def test_words_are_split_as_a_shell_does_and_no_shell_sees_them(tmp_path: Path) -> None:
    ini = tmp_path / "x.ini"
    ini.write_text(f"[hooks]\non_success = touch '{tmp_path}/a b' {tmp_path}/$HOME;x\n")
    settings: HookSettings = load(str(ini))["hooks"]
    check_hooks(settings)
    bench = Bench(tmp_path, on_success=settings.on_success)
    (tmp_path / "$HOME;x").parent.mkdir(exist_ok=True)
    bench.hooks.schedule(*ended())
    bench.wait_for("hook_succeeded")
    assert {"a b", "$HOME;x"} <= {path.name for path in tmp_path.iterdir()}


def test_all_programs_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigurationError) as error:
        check_hooks(HookSettings(on_success="nowhere-a", on_failure="nowhere-b x"))
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
        "[hooks] on_success",
        "[hooks] on_failure",
    ]


# --- the line and its threads, one step at a time ---


class Stepped(HookRunner):
    """A hook runner without threads: the test calls ``_serve`` instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.clock, self.lines, self.started = Clock(), Lines(), 0
        monkeypatch.setattr(runner, "time", self.clock)
        monkeypatch.setattr(runner, "run_command", self._ran)
        self.result = process.CommandResult("")
        self.ran: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        self.endings: list[str] = []
        self.takes_s: tuple[float, ...] = (0.0,)
        log: Any = self.lines
        super().__init__(HookSettings(**settings), "n", log)

    def _start_thread(self) -> None:
        self.started += 1

    def _ran(self, command: Any, given: bytes, environment: Any, must_end: Any) -> process.CommandResult:
        self.ran.append((command, given, environment))
        if self.error is not None:
            raise self.error
        for seconds in self.takes_s:
            self.clock.now += seconds
            self.endings.append(must_end())
        return self.result


@pytest.mark.parametrize(
    ("outcome", "settings", "command"),
    [
        ("success", {"on_success": "s", "on_failure": "f"}, "s"),
        ("failed", {"on_success": "s", "on_failure": "f"}, "f"),
        ("success", {"on_failure": "f"}, None),
        ("failed", {"on_success": "s"}, None),
        *(
            (other, {"on_success": "s", "on_failure": "f"}, None)
            for other in ("retry", "release", "cancelled", "pause")
        ),
    ],
)
def test_which_command_runs(
    outcome: str, settings: dict[str, Any], command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Stepped(monkeypatch, **settings)
    one.schedule(*ended("a", outcome))
    assert [call.command for call in one._waiting] == ([] if command is None else [command])
    for call in one._waiting:
        assert (call.job_id, call.trace_id) == ("a", "t")
        assert call.outcome == json.loads(call.stdin)["outcome"] == ("success" if command == "s" else "failure")


def test_what_a_hook_reads_of_a_job() -> None:
    held, ending = ended("a", seconds=1.5, label="l", message="m")
    held.path = "/held"
    whole = json.loads(runner.hook_payload(held, ending, "success", "n"))
    assert whole == {
        "id": "a",
        "outcome": "success",
        "url": "http://h/ü",
        "save_path": "f",
        "path": "/x/f",
        "size": 3,
        "seconds": 1.5,
        "label": "l",
        "message": "m",
        "attempt": 2,
        "trace_id": "t",
        "user_id": None,
        "node": "n",
    }
    ending.note.clear()
    assert json.loads(runner.hook_payload(held, ending, "success", "n"))["path"] == "/held"
    assert runner.hook_payload(held, ending, "success", "n").endswith(b"}\n")


@pytest.mark.parametrize(("field", "url"), [("http://of/record", "http://of/record"), (None, None)])
def test_what_a_hook_reads_of_a_job_that_could_not_be_read(field: str | None, url: str | None) -> None:
    held, ending = ended("a", "failed")
    held.job = None
    record: Any = None if field is None else SimpleNamespace(field=field)
    said = json.loads(runner.hook_payload(held, replace(ending, record=record), "failure", "n"))
    assert (said["url"], said["save_path"], said["user_id"]) == (url, None, None)


def test_as_many_threads_as_allowed_and_each_ends_when_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x", max_running=2)
    for number in range(5):
        one.schedule(*ended(str(number)))
    assert one.started == 2 and repr(one) == "<HookRunner 2 of 2 running, 5 waiting>"
    one._serve()
    assert len(one.ran) == 5 and repr(one) == "<HookRunner 1 of 2 running, 0 waiting>"
    assert [json.loads(given)["id"] for _, given, _ in one.ran] == list("01234")
    one._serve()
    assert repr(one) == "<HookRunner 0 of 2 running, 0 waiting>"
    one.schedule(*ended("late"))
    assert one.started == 3


def test_fewer_threads_after_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x", max_running=2)
    for number in range(3):
        one.schedule(*ended(str(number)))
    one.settings = HookSettings(max_running=1)
    one._serve()
    assert one.ran == [] and repr(one) == "<HookRunner 1 of 1 running, 3 waiting>"
    one._serve()
    assert len(one.ran) == 3


def test_nothing_begins_after_the_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x")
    one.schedule(*ended())
    one._stop_at = one.clock.now
    one._serve()
    assert one.ran == [] and repr(one) == "<HookRunner 0 of 4 running, 1 waiting>"


def test_a_thread_that_cannot_start_leaves_its_work_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Refused:
        def __init__(self, **given: Any) -> None:
            made.append(given)

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    bench = Bench(tmp_path, on_success="/bin/true")
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Refused)
        bench.hooks.schedule(*ended("a"))
    assert [(one["name"], one["daemon"]) for one in made] == [("hook", True)]
    assert len(bench.lines("hook_not_started")) == 1
    assert repr(bench.hooks) == "<HookRunner 0 of 4 running, 1 waiting>"
    bench.hooks.schedule(*ended("b"))
    bench.wait_for("hook_succeeded", 2)


def test_a_stop_drops_what_no_thread_will_run_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x", max_running=1)
    waited: list[float | None] = []

    class Noted(threading.Condition):
        def wait_for(self, _predicate: Any, timeout: float | None = None) -> Any:
            waited.append(timeout)
            return True

    one._lock = Noted()
    for number in range(3):
        one.schedule(*ended(str(number)))
    one.stop()
    assert waited == [runner.STOP_S + process.TERMINATE_S + 1.0] and one._stop_at == one.clock.now + runner.STOP_S
    assert repr(one) == "<HookRunner 1 of 1 running, 0 waiting>"
    one.stop()
    assert one.lines.kept == [("warning", "hooks_dropped", {"dropped": 3})]


def test_dropped_hooks_are_told_of_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_WAITING", 2)
    one = Stepped(monkeypatch, on_success="/bin/x", max_running=1)
    dropped: list[list[int]] = []
    for pause_s in (0, 0, 0, 1, 8.5, 0.5, 0, 20):
        one.clock.now += pause_s
        one.schedule(*ended())
        dropped.append([line.fields["dropped"] for line in one.lines.named("hooks_dropped")])
        one.lines.kept.clear()
    assert dropped == [[], [], [1], [], [], [3], [], [2]]
    assert "2 waiting" in repr(one)


@pytest.mark.parametrize(
    ("takes_s", "stop_s", "endings"),
    [
        ((29.5, 0.5), None, ["", "it took longer than 30 s"]),
        ((4.5, 0.5, 1.0), 5.0, ["", "the supervisor stops", "the supervisor stops"]),
        ((30.0,), 5.0, ["it took longer than 30 s"]),
    ],
)
def test_until_when_a_hook_may_run(
    takes_s: tuple[float, ...], stop_s: float | None, endings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x", timeout=30.0)
    one.takes_s = takes_s
    one._stop_at = float("inf") if stop_s is None else one.clock.now + stop_s
    one.schedule(*ended())
    one._serve()
    assert one.endings == endings


def test_how_a_hook_ended_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x y")
    one.takes_s = (1.23456,)
    about = {"job_id": "a", "trace_id": "t", "command": "/bin/x", "seconds": 1.235}
    one.schedule(*ended())
    one._serve()
    one.result = process.CommandResult("exit code 3", "said")
    one.schedule(*ended())
    one._serve()
    assert one.lines.kept == [
        ("debug", "hook_succeeded", about),
        ("warning", "hook_failed", {"reason": "exit code 3", "stderr": "said", **about}),
    ]
    assert one.ran[0][0] == ["/bin/x", "y"]


def test_a_defect_ends_one_hook_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stepped(monkeypatch, on_success="/bin/x")
    one.error = ValueError("odd")
    for number in range(2):
        one.schedule(*ended(str(number)))
    one._serve()
    assert [(line.event, line.fields) for line in one.lines.kept] == [
        ("hook_failed", {"job_id": job, "trace_id": "t", "reason": "a defect", "error": one.error}) for job in "01"
    ]


# --- one process ---


def test_a_process_is_looked_at_often_at_first_and_killed_two_seconds_after_it_was_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    naps: list[float] = []
    signals: list[tuple[int, float]] = []
    killpg = os.killpg

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock.now += seconds

    def signal_group(pid: int, number: int) -> None:
        signals.append((number, clock.now))
        if number == signal.SIGKILL:
            killpg(pid, number)

    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(process, "time", clock)
    monkeypatch.setattr(os, "killpg", signal_group)
    reasons = iter([""] * 8 + ["enough"])
    result = process.run_command(["/bin/sleep", "1000"], b"", {}, lambda: next(reasons))
    assert result == process.CommandResult("enough")
    assert naps[:8] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05]
    assert naps[8:11] == [0.001, 0.002, 0.004]
    [(first, asked), (second, killed)] = signals
    assert (first, second) == (signal.SIGTERM, signal.SIGKILL)
    assert process.TERMINATE_S <= killed - asked < process.TERMINATE_S + 0.06


@pytest.mark.parametrize(
    ("command", "failure"),
    [("exit 0", ""), ("exit 1", "exit code 1"), ("exit 255", "exit code 255"), ("kill -TERM $$", "killed by SIGTERM")],
)
def test_how_a_process_ended(command: str, failure: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    result = process.run_command(["/bin/sh", "-c", f"echo out; {command}"], b"x", {}, lambda: "")
    assert result == process.CommandResult(failure)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # a thread of an earlier test may end meanwhile


def test_a_process_reads_all_of_its_input_and_what_it_says_is_decoded() -> None:
    result = process.run_command(["/bin/sh", "-c", "cat >&2; printf '\\377 end \\n' >&2"], b"in ", {}, lambda: "")
    assert result == process.CommandResult("", "in \ufffd end")
