"""One supervisor of a chaos run: its process, its network to Redis, its log; it is started again when it has ended."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.network import Network
from tests.fleet import Supervisor

AWAY_S = (0.1, 8.0)  # until the next start: shorter or longer than lease and grace
END_LATEST_S = 60.0  # after SIGTERM


def settings(downloads: Path, chance: random.Random) -> dict[str, dict[str, Any]]:
    """What the supervisors of a run share: short times, and what a seed decides."""
    fast: dict[str, Any] = {
        "lease": "3s",
        "grace": "2s",
        "workers": 2,
        "max_concurrent_downloads": 6,
        "worker_timeout": "15s",
        "drain_timeout": "2s",
        "fault_delay": "1s",
        "max_attempts": 1000,
        "job_retry_delay": "100ms",
        "job_retry_max_delay": "500ms",
        "locked_delay": "200ms",
    }
    return {
        "supervisor": fast | chance.choice([{}, {"max_jobs_per_worker": 20}]),
        "network": {"read_timeout": "3s", "network": "any"},
        "limits": chance.choice(
            [{}, {}, {"max_per_host": 4}, {"rate_per_host": "40/s"}, {"max_per_host": 5, "rate_per_host": "50/s"}]
        ),
        "redis": {"order": chance.choice(["fifo", "fifo", "lifo"])},
        "paths": {"download_dir": downloads},
    }


class Journal:
    """What a log says, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.ready: set[int] = set()  # pids of supervisors that have come up
        self.records: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take in what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            *lines, _rest = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in lines)
        for line in lines:
            with suppress(ValueError):
                record = json.loads(line)
                self.records.append(record)
                if record["event.action"] == "service_ready":
                    self.ready.add(record["process.pid"])


class Node:
    """Used by one thread. ``problems`` is what must not have happened."""

    def __init__(self, name: str, folder: Path, network: Network, given: dict[str, dict[str, Any]]) -> None:
        self.name = name
        self.network = network
        given = {**given, "redis": {**given["redis"], "url": self.network.url}}
        self.service = Supervisor(folder, self.network.url, given)
        self.journal = Journal(self.service.log_file)
        self.may_end_with: set[int] = set()
        self.problems: list[str] = []
        self.starts = 0
        self._start_at: float | None = None
        self._end_by: float | None = None

    def __repr__(self) -> str:
        return f"<Node {self.name}: {'alive' if self.is_alive else 'ended'}, {self.starts} starts>"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_up(self) -> bool:
        """Whether it lives and has worked since its start."""
        self.journal.read()
        return self.is_alive and self.service.pid in self.journal.ready

    @property
    def is_staying(self) -> bool:
        """Whether it works and was not told to end."""
        return self._end_by is None and self.is_up

    def handles(self, number: signal.Signals) -> bool:
        """Whether its process handles the signal by now; before that, it is ended by it. See proc_pid_status(5)."""
        if not self.is_alive:
            return False
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.service.pid}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) & 1 << number - 1)

    @property
    def _process(self) -> subprocess.Popen[bytes] | None:
        return self.service.process

    def start(self) -> None:
        """Start it, without waiting for anything."""
        self._start_at = self._end_by = None
        self.may_end_with = set()
        self.starts += 1
        self.service.start(is_ready=False)

    def workers(self) -> list[psutil.Process]:
        """Its workers that live."""
        with suppress(psutil.Error):
            return self.service.workers() if self.is_alive else []
        return []

    def kill(self) -> None:
        """SIGKILL."""
        self.may_end_with.add(-signal.SIGKILL)
        if self._process is not None:
            self._process.kill()

    def tell_to_end(self, now: float) -> None:
        """SIGTERM; before it works, and when told again at its very end, it ends at once."""
        is_working = self.handles(signal.SIGTERM) and self._end_by is None
        self.may_end_with |= {0} if is_working else {0, -signal.SIGTERM}
        self._end_by = min(self._end_by or now + END_LATEST_S, now + END_LATEST_S)
        self.service.signal(signal.SIGTERM)

    def tend(self, now: float, chance: random.Random, say: Callable[[str], None]) -> None:
        """Look how it ended, and start it again after a while."""
        if self._process is None:
            return
        if self.is_alive:
            if self._end_by is not None and now > self._end_by:
                self.problems.append(f"supervisor {self.name} did not end within {END_LATEST_S:g} s of SIGTERM")
                self.kill()
        elif self._start_at is None:
            self.judge_end()
            self._start_at = now + chance.uniform(*AWAY_S)
        elif now >= self._start_at:
            self.start()
            say(f"supervisor {self.name} is started again")

    def judge_end(self) -> None:
        """Wait for its end, and note one that nobody caused."""
        try:
            code = self.service.wait(END_LATEST_S)
        except subprocess.TimeoutExpired:
            self.problems.append(f"supervisor {self.name} does not end; it said:\n{self.service.said()[-3000:]}")
            self.service.kill()
            return
        if code not in self.may_end_with:
            wanted = " or ".join(map(str, sorted(self.may_end_with))) or "no end"
            said = self.service.said()[-3000:]
            self.problems.append(f"supervisor {self.name} ended with {code}, wanted was {wanted}; it said:\n{said}")

    def come_back(self) -> None:
        """Start it now if it does not live."""
        if not self.is_alive:
            if self._start_at is None and self._process is not None:
                self.judge_end()
            self.start()
