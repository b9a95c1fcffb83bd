"""The nodes that work on a queue, and whether they may begin jobs. Thread-safe, as the client is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import redis

from dlpool.jobs.keys import Keys
from dlpool.jobs.replies import NotPossible
from dlpool.jobs.steering import Steering
from dlpool.jobs.views import SupervisorView, Views


class Nodes:
    """Lists and steers the nodes of one queue. Each method raises QueueError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._views = Views(client, keys)
        self._steering = Steering(client, keys)

    def all(self) -> list[dict[str, Any]]:
        """A row for each node that is there, and for each that is drained and away."""
        return node_rows(self._views.stats().supervisors, self._steering.drained())

    def drain(self, node: str) -> None:
        """Let a node end its jobs, and begin no others. Raises NotPossible if it is not there."""
        if node not in {one.info.get("node") for one in self._views.stats().supervisors}:
            raise NotPossible(f"no node {node[:80]!r} is there (dlpool nodes lists them)")
        self._steering.drain(node)

    def resume(self, node: str) -> None:
        """Let it begin jobs again. Raises NotPossible if it was not drained."""
        if not self._steering.undrain(node):
            raise NotPossible(f"the node {node[:80]!r} was not drained")


def node_rows(supervisors: Iterable[SupervisorView], drained: Collection[str]) -> list[dict[str, Any]]:
    """What nodes say of themselves, with ``node`` and ``is_drained``; those that are drained and away last. Pure."""
    rows = [
        {"node": one.info.get("node"), "is_drained": one.info.get("node") in drained, **one.as_json()}
        for one in supervisors
    ]
    living = {row["node"] for row in rows}
    return rows + [{"node": node, "is_drained": True} for node in sorted(drained) if node not in living]


def node_state(info: Mapping[str, Any], *, is_drained: bool) -> str:
    """What a node does, by what it says of itself. Pure."""
    if is_drained:
        return "drained"
    return "low on space" if info.get("is_low_on_space") else "working"
