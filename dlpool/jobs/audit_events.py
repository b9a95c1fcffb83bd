"""The actions and fields of audit events. Imports no library.

An audit event records a change of a job, a node, the queue, an upload or the
quarantine. Events are written to the log, and to a bounded stream in Redis
(``audit_stream``).
"""

from __future__ import annotations

from dlpool.dataclass import dataclass

JOB_VERBS = ("cancel", "pause", "resume", "retry", "promote", "priority", "remove")
ACTIONS: tuple[str, ...] = (
    "job.push",
    *(f"job.{verb}" for verb in JOB_VERBS),
    "job.control",
    "job.forget",
    "failure.retry",
    "failure.remove",
    "node.drain",
    "node.resume",
    "node.forget",
    "queue.pause",
    "queue.resume",
    "upload.begin",
    "upload.write",
    "upload.merge",
    "upload.pause",
    "upload.resume",
    "upload.delete",
    "upload.control",
    "upload.cleanup",
    "quarantine.release",
    "quarantine.delete",
)
KINDS = tuple(dict.fromkeys(action.partition(".")[0] for action in ACTIONS))

DONE, UNCHANGED, REFUSED = "done", "unchanged", "refused"
LOCAL = "local"  # address of an actor on this machine
MAX_TEXT = 1000  # characters of an object or actor


@dataclass(frozen=True)
class AuditChange:
    """A change, or an attempt that failed or was refused.

    ``action``: one of ``ACTIONS``. ``object``: id of the changed thing, empty if it has
    no id or the id is unknown. ``result``: ``done``, ``unchanged``, ``refused``, or the
    label of the error if the attempt failed. ``label``: why the attempt was refused, as
    the label of an error; empty for other results. ``count``: number of changes that
    the event stands for; if there are several, ``object`` is the id of the first.
    """

    action: str
    object: str = ""
    result: str = DONE
    label: str = ""
    count: int = 1


@dataclass(frozen=True)
class AuditActor:
    """The author of changes. ``actor``: the author's name. ``address``: IP address of
    the client, or ``local``."""

    actor: str
    address: str


# for changes that the service makes automatically
SERVICE = AuditActor("service", LOCAL)


def event_fields(change: AuditChange, author: AuditActor) -> dict[str, str]:
    """Return the non-empty fields of an event, as texts that UTF-8 can encode."""
    fields = {
        "action": change.action,
        "object": change.object,
        "result": change.result,
        "actor": author.actor,
        "address": author.address,
        "label": change.label,
        "count": str(change.count) if change.count > 1 else "",
    }
    return {name: text for name, value in fields.items() if (text := _bounded(value))}


def log_fields(change: AuditChange, author: AuditActor) -> dict[str, object]:
    """Return the fields of an event for a log record."""
    fields: dict[str, object] = {**event_fields(change, author)}
    address = fields.pop("address", None)
    return (
        fields
        | ({"client": address} if address else {})
        | ({"count": change.count} if change.count > 1 else {})
    )


def _bounded(text: str) -> str:
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
