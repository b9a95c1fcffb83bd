"""Answers of the job API that no service can be brought to give at will: many failures, lost nodes, a stopped queue."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

OVERVIEW = "/api/v1/overview"
HISTORY = "/api/v1/history"
BATCH = "/api/v1/jobs/batch"
COUNTED = (
    "backlog",
    "reserved",
    "ready_limited",
    "ready_high",
    "ready_normal",
    "ready_low",
    "delayed",
    "throttled",
    "paused",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "waiting",
    "failure_records",
)


def moment(ago_s: float = 0.0) -> str:
    """RFC 3339, so many seconds ago."""
    at = datetime.fromtimestamp(time.time() - ago_s, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job(name: str, state: str, **fields: Any) -> dict[str, Any]:
    """A job whose id and path are its name."""
    return {
        "id": name,
        "state": state,
        "url": f"https://origin.example/{name}",
        "save_path": name,
        "priority": "normal",
        "owner": "s1",
        "node": "node-a",
        "attempts": 1,
        "progress": None,
        "note": None,
        "problem": None,
        "flag": None,
        "created_at": moment(60),
        "started_at": None,
        "ended_at": moment(30),
        "due_at": None,
        **fields,
    }


def failed(name: str, label: str = "not_found", url: str = "https://gone.example/f") -> dict[str, Any]:
    """A job that failed so."""
    return job(name, "failed", url=url, note={"label": label, "message": f"it was {label}"})


def node(name: str, sid: str, **fields: Any) -> dict[str, Any]:
    """A node that works."""
    return {
        "node": name,
        "sid": sid,
        "is_drained": False,
        "state": "working",
        "slots": 4,
        "busy": 1,
        "workers": 1,
        "received": 1000,
        **fields,
    }


def overview(**fields: Any) -> dict[str, Any]:
    """An overview; ``figures`` are those that are not 0."""
    figures = dict.fromkeys(COUNTED, 0) | fields.pop("figures", {})
    return {
        "now": moment(),
        "figures": figures,
        "is_halted": False,
        "halted_at": None,
        "waiting_hosts": {},
        "held_hosts": {},
        "today": {},
        "nodes": [],
        "running": [],
        "failed": [],
        "listed": [],
        "list_limits": 50,
        **fields,
    }
