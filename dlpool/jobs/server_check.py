"""What a server says of itself: whether dlpool can work with it, and what may cost jobs
there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import cluster_of, translated

OLDEST = (6, 2)


@dataclass(frozen=True)
class ServerWarning:
    """Something that may cost jobs: ``event`` is its name in logs, ``reason`` a
    sentence."""

    event: str
    reason: str


@dataclass(frozen=True)
class ServerInfo:
    """What a server says: ``INFO``, and when it writes its data to disk; None where it
    does not tell us."""

    info: Mapping[str, Any] | None
    save: str | None = None


def read_server_info(client: redis.Redis) -> ServerInfo:
    """What the server says of itself. Raises QueueRefused if dlpool cannot work with
    it, or QueueError."""
    info = _asked(client, lambda: client.info())
    if info is None:
        return ServerInfo(None)
    if reason := incompatibility(info, is_cluster=cluster_of(client) is not None):
        raise QueueRefused(reason)
    saving = _asked(client, lambda: client.config_get("save"))
    return ServerInfo(info, None if saving is None else str(saving.get("save", "")))


def check_server(client: redis.Redis) -> tuple[ServerWarning, ...]:
    """What may cost jobs on this server. Raises QueueRefused if dlpool cannot work with
    it, or QueueError.

    What the server does not let us see (a managed one, an ACL) is taken for good.
    """
    said = read_server_info(client)
    return () if said.info is None else warnings(said.info, said.save)


def incompatibility(info: Mapping[str, Any], *, is_cluster: bool) -> str:
    """Why dlpool cannot work with a server that says ``info``; '' if it can. Pure."""
    version = str(info.get("redis_version", ""))
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < OLDEST:
        return f"Redis {version} is too old: dlpool needs 6.2 or newer, or Valkey"
    if info.get("cluster_enabled") and not is_cluster:
        return (
            "this Redis is a node of a Cluster: its URL in [redis] must be "
            "redis+cluster:// (or rediss+cluster://)"
        )
    return ""


def master_of_replica(info: Mapping[str, Any]) -> str:
    """Return HOST:PORT of the master if the server is a read-only replica, else ''.
    Pure."""
    if info.get("role") != "slave" or str(info.get("slave_read_only", 1)) == "0":
        return ""
    return f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"


def warnings(info: Mapping[str, Any], save: str | None) -> tuple[ServerWarning, ...]:
    """What may cost jobs. ``save``: when the server writes its data to disk, '' never,
    None: not known. Pure."""
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        reason = (
            f"maxmemory-policy is {policy}: when its memory is full, Redis removes "
            f"jobs; "
            f"set noeviction"
        )
        found.append(ServerWarning("redis_may_evict", reason))
    if save == "" and not info.get("aof_enabled"):
        reason = (
            "neither an append-only file nor save: when Redis ends, all jobs are lost; "
            "set "
            "appendonly yes"
        )
        found.append(ServerWarning("redis_not_persistent", reason))
    return tuple(found)


def _asked(client: redis.Redis, ask: Any) -> Any:
    """The answer; None if the server does not tell us. Raises QueueAway, and
    QueueRefused to whom nothing is told."""
    try:
        with translated(client):
            return ask()
    except QueueAway:
        raise
    except QueueError:
        with translated(client):
            client.ping()
        return None
