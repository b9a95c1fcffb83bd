"""Audit events of requests: what a request changed, or tried to, by whom. The gate writes them when it is answered.

A resource that knows a changing method says in ``actions`` what the method does, or has ``change_of``. What it notes of
its changes during the request (``note``), and what the store announces, is written as it is; without that the request
is one change, of the object in its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import falcon

from dlpool.config import Settings
from dlpool.jobs.audit import DONE, REFUSED, SERVICE, UNCHANGED, Author, Change, fields_of, logged
from dlpool.jobs.connection import connect
from dlpool.jobs.keys import Keys
from dlpool.jobs.trail import AuditWriter
from dlpool.observe.log import Logger
from dlpool.observe.summary import Summary
from dlpool.web.announcing import Teller
from dlpool.web.figures import Figures
from dlpool.web.store import UploadEvent

CHANGING = ("POST", "PUT", "PATCH", "DELETE")
REFUSALS = 20  # refused attempts of one action and label that are written in a minute
_DENIED = (401, 403)
_ANNOUNCED = {
    "upload_started": "upload.begin",
    "upload_completed": "upload.merge",
    "upload_paused": "upload.pause",
    "upload_resumed": "upload.resume",
    "upload_deleted": "upload.delete",
}
_BY_EVENTS = frozenset(
    (*_ANNOUNCED.values(), "upload.write", "upload.control", "upload.cleanup")
)  # without an event nothing changed
_RESULTS = {"OK": DONE, "ASKED": DONE, "FOLLOWS": DONE, "DUP": UNCHANGED}  # of the queue

_changes: ContextVar[list[Change] | None] = ContextVar("_changes", default=None)  # of the request of this thread


def begin(req: falcon.Request) -> None:
    """A request has come."""
    req.context.changes = []
    req.context.change = None
    _changes.set(None if req.method == "GET" else req.context.changes)


def foresee(req: falcon.Request, resource: object, params: Mapping[str, Any]) -> None:
    """Note what the request would change: the change that is written if it fails, or notes no other."""
    if resource is None or req.method not in CHANGING or not hasattr(resource, f"on_{req.method.lower()}"):
        return
    action, name = change_of(resource, req.method, params)
    req.context.change = Change(action, name)


def change_of(resource: Any, method: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """Return the action of a method of a resource, and the object in the path. Raises KeyError if it has none."""
    own = getattr(resource, "change_of", None)
    if own is not None:
        return cast("tuple[str, str]", own(method, **params))
    return resource.actions[method], str(next(iter(params.values()), ""))


def about(req: falcon.Request, name: str) -> None:
    """Note what the request is about, where its path does not say it."""
    if req.context.change is not None:
        req.context.change = Change(req.context.change.action, name)


def note(req: falcon.Request, action: str, answer: Any) -> None:
    """Note the changes that an answer of the queue or of a batch tells of, one by one.

    Entries of ``results``, or the answer itself, have an ``id`` and a ``result``, ``status`` or ``code``.
    """
    known = isinstance(answer, Mapping)
    entries = answer["results"] if known and "results" in answer else [answer] if known and "id" in answer else []
    for entry in entries:
        result = entry.get("code") or _RESULTS.get(str(entry.get("result")), DONE)
        req.context.changes.append(Change(action, str(entry.get("id", "")), result))


class Audit(Teller):
    """Writes audit events to the log, and to the stream of the queue if Redis takes them. Thread-safe."""

    what = "audit"
    most = 10_000

    def __init__(self, writer: AuditWriter, figures: Figures, log: Logger) -> None:
        super().__init__(writer, figures, log)
        self._refused = Summary(REFUSALS)

    def write(self, change: Change, author: Author, trace_id: str | None = None) -> None:
        """Write one event."""
        trace = {"trace_id": trace_id} if trace_id else {}
        self._log.info("audit", **logged(change, author), **trace)
        self.put({**fields_of(change, author), **trace})

    def complain(self, error: Exception) -> None:
        """Log that events begin to be missing in Redis."""
        self._log.warning("audit_events_lost", error=error)

    def heard(self, event: UploadEvent) -> None:
        """The store announces a change of an upload: one of the request of this thread, or of the service itself.

        The service ends the merges of those who were killed, whoever asks.
        """
        changes, action = _changes.get(), _ANNOUNCED.get(event.name)
        if action is None:
            return
        if changes is None:
            self.write(Change(action, event.upload_id), SERVICE)
        else:
            changes.append(Change(action, event.upload_id))

    def answered(self, req: falcon.Request, status: int, label: str) -> None:
        """A request is answered: write what it changed, or tried to."""
        _changes.set(None)
        author = Author(req.context.caller.actor, req.context.address)
        for change in req.context.changes:
            self.write(change, author, req.context.trace_id)
        tried = req.context.change
        if tried is None:
            return
        if status in _DENIED:
            if self._refused.admits((tried.action, label)):
                self.write(Change(tried.action, tried.object, REFUSED, label), author, req.context.trace_id)
        elif status >= 400:
            if req.context.is_admitted and tried.action != "upload.write":
                self.write(Change(tried.action, tried.object, label or "error"), author, req.context.trace_id)
        elif not req.context.changes and tried.action not in _BY_EVENTS:
            self.write(tried, author, req.context.trace_id)

    def summarise(self, *, now: bool = False) -> None:
        """Write how many refused attempts have no event of their own, about once a minute; ``now``: at the end."""
        for key, count in self._refused.ended(now=now):
            action, label = cast("tuple[str, str]", key)
            self.write(Change(action, "", REFUSED, label, count), Author("", ""))


def open_audit(settings: Settings, figures: Figures, log: Logger) -> Audit:
    """Return the audit of this process, for the queue of ``[redis]``. Raises ConfigurationError."""
    client = connect(settings.redis, Path(settings.paths.state_dir), name="dlpool-web")
    return Audit(AuditWriter(client, Keys(settings.redis.group), settings.redis.audit_events), figures, log)
