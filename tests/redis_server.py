"""A real Redis (or Valkey) of the tests' own, on a Unix socket, and on a TCP port if one is asked for."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_S = 20
STOP_S = 20


class RedisServer:
    """A server that runs between ``start`` and ``stop``, and as a context; its data, if kept, is in ``folder``.

    ``port``: also listens there on 127.0.0.1. ``appendonly``: what it acknowledged survives ``kill``. ``options``: any
    of its settings, with _ for -.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        appendonly: bool = False,
        password: str | None = None,
        **options: object,
    ) -> None:
        self.folder = folder
        self.port = port
        self.password = password
        self._sockets = Path(tempfile.mkdtemp(prefix="dlpool-redis-", dir="/tmp"))  # short, as sockets' paths must be
        self._settings: dict[str, object] = {
            "port": port or 0,
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "dir": folder,
            "logfile": folder / "redis.log",
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "always",
            "daemonize": "no",
            **options,
        }
        if password is not None:
            self._settings["requirepass"] = password
        self.environment: dict[str, str] | None = None  # of the process; None is ours
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<RedisServer {self.url}, {f'pid {self.pid}' if self.is_running else 'not running'}>"

    @property
    def socket(self) -> Path:
        return self._sockets / "redis.sock"

    @property
    def url(self) -> str:
        """The Unix socket's, without the password."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """The TCP port's, without the password."""
        assert self.port is not None
        return f"redis://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self, **options: Any) -> redis.Redis:
        """A client over the Unix socket; like the service's, it repeats nothing."""
        options = {"password": self.password, "socket_timeout": 30, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(unix_socket_path=str(self.socket), **options)

    def start(self, **options: object) -> RedisServer:
        """Start it, and wait until it answers; does nothing while it runs. ``options`` count from now on."""
        if self.is_running:
            return self
        self._settings |= options
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        assert binary is not None, "redis-server is not installed: scripts/test installs it"
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = [text for name, value in self._settings.items() for text in (f"--{name.replace('_', '-')}", value)]
        command = [binary, *map(str, settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=self.environment)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < deadline, f"the server does not answer, see {self.folder / 'redis.log'}"
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """End it in order (SIGTERM)."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """End it for good."""
        self.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        assert self.is_running, f"the server ended at its start, see {self.folder / 'redis.log'}"
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False
