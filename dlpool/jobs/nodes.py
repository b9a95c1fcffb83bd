"""The nodes of a queue: commands to list, drain, resume and forget them.

Thread-safe, because ``redis.Redis`` is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis

from dlpool.jobs.job_admin import NoSuchNode, NotPossible
from dlpool.jobs.job_view import time_text
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.queue_views import QueueStats, QueueViews, SupervisorView
from dlpool.jobs.transitions import Transitions

# in the order of the list
NODE_STATES = ("working", "low on space", "halted", "drained", "lost")
# after the end of its lease a node may need this long to reconnect after an outage of
# Redis
FORGET_AFTER_S = 5.0
# status fields that remain true of a lost node
_LASTING = ("host", "pid", "version", "started_at")


class NodeAdmin:
    """The nodes of one queue. Methods raise QueueError. Methods for one node raise
    NoSuchNode if the node is unknown."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._views = QueueViews(client, keys)
        self._queue = QueueAdmin(client, keys)
        self._transitions = Transitions(client, keys)

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return the rows of ``node_rows`` for the present state of the queue."""
        return node_rows(self._views.stats(), self._queue.drained_nodes())

    def drain(self, node: str) -> None:
        """Give a node no new jobs; its running jobs continue."""
        self._known(node)
        self._queue.drain(node)

    def resume(self, node: str) -> None:
        """Give a drained node jobs again. Raises NotPossible if it was not drained."""
        self._known(node)
        if not self._queue.undrain(node):
            raise NotPossible(f"the node {node[:80]!r} was not drained")

    def forget(self, node: str) -> None:
        """Remove a lost node or a drained absent node, and requeue its jobs at once.

        Raises NotPossible if the node is present, or was present until a moment ago.
        """
        stats = self._known(node)
        if node in {one.node for one in stats.supervisors}:
            raise NotPossible(
                f"the node {node[:80]!r} is present: it would be listed again at once"
            )
        sids = [one.sid for one in stats.lost if one.node == node]
        if not deregister(self._transitions, sids, grace_s=FORGET_AFTER_S):
            raise NotPossible(
                f"the node {node[:80]!r} was present a moment ago: try again when it "
                f"stays away"
            )
        self._queue.undrain(node)

    def _known(self, node: str) -> QueueStats:
        stats = self._views.stats()
        if node not in {
            row["node"] for row in node_rows(stats, self._queue.drained_nodes())
        }:
            raise NoSuchNode(
                f"no node {node[:80]!r} is known (dlpool nodes lists them)"
            )
        return stats


def deregister(
    transitions: Transitions, sids: Sequence[str], *, grace_s: float
) -> bool:
    """Requeue the jobs of supervisors that an operator believes to be gone, and remove
    their registrations.

    Returns False if the registration of one of the supervisors is valid, or expired
    less than ``grace_s`` seconds ago. Raises QueueError.
    """
    keys = transitions.keys
    while sids:
        arguments = [keys.prefix, round(grace_s * 1000), "fifo", *sids]
        [(left, *_)] = transitions.run_script(
            "requeue_jobs", [([keys.intake], arguments)]
        )
        if left <= 0:
            return bool(left == 0)
    return True


def node_rows(stats: QueueStats, drained: Collection[str]) -> list[dict[str, Any]]:
    """Return rows with the status of nodes, in a stable order. Pure.

    Each present supervisor, each lost node and each drained absent node has a row. A
    row has ``node``, ``state`` and ``is_drained``; the row of a lost node also has
    ``seen_at``. A node with a lost and a present supervisor counts as present.
    """
    rows = [
        {
            **one.as_json(),
            "node": one.node,
            "is_drained": one.node in drained,
            "state": _state(
                one.info, is_drained=one.node in drained, is_halted=stats.is_halted
            ),
        }
        for one in stats.supervisors
    ]
    listed = {row["node"] for row in rows}
    for one in sorted(stats.lost, key=lambda view: view.seen_at or 0, reverse=True):
        if one.node not in listed:
            rows.append(_lost(one, is_drained=one.node in drained))
            listed.add(one.node)
    rows += [
        {"node": node, "is_drained": True, "state": "drained"}
        for node in drained
        if node not in listed
    ]
    return sorted(
        rows,
        key=lambda row: (
            NODE_STATES.index(row["state"]),
            row["node"] or "",
            row.get("sid", ""),
        ),
    )


def _state(info: Mapping[str, Any], *, is_drained: bool, is_halted: bool) -> str:
    """Return the state of a present node. ``info``: the status of its supervisor."""
    if is_drained:
        return "drained"
    if is_halted and not info.get("busy"):
        return "halted"
    return "low on space" if info.get("is_low_on_space") else "working"


def _lost(one: SupervisorView, *, is_drained: bool) -> dict[str, Any]:
    lasting = {name: one.info[name] for name in _LASTING if name in one.info}
    return {
        **lasting,
        "sid": one.sid,
        "node": one.node,
        "is_drained": is_drained,
        "state": "lost",
        "seen_at": time_text(one.seen_at),
    }
