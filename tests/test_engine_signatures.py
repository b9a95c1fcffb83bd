"""What the Python API promises: the types that its signatures name, figures that are there unasked, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool import DownloadEngine, DownloadTask
from dlpool.errors import UsageError
from tests.conftest import make_data, wait_until
from tests.origin import Connection, File, Origin, Request
from tests.processes import ROOT

LATE_S = 60.0
KIB = 1024
DATA = make_data(3_000_000)
STATUSES = ["pending", "downloading", "paused", "completed", "failed", "cancelled"]


def has_begun(part: Path, data: bytes) -> bool:
    """Whether the first bytes of a file are on the disk, and not only reserved there."""
    return part.exists() and part.read_bytes()[: 64 * KIB] == data[: 64 * KIB]


class Gate:
    """Serves half of a file, and the rest when it is opened; ``/bad`` is not there."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def __call__(self, request: Request, connection: Connection) -> None:
        if request.path == "/bad":
            connection.answer(404, {}, b"")
            return
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
        if request.path == "/unknown":
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        connection.send(head + DATA[: len(DATA) // 2])
        self.is_open.wait(LATE_S)
        connection.send(DATA[len(DATA) // 2 :])


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.is_open.set()


@pytest.fixture
def slow() -> Iterator[Origin]:
    with Origin(File(DATA, block=16 * KIB, pause_s=0.02)) as origin:
        yield origin


def is_of_its_types(task: DownloadTask) -> bool:
    """Whether all attributes have the types of the signatures."""
    checks: dict[str, Callable[[object], bool]] = {
        "id": lambda value: type(value) is str and value != "",
        "url": lambda value: type(value) is str,
        "output_path": lambda value: type(value) is str,
        "filename": lambda value: value is None or type(value) is str,
        "headers": lambda value: type(value) is dict,
        "priority": lambda value: type(value) is int,
        "status": lambda value: value in STATUSES,
        "progress": lambda value: type(value) is float and 0.0 <= value <= 1.0,
        "speed": lambda value: type(value) is float and value >= 0.0,
        "error": lambda value: value is None or type(value) is str,
        "file_path": lambda value: value is None or type(value) is str,
        "downloaded_size": lambda value: type(value) is int and value >= 0,
        "total_size": lambda value: type(value) is int and value >= 0,
        "eta": lambda value: value is None or (type(value) is int and value >= 0),
        "start_time": lambda value: value is None or type(value) is float,
        "end_time": lambda value: value is None or type(value) is float,
    }
    wrong = {name: getattr(task, name) for name, check in checks.items() if not check(getattr(task, name))}
    assert not wrong, (task.status, wrong)
    return True


@pytest.mark.parametrize("filename", [None, "named.bin"])
def test_attributes_have_their_types_at_every_status(filename: str | None, gate: Gate, tmp_path: Path) -> None:
    seen = set()

    def look(task: DownloadTask) -> None:
        assert is_of_its_types(task)
        seen.add(task.status)

    with Origin(gate) as origin, DownloadEngine(1, retry_times=0) as engine:
        new = DownloadTask(f"{origin.url}/new", str(tmp_path), filename, {"X-A": "1"}, 3)
        look(new)
        assert (new.total_size, new.file_path) == (0, None if filename is None else str(tmp_path / "named.bin"))
        first = engine.download(f"{origin.url}/first", tmp_path, filename)
        wait_until(lambda: first.total_size > 0)
        look(first)
        waiting = engine.download(f"{origin.url}/second", tmp_path / "other", filename)
        look(waiting)
        assert waiting.cancel()
        look(waiting)
        assert first.pause()
        look(first)
        bad = engine.download(f"{origin.url}/bad", tmp_path)
        assert bad.wait(LATE_S)
        look(bad)
        gate.is_open.set()
        assert first.resume()
        assert first.wait(LATE_S)
        look(first)
    assert seen == set(STATUSES)
    assert first.file_path == str(tmp_path / (filename or "first"))
    assert first.total_size == first.downloaded_size == len(DATA)


def test_an_unknown_size_is_0(gate: Gate, tmp_path: Path) -> None:
    with Origin(gate) as origin, DownloadEngine(1) as engine:
        task = engine.download(f"{origin.url}/unknown", tmp_path)
        wait_until(lambda: task.downloaded_size > 0, LATE_S)
        assert (task.total_size, task.eta) == (0, None)
        assert is_of_its_types(task)
        assert task.cancel()


def test_a_task_has_the_arguments_of_its_constructor(tmp_path: Path) -> None:
    task = DownloadTask("http://h/x", "./downloads", "a.zip", {"X-A": "1"}, 5)
    assert (task.url, task.output_path, task.filename, task.priority) == ("http://h/x", "./downloads", "a.zip", 5)
    assert task.headers == {"X-A": "1"}
    task.headers["X-B"] = "2"
    assert task.headers == {"X-A": "1"}, "a copy"
    assert task.file_path == os.path.join("downloads", "a.zip")
    bare = DownloadTask("http://h/x", tmp_path)
    assert (bare.output_path, bare.filename, bare.headers, bare.file_path) == (str(tmp_path), None, {}, None)


def test_an_engine_has_the_arguments_of_its_constructor(slow: Origin, tmp_path: Path) -> None:
    with DownloadEngine() as engine:
        given = (engine.max_workers, engine.chunk_size, engine.retry_times, engine.retry_delay, engine.timeout)
        assert given == (3, 8192, 3, 5, 30)
        assert engine.tasks == {}
        task = engine.download(f"{slow.url}/x", tmp_path)
        assert engine.tasks == {task.id: task}
        engine.tasks.clear()
        assert engine.get_task(task.id) is task
        assert task.cancel()
    other = DownloadEngine(7, 16384, 2, 1, timeout=4)
    given = (other.max_workers, other.chunk_size, other.retry_times, other.retry_delay, other.timeout)
    assert given == (7, 16384, 2, 1, 4)
    for name in ("max_workers", "chunk_size", "retry_times", "retry_delay", "timeout", "tasks"):
        with pytest.raises(AttributeError):
            setattr(other, name, 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("retry_delay", 5000, "retry_delay is 5000 s, more than 5m: its unit is seconds, and 5000 ms are 5"),
        ("timeout", 30000, "timeout is 30000 s, more than 10m: its unit is seconds, and 30000 ms are 30"),
        ("progress_interval", 500, "progress_interval is 500 s, more than 1m: its unit is seconds, and 500 ms are 0.5"),
        ("retry_delay", float("nan"), "less than 0"),
        ("timeout", float("inf"), "more than 10m"),
        ("timeout", "30", "timeout is '30', not a number"),
        ("max_workers", None, "not a number"),
        ("max_workers", 0, "less than 1"),
    ],
)
def test_an_invalid_value_is_explained(name: str, value: object, said: str) -> None:
    options: dict[str, object] = {name: value}
    with pytest.raises(UsageError) as error:
        DownloadEngine(**options)  # type: ignore[arg-type]
    assert said in str(error.value)


# --- figures that nobody has asked for before ---


@pytest.mark.parametrize("figure", ["speed", "eta", "overall", "held"])
def test_speeds_are_known_on_the_first_read(figure: str, slow: Origin, tmp_path: Path) -> None:
    """The engine samples them itself: nothing has been read, and no callback registered, before."""
    with DownloadEngine(1) as engine:
        stats = engine.stats
        task = engine.download(f"{slow.url}/x", tmp_path)
        wait_until(lambda: has_begun(tmp_path / "x.part", DATA), LATE_S)
        threading.Event().wait(0.6)  # several samples; what is asserted is no duration
        reads: dict[str, Callable[[], float | None]] = {
            "speed": lambda: task.speed,
            "eta": lambda: task.eta,
            "overall": lambda: engine.stats.get_overall_speed(),
            "held": lambda: stats.get_overall_speed(),
        }
        found = reads[figure]()
        assert found is not None
        assert found > 0
        assert task.cancel()


def test_the_sampling_thread_runs_only_while_there_is_work(slow: Origin, tmp_path: Path) -> None:
    def keepers() -> int:
        return sum(thread.name == "dlpool-sampler" for thread in threading.enumerate())

    before = keepers()
    with DownloadEngine(2) as engine:
        assert keepers() == before
        task = engine.download(f"{slow.url}/x", tmp_path)
        assert keepers() == before + 1
        other = engine.download(f"{slow.url}/y", tmp_path)
        assert keepers() == before + 1
        assert task.pause()
        assert other.cancel()
        wait_until(lambda: keepers() == before)
        assert task.resume()
        assert keepers() == before + 1
        assert task.cancel()
        wait_until(lambda: keepers() == before)


# --- wrong types ---

VALUES: dict[str, list[object]] = {
    "url": [None, 5, b"http://h/f", ["http://h/f"]],
    "output_path": [None, 5, b"folder", []],
    "filename": [5, b"name", ["name"], False],
    "headers": ["a: b", ["a: b"], [("a", "b")], {1: "a"}, {b"a": "b"}, {"a": 1}, {"a": None}],
    "priority": ["high", None, [1], float("nan"), 1j],
    "checksum": [5, b"md5:00", ["md5"]],
}
WRONG = [(name, value) for name, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value!r}" for name, value in WRONG])
def test_a_value_of_another_type_is_a_sentence(name: str, value: object, tmp_path: Path) -> None:
    given: dict[str, Any] = {"url": "http://127.0.0.1:9/f", "output_path": tmp_path, name: value}
    with DownloadEngine() as engine:
        with pytest.raises(UsageError, match="header" if name == "headers" else f"^{name} is "):
            engine.download(**given)
        assert engine.get_all_tasks() == []


def test_an_empty_filename_is_none(tmp_path: Path) -> None:
    with Origin(File(DATA)) as origin, DownloadEngine() as engine:
        task = engine.download(f"{origin.url}/named.bin", tmp_path, "")
        assert task.wait(LATE_S) and task.file_path == str(tmp_path / "named.bin")
        assert task.filename is None


# --- the end of a program ---

PROGRAM = """
import sys
from dlpool import DownloadEngine
engine = DownloadEngine(max_workers=1)
{callback}
tasks = [engine.download(url, sys.argv[1]) for url in sys.argv[2:]]
{end}
"""
TOLD = "engine.register_completion_callback(lambda task: print(task.status, task.file_path, flush=True))"


def program(tmp_path: Path, *urls: str, end: str = "", callback: str = "") -> subprocess.Popen[str]:
    code = PROGRAM.format(end=end, callback=callback)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *urls],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "del engine, tasks", "sys.exit()"])
def test_a_program_that_ends_waits_for_its_downloads(end: str, slow: Origin, tmp_path: Path) -> None:
    process = program(tmp_path, f"{slow.url}/a", f"{slow.url}/b", end=end)
    out, err = process.communicate(timeout=LATE_S)
    assert (process.returncode, out, err) == (0, "", "")
    for name in "ab":
        assert (tmp_path / name).read_bytes() == DATA


def test_callbacks_are_called_at_the_end_of_a_program(slow: Origin, tmp_path: Path) -> None:
    process = program(tmp_path, f"{slow.url}/a", f"{slow.url}/b", callback=TOLD)
    out, err = process.communicate(timeout=LATE_S)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == [f"completed {tmp_path / name}" for name in "ab"]


def test_an_error_of_the_program_is_printed_and_its_downloads_stop(slow: Origin, tmp_path: Path) -> None:
    process = program(tmp_path, f"{slow.url}/a", end="raise ValueError('mine')")
    _, err = process.communicate(timeout=LATE_S)
    assert process.returncode == 1
    assert "ValueError: mine" in err
    assert (tmp_path / "a").read_bytes() == DATA


def test_paused_downloads_do_not_hold_a_program(slow: Origin, tmp_path: Path) -> None:
    process = program(tmp_path, f"{slow.url}/a", end="tasks[0].pause()")
    out, err = process.communicate(timeout=LATE_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert not (tmp_path / "a").exists()


EXITS = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); "
OTHER_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(1,)).start(); "


@pytest.mark.parametrize(
    ("sent", "before", "failure"),
    [
        (signal.SIGINT, "", ""),
        (signal.SIGTERM, EXITS, ""),
        (signal.SIGINT, OTHER_THREAD, ""),
        (signal.SIGINT, "", "raise ValueError('mine')"),
        (signal.SIGINT, "", "sys.exit(3)"),
    ],
)
def test_ctrl_c_ends_the_wait_resumably(sent: signal.Signals, before: str, failure: str, tmp_path: Path) -> None:
    data = make_data(8_000_000)
    with Origin(File(data, block=16 * KIB, pause_s=0.05)) as origin:
        end = f"{before}print('end', flush=True)\n{failure}"
        process = program(tmp_path, f"{origin.url}/a", end=end)
        assert process.stdout is not None
        assert process.stdout.readline() == "end\n"
        wait_until(lambda: has_begun(tmp_path / "a.part", data), LATE_S)
        process.send_signal(sent)
        _, err = process.communicate(timeout=LATE_S)
        assert "the program ended before 1 of its downloads" in err
        assert "KeyboardInterrupt" not in err and "Exception ignored" not in err
        assert err.count("Traceback") == failure.count("raise")
        assert not (tmp_path / "a").exists()
        assert (tmp_path / "a.part.meta").exists()
    with Origin(File(data)) as origin, DownloadEngine() as engine:
        task = engine.download(f"{origin.url}/a", tmp_path)
        assert task.wait(LATE_S)
    assert (tmp_path / "a").read_bytes() == data
