"""The operations of the job API: one table, out of which routes, checks and the
document are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlpool.config.scopes import OPERATE, PUSH, READ
from dlpool.jobs.audit_events import ACTIONS
from dlpool.web import schemas
from dlpool.web.auditing import CHANGING
from dlpool.web.queue_service import QueueService
from dlpool.web.schemas import Schema, array_of, object_schema, ref
from dlpool.web.validation import parse_body, parse_query, validate

BASE = "/api/v1"
MAX_BODY = 4 * 1024 * 1024

Ask = Callable[[QueueService, "ApiRequest"], Any]


@dataclass(frozen=True)
class ApiRequest:
    """A validated request; ``trace_id``: the trace that the request is part of."""

    path_params: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any = None
    trace_id: str | None = None


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``name`` is its operationId, ``refusals`` are statuses
    beside those that all have.

    ``scope``: what a token needs for it. ``body``: the schema of what must be sent,
    None where nothing may be. ``action``: of the audit event, for methods that change
    something.
    """

    method: str
    path: str
    name: str
    scope: str
    summary: str
    handler: Ask
    response: Schema
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    error_statuses: tuple[int, ...] = ()
    action: str = ""

    def __post_init__(self) -> None:
        if bool(self.action) != (self.method in CHANGING) or (
            self.action and self.action not in ACTIONS
        ):
            raise ValueError(
                f"{self.name}: the action {self.action!r} is none of an audit event"
            )

    def audit_action(self, call: ApiRequest) -> str:
        """The action of an audit event: where a body says which of several is asked
        for, that one."""
        return (
            f"job.{call.body['verb']}" if self.action == "job.control" else self.action
        )

    def parse(
        self, names: Mapping[str, str], options: Mapping[str, Any], body: bytes
    ) -> ApiRequest:
        """What a request asks for. Raises UsageError."""
        found = parse_query(self.query, options)
        if self.body is None:
            return ApiRequest(names, found)
        value = parse_body(body)
        validate(_alternative(self.body, value), value)
        return ApiRequest(names, found, value)


def _alternative(schema: Schema, value: Any) -> Schema:
    """Of a choice the one that is meant, so that an error tells of that one; and what a
    reference means."""
    if "oneOf" not in schema:
        return (
            schemas.NAMED[schema["$ref"].rpartition("/")[2]]
            if "$ref" in schema
            else schema
        )
    is_many = isinstance(value, dict) and "jobs" in value
    return schemas.BATCH if is_many else schemas.JOB


def _get(
    path: str, name: str, summary: str, ask: Ask, answer: Schema, **more: Any
) -> Operation:
    return Operation("GET", path, name, READ, summary, ask, answer, **more)


def _post(
    path: str, name: str, summary: str, ask: Ask, answer: Schema, **more: Any
) -> Operation:
    made = {"body": schemas.EMPTY, "scope": OPERATE, **more}
    return Operation(
        "POST", path, name, summary=summary, handler=ask, response=answer, **made
    )


def _push(desk: QueueService, call: ApiRequest) -> Any:
    if "jobs" in call.body:
        return desk.push_many(call.body["jobs"], call.trace_id)
    return desk.push(call.body, call.trace_id)


def _control(verb: str, summary: str) -> Operation:
    return _post(
        f"/jobs/{{id}}/{verb}",
        f"{verb}Job",
        summary,
        lambda desk, call: desk.control(verb, call.path_params["id"]),
        ref("Done"),
        error_statuses=(404, 409),
        action=f"job.{verb}",
    )


def _priority(method: str) -> Operation:
    return Operation(
        method,
        "/jobs/{id}/priority",
        "setPriority" if method == "PUT" else "changePriority",
        OPERATE,
        "Change the priority of a job",
        lambda desk, call: desk.control(
            "priority", call.path_params["id"], call.body["priority"]
        ),
        ref("Done"),
        body=object_schema({"priority": schemas.PRIORITY}),
        error_statuses=(404, 409),
        action="job.priority",
    )


def _node(verb: str, summary: str) -> Operation:
    return _post(
        f"/nodes/{{id}}/{verb}",
        f"{verb}Node",
        summary,
        lambda desk, call: {"nodes": desk.control_node(verb, call.path_params["id"])},
        _NODES,
        error_statuses=(404, 409),
        action=f"node.{verb}",
    )


def _queue(verb: str, summary: str) -> Operation:
    return _post(
        f"/queue/{verb}",
        f"{verb}Queue",
        summary,
        lambda desk, _: desk.control_queue(verb),
        _QUEUE,
        error_statuses=(409,) if verb == "pause" else (),
        action=f"queue.{verb}",
    )


def _failure(verb: str, summary: str) -> Operation:
    return _post(
        f"/failures/{{record}}/{verb}",
        f"{verb}Failure",
        summary,
        lambda desk, call: desk.resolve_failure(verb, call.path_params["record"]),
        ref("Done"),
        error_statuses=(404, 409),
        action=f"failure.{verb}",
    )


_JOBS = object_schema({"jobs": array_of(ref("View")), "next": schemas.NEXT})
_NODES = object_schema({"nodes": array_of(ref("Node"))})
_QUEUE = object_schema({"is_halted": schemas.BOOLEAN})
_FAILURES = object_schema({"failures": array_of(ref("Failure")), "next": schemas.NEXT})
_PAGE = {"limit": schemas.LIMIT, "after": schemas.CURSOR}
_ONE_OR_MANY: Schema = {"oneOf": [ref("Job"), ref("Batch")]}
_RESULTS = object_schema({"results": array_of({"anyOf": [ref("Done"), ref("Error")]})})
_ANSWERS: Schema = {
    "anyOf": [
        ref("Pushed"),
        object_schema({"results": array_of({"anyOf": [ref("Pushed"), ref("Error")]})}),
    ]
}

OPERATIONS: tuple[Operation, ...] = (
    _get(
        "/overview",
        "overview",
        "All that a page shows, in one answer; with ETag",
        lambda desk, call: desk.overview(call.query["state"]),
        ref("Overview"),
        query={"state": {**schemas.STATE, "default": "queued"}},
    ),
    _post(
        "/jobs",
        "push",
        "Queue a job, or up to 500: in a batch those that cannot be run are named, and "
        "the others queued",
        _push,
        _ANSWERS,
        scope=PUSH,
        body=_ONE_OR_MANY,
        action="job.push",
    ),
    _get(
        "/jobs",
        "listJobs",
        "List jobs: running ones first, then queued, delayed, paused, failed, "
        "cancelled, "
        "succeeded; next is the cursor behind them, null at the end",
        lambda desk, call: desk.list_jobs(
            call.query.get("state"), call.query["limit"], call.query.get("after")
        ),
        _JOBS,
        query={"state": schemas.STATE, **_PAGE},
    ),
    _post(
        "/jobs/batch",
        "controlJobs",
        "Retry, cancel or remove (forget, once they have ended) up to 500 jobs; each "
        "has its result, in the same order",
        lambda desk, call: desk.control_many(call.body["verb"], call.body["ids"]),
        _RESULTS,
        body=ref("Control"),
        action="job.control",
    ),
    _get(
        "/jobs/{id}",
        "showJob",
        "All that is known of a job",
        lambda desk, call: desk.show_job(call.path_params["id"]),
        ref("View"),
        error_statuses=(404,),
    ),
    _control(
        "cancel",
        "End a job for good, with a failure record; a running one stops within two "
        "seconds",
    ),
    _control("pause", "Stop a job until it is resumed; it keeps what it has fetched"),
    _control("resume", "Let a paused job go on"),
    _control(
        "retry",
        "Run a failed or cancelled job again from the beginning, or a delayed one now",
    ),
    _control("promote", "Let a waiting job run before all others"),
    _priority("PUT"),
    _priority("POST"),
    _get(
        "/history",
        "history",
        "What waited, ran and came in within the last day: [ms since 1970, waiting, "
        "running, "
        "bytes a second], oldest first, 720 at most",
        lambda desk, call: desk.history(call.query["since"]),
        ref("History"),
        query={"since": schemas.SINCE},
    ),
    _get(
        "/stats",
        "stats",
        "The queue in figures, with the counters of seven days",
        lambda desk, _: desk.stats(),
        ref("Stats"),
    ),
    _get(
        "/nodes",
        "listNodes",
        "The nodes that work on the queue",
        lambda desk, _: {"nodes": desk.list_nodes()},
        _NODES,
    ),
    _node("drain", "Let a node end its jobs and begin no others"),
    _node("resume", "Let a drained node begin jobs again"),
    _node("forget", "Strike off a node that was lost, or that is drained and away"),
    _get(
        "/queue",
        "showQueue",
        "Whether jobs begin",
        lambda desk, _: desk.control_queue(),
        _QUEUE,
    ),
    _queue("pause", "Let nobody begin another job; running ones go on"),
    _queue("resume", "Let jobs begin again"),
    _get(
        "/limits",
        "limits",
        "What origin hosts are spared by the settings here, and which are waited for",
        lambda desk, _: desk.limits(),
        ref("Limits"),
    ),
    _get(
        "/failures",
        "listFailures",
        "The failure records that clients see, newest first; of more than 100,000 some "
        "are not listed",
        lambda desk, call: desk.list_failures(
            call.query["limit"], call.query.get("after")
        ),
        _FAILURES,
        query=_PAGE,
    ),
    _failure("retry", "Run the job of a failure record again"),
    _failure("remove", "Remove a failure record"),
)
