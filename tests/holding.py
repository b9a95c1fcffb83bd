"""Holds something of a state folder until it is killed: ``python -m tests.holding redis|node|worker STATE_DIR``.

What it holds it says on one line: the server's pid; a new sid, and the pid of a child that inherits what can be
inherited; nothing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlpool.service.node.embedded_redis import EmbeddedRedis
from dlpool.service.node.node import Node, hold_worker_lock
from tests.processes import start


@dataclass(frozen=True)
class Holding:
    """A process that holds something, and what it said of it."""

    process: subprocess.Popen[str]

    def words(self) -> list[str]:
        """What it holds; waits until it does."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return line.split()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def begin(role: str, state_dir: Path) -> Holding:
    """Start a holder without waiting for it."""
    return Holding(start(role, state_dir, module="tests.holding"))


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def hold_redis(state_dir: Path) -> tuple[object, str]:
    server = EmbeddedRedis.start(state_dir)
    return server, str(server.process.pid)


def hold_node(state_dir: Path) -> tuple[object, str]:
    node = Node.open(state_dir)
    child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return node, f"{node.new_sid()} {child.pid}"


def hold_worker(state_dir: Path) -> tuple[object, str]:
    return hold_worker_lock(state_dir), "worker"


ROLES: dict[str, Callable[[Path], tuple[object, str]]] = {"redis": hold_redis, "node": hold_node, "worker": hold_worker}

if __name__ == "__main__":
    held, said = ROLES[sys.argv[1]](Path(sys.argv[2]))
    print(said, flush=True)
    signal.pause()
