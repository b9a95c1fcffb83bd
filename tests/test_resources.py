"""Few threads, few descriptors: downloads use fewer connections, say so, and are right."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlpool import threads
from dlpool.errors import NoThread
from tests.conftest import make_data, sha256
from tests.disks import needs_root
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.processes import ROOT, Ended, finish
from tests.redis_server import RedisServer
from tests.upload_origin import UploadOrigin

DATA = make_data(1_200_000)
FILES = 12
FETCH = ["-m", "dlpool", "fetch", "--network", "any", "--progress", "none", "--min-split-size", "64K"]
USERS = itertools.count()
CAPABILITIES = "-sys_resource,-sys_admin"  # whoever has these is above the limit of processes (setrlimit(2))


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(File(DATA, block=64 * 1024, pause_s=0.01)) as served:
        yield served


def under(*, threads: int | None = None, files: int | None = None) -> list[str]:
    """Return a command that executes another under a limit of threads, the first one included, or of descriptors.

    The limit of threads counts all of a user, so that each has one of its own, who nevertheless may read what root may.
    """
    if threads is None:
        return ["prlimit", f"--nofile={files}:{files}"]
    user = 1_000_000 + os.getpid() * 1000 + next(USERS)
    capabilities = ["--bounding-set", CAPABILITIES, "--inh-caps", "-all"]
    return ["setpriv", "--ruid", str(user), "--euid", "0", *capabilities, "prlimit", f"--nproc={threads}:{threads}"]


def executed(command: list[str]) -> Ended:
    """Run a command."""
    return finish(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT))


def limited(arguments: list[str], **limit: int) -> Ended:
    """Run Python under a limit."""
    return executed([*under(**limit), sys.executable, *arguments])


def check_one(origin: Origin, tmp_path: Path, **limit: int) -> Ended:
    """Fetch one file under a limit; it must be right."""
    ended = limited([*FETCH, "--checksum", f"sha256:{sha256(DATA)}", f"{origin.url}/f", str(tmp_path / "f")], **limit)
    assert ended.code == 0, ended.err
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    return ended


def check_list(origin: Origin, tmp_path: Path, **limit: int) -> Ended:
    """Fetch a list with eight files at once under a limit; all must be right."""
    (tmp_path / "list").write_text("".join(f"{origin.url}/{number}\n" for number in range(FILES)))
    (tmp_path / "out").mkdir()
    ended = limited([*FETCH, "-j", "8", "-i", str(tmp_path / "list"), str(tmp_path / "out")], **limit)
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {str(number) for number in range(FILES)}
    assert all(path.read_bytes() == DATA for path in (tmp_path / "out").iterdir())
    return ended


@needs_root
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_a_file_comes_with_few_threads(count: int, origin: Origin, tmp_path: Path) -> None:
    said = check_one(origin, tmp_path, threads=count).err
    assert said.count("allows no more threads: raise ulimit -u") == 1
    assert origin.most_connections < 4


@needs_root
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_a_list_comes_with_few_threads(count: int, origin: Origin, tmp_path: Path) -> None:
    said = check_list(origin, tmp_path, threads=count).err
    assert said.count("allows no more threads: raise ulimit -u") == 1


@pytest.mark.parametrize("count", [7, 8, 10, 14, 18, 21])
def test_a_file_comes_with_few_descriptors(count: int, origin: Origin, tmp_path: Path) -> None:
    said = check_one(origin, tmp_path, files=count).err
    assert said.count("allows no more open files: raise ulimit -n") == 1
    assert origin.most_connections < 4


@pytest.mark.parametrize("count", [24, 28, 36])
def test_some_descriptors_more_or_less_make_no_difference(count: int, origin: Origin, tmp_path: Path) -> None:
    check_one(origin, tmp_path, files=count)


@pytest.mark.parametrize("count", [12, 16, 24, 40])
def test_a_list_comes_with_few_descriptors(count: int, origin: Origin, tmp_path: Path) -> None:
    said = check_list(origin, tmp_path, files=count).err
    assert said.count("allows no more open files: raise ulimit -n") == 1


@pytest.mark.parametrize("count", [5])
def test_too_few_descriptors_for_one_connection_are_told(count: int, origin: Origin, tmp_path: Path) -> None:
    options = ["--retries", "1", "--retry-delay", "0.1"]
    ended = limited([*FETCH, *options, f"{origin.url}/f", str(tmp_path / "f")], files=count)
    assert ended.code == 3
    assert "too many files" in ended.err
    assert not (tmp_path / "f").exists()


ENGINE = """
import sys
from dlpool import DownloadEngine
from dlpool.errors import DlpoolError
url, folder = sys.argv[1:]
with DownloadEngine(max_workers=4) as engine:
    tasks = [engine.download(f"{url}/{number}", folder, str(number)) for number in range(4)]
print([task.status for task in tasks])
print({task.error for task in tasks})
try:
    with DownloadEngine() as engine:
        engine.register_completion_callback(print)
except DlpoolError as error:
    print(error.label)
"""


@needs_root
def test_the_engine_works_with_the_threads_that_there_are(origin: Origin, tmp_path: Path) -> None:
    ended = limited(["-c", ENGINE, origin.url, str(tmp_path)], threads=2)
    assert ended.out.splitlines()[0] == str(["completed"] * 4), ended
    assert all((tmp_path / str(number)).read_bytes() == DATA for number in range(4))


@needs_root
def test_without_any_thread_the_engines_tasks_fail_with_that_reason(origin: Origin, tmp_path: Path) -> None:
    ended = limited(["-c", ENGINE, origin.url, str(tmp_path)], threads=1)
    assert (ended.code, ended.err) == (0, "")
    statuses, reasons, callback = ended.out.splitlines()
    assert statuses == str(["failed"] * 4)
    assert "cannot start a thread" in reasons
    assert callback == "no_threads"


@needs_root
def test_an_interruption_ends_a_download_on_the_only_thread(tmp_path: Path) -> None:
    """And what had come is kept."""
    with Origin(File(DATA, block=64 * 1024, pause_s=0.2)) as slow:
        command = [*under(threads=1), sys.executable, *FETCH]
        process = subprocess.Popen(
            [*command, f"{slow.url}/f", str(tmp_path / "f")], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        wait_for_bytes(tmp_path / "f.part")
        process.terminate()
        ended = finish(process)
    assert ended.code == 130, ended.err
    assert (tmp_path / "f.part.meta").exists()


def wait_for_bytes(part: Path) -> None:
    """Wait until something was written to a part file."""
    pause = threading.Event()
    for _ in range(2000):
        if part.exists() and any(part.read_bytes()):
            return
        pause.wait(0.01)
    raise AssertionError("nothing came")


# --- uploads ---


@needs_root
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_file_is_uploaded_with_few_threads(count: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    with UploadOrigin() as origin:
        options = ["--chunk-size", "64K", "--progress", "none", "--network", "any"]
        ended = limited(["-m", "dlpool", "upload", *options, str(tmp_path / "f"), origin.api], threads=count)
        assert ended.code == 0, ended.err
        assert sorted(set(origin.sent())) == list(range(-(-len(DATA) // (64 * 1024))))


# --- the service ---


@needs_root
@pytest.mark.parametrize(
    "limit", [{"threads": 16}, {"threads": 20}, {"files": 24}, {"files": 32}, {"files": 48}], ids=str
)
def test_the_service_works_with_little(
    limit: dict[str, int], origin: Origin, redis_server: RedisServer, tmp_path: Path
) -> None:
    client, service = Client(redis_server.client()), Supervisor(tmp_path, redis_server.url)
    urls = [f"{origin.url}/{number}" for number in range(6)]
    for number, url in enumerate(urls):
        client.push(url, f"{number}.bin")
    try:
        service.start(prefix=under(**limit))
        client.wait_for(*urls)
        assert service.stop() == 0, service.said()
    finally:
        service.kill()
    assert all((service.out / f"{number}.bin").read_bytes() == DATA for number in range(6))
    assert "Traceback" not in service.errors.read_text()


@needs_root
@pytest.mark.parametrize("limit", [{"threads": 1}, {"threads": 5}, {"threads": 9}, {"threads": 11}], ids=str)
def test_the_service_says_that_it_has_too_few_threads(
    limit: dict[str, int], redis_server: RedisServer, tmp_path: Path
) -> None:
    service = Supervisor(tmp_path, redis_server.url).start(is_ready=False, prefix=under(**limit))
    try:
        assert service.wait() != 0
    finally:
        service.kill()
    said = service.errors.read_text()
    assert "ulimit -u" in said.splitlines()[-1]
    assert "Traceback" not in said


# --- no /proc ---


@pytest.fixture
def without_proc() -> list[str]:
    """A command that executes another where an empty file system hides /proc."""
    return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


@needs_root
def test_a_file_comes_without_proc(without_proc: list[str], origin: Origin, tmp_path: Path) -> None:
    checksum = ["--checksum", f"sha256:{sha256(DATA)}"]
    command = [*without_proc, sys.executable, *FETCH, *checksum, f"{origin.url}/f", str(tmp_path / "f")]
    ended = executed(command)
    assert ended.code == 0, ended.err
    assert (tmp_path / "f").read_bytes() == DATA


@needs_root
def test_the_service_works_without_proc(
    without_proc: list[str], origin: Origin, redis_server: RedisServer, tmp_path: Path
) -> None:
    client, service = Client(redis_server.client()), Supervisor(tmp_path, redis_server.url)
    urls = [f"{origin.url}/{number}" for number in range(4)]
    for number, url in enumerate(urls):
        client.push(url, f"{number}.bin")
    try:
        service.start(prefix=without_proc)
        client.wait_for(*urls)
        assert service.stop() == 0, service.said()
    finally:
        service.kill()
    assert all((service.out / f"{number}.bin").read_bytes() == DATA for number in range(4))
    assert "Traceback" not in service.said()


# --- what tells ---


def test_room_is_what_the_limit_leaves() -> None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert threads.has_free_descriptors(1)
    assert not threads.has_free_descriptors(soft + 1)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_start_has_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(NoThread, match="cannot start a thread"):
        threads.start_thread(int, "none")


@pytest.mark.parametrize(
    ("command", "files"), [("supervisor", 6), ("supervisor", 8), ("supervisor", 14), ("fetch", 6), ("jobs", 6)]
)
def test_with_hardly_any_descriptors_a_command_gives_one_reason(command: str, files: int, tmp_path: Path) -> None:
    ini = tmp_path / "dlpool.ini"
    paths = "\n".join(f"{name}_dir = {tmp_path / name}" for name in ("download", "state", "log"))
    ini.write_text(f"[redis]\nurl = unix://{tmp_path}/none\n[supervisor]\n[paths]\n{paths}\n")
    arguments = {
        "supervisor": ["-m", "dlpool.cli.supervisor", "-q", "-c", str(ini)],
        "fetch": [*FETCH, "--retries", "0", "http://127.0.0.1:1/x", str(tmp_path / "x")],
        "jobs": ["-m", "dlpool", "jobs", "-c", str(ini)],
    }
    ended = limited(arguments[command], files=files)
    assert ended.code != 0, ended.err
    assert "unexpected" not in ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) <= 2, ended.err
