"""The nodes that work on a queue, and whether they may begin jobs. Thread-safe, as the
client is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis

from dlpool.jobs.job_view import time_text
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.queue_views import QueueStats, QueueViews, SupervisorView
from dlpool.jobs.replies import NoSuchNode, NotPossible
from dlpool.jobs.transitions import Transitions

NODE_STATES = (
    "working",
    "low on space",
    "halted",
    "drained",
    "lost",
)  # in the order in which they are listed
FORGET_AFTER_S = 5.0  # after its lease: so long a node may take to come back with Redis
_LASTING = (
    "host",
    "pid",
    "version",
    "started_at",
)  # what is still true of a node that was lost


class NodeAdmin:
    """Lists and steers the nodes of one queue. Each method raises QueueError, those for
    one node NoSuchNode."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._views = QueueViews(client, keys)
        self._steering = QueueAdmin(client, keys)
        self._transitions = Transitions(client, keys)

    def list_nodes(self) -> list[dict[str, Any]]:
        """A row for each node that is there, that was lost, or that is drained and
        away."""
        return node_rows(self._views.stats(), self._steering.drained_nodes())

    def drain(self, node: str) -> None:
        """Let a node end its jobs, and begin no others."""
        self._known(node)
        self._steering.drain(node)

    def resume(self, node: str) -> None:
        """Let it begin jobs again. Raises NotPossible if it was not drained."""
        self._known(node)
        if not self._steering.undrain(node):
            raise NotPossible(f"the node {node[:80]!r} was not drained")

    def forget(self, node: str) -> None:
        """Strike off a node that was lost, or that is drained and away. Raises
        NotPossible while it is there.

        What it still held goes back at once: whoever strikes it off knows that it is
        gone.
        """
        stats = self._known(node)
        if node in {one.node for one in stats.supervisors}:
            raise NotPossible(
                f"the node {node[:80]!r} is there: it would be listed again at once"
            )
        sids = [one.sid for one in stats.lost if one.node == node]
        # Others have emptied its inbox long ago; if they have not, the order of a few
        # jobs is all that this decides.
        if not deregister(self._transitions, sids, grace_s=FORGET_AFTER_S):
            raise NotPossible(
                f"the node {node[:80]!r} was there a moment ago: try again when it "
                f"stays away"
            )
        self._steering.undrain(node)

    def _known(self, node: str) -> QueueStats:
        stats = self._views.stats()
        if node not in {
            row["node"] for row in node_rows(stats, self._steering.drained_nodes())
        }:
            raise NoSuchNode(
                f"no node {node[:80]!r} is known (dlpool nodes lists them)"
            )
        return stats


def deregister(
    transitions: Transitions, sids: Sequence[str], *, grace_s: float
) -> bool:
    """Give back what supervisors have that somebody only believes to be gone.

    False, and nothing is done, if the lease of one passed less than ``grace_s`` ago, or
    has not. Raises QueueError.
    """
    keys = transitions.keys
    while sids:
        arguments = [keys.prefix, "", round(grace_s * 1000), "fifo", *sids]
        [(left, *_)] = transitions.run_script("recover", [([keys.intake], arguments)])
        if left <= 0:
            return bool(left == 0)
    return True


def node_rows(stats: QueueStats, drained: Collection[str]) -> list[dict[str, Any]]:
    """What nodes say of themselves, with ``node``, ``state`` and ``is_drained``, in an
    order that lasts. Pure.

    Also those that are drained and away, and those that were lost, with ``seen_at``; a
    node that is there again is not.
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
    """What a node that is there does, by what it says of itself."""
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
