"""``dlpool-web`` as its operators run it: real gunicorn processes on a free port, over a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import requests

from tests.conftest import free_port, wait_until
from tests.processes import ROOT, Logged

START_S = 30.0
END_S = 40.0


class WebServer(Logged):
    """A context: started and answering, and ended by its pids. ``settings`` are sections of its INI."""

    def __init__(self, folder: Path, settings: dict[str, dict[str, Any]] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.upload_dir = folder / "upload"
        self.merged_dir = folder / "merged"
        self.log_file = folder / "log" / "web" / "dlpool.log"
        self.ini = folder / "web.ini"
        self.errors = folder / "web.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(settings or {})

    @property
    def root(self) -> str:
        """The URL of the server, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL of the upload API."""
        return f"{self.root}/go-uploader"

    def configure(self, settings: dict[str, dict[str, Any]]) -> None:
        """Write the INI file."""
        own: dict[str, dict[str, Any]] = {
            "paths": {"state_dir": self.folder / "state", "log_dir": self.folder / "log"},
            "upload": {"port": self.port, "upload_dir": self.upload_dir, "merged_dir": self.merged_dir},
            "web": {"processes": 2, "threads": 16},
        }
        self.write_ini(own, settings)

    def start(self, *, environment: dict[str, str] | None = None) -> WebServer:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "dlpool.cli.web", "-c", str(self.ini)]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )
        wait_until(self._answers, START_S)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            return requests.get(f"{self.url}/health", timeout=5).status_code in (200, 503)
        except requests.RequestException:
            return False

    def __enter__(self) -> WebServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live now."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)

    def kill(self) -> None:
        """SIGKILL for all that is left of it."""
        if self.process is None or self.process.poll() is not None:
            return
        workers = self.workers()
        self.process.kill()
        self.process.wait(END_S)
        for worker in workers:
            if worker.is_running():
                worker.kill()
        psutil.wait_procs(workers, END_S)


class RawClient:
    """A connection that says exactly what it is told; a context."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=END_S)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, *parts: bytes | str) -> RawClient:
        """Send it."""
        self.sock.sendall(b"".join(part.encode() if isinstance(part, str) else part for part in parts))
        return self

    def post(self, path: str, *headers: str, body: bytes = b"", method: str = "POST") -> RawClient:
        """Send the head of a request, and ``body``."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        return self.say("\r\n".join(lines), body)

    def end(self) -> RawClient:
        """Say no more."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the next final answer; (0, {}) if the connection ends without one."""
        answer = http.client.HTTPResponse(self.sock)
        try:
            answer.begin()
            text = answer.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, {}
        return answer.status, json.loads(text) if text else {}


def multipart(fields: dict[str, object], chunk: bytes | None, boundary: str = "xXx") -> tuple[str, bytes]:
    """The Content-Type and the body of a form."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if chunk is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="chunk"; filename="c"\r\n\r\n'
        parts.append(head.encode() + chunk + b"\r\n")
    return f"multipart/form-data; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()
