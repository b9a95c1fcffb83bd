"""Writes audit events: who changed, or tried to change, which object.

A resource that changes objects declares the audited action of each HTTP method in
``actions``, or has a method ``change_of``. The planned change of a request is this
action on the object in the path.

While a thread handles a request, this module collects the actual changes: from the
resource (``add_changes``) and from the events of the storage. When the status of the
response is known, the middleware calls ``finish_request``, which writes the collected
changes as audit events.

``finish_request`` also writes the planned change after most failures. After a success
it writes the planned change only if no change was collected, and only if the action is
not in ``_EVENT_ACTIONS``: the storage reports each change that such an action makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import falcon

from dlpool.config import Settings
from dlpool.jobs.audit_events import (
    DONE,
    REFUSED,
    SERVICE,
    UNCHANGED,
    AuditActor,
    AuditChange,
    event_fields,
    log_fields,
)
from dlpool.jobs.audit_stream import AuditWriter
from dlpool.jobs.connection import connect
from dlpool.jobs.keys import QueueKeys
from dlpool.observe.log import Logger
from dlpool.observe.log_limiter import LogLimiter
from dlpool.storage.values import UploadEvent
from dlpool.web.counters import SharedCounters
from dlpool.web.event_publisher import StreamPublisher

CHANGING = ("POST", "PUT", "PATCH", "DELETE")
REFUSALS = 20  # events per minute for refused attempts with the same action and code
_UNAUTHORIZED = (401, 403)
_ACTIONS = {
    "upload_started": "upload.begin",
    "upload_completed": "upload.merge",
    "upload_paused": "upload.pause",
    "upload_resumed": "upload.resume",
    "upload_deleted": "upload.delete",
}
# The storage reports the changes of these actions by upload events. A request without
# such an event changed nothing.
_EVENT_ACTIONS = frozenset(
    (*_ACTIONS.values(), "upload.write", "upload.control", "upload.cleanup")
)
# Audit results by reply of the queue; all other replies count as DONE.
_RESULTS = {
    "OK": DONE,
    "ASKED": DONE,
    "FOLLOWS": DONE,
    "DUP": UNCHANGED,
}

# The changes of the request that this thread handles; None while this thread handles no
# changing request.
_changes: ContextVar[list[AuditChange] | None] = ContextVar("_changes", default=None)


def start_request(req: falcon.Request) -> None:
    """Reset the changes for a new request."""
    req.context.changes = []
    req.context.change = None
    _changes.set(None if req.method == "GET" else req.context.changes)


def plan_change(
    req: falcon.Request, resource: object, params: Mapping[str, Any]
) -> None:
    """Set the planned change of a request that can change an object."""
    if (
        resource is None
        or req.method not in CHANGING
        or not hasattr(resource, f"on_{req.method.lower()}")
    ):
        return
    action, name = change_of(resource, req.method, params)
    req.context.change = AuditChange(action, name)


def change_of(resource: Any, method: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """Return the audited action of an HTTP method, and the name of the object in the
    path.

    Raises KeyError for a method without an action.
    """
    own = getattr(resource, "change_of", None)
    if own is not None:
        return cast("tuple[str, str]", own(method, **params))
    return resource.actions[method], str(next(iter(params.values()), ""))


def set_object(req: falcon.Request, name: str) -> None:
    """Set the object of the planned change.

    Needed for requests whose path does not contain the name of the object.
    """
    if req.context.change is not None:
        req.context.change = AuditChange(req.context.change.action, name)


def add_changes(req: falcon.Request, action: str, answer: Any) -> None:
    """Add the changes that a response of the job API or of a batch reports.

    ``answer`` has a list of entries in ``results``, or is itself an entry if it has
    ``id``. Adds one change for each entry; any other ``answer`` adds none.
    """
    known = isinstance(answer, Mapping)
    entries = (
        answer["results"]
        if known and "results" in answer
        else [answer]
        if known and "id" in answer
        else []
    )
    for entry in entries:
        result = entry.get("code") or _RESULTS.get(str(entry.get("result")), DONE)
        req.context.changes.append(
            AuditChange(action, str(entry.get("id", "")), result)
        )


class AuditLog(StreamPublisher):
    """Writes audit events to the log and to the Redis stream of the queue.
    Thread-safe."""

    label = "audit"
    capacity = 10_000

    def __init__(
        self, writer: AuditWriter, counters: SharedCounters, log: Logger
    ) -> None:
        super().__init__(writer, counters, log)
        self._refused = LogLimiter(REFUSALS)

    def write(
        self, change: AuditChange, author: AuditActor, trace_id: str | None = None
    ) -> None:
        """Write one event."""
        trace = {"trace_id": trace_id} if trace_id else {}
        self._log.info("audit", **log_fields(change, author), **trace)
        self.put({**event_fields(change, author), **trace})

    def log_loss(self, error: Exception) -> None:
        """Log that audit events are missing in Redis. Called for the first of several
        losses in a row."""
        self._log.warning("audit_events_lost", error=error)

    def record_upload_event(self, event: UploadEvent) -> None:
        """Record a change of an upload that the storage reports.

        Does nothing for a change that is not audited. If this thread handles a request
        other than GET, adds the change to the request. Otherwise, for example during
        the recovery of an interrupted merge, writes an event with the service as
        its author.
        """
        changes, action = _changes.get(), _ACTIONS.get(event.name)
        if action is None:
            return
        if changes is None:
            self.write(AuditChange(action, event.upload_id), SERVICE)
        else:
            changes.append(AuditChange(action, event.upload_id))

    def finish_request(self, req: falcon.Request, status: int, label: str) -> None:
        """Write the collected changes of a request, and its planned change if needed.

        ``status`` and ``label``: the status and the error code of the response. After
        status 401 or 403, the planned change is written as refused, at most
        ``REFUSALS`` times a minute for the same action and code. After other errors, it
        is written only if the client was admitted and the action is not
        ``upload.write``. After a success, see the module.
        """
        _changes.set(None)
        author = AuditActor(req.context.principal.actor, req.context.address)
        for change in req.context.changes:
            self.write(change, author, req.context.trace_id)
        planned = req.context.change
        if planned is None:
            return
        if status in _UNAUTHORIZED:
            if self._refused.allow((planned.action, label)):
                self.write(
                    AuditChange(planned.action, planned.object, REFUSED, label),
                    author,
                    req.context.trace_id,
                )
        elif status >= 400:
            if req.context.is_admitted and planned.action != "upload.write":
                self.write(
                    AuditChange(planned.action, planned.object, label or "error"),
                    author,
                    req.context.trace_id,
                )
        elif not req.context.changes and planned.action not in _EVENT_ACTIONS:
            self.write(planned, author, req.context.trace_id)

    def summarise(self, *, now: bool = False) -> None:
        """Write how many refused attempts got no event of their own.

        These are attempts beyond ``REFUSALS`` a minute for the same action and code.
        Writes the numbers about once a minute, or at once if ``now``.
        """
        for key, count in self._refused.pop_counts(now=now):
            action, label = cast("tuple[str, str]", key)
            self.write(
                AuditChange(action, "", REFUSED, label, count), AuditActor("", "")
            )


def open_audit(settings: Settings, counters: SharedCounters, log: Logger) -> AuditLog:
    """Return the audit log of the queue in ``[redis]``. Raises ConfigurationError."""
    client = connect(settings.redis, Path(settings.paths.state_dir), name="dlpool-web")
    return AuditLog(
        AuditWriter(
            client, QueueKeys(settings.redis.group), settings.redis.audit_events
        ),
        counters,
        log,
    )
