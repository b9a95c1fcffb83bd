"""All that runs in a chaos run: Redis, an origin, supervisors behind proxies, one folder of downloads."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.backends import KINDS, backend
from tests.chaos.jobs import Jobs
from tests.chaos.node import Node, settings
from tests.chaos.operator import Operator
from tests.chaos.pusher import Pusher
from tests.chaos.site import Site
from tests.chaos.witness import Witness
from tests.disks import remount, tmpfs
from tests.origin import Origin

DISK_SIZE = "4G"
MARK = "DLPOOL_CHAOS_RUN"  # in the environment of every process that is ours
KIND_WEIGHTS = (3, 1)


class Stage:
    """What faults act on. Used by the main thread only, but for ``jobs``, ``pusher`` and ``witness``."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, stack: ExitStack, say: Callable[[str], None], kind: str = ""
    ) -> None:
        """``kind`` of Redis: one of ``KINDS``, or what the seed decides."""
        self.folder = folder
        self.say = say
        chance = random.Random(f"{seed}: stage")
        self.token = secrets.token_hex(8)
        stack.enter_context(marked(self.token))
        self.appendfsync = chance.choice(["always", "no"])  # not everysec: it may keep writes from the kernel for 2 s
        options: dict[str, Any] = {"appendfsync": self.appendfsync, "maxmemory_policy": "noeviction"}
        kind = kind or chance.choices(KINDS, KIND_WEIGHTS)[0]
        self.backend = backend(kind, folder / "redis", stack, **options)
        self.redis: Any = self.backend.client()
        self.base_memory = self.memory()
        self.downloads = folder / "downloads"
        self.has_own_disk = _mount(self.downloads, stack)
        self.jobs = Jobs(seed)
        self.site = Site(seed, self.jobs)
        self.origin = stack.enter_context(Origin(self.site))
        self.jobs.origin = self.origin.url
        names = "abc"[: chance.choice([2, 2, 3])]
        self.settings = settings(self.downloads, chance)
        self.nodes = [Node(name, folder / name, self.backend.network(), self.settings) for name in names]
        stack.callback(self._end_all)
        self.pusher = Pusher(seed, self.jobs, self.backend.client(), seconds)
        self.witness = Witness(self.backend.client())
        stack.callback(self.witness.stop)
        self.operator = Operator(seed, self.jobs, self.witness, self.backend.client())
        self.held: set[str] = set()  # what a fault has in its hands

    def __repr__(self) -> str:
        order, most = self.settings["redis"]["order"], self.settings["supervisor"].get("max_jobs_per_worker", "any")
        limits = " and ".join(f"{name} {value}" for name, value in self.settings["limits"].items()) or "no limits"
        return (
            f"<Stage {len(self.nodes)} supervisors, Redis: {self.backend.kind}, appendfsync {self.appendfsync}, "
            f"{order}, {most} jobs per worker, {limits} of hosts, {'a' if self.has_own_disk else 'no'} disk of its own>"
        )

    def memory(self) -> int:
        """What Redis uses, in bytes, but for what its replica has yet to read."""
        said = self.redis.info("memory")
        return int(said["used_memory"]) - int(said.get("mem_total_replication_buffers", 0))

    def set_disk(self, size: str) -> None:
        """Give the disk of the downloads another size."""
        remount(self.downloads, f"size={size}")

    def free_disk(self) -> None:
        """No limit is felt any more."""
        self.set_disk(DISK_SIZE)

    def ours(self) -> list[psutil.Process]:
        """The processes of this run that live, but for Redis and this one."""
        others = {os.getpid(), *self.backend.pids}
        return [one for one in psutil.process_iter() if one.pid not in others and self._is_ours(one)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get(MARK) == self.token and process.status() != psutil.STATUS_ZOMBIE
        return False

    def _end_all(self) -> None:
        """Whatever is left, at the very end."""
        for node in self.nodes:
            node.service.kill()
            node.network.close()
        for process in self.ours():
            with suppress(psutil.Error):
                process.kill()


@contextmanager
def marked(token: str) -> Iterator[None]:
    """Every process that is started meanwhile has the mark."""
    os.environ[MARK] = token
    try:
        yield
    finally:
        del os.environ[MARK]


def _mount(folder: Path, stack: ExitStack) -> bool:
    """Whether the folder could be given a small disk of its own."""
    if os.geteuid() == 0:
        with suppress(subprocess.CalledProcessError, FileNotFoundError):
            stack.enter_context(tmpfs(folder, DISK_SIZE))
            return True
    folder.mkdir(parents=True, exist_ok=True)
    return False
