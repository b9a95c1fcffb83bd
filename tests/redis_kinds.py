"""A Sentinel and a Cluster of the tests' own, on 127.0.0.1."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from dlpool.jobs.keys import QueueKeys
from tests.conftest import free_port, wait_until
from tests.redis_server import STOP_S, RedisServer

NAME = "main"
SILENCE_MS = 500
_SENTINEL = """
port {port}
bind 127.0.0.1
dir {folder}
logfile {folder}/sentinel.log
{more}
sentinel monitor {name} 127.0.0.1 {master} 1
sentinel down-after-milliseconds {name} {silence}
sentinel failover-timeout {name} 3000
"""


class Replicated:
    """A master, its replica, and the Sentinel that watches them; a context.

    ``silence_ms``: after that the Sentinel takes a master for dead. ``options`` are the servers'.
    """

    def __init__(
        self, folder: Path, password: str | None = None, *, silence_ms: int = SILENCE_MS, **options: Any
    ) -> None:
        first, second = free_port(), free_port()
        options = {"appendonly": True, "repl_diskless_sync_delay": 0, **options}
        self.servers = [
            RedisServer(folder / "first", port=first, **options),
            RedisServer(folder / "second", port=second, replicaof=f"127.0.0.1 {first}", **options),
        ]
        self.port = free_port()
        self.password = password
        self._silence_ms = silence_ms
        self._config = folder / "sentinel.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/{NAME}"

    @property
    def sentinel(self) -> Any:
        return redis.Redis(port=self.port, password=self.password, socket_timeout=10, protocol=2)

    @property
    def pids(self) -> list[int]:
        """Of all that runs."""
        own = [] if self._process is None else [self._process.pid]
        return own + [server.pid for server in self.servers if server.is_running]

    @property
    def failovers(self) -> int:
        """How often the Sentinel has made another one the master."""
        return (self._config.parent / "sentinel.log").read_text().count("+switch-master")

    def master(self) -> RedisServer:
        """Who is the master, as the Sentinel knows."""
        _, port = self.sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return next(server for server in self.servers if server.port == int(port))

    def is_in_step(self) -> bool:
        """Whether the replica has all that the master has acknowledged."""
        with self.master().client() as client:
            return int(client.wait(1, 1000)) == 1

    def __enter__(self) -> Replicated:
        with ExitStack() as undo:
            undo.push(self)
            self._start()
            undo.pop_all()
        return self

    def _start(self) -> None:
        for server in self.servers:
            self._stack.enter_context(server)
        wait_until(lambda: self.servers[1].client().info("replication")["master_link_status"] == "up")
        more = f"requirepass {self.password}" if self.password else ""
        self._config.write_text(
            _SENTINEL.format(
                port=self.port,
                folder=self._config.parent,
                more=more,
                name=NAME,
                master=self.servers[0].port,
                silence=self._silence_ms,
            )
        )
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        assert binary is not None
        self._process = subprocess.Popen([binary, self._config, "--sentinel"], stdout=subprocess.DEVNULL)
        wait_until(self._sees_the_replica)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
        self._stack.close()

    def _sees_the_replica(self) -> bool:
        with suppress(redis.RedisError):
            rows = self.sentinel.execute_command("SENTINEL", "REPLICAS", NAME)
            return any(b"slave" in row and b"ok" in row for row in rows)
        return False


class Cluster:
    """Nodes of a Cluster with ``masters`` masters, each with ``replicas``; a context.

    Of three masters the first has the queue's slot, the second that of the failure records; two are a majority.
    """

    def __init__(self, folder: Path, masters: int = 1, replicas: int = 0, **options: Any) -> None:
        self.nodes = [
            RedisServer(
                folder / f"node{number}",
                port=free_port(),
                cluster_enabled="yes",
                cluster_port=free_port(),
                cluster_node_timeout=2000,
                cluster_require_full_coverage="no",
                appendonly=True,
                repl_diskless_sync_delay=0,
                **options,
            )
            for number in range(masters * (1 + replicas))
        ]
        self.masters = self.nodes[:masters]
        self.replicas = self.nodes[masters:]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def client(self) -> Any:
        """A client as others have it."""
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port or 0, socket_timeout=10)

    def wait_until_ok(self) -> None:
        """Until every node serves."""
        wait_until(lambda: all(map(_serves, self.nodes)))

    def __enter__(self) -> Cluster:
        with ExitStack() as undo:
            undo.push(self)
            self._start()
            undo.pop_all()
        return self

    def move_slot(self, key: str, master: RedisServer) -> None:
        """Give the slot of a key, that has no keys, to another master."""
        name = _ask(master, "MYID")
        for node in [master, *(one for one in self.masters if one is not master)]:
            _ask(node, "SETSLOT", key_slot(key.encode()), "NODE", name)

    def _start(self) -> None:
        for node in self.nodes:
            self._stack.enter_context(node)
        self._give_slots()
        first = self.nodes[0]
        for node in self.nodes[1:]:
            _ask(node, "MEET", "127.0.0.1", first.port, first.client().config_get("cluster-port")["cluster-port"])
        wait_until(lambda: all(len(_ask(node, "NODES")) == len(self.nodes) for node in self.nodes))
        for number, replica in enumerate(self.replicas):
            master = self.masters[number % len(self.masters)]
            _ask(replica, "REPLICATE", _ask(master, "MYID"))
            wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")  # noqa: B023
        self.wait_until_ok()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _give_slots(self) -> None:
        last = REDIS_CLUSTER_HASH_SLOTS - 1
        if len(self.masters) == 1:
            _ask(self.nodes[0], "ADDSLOTSRANGE", 0, last)
            return
        queue, failed = key_slot(QueueKeys().intake.encode()), key_slot(QueueKeys().failed.encode())
        middle = (queue + failed) // 2
        lower, upper = (0, middle), (middle + 1, last - 1)
        parts = [lower, upper] if queue < failed else [upper, lower]
        for node, (start, end) in zip(self.masters, [*parts, (last, last)], strict=True):
            _ask(node, "ADDSLOTSRANGE", start, end)


def _serves(node: RedisServer) -> bool:
    said = _ask(node, "INFO")
    return bool(said["cluster_state"] == "ok" and int(said["cluster_slots_assigned"]) == REDIS_CLUSTER_HASH_SLOTS)


def _ask(node: RedisServer, *command: Any) -> Any:
    with node.client() as client:
        return client.execute_command(f"CLUSTER {command[0]}", *command[1:])
