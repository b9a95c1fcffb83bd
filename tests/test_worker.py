"""A worker and the runs of its jobs, in this process: what it is told, what it says, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.affinity import Affinity
from dlpool.config import LoggingSettings, OtelSettings, PathSettings, Settings, TransferSettings
from dlpool.errors import (
    Cancelled,
    ChecksumMismatch,
    DlpoolError,
    Locked,
    LostJob,
    NoSpace,
    NoThread,
    PolicyRefused,
    RetryRange,
)
from dlpool.jobs.confinement import Confinement
from dlpool.service.node import disk_faults
from dlpool.service.node.disk_rules import NodeSpaceRules
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.counters import LOG_DROPPED, RECEIVED, WorkerCounters
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    CleanFrame,
    CleanupEntry,
    EndedFrame,
    Frame,
    HelloFrame,
    HoldFrame,
    JobFrame,
    LostFrame,
    PublishFrame,
    RateFrame,
    RecallFrame,
    RetireFrame,
    StatusFrame,
    VerifiedFrame,
    config_frame,
    lease_clock,
)
from dlpool.service.wire.results import AttemptResult
from dlpool.service.worker import job_run as run_module
from dlpool.service.worker import process as worker_module
from dlpool.service.worker.job_run import MAX_STACK, SMALL, JobRun, JobRunContext, remove_stale_files, settings_for_job
from dlpool.service.worker.process import FROZEN_S, SILENCE_S, STATUS_JOBS, STOP_S, WorkerProcess, WorkerSettings
from dlpool.transfer.job import Progress, TransferResult
from dlpool.transfer.space_rules import SPACE_RESERVE
from dlpool.transfer.target.state import url_digest
from tests.bench import received
from tests.conftest import PATIENT, wait_until
from tests.fakes import Clock, Lines
from tests.interleaving import wait_for_lock
from tests.origin import File, Origin

FAST = TransferSettings(retries=0, retry_delay=0.01, sync=False)


class Over(BaseException):
    """Ends a loop that has no end."""


class Bench:
    """A worker of which the test is the supervisor."""

    def __init__(self, folder: Path, slots: int = 2, **logging: Any) -> None:
        self.folder = folder
        (folder / "data").mkdir()
        self.paths = PathSettings(
            download_dir=str(folder / "data"), state_dir=str(folder / "state"), log_dir=str(folder / "log")
        )
        self.channel, theirs = FrameChannel.pair()
        self.settings = WorkerSettings(
            "n", folder, folder / "log", slots, FAST, PATIENT, self.paths, LoggingSettings(**logging), OtelSettings()
        )
        self.worker = WorkerProcess(theirs, self.settings, Affinity(None))
        self.lines = Lines()
        self.worker._logger = self.lines

    def heard(self) -> list[Frame]:
        return received(self.channel)

    def says(self, kind: type[Frame]) -> Frame:
        """The next frame of that kind, when it has come; those before it are passed over."""
        found: list[Frame] = []

        def has_come() -> bool:
            found.extend(frame for frame in self.heard() if isinstance(frame, kind))
            return bool(found)

        wait_until(has_come)
        return found[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a worker that ends sets: this process must not be ended by it."""
    set_: list[tuple[str, Any]] = []
    monkeypatch.setattr("dlpool.service.worker.process.signal.alarm", lambda seconds: set_.append(("alarm", seconds)))
    monkeypatch.setattr(
        "dlpool.service.worker.process.signal.signal",
        lambda number, how: set_.append((signal.Signals(number).name, how)),
    )
    return set_


def job(name: str = "a", url: str = "http://h/x", **fields: Any) -> JobFrame:
    given: dict[str, Any] = {"leased_until": lease_clock() + 60, "attempt": 1, "trace_id": "t" * 32, **fields}
    return JobFrame(f"{name}.1", name, 1, url=url, save_path=given.pop("save_path", name), **given)


class Run:
    """A run of a job in the place of a real one."""

    def __init__(
        self, lease_id: str = "a.1", *, received: int = 0, missing: int = 0, is_unresumable: bool = False
    ) -> None:
        self.frame = job(lease_id.partition(".")[0])
        self.received_bytes, self.missing_bytes, self.is_unresumable = received, missing, is_unresumable
        self.said: list[Any] = []
        self.publish = lambda: self.said.append("publish")
        self.cancel: Callable[[DlpoolError], object] = self.said.append
        self.log_progress = lambda: self.said.append("progress")
        self.is_waiting = False  # for a slot

    def begin(self) -> bool:
        return True

    def give_back(self, error: DlpoolError) -> EndedFrame | None:
        result = AttemptResult.LOST if isinstance(error, LostJob) else AttemptResult.RELEASED
        return EndedFrame(self.frame.lease_id, result) if self.is_waiting else None

    def progress(self) -> dict[str, Any]:
        return {"done": self.received_bytes}

    def run(self) -> EndedFrame:
        return EndedFrame(self.frame.lease_id, AttemptResult.SUCCEEDED)


# --- what it does when it is told ---


def test_a_worker_runs_a_job_says_how_it_ended_and_ends_when_it_is_retired(
    tmp_path: Path, alarms: list[tuple[str, Any]]
) -> None:
    bench = Bench(tmp_path)
    closed: list[float] = []
    bench.worker._traces = SimpleNamespace(close=closed.append, start_job_span=lambda *_: None)  # type: ignore[assignment]
    with Origin(File(b"abc")) as origin:
        frame = job(url=f"{origin.url}/x")
        assert bench.channel.send(frame)

        def retire() -> None:
            heard.append(bench.says(EndedFrame))
            bench.channel.send(RetireFrame())

        heard: list[Frame] = []
        thread = threading.Thread(target=retire)
        thread.start()
        bench.worker.serve()
        thread.join()
    (ended,) = heard
    assert isinstance(ended, EndedFrame) and (ended.lease_id, ended.attempt_result, ended.label) == (
        "a.1",
        "succeeded",
        "",
    )
    assert ended.statistics["size"] == 3
    assert (tmp_path / "data" / "a").read_bytes() == b"abc"
    assert bench.worker._runs == {}
    last = bench.heard()[-1]
    assert isinstance(last, StatusFrame) and last.counters[RECEIVED] == 3 and last.jobs == {}
    assert alarms == [("SIGALRM", signal.SIG_DFL), ("alarm", worker_module.ALARM_S)]
    assert bench.lines.named("worker_stopping") == []
    (left_s,) = closed
    assert 0 < left_s <= STOP_S
    assert not bench.worker._cleanup_thread.is_alive()


def test_a_worker_says_hello_and_ends_with_its_supervisor(bench: Bench, alarms: list[tuple[str, Any]]) -> None:
    names: list[str] = []
    bench.worker._run_jobs = lambda: names.append(threading.current_thread().name)  # type: ignore[method-assign]
    bench.channel.socket.shutdown(1)
    bench.worker.serve()
    wait_until(lambda: len(names) == 2)
    assert sorted(names) == ["slot-0", "slot-1"]
    assert bench.says(HelloFrame) == HelloFrame(os.getpid())
    assert bench.worker._stop_reason == "the supervisor has exited"
    bench.worker.request_stop("later")
    assert bench.worker._stop_reason == "the supervisor has exited"


class Waits(Clock):
    """Time, and a channel on which nothing comes: each wait takes the next of these seconds."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__(1000.0)
        self.waits = iter(waits)

    def receive(self) -> Frame:
        wait_s = next(self.waits, None)
        if wait_s is None:
            raise Over
        self.now += wait_s
        raise BlockingIOError


@pytest.mark.parametrize(
    ("waits", "is_over"),
    [
        ([SILENCE_S / 8] * 8, False),
        ([SILENCE_S / 8] * 9, True),
        ([SILENCE_S / 8] * 8 + [FROZEN_S + 0.1], False),
        ([SILENCE_S / 8] * 8 + [FROZEN_S + 0.1] + [SILENCE_S / 8] * 8, False),
        ([FROZEN_S] * 5, False),
        ([FROZEN_S] * 6, True),
    ],
)
def test_a_silent_supervisor_is_left_unless_it_was_the_worker_that_did_not_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, waits: list[float], is_over: bool
) -> None:
    clock = Waits(waits)
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr("dlpool.service.worker.process.threads.start_thread", lambda *_: None)
    monkeypatch.setattr(bench.worker._channel, "receive", clock.receive)
    ended: list[str | None] = []
    monkeypatch.setattr(bench.worker, "_shut_down", lambda: ended.append(bench.worker._stop_reason))
    if is_over:
        bench.worker.serve()
        assert ended == [f"the supervisor was silent for {SILENCE_S:g} s"]
    else:
        with pytest.raises(Over):
            bench.worker.serve()
    bench.worker._cleanup.put([])


def test_each_frame_is_a_sign_of_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Waits([SILENCE_S / 8] * 8)
    frames = iter([RateFrame(None)])

    def receive() -> Frame:
        if clock.now == 1000.0 + SILENCE_S / 2 and (frame := next(frames, None)) is not None:
            return frame
        return clock.receive()

    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr("dlpool.service.worker.process.threads.start_thread", lambda *_: None)
    monkeypatch.setattr(bench.worker._channel, "receive", receive)
    clock.waits = iter([SILENCE_S / 8] * 12)
    with pytest.raises(Over):
        bench.worker.serve()
    bench.worker._cleanup.put([])


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_a_worker_with_one_slot_or_more_works_with_those_that_it_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    bench = Bench(tmp_path, slots=3)
    started: list[str] = []

    def start(_work: object, name: str) -> None:
        if len(started) == allowed:
            raise NoThread("no more")
        started.append(name)

    monkeypatch.setattr("dlpool.service.worker.process.threads.start_thread", start)
    if allowed == 0:
        with pytest.raises(NoThread):
            bench.worker._start_slots()
    else:
        bench.worker._start_slots()
    assert started == [f"slot-{number}" for number in range(allowed)]
    limited = [(line.level, line.fields["count"]) for line in bench.lines.named("slots_limited")]
    assert limited == ([("warning", allowed)] if 0 < allowed < 3 else [])


@pytest.mark.parametrize(
    "frame", [PublishFrame("a.1"), LostFrame("a.1"), CancelFrame("a.1", "why"), PublishFrame("gone.1")]
)
def test_a_run_hears_what_its_worker_is_told(bench: Bench, frame: Frame) -> None:
    run: Any = Run()
    bench.worker._runs["a.1"] = run
    bench.worker._handle_frame(frame)
    said = [one if isinstance(one, str) else (type(one), str(one)) for one in run.said]
    if isinstance(frame, PublishFrame):
        assert said == (["publish"] if frame.lease_id == "a.1" else [])
    elif isinstance(frame, LostFrame):
        assert said == [(LostJob, "another supervisor has taken over the job")]
    else:
        assert said == [(Cancelled, "why")]


def test_a_worker_learns_its_rate_and_which_hosts_to_spare(bench: Bench) -> None:
    bench.worker._handle_frame(RateFrame(500))
    assert bench.worker._rate_limit.rate == 500
    bench.worker._handle_frame(HoldFrame("host", 50.0))
    assert bench.worker._client.host_holds.wait_s("host") > 40
    assert bench.heard() == [], "what it heard is not said again"
    bench.worker._client.host_holds.hold("other", 9.0)
    assert bench.heard() == [HoldFrame("other", 9.0)]
    bench.worker._handle_frame(RetireFrame())
    assert bench.worker._is_retiring


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_job_that_begins_waits_for_a_slot_with_its_trace(tmp_path: Path, is_wanted: bool) -> None:
    bench = Bench(tmp_path, traceparent=is_wanted)
    bench.worker._handle_frame(job(trace_id="1" * 32))
    run = bench.worker._runs["a.1"]
    assert bench.worker._waiting.get_nowait() is run
    assert ("traceparent" in run.frame.headers) == is_wanted


def test_new_settings_are_those_of_jobs_to_come(bench: Bench, tmp_path: Path) -> None:
    before = bench.worker._client
    transfer, logging = replace(FAST, retries=7), LoggingSettings(level="debug", progress_interval=7.0)
    paths = replace(bench.paths, download_dir=str(tmp_path))
    settings = Settings(transfer=transfer, network=PATIENT, paths=paths, logging=logging)
    bench.worker._handle_frame(config_frame(settings))
    assert bench.worker._client is before and bench.worker._transfer == transfer
    assert bench.worker._paths.roots == [str(tmp_path)] and bench.worker._logging == logging
    assert bench.worker._log._settings == logging
    network = replace(PATIENT, read_timeout=3.0)
    bench.worker._handle_frame(config_frame(replace(settings, network=network)))
    assert bench.worker._client is not before and bench.worker._client.settings == network
    assert bench.worker._client.rate_limit is before.rate_limit


# --- what it says ---


def test_a_run_leaves_its_slot_with_its_outcome_and_its_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = Run(received=7)
    bench.worker._runs["a.1"] = run
    turns = iter([run])

    def get() -> Any:
        one = next(turns, None)
        if one is None:
            raise Over
        return one

    bench.worker._waiting = SimpleNamespace(get=get)  # type: ignore[assignment]
    with pytest.raises(Over):
        bench.worker._run_jobs()
    assert bench.heard() == [EndedFrame("a.1", AttemptResult.SUCCEEDED)] and bench.worker._runs == {}
    assert bench.worker._counters.snapshot() == {RECEIVED: 7} and bench.lines.kept == []


@pytest.mark.parametrize("frame", [RecallFrame("a.1"), CancelFrame("a.1", "why"), LostFrame("a.1")])
@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_run_that_waits_for_a_slot_ends_at_once(bench: Bench, frame: Frame, is_waiting: bool) -> None:
    run: Any = Run()
    run.is_waiting = is_waiting
    bench.worker._runs["a.1"] = run
    bench.worker._handle_frame(frame)
    result = AttemptResult.LOST if isinstance(frame, LostFrame) else AttemptResult.RELEASED
    assert bench.heard() == ([EndedFrame("a.1", result)] if is_waiting else [])
    assert set(bench.worker._runs) == (set() if is_waiting else {"a.1"})
    assert len(run.said) == (0 if is_waiting or isinstance(frame, RecallFrame) else 1)
    bench.worker._handle_frame(RecallFrame("gone.1"))


def test_a_result_that_cannot_be_sent_is_logged(bench: Bench) -> None:
    bench.channel.close()
    run: Any = Run()
    bench.worker._runs["a.1"] = run
    bench.worker._end(run, EndedFrame("a.1", AttemptResult.FAILED))
    fields = {"job_id": "a", "trace_id": "t" * 32, "attempt_result": "failed"}
    assert bench.lines.kept == [("warning", "result_not_delivered", fields)]


@pytest.mark.parametrize("number", [0, 1, STATUS_JOBS, STATUS_JOBS + 1])
def test_a_heartbeat_tells_of_all_jobs_and_counts_in_frames_that_fit(bench: Bench, number: int) -> None:
    bench.worker._counters.add(RECEIVED, 5)
    bench.worker._log._sinks["worker"].dropped = 3
    for index in range(number):
        bench.worker._runs[f"{index}.1"] = Run(received=2, missing=index % 2, is_unresumable=index % 3 == 0)  # type: ignore[assignment]
    runs = bench.worker._send_status()
    assert runs == list(bench.worker._runs.values())
    frames = bench.heard()
    assert len(frames) == (2 if number > STATUS_JOBS else 1)
    told: dict[str, Any] = {}
    missing: dict[str, int] = {}
    whole: list[str] = []
    for frame in frames:
        assert isinstance(frame, StatusFrame) and len(frame.jobs) <= STATUS_JOBS
        assert frame.counters == {RECEIVED: 5 + 2 * number, LOG_DROPPED: 3}
        told |= frame.jobs
        missing |= frame.missing_bytes
        whole += frame.unresumable
    assert told == {f"{index}.1": {"done": 2} for index in range(number)}
    assert missing == {f"{index}.1": 1 for index in range(number) if index % 2}
    assert whole == [f"{index}.1" for index in range(0, number, 3)]


def test_progress_is_logged_now_and_then_and_the_log_is_tended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, progress_interval=2.0)
    clock, seconds, tended = Clock(), [], []

    def sleep(s: float) -> None:
        seconds.append((s, run.said.count("progress")))
        clock.now += s
        if len(seconds) == 5:
            raise Over

    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(bench.worker._log, "reopen", lambda: tended.append(1))
    run: Any = Run()
    bench.worker._runs["a.1"] = run
    with pytest.raises(Over):
        bench.worker._report()
    assert seconds == [(1.0, 0), (1.0, 0), (1.0, 1), (1.0, 1), (1.0, 2)]
    assert len(bench.heard()) == 5 == len(tended)


# --- what ended jobs left ---


def left(bench: Bench, name: str, **fields: Any) -> CleanupEntry:
    given: dict[str, Any] = {
        "url_sha256": url_digest("http://h/x"),
        "save_path": name,
        "path": None,
        "has_failed": True,
        **fields,
    }
    return CleanupEntry(name, **given)


def test_what_is_to_be_removed_is_removed_by_a_thread_which_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[str] = []

    def clean_(ended: CleanupEntry, _paths: Confinement) -> None:
        cleaned.append(ended.job_id)
        if ended.job_id in errors:
            raise errors[ended.job_id]

    errors: dict[str, DlpoolError] = {"b": Locked("locked"), "c": PolicyRefused("no"), "d": NoSpace("full")}
    monkeypatch.setattr(worker_module, "remove_stale_files", clean_)
    bench.worker._handle_frame(CleanFrame([list(left(bench, name)) for name in "abcde"]))
    bench.worker._cleanup.put([])
    bench.worker._clean_up()
    assert cleaned == list("abcde") and bench.heard() == [CleanedFrame(list("abcde"))]
    ((level, event, fields),) = bench.lines.kept
    assert (level, event, fields["job_id"]) == ("warning", "stale_file_not_removed", "d")


def test_cleaning_removes_a_failed_jobs_part_and_a_published_ones_state(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(run_module, "remove_published_state", lambda *a: calls.append(("forget", *a)))
    monkeypatch.setattr(run_module, "remove_part_files_by_digest", lambda *a: calls.append(("discard", *a)))
    paths, data = Confinement(bench.paths), Path(bench.paths.download_dir)
    remove_stale_files(left(bench, "a"), paths)
    remove_stale_files(left(bench, "b", path="/x/b", has_failed=False), paths)
    assert calls == [
        ("forget", data / "a", "a"),
        ("discard", data / "a", url_digest("http://h/x")),
        ("forget", Path("/x/b"), "b"),
    ]


# --- how it ends ---


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_worker_that_ends_checkpoints_its_runs_and_waits_for_them_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, alarms: list[tuple[str, Any]], is_stuck: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    joined: list[float | None] = []
    bench.worker._cleanup_thread.start()
    monkeypatch.setattr(bench.worker._cleanup_thread, "join", joined.append)
    run: Any = Run(received=4)
    ends_at = clock.now + (99 if is_stuck else 1.0)
    bench.worker._runs["a.1"] = run
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds
        if clock.now >= ends_at:
            bench.worker._runs.clear()

    monkeypatch.setattr(clock, "sleep", sleep)
    closed: list[str] = []
    monkeypatch.setattr(bench.worker._log, "close", lambda: closed.append("log"))
    bench.worker._traces = SimpleNamespace(close=lambda s: closed.append(round(s, 1)))  # type: ignore[assignment]
    bench.worker.request_stop("why")
    bench.worker._shut_down()
    (error,) = run.said
    assert isinstance(error, Cancelled) and str(error) == "the worker stops: why"
    assert bench.lines.kept == [("info", "worker_stopping", {"reason": "why", "running": 1})]
    assert sum(slept) == pytest.approx(STOP_S if is_stuck else 1.0, abs=0.02)
    assert joined == [STOP_S] and closed == [0.0 if is_stuck else 3.0, "log"]
    assert [type(frame) for frame in bench.heard()] == [StatusFrame]


# --- a run ---


class Transfer:
    """A download in the place of a real one: what it does is told by the test."""

    may_leave_state = False

    def __init__(self, *given: Any) -> None:
        self.job, self.settings, self.client, callbacks, self.guard, self.space = given
        self.notify, self.admit, self.permit = callbacks.notify, callbacks.check_target, callbacks.authorize_publish
        self.now = Progress(self.job.target, 1, 9, 2, "downloading", 8, is_resumable=False)
        self.received = 5
        self.errors: list[DlpoolError] = []
        self.cancel = self.errors.append

    def progress(self) -> Progress:
        return self.now

    def run(self) -> TransferResult:
        result: TransferResult = Play.does(self)
        return result


class Play:
    """What the transfers of a test do."""

    does: Callable[[Transfer], TransferResult]


class Affine:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.pin, self.unpin = lambda: self.said.append("pin"), lambda: self.said.append("unpin")


class Stage:
    """A run whose transfer does what the test says."""

    def __init__(self, folder: Path, frame: JobFrame | None = None, traces: Any = None) -> None:
        self.sent: list[Frame] = []
        self.lines, self.affinity, self.counters = Lines(), Affine(), WorkerCounters()
        self.bound: dict[str, object] = {}
        (folder / "data").mkdir(exist_ok=True)
        self.paths = Confinement(PathSettings(download_dir=str(folder / "data")))
        log: Any = self.lines
        log.bind = self.bind
        affinity: Any = self.affinity
        client: Any = None
        context = JobRunContext(
            FAST, self.paths, client, log, self.sent.append, affinity, self.counters, NodeSpaceRules(0), traces
        )
        self.run = JobRun(frame or job(), context)

    def bind(self, **fields: object) -> Lines:
        self.bound = fields
        return self.lines

    def play(self, does: Callable[[Transfer], Any]) -> EndedFrame:
        Play.does = does
        return self.run.run()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(run_module, "Transfer", Transfer)
    return Stage(tmp_path)


def success(transfer: Transfer) -> TransferResult:
    return TransferResult(transfer.job.target, 9)


def test_a_run_that_succeeds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(run_module, "time", clock)
    stage.run._started_at = clock.now - 1.23456
    ended = stage.play(success)
    path = stage.paths.roots[0] + "/a"
    assert (ended.lease_id, ended.attempt_result, ended.path, ended.needs_cleanup) == ("a.1", "succeeded", path, False)
    assert (ended.statistics["size"], ended.statistics["seconds"], ended.statistics["path"]) == (9, 1.235, path)
    assert stage.affinity.said == ["pin"] and stage.lines.kept == []
    transfer = stage.run._transfer
    assert isinstance(transfer, Transfer) and transfer.job.id == "a" and transfer.job.fence == 1
    assert transfer.job.checksum is None


@pytest.mark.parametrize("user_id", [None, "u"])
def test_the_log_lines_of_a_run_say_whose_they_are(tmp_path: Path, user_id: str | None) -> None:
    bound = Stage(tmp_path, job(user_id=user_id)).bound
    user = {} if user_id is None else {"user_id": user_id}
    assert bound == {"job_id": "a", "trace_id": "t" * 32, "attempt": 1, "url": "http://h/x", **user}


def test_a_run_has_its_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Transfer", Transfer)
    calls: list[Any] = []
    span = SimpleNamespace(end=lambda *given: calls.append(given), add_range=lambda fields: calls.append(fields))

    def begin(*given: Any) -> Any:
        calls.append(given)
        return span

    traces = SimpleNamespace(start_job_span=begin)
    stage = Stage(tmp_path, job(user_id="u"), traces)

    def does(transfer: Transfer) -> TransferResult:
        for event in ("range_fetched", "range_retry", "job_started"):
            transfer.notify(event, seconds=1.0, label="l", size=1)
        return success(transfer)

    ended = stage.play(does)
    begun, fetched, retried, end = calls
    assert begun[0] == "t" * 32 and begun[2:] == ("http://h/x", "a", "u", 1)
    assert fetched == retried == {"seconds": 1.0, "label": "l", "size": 1}
    assert end == ("succeeded", ended.path, ended.statistics, "", "")


@pytest.mark.parametrize("kind", ["known", "defect", "wait", "unknown path"])
def test_a_run_that_fails_says_why_with_the_stack_of_the_cause(stage: Stage, kind: str) -> None:
    def does(transfer: Transfer) -> TransferResult:
        if kind == "defect":
            raise ZeroDivisionError("x")
        if kind == "wait":
            raise RetryRange("later", retry_after_s=7.0)
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ChecksumMismatch("x" * 3000) from error

    if kind == "unknown path":
        stage.run.frame = replace(stage.run.frame, save_path="../../x")
        ended = stage.play(does)
        assert (ended.attempt_result, ended.path, ended.label) == ("failed", None, "policy")
        return
    ended = stage.play(does)
    assert ended.path == stage.paths.roots[0] + "/a" and ended.needs_cleanup
    assert (ended.attempt_result, ended.label) == {
        "known": ("failed", ChecksumMismatch.label),
        "defect": ("retry", "internal"),
        "wait": ("retry", "network"),
    }[kind]
    assert ended.retry_after_s == (7.0 if kind == "wait" else None)
    assert len(ended.message) == (2000 if kind == "known" else len(ended.message))
    assert len(ended.stack) <= MAX_STACK and ("KeyError" in ended.stack) == (kind == "known")
    assert [(line.level, line.event) for line in stage.lines.kept] == (
        [("error", "worker_failed")] if kind == "defect" else []
    )


def test_a_run_that_waits_for_a_slot_is_given_back_and_one_that_has_begun_is_not(stage: Stage) -> None:
    ended = stage.run.give_back(Cancelled("why"))
    assert ended is not None and (ended.attempt_result, ended.message, ended.path) == ("released", "why", None)
    assert stage.run.give_back(Cancelled("again")) is None and not stage.run.begin(), "only once"
    begun = JobRun(stage.run.frame, stage.run._context)
    assert begun.begin() and begun.give_back(Cancelled("why")) is None


def test_a_run_is_cancelled_before_it_has_begun(stage: Stage) -> None:
    stage.run.cancel(Cancelled("one"))
    stage.run.cancel(Cancelled("two"))
    ended = stage.play(success)
    assert (ended.attempt_result, ended.message, ended.path) == ("released", "one", None)
    assert stage.run._transfer is None


def test_a_run_is_cancelled_while_it_runs(stage: Stage) -> None:
    def does(transfer: Transfer) -> TransferResult:
        stage.run.cancel(Cancelled("one"))
        raise transfer.errors[0]

    assert stage.play(does).message == "one"


@pytest.mark.parametrize("is_asked", [True, False])
@pytest.mark.parametrize("answer", ["publish", "cancel"])
def test_a_run_publishes_within_its_lease_and_asks_later(stage: Stage, is_asked: bool, answer: str) -> None:
    stage.run.frame = replace(stage.run.frame, leased_until=lease_clock() + (-1 if is_asked else 60))

    def send(frame: Frame) -> None:
        stage.sent.append(frame)
        if answer == "publish":
            stage.run.publish()
        else:
            stage.run.cancel(LostJob("lost"))

    stage.run._context = replace(stage.run._context, send=send)

    def does(transfer: Transfer) -> TransferResult:
        transfer.permit()
        return success(transfer)

    ended = stage.play(does)
    assert stage.sent == ([VerifiedFrame("a.1")] if is_asked else [])
    assert ended.attempt_result == ("lost" if is_asked and answer == "cancel" else "succeeded")


def test_a_lease_that_ends_now_has_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "lease_clock", lambda: stage.run.frame.leased_until)
    stage.run.publish()
    stage.run._authorize_publish()
    assert stage.sent == [VerifiedFrame("a.1")]


def test_a_run_tells_where_it_is(stage: Stage) -> None:
    run = stage.run
    assert run.progress() == {"done": 0, "size": None, "phase": "connecting"}
    assert (run.missing_bytes, run.received_bytes, run.is_unresumable) == (0, 0, False)
    stage.play(success)
    assert run.progress() == {"done": 1, "size": 9, "phase": "downloading", "connections": 2}
    assert (run.missing_bytes, run.received_bytes, run.is_unresumable) == (8, 5, True)
    run.log_progress()
    assert stage.lines.kept == [("info", "download_progress", run.progress())]


@pytest.mark.parametrize(
    ("event", "fields", "is_unpinned", "counts", "level"),
    [
        ("job_started", {"size": None}, True, {}, "info"),
        ("job_started", {"size": SMALL}, True, {}, "info"),
        ("job_started", {"size": SMALL - 1}, False, {}, "info"),
        ("job_started", {"size": 0}, True, {}, "info"),
        ("body_complete", {"size": SMALL}, False, {}, None),
        ("range_fetched", {"seconds": 1.0}, False, {"range.4": 1, "range_seconds": 1.0}, None),
        ("range_retry", {"label": "l"}, False, {"retry.l": 1}, "warning"),
        ("download_restarted", {}, False, {"retry.restart": 1}, "warning"),
        ("job_succeeded", {}, False, {}, "debug"),
        ("other", {}, False, {}, "info"),
    ],
)
def test_what_happens_in_a_download_is_counted_and_logged(
    stage: Stage, event: str, fields: dict[str, Any], is_unpinned: bool, counts: Any, level: str | None
) -> None:
    stage.run._notify(event, **fields)
    assert stage.affinity.said == (["unpin"] if is_unpinned else [])
    assert stage.counters.snapshot() == counts
    assert stage.lines.kept == ([] if level is None else [(level, event, fields)])


@pytest.mark.parametrize("name", ["cancel", "make", "permit"])
def test_what_ends_a_run_is_noted_under_its_lock(stage: Stage, name: str) -> None:
    stage.run.frame = replace(stage.run.frame, leased_until=0)
    stage.run.publish()
    operations: dict[str, Callable[[JobRun], object]] = {
        "cancel": lambda run: run.cancel(Cancelled("x")),
        "make": JobRun._make_transfer,
        "permit": JobRun._authorize_publish,
    }
    wait_for_lock(stage.run, operations[name])


@pytest.mark.parametrize("name", ["begin", "slot", "status", "end"])
def test_the_table_of_runs_is_used_under_its_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str, alarms: list[tuple[str, Any]]
) -> None:
    run: Any = Run()
    bench.worker._runs["a.1"] = run
    bench.worker._waiting.put(run)
    bench.worker._cleanup_thread.start()
    run.cancel = lambda _: bench.worker._runs.clear()
    operations: dict[str, Callable[[WorkerProcess], object]] = {
        "begin": lambda worker: worker._handle_job(job("b")),
        "slot": lambda worker: worker._run_jobs(),
        "status": lambda worker: worker._send_status(),
        "end": lambda worker: worker._shut_down(),
    }
    if name == "slot":
        bench.worker._waiting = SimpleNamespace(get=iter([run]).__next__)  # type: ignore[assignment]
    wait_for_lock(bench.worker, operations[name])


@pytest.mark.parametrize(
    ("own", "job_own", "expected"),
    [(None, None, None), (5, None, 5), (None, 5, 5), (5, 9, 5), (9, 5, 5)],
)
def test_of_two_rates_the_lower_one_holds(own: int | None, job_own: int | None, expected: int | None) -> None:
    transfer = replace(FAST, limit_rate=own, if_exists="fail")
    assert settings_for_job(transfer, job(limit_rate=job_own)).limit_rate == expected
    assert settings_for_job(transfer, job(limit_rate=job_own)).if_exists == "fail"
    assert settings_for_job(transfer, job(limit_rate=job_own, if_exists="skip")).if_exists == "skip"


@pytest.mark.parametrize("done", [SPACE_RESERVE, 0])
def test_a_stream_that_filled_the_disk_is_removed_and_no_fault_of_the_node(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    discarded: list[Any] = []
    monkeypatch.setattr(disk_faults, "remove_part_files", lambda *given: discarded.append(given))
    answers = iter([False, True])
    monkeypatch.setattr(disk_faults.EndedRun, "is_node_writable", property(lambda _: next(answers)))

    def does(transfer: Transfer) -> TransferResult:
        transfer.now = Progress(transfer.job.target, done, None, 1, "downloading")
        raise NoSpace("full")

    ended = stage.play(does)
    assert ended.attempt_result == ("no_room" if done else "node_fault")
    path = Path(stage.paths.roots[0]) / "a"
    assert discarded == ([(path, "http://h/x")] if done else [])


@pytest.mark.parametrize("checksum", [None, "sha256:" + "0" * 64])
@pytest.mark.parametrize("save_path", ["a", "folder/"])
def test_a_transfer_is_made_as_the_job_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checksum: str | None, save_path: str
) -> None:
    monkeypatch.setattr(run_module, "Transfer", Transfer)
    frame = job(save_path=save_path, checksum=checksum, headers={"x": "y"}, if_exists="skip")
    stage = Stage(tmp_path, frame)
    stage.play(success)
    transfer: Any = stage.run._transfer
    assert transfer.job.is_folder == save_path.endswith("/") and transfer.job.headers == {"x": "y"}
    assert (transfer.job.checksum is None) == (checksum is None) and transfer.settings.if_exists == "skip"
    if save_path.endswith("/"):
        with pytest.raises(PolicyRefused):
            transfer.admit(Path("/etc/passwd"))
    else:
        transfer.admit(Path("/etc/passwd"))


def test_a_worker_imports_no_client_of_redis() -> None:
    code = "import sys; import dlpool.service.worker.process; print(*{'redis', 'prometheus_client'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []
