"""Supervisors as their operators run them: real processes over a real Redis, each with a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import redis

from dlpool.jobs.keys import QueueKeys
from tests.conftest import wait_until
from tests.processes import ROOT, Logged

START_S = 30.0
END_S = 45.0
# What the names of keys begin with that stay when all work is done.
KEPT = (
    "job:",
    "done",
    "dead",
    "cancelled",
    "events",
    "stats:",
    "fence",
    "last_recovery",
    "clock",
    "recovery_turn",
    "wake",
    "sample_turn",
    "history",
    "large:",
    "bytes",
    "failures",
    "audit",
)
DEFAULTS: dict[str, dict[str, Any]] = {
    "transfer": {
        "min_split_size": "64K",
        "retries": 3,
        "retry_delay": "10ms",
        "retry_max_delay": "100ms",
        "sync": "no",
    },
    "network": {"network": "any"},
    "redis": {"embedded_listen": ""},
    "metrics": {"listen": ""},  # a port is the machine's: tests that want one choose it
    "supervisor": {"job_retry_delay": "100ms", "job_retry_max_delay": "500ms", "locked_delay": "200ms"},
}


class Supervisor(Logged):
    """``dlpool-supervisor`` with a folder of its own; a context, whose end kills whatever is left.

    ``settings`` are sections of its INI, over ``DEFAULTS``. ``folder/out`` is where downloads go.
    """

    def __init__(self, folder: Path, url: str, settings: dict[str, dict[str, Any]] | None = None) -> None:
        self.folder = folder
        self.url = url
        self.out = folder / "out"
        self.state_dir = folder / "state"
        self.log_file = folder / "log" / "dlpool.log"
        self.ini = folder / "dlpool.ini"
        self.errors = folder / "stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: set[int] = set()
        self.out.mkdir(parents=True, exist_ok=True)
        self.configure(url, settings or {})

    def __enter__(self) -> Supervisor:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pid in self._seen:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if "dlpool" in " ".join(process.cmdline()) or "multiprocessing" in " ".join(process.cmdline()):
                    process.kill()

    def configure(self, url: str, settings: dict[str, dict[str, Any]]) -> None:
        """Write the INI file."""
        own: dict[str, dict[str, Any]] = {
            "redis": {"url": url},
            "paths": {"download_dir": self.out, "state_dir": self.state_dir, "log_dir": self.log_file.parent},
        }
        self.write_ini(own, DEFAULTS, settings)

    def start(self, *options: object, is_ready: bool = True, prefix: Sequence[str] = ()) -> Supervisor:
        """Start it; with ``is_ready`` wait until it has workers and Redis. ``prefix``: a command that executes it."""
        command = [*prefix, sys.executable, "-m", "dlpool.cli.supervisor", "-c", str(self.ini), *map(str, options)]
        before = len(self.events("service_ready"))
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(command, stderr=errors, stdout=errors, stdin=subprocess.DEVNULL, cwd=ROOT)
        if is_ready:
            wait_until(lambda: self._has_come_up(before), START_S)
        return self

    def _has_come_up(self, before: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        return len(self.events("service_ready")) > before

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def workers(self) -> list[psutil.Process]:
        """The worker processes that live now, oldest first."""
        children = psutil.Process(self.pid).children()
        found = [one for one in children if "spawn_main" in " ".join(_command(one))]
        self._seen.update(one.pid for one in found)
        return sorted(found, key=lambda one: one.create_time())

    def family(self) -> list[int]:
        """The pids of the supervisor and everything below it."""
        found = [self.pid, *(one.pid for one in psutil.Process(self.pid).children(recursive=True))]
        self._seen.update(found)
        return found

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, also for one that is stopped."""
        if self.process is not None and self.process.poll() is None:
            with suppress(psutil.Error):
                self.family()
            self.process.kill()
            self.process.wait(END_S)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Client:
    """A client of the service, as they know it from the service before: raw pushes, and records by key."""

    def __init__(self, connection: redis.Redis, group: str | None = None) -> None:
        self.redis: Any = connection
        self.keys = QueueKeys(group)

    def push(self, url: str, save_path: str, **own: Any) -> None:
        """LPUSH a job."""
        job: dict[str, Any] = {"url": url, "save_path": save_path}
        if own:
            job["dlpool"] = own
        self.redis.lpush(self.keys.intake, json.dumps(job))

    def success(self, url: str) -> dict[str, Any] | None:
        value = self.redis.get(self.keys.success(url))
        return None if value is None else dict(json.loads(value))

    def failure(self, url: str) -> dict[str, Any] | None:
        value = self.redis.hget(self.keys.failed, url)
        return None if value is None else dict(json.loads(value))

    def wait_for(self, *urls: str, timeout_s: float = 40.0) -> None:
        """Wait until each URL has its success record; fail at once if one has a failure record."""

        def are_done() -> bool:
            for url in urls:
                assert self.failure(url) is None, self.failure(url)
            return all(self.redis.exists(self.keys.success(url)) for url in urls)

        wait_until(are_done, timeout_s)

    def wait_for_failure(self, url: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """Wait for the failure record of a URL."""
        wait_until(lambda: self.failure(url) is not None, timeout_s)
        record = self.failure(url)
        assert record is not None
        return record

    def ends(self, job_id: str) -> int:
        """How often the job came to an end, by the stream of events."""
        events = [fields for _, fields in self.redis.xrange(self.keys.events)]
        ended = (b"job_succeeded", b"job_failed")
        return sum(fields[b"id"] == job_id.encode() and fields[b"event"] in ended for fields in events)

    def leftovers(self) -> list[bytes]:
        """Keys that hold work: none when all is done and no supervisor lives."""
        prefix = self.keys.prefix
        names = [key for key in self.redis.scan_iter() if key.startswith(prefix.encode())]
        return [key for key in names if not key.decode().removeprefix(prefix).startswith(KEPT)]


@contextmanager
def fleet(folder: Path, url: str, *names: str, **settings: dict[str, Any]) -> Iterator[list[Supervisor]]:
    """Supervisors with a folder each, on one Redis."""
    supervisors = [Supervisor(folder / name, url, settings) for name in names]
    try:
        yield [one.start() for one in supervisors]
    finally:
        for one in supervisors:
            one.__exit__(None, None, None)
