"""The Redis of a chaos run: one server, or a master with a replica and a Sentinel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import redis

from dlpool.config import RedisSettings
from dlpool.jobs.connection import connect
from tests.chaos.network import Network
from tests.conftest import wait_until
from tests.redis_kinds import NAME, Replicated
from tests.redis_server import RedisServer

KINDS = ("single", "sentinel")
PATIENCE_S = 5.0
SILENCE_MS = 15_000  # no other fault makes the Sentinel act: neither a pause of Redis nor a busy machine
DEAD_MS = 500
WANTS = "min-replicas-to-write"
IN_STEP_S = 10.0


class NotYet(Exception):
    """What shall be undone cannot be undone yet."""


class Backend(Protocol):
    """``server`` is the one to strike; ``failovers``: how many faults have caused."""

    kind: str
    failovers: int

    @property
    def server(self) -> RedisServer: ...

    @property
    def pids(self) -> list[int]: ...

    def client(self) -> redis.Redis:
        """One that goes past the faults of the network, and finds the server after a failover."""

    def network(self) -> Network:
        """Of one more supervisor."""

    def problems(self) -> list[str]:
        """What must not have happened."""


class Single:
    """One server."""

    kind = "single"

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        self.failovers = 0
        self.server = stack.enter_context(RedisServer(folder, appendonly=True, **options))

    @property
    def pids(self) -> list[int]:
        return [self.server.pid]

    def client(self) -> redis.Redis:
        return self.server.client(socket_timeout=PATIENCE_S)

    def network(self) -> Network:
        return Network.to_one(self.server.socket)

    def problems(self) -> list[str]:
        return []


class Watched:
    """A master and its replica, which a Sentinel lets change roles. Used by one thread.

    Replication is asynchronous: a master that dies may take acknowledged writes with it, and no account of those could
    be exact. So before each failover the master is held still: it wants more replicas than there are
    (``min-replicas-to-write``), and so refuses all writes (``NOREPLICAS``) until it is a replica itself, or dead; and
    its replica has read all that it had written. (``CLIENT PAUSE WRITE`` would hold the Sentinel's own orders back.)
    So nothing acknowledged is lost, and a run proves that dlpool does nothing twice and forgets nothing across a
    failover; not that replication keeps everything.
    """

    kind = "sentinel"

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        self.failovers = 0
        self._folder = folder
        self._set = stack.enter_context(Replicated(folder, silence_ms=SILENCE_MS, **options))
        self._old: RedisServer | None = None  # the master that a failover is about
        self._is_told = False

    @property
    def server(self) -> RedisServer:
        return self._set.master()

    @property
    def pids(self) -> list[int]:
        return self._set.pids

    def client(self) -> redis.Redis:
        return connect(replace(RedisSettings(), url=self._set.url), self._folder)

    def network(self) -> Network:
        return Network.to_replicated(self._set)

    def problems(self) -> list[str]:
        """A failover that nobody asked for may have lost anything."""
        seen = self._set.failovers
        if seen == self.failovers:
            return []
        return [f"the Sentinel did {seen} failovers, {self.failovers} were asked for: the run proves nothing"]

    def kill_replica(self) -> Callable[[], object]:
        """SIGKILL; returns what starts it again."""
        master = self._set.master()
        replica = self._other(master)
        replica.kill()
        return partial(replica.start, replicaof=f"127.0.0.1 {master.port}")

    # --- a failover: hold_still, then step_down or die, then settle ---

    def hold_still(self) -> bool:
        """The master takes no writes any more, and its replica has all; False where that cannot be now."""
        master = self._set.master()
        with master.client() as client, self._other(master).client() as other:
            with suppress(redis.RedisError):
                if not _is_linked(other):
                    return False
                client.config_set(WANTS, 2)
                written = client.info("replication")["master_repl_offset"]
                with suppress(AssertionError):
                    wait_until(lambda: other.info("replication")["slave_repl_offset"] >= written, IN_STEP_S)
                    self._old = master
                    return True
            client.config_set(WANTS, 0)
        return False

    def step_down(self, *, is_told: bool) -> bool:
        """The Sentinel makes the replica the master; False: it finds that it cannot.

        ``is_told``: the old master is made a replica at once; else the Sentinel does so ten seconds later.
        """
        assert self._old is not None
        self._is_told = is_told
        try:
            self._set.sentinel.execute_command("SENTINEL", "FAILOVER", NAME)
        except redis.ResponseError:
            with self._old.client() as client:
                client.config_set(WANTS, 0)
            self._old = None
            return False
        self.failovers += 1
        return True

    def die(self) -> None:
        """The master is killed; the Sentinel sees that soon."""
        assert self._old is not None
        self._old.kill()
        self._set.sentinel.execute_command("SENTINEL", "SET", NAME, "down-after-milliseconds", DEAD_MS)
        self.failovers += 1

    def settle(self) -> None:
        """The failover is over, and the old master is a replica. Raises NotYet."""
        assert self._old is not None
        if self._set.master() is self._old:
            raise NotYet
        master = self._set.master()
        if not self._old.is_running:
            self._set.sentinel.execute_command("SENTINEL", "SET", NAME, "down-after-milliseconds", SILENCE_MS)
            self._old.start(replicaof=f"127.0.0.1 {master.port}")
            self._old = None
            return
        with self._old.client() as client:
            if self._is_told:
                client.replicaof("127.0.0.1", master.port)
            if client.info("replication")["role"] != "slave":
                raise NotYet
            client.config_set(WANTS, 0)
        self._old = None

    def _other(self, server: RedisServer) -> RedisServer:
        return next(one for one in self._set.servers if one is not server)


def backend(kind: str, folder: Path, stack: ExitStack, **options: Any) -> Single | Watched:
    """A Redis of one of ``KINDS``, until the stack ends."""
    return (Watched if kind == "sentinel" else Single)(folder, stack, **options)


def _is_linked(replica: redis.Redis) -> bool:
    said = replica.info("replication")
    return bool(said["role"] == "slave" and said["master_link_status"] == "up")
