"""The check of a Redis server: its version, and its settings that may lose jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.connection import cluster_of, translated

MIN_VERSION = (6, 2)


@dataclass(frozen=True)
class ServerWarning:
    """A setting that may lose jobs. ``event``: its name in logs; ``reason``: a
    sentence."""

    event: str
    reason: str


@dataclass(frozen=True)
class ServerInfo:
    """The reply to ``INFO``, and the setting ``save``. Each is None if the server
    refuses to show it."""

    info: Mapping[str, Any] | None
    save: str | None = None


def read_server_info(client: redis.Redis) -> ServerInfo:
    """Read the server's information. Raises QueueRefused for an incompatible server,
    and QueueError if the call fails."""
    info = _ask(client, lambda: client.info())
    if info is None:
        return ServerInfo(None)
    if reason := incompatibility(info, is_cluster=cluster_of(client) is not None):
        raise QueueRefused(reason)
    saving = _ask(client, lambda: client.config_get("save"))
    return ServerInfo(info, None if saving is None else str(saving.get("save", "")))


def check_server(client: redis.Redis) -> tuple[ServerWarning, ...]:
    """Return warnings on the server's settings. Raises QueueRefused for an incompatible
    server, and QueueError if the call fails.

    A setting that the server does not show (a managed server, or an ACL) is assumed to
    be safe.
    """
    found = read_server_info(client)
    return () if found.info is None else warnings(found.info, found.save)


def incompatibility(info: Mapping[str, Any], *, is_cluster: bool) -> str:
    """Return why dlpool cannot work with a server; '' if it can. Pure."""
    version = str(info.get("redis_version", ""))
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < MIN_VERSION:
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
    """Return warnings on settings that may lose jobs. ``save``: the setting
    ``save``; '' if the server never saves, None if unknown. Pure."""
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


def _ask(client: redis.Redis, ask: Any) -> Any:
    """Call ``ask``, which sends one command, and return the reply.

    Returns None if Redis refuses this command but answers PING. Raises QueueError.
    """
    try:
        with translated(client):
            return ask()
    except QueueAway:
        raise
    except QueueError:
        with translated(client):
            client.ping()
        return None
