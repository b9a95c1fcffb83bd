"""The audit trail: who changed what. Its vocabulary, and how one event is said. Imports
no library.

The changes of jobs, nodes, the queue, uploads and the quarantine are audit events,
whoever makes them and by which way. They go to the log and to a capped stream of Redis,
which ``trail`` writes and reads.
"""

from __future__ import annotations

from dataclasses import dataclass

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
LOCAL = "local"  # the address of who is on this machine
MAX_TEXT = 1000  # characters of an object or actor


@dataclass(frozen=True)
class AuditChange:
    """One change, made or attempted.

    ``action`` is one of ``ACTIONS``; ``object``: an id, empty where there is none or it
    is not known. ``result`` is ``done``, ``unchanged`` (it was so already), ``refused``
    (with the error's label in ``label``), or an error's label. ``count``: how many such
    changes the event stands for, of which ``object`` is the first.
    """

    action: str
    object: str = ""
    result: str = DONE
    label: str = ""
    count: int = 1


@dataclass(frozen=True)
class AuditActor:
    """Who makes changes, and from where: a client's address, or ``local``."""

    actor: str
    address: str


SERVICE = AuditActor("service", LOCAL)  # of what it does by itself


def event_fields(change: AuditChange, author: AuditActor) -> dict[str, str]:
    """Return the fields of an event as texts that UTF-8 can encode, without empty
    ones."""
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
    """Return the same as fields of a log's record."""
    fields: dict[str, object] = {**event_fields(change, author)}
    address = fields.pop("address", None)
    return (
        fields
        | ({"client": address} if address else {})
        | ({"count": change.count} if change.count > 1 else {})
    )


def _bounded(text: str) -> str:
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()
