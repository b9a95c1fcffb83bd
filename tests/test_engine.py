"""The Python API: what python programs rely on, line by line."""

from __future__ import annotations

import dataclasses
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import dlpool
from dlpool import DownloadEngine, DownloadTask, download_many
from dlpool.config import DownloaderSettings, NetworkSettings
from dlpool.errors import Cancelled, ConfigurationError, LocalFault, NotFound, PolicyRefused, UsageError
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor
from dlpool.transfer.http.source import Source
from tests import processes
from tests.conftest import Authority, make_data, wait_until
from tests.disks import needs_root, tmpfs
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT

KIB = 1024
MIB = 1024 * KIB
LATE_S = 30.0


class Slow(File):
    """A file that comes so slowly that a test can do something meanwhile."""

    def __init__(self, size: int = 2 * MIB, pause_s: float = 0.02) -> None:
        super().__init__(make_data(size), block=64 * 1024, pause_s=pause_s)


class Door:
    """Lets nobody in before it is open."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.open = threading.Event()

    def __call__(self, request: Request, connection: Connection) -> None:
        self.open.wait(LATE_S)
        self.file(request, connection)


@pytest.fixture
def engine() -> Iterator[DownloadEngine]:
    made = DownloadEngine(retry_times=1, retry_delay=0)
    yield made
    made.shutdown(wait=False)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(File(make_data(100_000))) as started:
        yield started


# --- one task ---


def test_a_download_ends_in_its_file_with_its_figures(engine: DownloadEngine, origin: Origin, tmp_path: Path) -> None:
    task = engine.download(f"{origin.url}/file.bin", str(tmp_path / "new" / "folder"))
    assert task.status == "downloading"
    assert task.result(LATE_S) == tmp_path / "new" / "folder" / "file.bin"
    assert task.file_path is not None
    assert Path(task.file_path).read_bytes() == make_data(100_000)
    assert (task.status, task.progress, task.downloaded_size, task.total_size) == ("completed", 1.0, 100_000, 100_000)
    assert (task.error, task.speed, task.eta) == (None, 0.0, None)
    assert task.start_time is not None
    assert task.end_time is not None
    assert time.time() - 60 < task.start_time <= task.end_time <= time.time()


def test_a_given_name_is_used_and_headers_are_sent(engine: DownloadEngine, origin: Origin, tmp_path: Path) -> None:
    task = engine.download(f"{origin.url}/x", tmp_path, "mine.zip", {"X-Key": "value"})
    assert task.result(LATE_S) == tmp_path / "mine.zip"
    assert origin.requests[0].headers["x-key"] == "value"


def test_the_servers_name_comes_before_that_of_the_url(engine: DownloadEngine, tmp_path: Path) -> None:
    named = File(b"x", extra={"Content-Disposition": 'attachment; filename="theirs.bin"'})
    with Origin(named) as origin:
        assert engine.download(f"{origin.url}/x", tmp_path).result(LATE_S) == tmp_path / "theirs.bin"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda engine, folder: engine.download("ftp://h/x", folder), "http"),
        (lambda engine, folder: engine.download("http://h/x", folder, "../x"), "plain name"),
        (lambda engine, folder: engine.download("http://h/x", folder, "a" * 300), "plain name"),
        (lambda engine, folder: engine.download("http://h/x", folder, checksum="md5:1"), "checksum"),
        (lambda engine, folder: engine.download("http://h/x", folder, headers={"A": "b\nc"}), "header"),
        (lambda engine, folder: DownloadEngine(max_workers=0), "max_workers is 0"),
        (lambda engine, folder: DownloadEngine(chunk_size=-1), "chunk_size is -1"),
    ],
)
def test_invalid_arguments_raise_at_once(
    make: Callable[[DownloadEngine, Path], Any], said: str, engine: DownloadEngine, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        make(engine, tmp_path)


def test_a_failed_task_has_its_error(engine: DownloadEngine, tmp_path: Path) -> None:
    with Origin(lambda _, connection: connection.answer(404, {}, b"no")) as origin:
        task = engine.download(f"{origin.url}/x", tmp_path)
        assert task.wait(LATE_S)
        assert (task.status, task.file_path) == ("failed", None)
        assert task.error is not None
        assert "404" in task.error
        with pytest.raises(NotFound):
            task.result()
        assert engine.stats.errors == {task.id: task.error}


def test_network_errors_are_retried(engine: DownloadEngine, tmp_path: Path) -> None:
    file, asked = File(b"x" * 1000), []

    def flaky(request: Request, connection: Connection) -> None:
        asked.append(request)
        if len(asked) == 1:
            connection.reset()
        else:
            file(request, connection)

    with Origin(flaky) as origin:
        assert engine.download(f"{origin.url}/x", tmp_path).result(LATE_S).read_bytes() == file.data
    assert len(asked) == 2


@needs_root
def test_a_full_disk_fails_at_once(tmp_path: Path, origin: Origin) -> None:
    with tmpfs(tmp_path / "disk", "1m") as disk, Origin(File(make_data(8 * MIB))) as large:
        with DownloadEngine() as engine:
            task = engine.download(f"{large.url}/x", disk)
            with pytest.raises(LocalFault, match="full"):
                task.result(LATE_S)
        assert len(large.requests) == 1


def test_a_checksum_is_verified_unless_verify_hash_is_false(origin: Origin, tmp_path: Path) -> None:
    right, wrong = f"sha256:{sha256(make_data(100_000)).hexdigest()}", f"sha256:{'0' * 64}"
    with DownloadEngine() as engine, DownloadEngine(verify_hash=False) as careless:
        assert engine.download(f"{origin.url}/a", tmp_path, checksum=right).wait(LATE_S)
        bad = engine.download(f"{origin.url}/b", tmp_path, checksum=wrong)
        assert bad.wait(LATE_S)
        assert bad.status == "failed"
        assert careless.download(f"{origin.url}/c", tmp_path, checksum=wrong).result(LATE_S)


def test_an_ini_file_configures_an_engine(tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    ini.write_text(
        "[downloader]\nmax_workers = 2\nretry_times = 0\nverify_hash = no\n[network]\nuser_agent = teapot/1\n"
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-own.ini").write_text("[transfer]\nmax_file_size = 1000\n")
    door = Door(File(b"x" * 100))
    with Origin(door) as origin, DownloadEngine.from_config(ini, session=tmp_path / "session") as engine:
        tasks = [engine.download(f"{origin.url}/{name}", tmp_path, checksum=f"md5:{'0' * 32}") for name in "abc"]
        assert [task.status for task in tasks] == ["downloading", "downloading", "pending"]
        door.open.set()
        assert [task.result(LATE_S).stat().st_size for task in tasks] == [100] * 3
        assert {request.headers["user-agent"] for request in origin.requests} == {"teapot/1"}
        door.file = File(b"x" * 2000)
        with pytest.raises(PolicyRefused, match="max_file_size"):
            engine.download(f"{origin.url}/large", tmp_path).result(LATE_S)
    with (
        Origin(lambda _, connection: connection.answer(503, {}, b"")) as broken,
        DownloadEngine.from_config(ini) as two,
    ):
        assert two.download(f"{broken.url}/d", tmp_path).wait(LATE_S)
        assert len(broken.requests) == 1, "retry_times = 0"


def test_an_empty_ini_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.ini").write_text("")
    names = inspect.signature(DownloadEngine).parameters
    declared = {one.name: one.default for one in dataclasses.fields(DownloaderSettings)}
    assert declared == {name: names[name].default for name in declared}
    with DownloadEngine.from_config(str(tmp_path / "empty.ini")) as engine:
        assert engine.get_all_tasks() == []


def test_all_errors_of_an_ini_file_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "bad.ini").write_text("[downloader]\nmax_workers = none\ntimeout = -1\ncolour = red\n")
    with pytest.raises(ConfigurationError) as caught:
        DownloadEngine.from_config(tmp_path / "bad.ini")
    lines = str(caught.value).splitlines()
    assert [line.partition("[downloader] ")[2].split()[0] for line in lines] == ["max_workers", "timeout", "colour:"]
    with pytest.raises(ConfigurationError, match="cannot read "):
        DownloadEngine.from_config(tmp_path / "absent.ini")


@pytest.mark.parametrize(("collect", "least"), [(0, 128 * KIB), (MIB, MIB)])
def test_one_read_collects_as_much_as_it_shall(authority: Authority, collect: int, least: int) -> None:
    network = NetworkSettings(network="any", cacert=str(authority.ca_file))
    gate, watch = HostHolds(time.monotonic), NetworkMonitor(time.monotonic)
    client = HttpClient(network, 1, gate, watch, min_read_bytes=collect)
    view = memoryview(bytearray(4 * MIB))
    with (
        Origin(File(make_data(8 * MIB)), tls=authority.server_context()) as origin,
        Exchange(time.monotonic, time.sleep, ExchangeStats(0, 0.0)) as exchange,
    ):
        reply = Source(client, f"{origin.url}/a", {}).get(exchange, None)
        sizes = list(iter(lambda: reply.read(view), 0))
    client.close()
    assert sum(sizes) == 8 * MIB
    assert least <= max(sizes) <= len(view), "TLS brings 16 KiB at a time"


def test_two_urls_do_not_become_one_file(engine: DownloadEngine, origin: Origin, tmp_path: Path) -> None:
    first = engine.download(f"{origin.url}/1/same", tmp_path)
    first.result(LATE_S)
    second = engine.download(f"{origin.url}/2/same", tmp_path)
    assert second.wait(LATE_S)
    assert "overwrite" in (second.error or "")


def test_size_and_eta_are_unknown_without_a_content_length(engine: DownloadEngine, tmp_path: Path) -> None:
    go_on = threading.Event()

    def endless(request: Request, connection: Connection) -> None:
        connection.answer(200, {}, length=False)
        for _ in range(5):
            connection.send(b"x" * 10_000)
            time.sleep(0.05)
        go_on.wait(LATE_S)
        connection.hang_up()

    with Origin(endless) as origin:
        task = engine.download(f"{origin.url}/x", tmp_path)
        wait_until(lambda: task.downloaded_size >= 40_000, LATE_S)
        assert (task.total_size, task.eta, task.progress) == (0, None, 0.0)
        task.update_progress(0.5)
        task.update_progress(0.2)
        assert task.progress == 0.5
        go_on.set()
        task.wait(LATE_S)


# --- many tasks ---


def test_no_more_than_max_workers_run_and_smaller_priorities_first(tmp_path: Path) -> None:
    door = Door(File(b"x"))
    with Origin(door) as origin, DownloadEngine(max_workers=2) as engine:
        running = [engine.download(f"{origin.url}/r{number}", tmp_path) for number in range(2)]
        waiting = [engine.download(f"{origin.url}/p{priority}", tmp_path, priority=priority) for priority in (3, 1, 2)]
        assert [task.status for task in (*running, *waiting)] == ["downloading"] * 2 + ["pending"] * 3
        assert [task.priority for task in engine.queue.get_all_tasks()] == [1, 2, 3]
        assert engine.get_active_tasks() == running
        assert engine.get_all_tasks() == running + waiting
        door.open.set()
    assert [task.status for task in (*running, *waiting)] == ["completed"] * 5
    begun = sorted(waiting, key=lambda task: task.start_time or 0)
    assert [task.priority for task in begun] == [1, 2, 3]


def test_a_paused_task_frees_its_worker_and_resumes(tmp_path: Path) -> None:
    with Origin(Slow()) as origin, DownloadEngine(max_workers=1) as engine:
        first, second = (engine.download(f"{origin.url}/{name}", tmp_path) for name in "ab")
        wait_until(lambda: first.downloaded_size >= 300_000, LATE_S)
        assert engine.pause_task(first.id)
        assert not engine.pause_task(first.id)
        wait_until(lambda: second.status == "downloading", LATE_S)
        done = first.downloaded_size
        assert done >= 300_000
        assert engine.resume_task(first.id)
        assert first.status == "pending"
        assert first.progress > 0.1, "what is done stays done"
        first.result(LATE_S)
        assert first.outcome is not None
        assert first.outcome.resumed_from >= 64 * 1024
        assert first.file_path is not None
        assert Path(first.file_path).read_bytes() == Slow().data


def test_a_cancelled_task_leaves_nothing(engine: DownloadEngine, tmp_path: Path) -> None:
    with Origin(Slow()) as origin:
        task = engine.download(f"{origin.url}/a", tmp_path)
        wait_until(lambda: task.downloaded_size > 0, LATE_S)
        assert engine.cancel_task(task.id)
        assert task.status == "cancelled"
        assert not task.resume()
        assert not task.cancel()
        assert task.wait(LATE_S)
        with pytest.raises(Cancelled):
            task.result()
        wait_until(lambda: not list(tmp_path.iterdir()), LATE_S)


def test_unknown_ids_are_no_errors(engine: DownloadEngine) -> None:
    assert engine.get_task("none") is None
    assert not (engine.cancel_task("none") or engine.pause_task("none") or engine.resume_task("none"))


def test_five_hundred_tasks_on_three_workers(origin: Origin, tmp_path: Path) -> None:
    with DownloadEngine() as engine:
        tasks = [engine.download(f"{origin.url}/{number}", tmp_path) for number in range(500)]
    assert {task.status for task in tasks} == {"completed"}
    assert len(list(tmp_path.iterdir())) == 500
    assert engine.stats.completed == 500
    assert engine.stats.get_completed_bytes() == engine.stats.get_total_bytes() == 500 * 100_000
    assert engine.stats.get_overall_progress() == 1.0


# --- callbacks ---


def test_completion_is_called_once_for_each_end_on_one_thread(tmp_path: Path) -> None:
    ended: list[tuple[str, str, int]] = []
    slow = Slow()

    def answer(request: Request, connection: Connection) -> None:
        if request.path == "/bad":
            connection.answer(404, {}, b"")
        else:
            (slow if request.path == "/slow" else File(b"x"))(request, connection)

    with Origin(answer) as origin, DownloadEngine() as engine:
        engine.register_completion_callback(lambda task: ended.append((task.id, task.status, threading.get_ident())))
        tasks = [engine.download(f"{origin.url}/{name}", tmp_path) for name in ("good", "bad", "slow")]
        wait_until(lambda: tasks[2].downloaded_size > 0, LATE_S)
        tasks[2].cancel()
    assert sorted(one[:2] for one in ended) == sorted(
        [(tasks[0].id, "completed"), (tasks[1].id, "failed"), (tasks[2].id, "cancelled")]
    )
    assert len({thread for _, _, thread in ended}) == 1
    assert threading.get_ident() not in {thread for _, _, thread in ended}


def test_progress_is_called_now_and_then_and_never_goes_back(tmp_path: Path) -> None:
    seen: list[float] = []
    with Origin(Slow()) as origin, DownloadEngine(progress_interval=0.05) as engine:
        engine.register_progress_callback(lambda task: seen.append(task.progress))
        engine.download(f"{origin.url}/a", tmp_path).result(LATE_S)
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert all(0 <= share <= 1 for share in seen)


def test_callbacks_may_raise_and_may_use_the_engine(
    tmp_path: Path, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    more: list[DownloadTask] = []

    def raises(_task: DownloadTask) -> None:
        raise RuntimeError("ours")

    with DownloadEngine() as engine:

        def downloads_more(task: DownloadTask) -> None:
            assert engine.get_task(task.id) is task
            if len(more) < 3:
                more.append(engine.download(f"{origin.url}/more{len(more)}", tmp_path))

        engine.register_completion_callback(raises)
        engine.register_completion_callback(downloads_more)
        engine.download(f"{origin.url}/first", tmp_path).result(LATE_S)
        wait_until(lambda: len(more) == 3, LATE_S)
    assert [task.status for task in more] == ["completed"] * 3
    assert "a callback of dlpool has raised" in caplog.text


def test_a_callback_may_shut_the_engine_down(tmp_path: Path, origin: Origin) -> None:
    engine, ended = DownloadEngine(), threading.Event()

    def shut_down(_task: DownloadTask) -> None:
        engine.shutdown()
        ended.set()

    engine.register_completion_callback(shut_down)
    engine.download(f"{origin.url}/x", tmp_path)
    assert ended.wait(LATE_S)


# --- the end ---


def test_shutdown_without_wait_keeps_fetched_bytes_and_pauses_tasks(tmp_path: Path) -> None:
    with Origin(Slow()) as origin:
        engine = DownloadEngine(max_workers=1)
        running, waiting = (engine.download(f"{origin.url}/{name}", tmp_path) for name in "ab")
        wait_until(lambda: running.downloaded_size >= 300_000, LATE_S)
        waiter = threading.Thread(target=waiting.wait)
        waiter.start()
        engine.shutdown(wait=False)
        engine.shutdown()
        waiter.join(LATE_S)
        assert not waiter.is_alive(), "nobody waits for what nobody runs"
        assert (running.status, waiting.status) == ("paused", "paused")
        assert not running.resume()
        with pytest.raises(Cancelled, match="shut down"):
            running.result()
        with pytest.raises(UsageError, match="shut down"):
            engine.download(f"{origin.url}/c", tmp_path)
        with DownloadEngine() as other:
            again = other.download(f"{origin.url}/a", tmp_path)
            again.result(LATE_S)
            assert again.outcome is not None
            assert again.outcome.resumed_from >= 64 * 1024


def test_a_session_brings_unfinished_tasks_back(tmp_path: Path) -> None:
    session = tmp_path / "state" / "session"
    with Origin(Slow()) as origin:
        engine = DownloadEngine(max_workers=1, session=session)
        engine.download(f"{origin.url}/done", tmp_path / "out").result(LATE_S)
        running = engine.download(f"{origin.url}/a", tmp_path / "out", headers={"X-A": "1"}, priority=7)
        paused = engine.download(f"{origin.url}/b", tmp_path / "out", "named")
        assert paused.pause()
        wait_until(lambda: running.downloaded_size >= 300_000, LATE_S)
        with pytest.raises(LocalFault, match="used by another engine"):
            DownloadEngine(session=session)
        engine.shutdown(wait=False)
        with DownloadEngine(session=session) as other:
            tasks = {task.id: task for task in other.get_all_tasks()}
            assert tasks.keys() == {running.id, paused.id}
            again = tasks[running.id]
            assert (again.priority, again.headers) == (7, {"X-A": "1"})
            assert again.result(LATE_S).read_bytes() == Slow().data
            assert again.outcome is not None
            assert again.outcome.resumed_from >= 64 * 1024
            assert tasks[paused.id].status == "paused"
            assert other.resume_task(paused.id)
        assert (tmp_path / "out" / "named").read_bytes() == Slow().data
        with DownloadEngine(session=session) as last:
            assert last.get_all_tasks() == []


def test_a_session_outlives_a_kill_and_a_cut_line(tmp_path: Path, origin: Origin) -> None:
    session = tmp_path / "session"
    program = (
        "import os, signal, sys; from dlpool import DownloadEngine\n"
        "engine = DownloadEngine(max_workers=1, session=sys.argv[1])\n"
        "for number in range(20): engine.download(f'{sys.argv[2]}/{number}', sys.argv[3])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command: list[str | Path] = [sys.executable, "-c", program, session, origin.url, tmp_path / "out"]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with session.open("ab") as file:
        file.write(b'{"begin": {"id": "x", "ur')
    with DownloadEngine(session=session):
        pass
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(map(str, range(20)))


@pytest.mark.parametrize("text", ["not\na session\n", "one line", '{"begin": 5}\n', '{"begin": {"id": "x"}}\n[]\n{}\n'])
def test_a_file_that_is_not_a_session_is_not_overwritten(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(text)
    with pytest.raises(LocalFault, match="not a session"):
        DownloadEngine(session=tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == text


def test_the_session_of_an_engine_is_not_that_of_a_batch(tmp_path: Path, origin: Origin) -> None:
    batch, tasks = tmp_path / "batch", tmp_path / "tasks"
    download_many([f"{origin.url}/a"], tmp_path, session=batch)
    with pytest.raises(LocalFault, match="is the session of download_many or a list, not of an engine"):
        DownloadEngine(session=batch)
    with DownloadEngine(session=tasks) as engine:
        engine.download(f"{origin.url}/b", tmp_path)
    with pytest.raises(LocalFault, match="is the session of an engine, not of download_many or a list"):
        download_many([f"{origin.url}/a"], tmp_path, session=tasks)
    (tmp_path / "list").write_text(f"{origin.url}/a\n")
    refused = processes.run("fetch", "-i", tmp_path / "list", tmp_path, "--session", tasks)
    assert (refused.code, len(refused.err.splitlines())) == (3, 1)


def test_a_forked_child_cannot_use_the_engine(engine: DownloadEngine, origin: Origin, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            engine.download(f"{origin.url}/x", tmp_path)
        except UsageError as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_import_and_use_change_nothing_global(tmp_path: Path, origin: Origin) -> None:
    program = (
        "import logging, signal, sys, threading\n"
        "before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]\n"
        "from dlpool import DownloadEngine\n"
        "with DownloadEngine() as engine: engine.download(sys.argv[1], sys.argv[2]).result(30)\n"
        "assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]\n"
        "assert logging.getLogger().handlers == [] and 'structlog' not in sys.modules and 'redis' not in sys.modules\n"
        "left = [thread.name for thread in threading.enumerate() if thread.name.startswith('dlpool-worker')]\n"
        "assert not left, left\n"
    )
    subprocess.run([sys.executable, "-c", program, f"{origin.url}/x", tmp_path], cwd=ROOT, check=True)


def test_the_package_exports_its_public_names() -> None:
    assert all(hasattr(dlpool, name) for name in dlpool.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        dlpool.nothing  # noqa: B018


# --- what it must not do ---


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "status",
        "progress",
        "speed",
        "error",
        "file_path",
        "downloaded_size",
        "total_size",
        "eta",
        "start_time",
        "end_time",
    ],
)
def test_the_attributes_of_a_task_are_read_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        setattr(DownloadTask("http://h/x", tmp_path), name, None)


def test_an_unusable_path_fails_before_the_first_request(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    long = tmp_path.joinpath(*["d" * 200] * 30)
    cases = ((tmp_path / "file" / "sub", "not a folder"), (tmp_path / ("n" * 300), "too long"), (long, "too long"))
    with DownloadEngine() as engine:
        for folder, said in cases:
            with pytest.raises(LocalFault, match=said):
                engine.download(f"{origin.url}/x", folder, "x").result(LATE_S)
    assert origin.requests == []


@needs_root
def test_free_space_is_checked_before_the_first_byte(tmp_path: Path) -> None:
    file = File(make_data(8 * MIB), block=64 * KIB, pause_s=0.05)
    with tmpfs(tmp_path / "disk", "1m") as disk, Origin(file) as origin, DownloadEngine() as engine:
        task = engine.download(f"{origin.url}/x", disk)
        with pytest.raises(LocalFault, match=r"full|space"):
            task.result(LATE_S)
        assert task.downloaded_size == 0


def test_eta_is_an_integer_of_seconds(engine: DownloadEngine, tmp_path: Path) -> None:
    with Origin(Slow(8 * MIB)) as origin:
        task = engine.download(f"{origin.url}/a", tmp_path)
        wait_until(lambda: task.eta is not None, LATE_S)
        assert type(task.eta) is int
        assert task.speed > 0
        assert task.cancel()


def test_progress_never_decreases_over_pauses_and_reports(engine: DownloadEngine, tmp_path: Path) -> None:
    seen: list[float] = []
    with Origin(Slow()) as origin:
        task = engine.download(f"{origin.url}/a", tmp_path)
        task.update_progress(0.05)
        task.update_progress(float("nan"))
        for _ in range(3):
            least = task.downloaded_size + 100_000
            wait_until(lambda least=least: task.downloaded_size > least, LATE_S)  # type: ignore[misc]
            seen.append(task.progress)
            assert task.pause()
            seen.append(task.progress)
            assert task.resume()
        while not task.wait(0.005):
            seen.append(task.progress)
    assert task.status == "completed"
    assert 0.05 <= seen[0] < 1
    assert seen == sorted(seen)


def test_completions_are_reported_in_order_even_if_a_callback_raises(tmp_path: Path, origin: Origin) -> None:
    told: list[str] = []

    def tell(task: DownloadTask) -> None:
        told.append(task.id)
        raise SystemExit

    with DownloadEngine(max_workers=1) as engine:
        engine.register_completion_callback(tell)
        tasks = [engine.download(f"{origin.url}/{number}", tmp_path) for number in range(10)]
    assert told == [task.id for task in tasks]


def test_frequent_completions_do_not_delay_progress_callbacks(tmp_path: Path) -> None:
    told: list[str] = []

    def handle(request: Request, connection: Connection) -> None:
        (Slow(4 * MIB) if request.path == "/large" else File(b"x"))(request, connection)

    with Origin(handle) as origin, DownloadEngine(max_workers=2, progress_interval=0.2) as engine:
        engine.register_progress_callback(lambda task: told.append(task.id))
        engine.register_completion_callback(lambda task: time.sleep(0.05))
        large = engine.download(f"{origin.url}/large", tmp_path, priority=-1)
        number = 0
        while not large.wait(0):
            engine.download(f"{origin.url}/{number}", tmp_path).wait(LATE_S)
            number += 1
    assert large.id in told


def test_a_task_of_an_engine_that_is_shut_down_can_be_submitted_to_another(tmp_path: Path) -> None:
    with Origin(Slow()) as origin:
        first = DownloadEngine()
        task = first.download(f"{origin.url}/a", tmp_path)
        wait_until(lambda: task.downloaded_size > 0, LATE_S)
        with DownloadEngine() as other:
            with pytest.raises(UsageError, match="another engine's"):
                other.submit(task)
            first.shutdown(wait=False)
            assert (task.status, task.cancel(), task.resume()) == ("paused", False, False)
            assert other.submit(task) is task
            first.shutdown(wait=False)
            assert task.result(LATE_S).stat().st_size == 2 * MIB
            assert other.get_all_tasks() == [task]
            assert other.submit(task).status == "completed"
    assert any("range" in request.headers for request in origin.requests)


def test_a_forked_child_that_shuts_the_engine_down_does_not_wait_for_its_parents_threads(tmp_path: Path) -> None:
    with Origin(Slow()) as origin, DownloadEngine() as engine:
        task = engine.download(f"{origin.url}/a", tmp_path)
        child = os.fork()
        if child == 0:
            engine.shutdown()
            os._exit(7)
        wait_until(lambda: os.waitpid(child, os.WNOHANG)[1] >> 8 == 7, LATE_S)
        assert task.result(LATE_S)


def test_times_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="timeout is 0"):
        DownloadEngine(timeout=0)
    with pytest.raises(UsageError, match="progress_interval is -1"):
        DownloadEngine(progress_interval=-1)


@needs_root
def test_a_folder_that_may_not_be_written_fails_at_once(engine: DownloadEngine, origin: Origin, tmp_path: Path) -> None:
    assert engine.download(f"{origin.url}/a", tmp_path).wait(LATE_S)  # all modules are there now
    (tmp_path / "locked").mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        task = DownloadEngine(retry_times=50).download(f"{origin.url}/b", tmp_path / "locked")
        is_told = task.wait(LATE_S) and "ermission denied" in (task.error or "")
        os._exit(7 if is_told else 1)
    assert os.waitpid(child, 0)[1] >> 8 == 7


def test_progress_goes_back_when_a_restart_was_announced(tmp_path: Path) -> None:
    events: list[str] = []
    first, second = Slow(), Slow(pause_s=0.1)
    second.etag, second.data = '"v2"', bytes(reversed(first.data))
    with Origin(first) as origin, DownloadEngine(notify=lambda event, /, **_: events.append(event)) as engine:
        task = engine.download(f"{origin.url}/a", tmp_path)
        wait_until(lambda: task.progress > 0.3, LATE_S)
        assert task.pause()
        before, origin.handler = task.progress, second
        assert task.resume()
        wait_until(lambda: task.progress < before, LATE_S)
        assert "download_restarted" in events
        assert task.result(LATE_S).read_bytes() == second.data
