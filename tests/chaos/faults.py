"""The faults of a chaos run, each one a function in the table ``FAULTS``; another one is a function with ``@fault``.

A fault looks for something to strike, does so, and says what it did and how to undo it; None: there was nothing.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil
import redis

from tests.chaos.node import Node
from tests.chaos.stage import Stage


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Struck:
    """What a fault did, for how long, how it is undone, and what no other fault may touch meanwhile."""

    what: str
    seconds: float = 0.0
    undo: Callable[[], object] = _nothing
    holds: str = ""


Strike = Callable[[Stage, random.Random], Struck | None]


@dataclass(frozen=True)
class Fault:
    """``weight``: how often it is chosen, against the others'. ``only``: with that kind of Redis."""

    name: str
    weight: int
    strike: Strike
    only: str = ""


FAULTS: list[Fault] = []


def fault(weight: int, only: str = "") -> Callable[[Strike], Strike]:
    """Put a function into the table, under its name."""

    def add(strike: Strike) -> Strike:
        FAULTS.append(Fault(strike.__name__, weight, strike, only))
        return strike

    return add


# --- processes ---


@fault(weight=10)
def worker_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGKILL."""
    found = [(node, worker) for node in _up(stage) for worker in node.workers()]
    if not found:
        return None
    node, worker = chance.choice(found)
    with suppress(psutil.Error):
        worker.kill()
    return Struck(f"worker {worker.pid} of {node.name}")


@fault(weight=6)
def worker_frozen(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGSTOP, for less or more than worker_timeout."""
    found = [(node, worker) for node in _up(stage) for worker in node.workers()]
    if not found:
        return None
    node, worker = chance.choice(found)
    seconds = chance.choice([chance.uniform(0.5, 8), chance.uniform(12, 20)])
    return _freeze(f"worker {worker.pid} of {node.name}", [worker], seconds, "")


@fault(weight=5)
def supervisor_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGKILL, at any time of its life."""
    node = _one([node for node in stage.nodes if node.is_alive], chance)
    if node is None:
        return None
    node.kill()
    return Struck(f"supervisor {node.name}")


@fault(weight=3)
def host_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """A supervisor and all of its workers at once."""
    node = _one(_up(stage), chance)
    if node is None:
        return None
    workers = node.workers()
    node.kill()
    for worker in workers:
        with suppress(psutil.Error):
            worker.kill()
    return Struck(f"supervisor {node.name} and {len(workers)} workers")


@fault(weight=5)
def supervisor_frozen(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGSTOP, alone or with its workers, for less or more than lease and grace."""
    node = _one([node for node in _up(stage) if f"process {node.name}" not in stage.held], chance)
    if node is None:
        return None
    with_workers = chance.random() < 0.5
    processes = [psutil.Process(node.service.pid), *(node.workers() if with_workers else [])]
    what = f"supervisor {node.name}{' and its workers' if with_workers else ''}"
    return _freeze(what, processes, chance.uniform(0.5, 10), f"process {node.name}")


@fault(weight=4)
def supervisor_told_to_end(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGTERM at any time, now and then twice."""
    node = _one([node for node in stage.nodes if node.is_alive], chance)
    if node is None:
        return None
    for _ in range(times := chance.choice([1, 1, 2])):
        node.tell_to_end(time.monotonic())
    return Struck(f"supervisor {node.name}, {times} x SIGTERM")


@fault(weight=3)
def supervisor_told_to_reload(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGHUP."""
    node = _one([node for node in stage.nodes if node.handles(signal.SIGHUP)], chance)
    if node is None:
        return None
    node.service.signal(signal.SIGHUP)
    return Struck(f"supervisor {node.name}, SIGHUP")


# --- the network between supervisors and Redis ---


@fault(weight=5)
def connections_dropped(stage: Stage, chance: random.Random) -> Struck | None:
    """All connections of a supervisor close at once."""
    node = chance.choice(stage.nodes)
    node.network.drop()
    return Struck(f"network of {node.name}")


@fault(weight=8)
def reply_swallowed(stage: Stage, chance: random.Random) -> Struck | None:
    """The reply to the next command of a kind is lost; the connection closes, or stays open and deaf."""
    node = chance.choice(stage.nodes)
    marker = chance.choice([b"", b"EVALSHA", b"BLMOVE", b"success", b"failed"])
    is_silent = chance.random() < 0.3
    node.network.swallow_next(marker, silent=is_silent)
    return Struck(f"network of {node.name}, reply to {marker.decode() or 'anything'}{', silently' * is_silent}")


@fault(weight=4)
def replies_swallowed(stage: Stage, chance: random.Random) -> Struck | None:
    """Redis hears and is not heard."""
    return _network(stage, chance, "swallow_all", chance.uniform(0.2, 7))


@fault(weight=5)
def network_black(stage: Stage, chance: random.Random) -> Struck | None:
    """Nothing passes; then all of it is delivered, late."""
    return _network(stage, chance, "blackhole", chance.uniform(0.2, 9))


@fault(weight=4)
def network_refused(stage: Stage, chance: random.Random) -> Struck | None:
    """No connection."""
    return _network(stage, chance, "refuse", chance.uniform(0.2, 9))


@fault(weight=4)
def network_slow(stage: Stage, chance: random.Random) -> Struck | None:
    """Each piece of data comes later."""
    late_s = chance.choice([0.02, 0.1, 0.5])
    return _network(stage, chance, "slow_down", chance.uniform(1, 6), late_s)


# --- Redis ---


@fault(weight=4, only="single")
def redis_killed(stage: Stage, chance: random.Random) -> Struck | None:
    """SIGKILL; all that it acknowledged is in its append-only file."""
    if "redis" in stage.held:
        return None
    server = stage.backend.server
    server.kill()
    seconds = chance.choice([0.0, chance.uniform(0, 8)])
    return Struck(f"for {seconds:.1f} s", seconds, server.start, "redis")


@fault(weight=3)
def redis_paused(stage: Stage, chance: random.Random) -> Struck | None:
    """CLIENT PAUSE. A single Redis may have any other fault meanwhile; a failover needs its answers."""
    seconds = chance.uniform(0.2, 7)
    struck = _ask(stage, f"for {seconds:.1f} s", lambda: stage.redis.client_pause(int(seconds * 1000)))
    return struck and (struck if stage.backend.kind == "single" else Struck(struck.what, seconds, holds="redis"))


@fault(weight=3)
def redis_out_of_memory(stage: Stage, chance: random.Random) -> Struck | None:
    """maxmemory below what is used, and noeviction."""
    seconds = chance.uniform(0.2, 5)

    struck = _ask(stage, f"for {seconds:.1f} s", lambda: stage.redis.config_set("maxmemory", 1))
    return struck and Struck(struck.what, seconds, lambda: stage.redis.config_set("maxmemory", 0), "redis")


@fault(weight=3)
def scripts_flushed(stage: Stage, chance: random.Random) -> Struck | None:
    """SCRIPT FLUSH."""
    return _ask(stage, "SCRIPT FLUSH", stage.redis.script_flush)


# --- the disk ---


@fault(weight=3)
def disk_full(stage: Stage, chance: random.Random) -> Struck | None:
    """The disk of the downloads has no free block."""
    if not stage.has_own_disk or "disk" in stage.held:
        return None
    stats = os.statvfs(stage.downloads)
    try:
        stage.set_disk(str((stats.f_blocks - stats.f_bfree + chance.choice([4, 64])) * stats.f_frsize))
    except subprocess.CalledProcessError:  # more was written meanwhile
        return None
    seconds = chance.uniform(0.2, 4)
    return Struck(f"for {seconds:.1f} s", seconds, stage.free_disk, "disk")


# --- what they share ---


def _up(stage: Stage) -> list[Node]:
    return [node for node in stage.nodes if node.is_up]


def _one(nodes: Sequence[Node], chance: random.Random) -> Node | None:
    return chance.choice(nodes) if nodes else None


def _freeze(what: str, processes: Sequence[psutil.Process], seconds: float, holds: str) -> Struck:
    for process in processes:
        with suppress(psutil.Error):
            process.suspend()
    return Struck(f"{what} for {seconds:.1f} s", seconds, partial(_wake, processes), holds)


def _wake(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):  # it may have been killed meanwhile; psutil knows it from one with its pid
            process.resume()


def _network(stage: Stage, chance: random.Random, method: str, seconds: float, *options: float) -> Struck | None:
    free = [node for node in stage.nodes if f"network {node.name}" not in stage.held]
    if not free:
        return None
    node = chance.choice(free)
    getattr(node.network, method)(*options)
    what = " ".join([f"network of {node.name} for {seconds:.1f} s", *(f"({option:g} s)" for option in options)])
    return Struck(what, seconds, node.network.pass_on, f"network {node.name}")


def _ask(stage: Stage, what: str, command: Callable[[], object]) -> Struck | None:
    """A command to Redis; it may be away."""
    if "redis" in stage.held:
        return None
    try:
        command()
    except redis.RedisError:
        return None
    return Struck(what)
