"""An engine under a random program: pause, resume, cancel, shutdown at any moment; the table holds."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from dlpool import DownloadEngine, DownloadTask
from dlpool.engine.task import FINAL, MOVES
from tests.conftest import make_data
from tests.origin import Connection, File, Origin, Request

LATE_S = 20.0
FILE = File(make_data(300_000), block=30_000, pause_s=0.002)


def answer(request: Request, connection: Connection) -> None:
    """Good files, one that is missing, one whose connection breaks now and then."""
    kind = request.path.rpartition("/")[2][:4]
    if kind == "none":
        connection.answer(404, {}, b"")
    elif kind == "flak" and time.monotonic_ns() % 2:
        connection.reset()
    else:
        FILE(request, connection)


class Reachable:
    """Which statuses can follow which, over any number of moves."""

    def __init__(self) -> None:
        self.after = {status: {status, *moves} for status, moves in MOVES.items()}
        for _ in MOVES:
            for status in self.after:
                self.after[status] |= {later for one in self.after[status] for later in self.after[one]}


REACHABLE = Reachable().after


class Program(RuleBasedStateMachine):
    tasks = Bundle("tasks")

    @initialize(workers=st.integers(1, 3))
    def start(self, workers: int) -> None:
        self.folder = TemporaryDirectory()
        self.origin = Origin(answer).__enter__()
        self.engine = DownloadEngine(workers, retry_times=2, retry_delay=0, progress_interval=0.01)
        self.workers = workers
        self.seen: dict[str, str] = {}
        self.shares: dict[str, float] = {}
        self.ends: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.mine: list[DownloadTask] = []
        self.engine.register_completion_callback(self.ended)
        self.engine.register_progress_callback(lambda task: task.progress)

    def ended(self, task: DownloadTask) -> None:
        with self.lock:
            self.ends.append((task.id, task.status))
        self.engine.get_task(task.id)
        task.resume()
        raise RuntimeError("callbacks may raise")

    @rule(target=tasks, kind=st.sampled_from(["good", "none", "flak"]), priority=st.integers(-1, 1))
    def download(self, kind: str, priority: int) -> DownloadTask:
        path = f"{kind}{len(self.mine)}"
        statuses = [other.status for other in self.mine]
        is_free = all(status in ("downloading", "completed", "failed") for status in statuses)  # no slot is being left
        is_free = is_free and statuses.count("downloading") < self.workers
        task = self.engine.download(f"{self.origin.url}/{path}", self.folder.name, priority=priority)
        self.mine.append(task)
        assert not (is_free and task.status == "pending"), "with a worker free it is downloading on return"
        return task

    @rule(task=tasks)
    def pause(self, task: DownloadTask) -> None:
        if task.pause():
            assert task.status in ("paused", *FINAL)

    @rule(task=tasks)
    def resume(self, task: DownloadTask) -> None:
        was_paused = task.status == "paused"
        assert task.resume() == was_paused

    @rule(task=tasks)
    def cancel(self, task: DownloadTask) -> None:
        if task.cancel():
            assert task.status == "cancelled"

    @rule(seconds=st.sampled_from([0.0, 0.003, 0.02]))
    def let_time_pass(self, seconds: float) -> None:
        time.sleep(seconds)

    @invariant()
    def the_table_holds(self) -> None:
        for task in getattr(self, "mine", ()):
            status, share = task.status, task.progress
            assert status in REACHABLE[self.seen.get(task.id, "pending")]
            assert 0.0 <= share <= 1.0
            assert status != "completed" or share == 1.0
            assert (task.error is not None) == (status == "failed")
            self.seen[task.id] = status

    @invariant()
    def no_more_run_than_may(self) -> None:
        if hasattr(self, "engine"):
            assert len(self.engine.get_active_tasks()) <= self.workers

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if len(self.mine) % 2:
            for task in self.mine:
                task.resume()
            self.engine.shutdown()
            assert all(task.status in FINAL for task in self.mine), "all that may run has ended"
        else:
            self.engine.shutdown(wait=False)
        self.the_table_holds()
        over = [task for task in self.mine if task.status in FINAL]
        assert sorted(self.ends) == sorted((task.id, task.status) for task in over), "each end is told once"
        for task in over:
            if task.status == "completed":
                assert task.file_path is not None
                assert Path(task.file_path).read_bytes() == FILE.data
        left = {path.name for path in Path(self.folder.name).iterdir() if ".part" in path.name}
        paused = {task.url.rpartition("/")[2] for task in self.mine if task.status in ("paused", "failed")}
        assert {name.partition(".part")[0] for name in left} <= paused, "only what may go on has left something"
        self.origin.__exit__(None, None, None)
        self.folder.cleanup()


TestProgram = Program.TestCase
TestProgram.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
