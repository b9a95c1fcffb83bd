"""Declares the operations of the job API. Routes, validation and the OpenAPI document
are built from these declarations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from dlpool.config.web import OPERATE, PUSH, READ
from dlpool.dataclass import dataclass
from dlpool.jobs.audit_events import ACTIONS
from dlpool.web import schemas
from dlpool.web.auditing import CHANGING
from dlpool.web.queue_service import QueueService
from dlpool.web.schemas import Schema, array_of, object_schema, ref
from dlpool.web.validation import parse_body, parse_query, validate

BASE = "/api/v1"
MAX_BODY = 4 * 1024 * 1024

Handler = Callable[[QueueService, "ApiRequest"], Any]


@dataclass(frozen=True)
class ApiRequest:
    """A validated request. ``trace_id``: the trace id in the header ``traceparent``,
    None without a valid header."""

    path_params: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any = None
    trace_id: str | None = None


@dataclass(frozen=True)
class Operation:
    """One method of one path. ``name`` is its operationId.

    ``scope``: the required scope. ``body``: the schema of the body, None for requests
    without a body. ``error_statuses``: statuses in addition to the errors of all
    operations. ``action``: the action of the audit event, empty for methods that change
    nothing.
    """

    method: str
    path: str
    name: str
    scope: str
    summary: str
    handler: Handler
    response: Schema
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    error_statuses: tuple[int, ...] = ()
    action: str = ""

    def __post_init__(self) -> None:
        if bool(self.action) != (self.method in CHANGING) or (
            self.action and self.action not in ACTIONS
        ):
            raise ValueError(f"{self.name}: unknown action {self.action!r}")

    def audit_action(self, call: ApiRequest) -> str:
        """Return the action of the audit event, which may depend on the body of
        ``call``."""
        return (
            f"job.{call.body['verb']}" if self.action == "job.control" else self.action
        )

    def parse(
        self, names: Mapping[str, str], options: Mapping[str, Any], body: bytes
    ) -> ApiRequest:
        """Return the validated request. Raises UsageError.

        ``names``: the parameters in the path; ``options``: the parameters in the query;
        ``body``: JSON.
        """
        found = parse_query(self.query, options)
        if self.body is None:
            return ApiRequest(names, found)
        value = parse_body(body)
        validate(_resolve(self.body, value), value)
        return ApiRequest(names, found, value)


def _resolve(schema: Schema, value: Any) -> Schema:
    """Return the schema that applies to ``value``: the target of a reference, or for
    ``oneOf`` the schema of a batch or a job.

    With this schema, an error message identifies the invalid member. With ``oneOf``, it
    would only say that no alternative matches.
    """
    if "oneOf" not in schema:
        return (
            schemas.NAMED[schema["$ref"].rpartition("/")[2]]
            if "$ref" in schema
            else schema
        )
    is_many = isinstance(value, dict) and "jobs" in value
    return schemas.BATCH if is_many else schemas.JOB


def _get(
    path: str, name: str, summary: str, handler: Handler, response: Schema, **more: Any
) -> Operation:
    return Operation("GET", path, name, READ, summary, handler, response, **more)


def _post(
    path: str, name: str, summary: str, handler: Handler, response: Schema, **more: Any
) -> Operation:
    made = {"body": schemas.EMPTY, "scope": OPERATE, **more}
    return Operation(
        "POST", path, name, summary=summary, handler=handler, response=response, **made
    )


def _push(service: QueueService, call: ApiRequest) -> Any:
    if "jobs" in call.body:
        return service.push_many(call.body["jobs"], call.trace_id)
    return service.push(call.body, call.trace_id)


def _control(verb: str, summary: str) -> Operation:
    return _post(
        f"/jobs/{{id}}/{verb}",
        f"{verb}Job",
        summary,
        lambda service, call: service.control(verb, call.path_params["id"]),
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
        lambda service, call: service.control(
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
        lambda service, call: {
            "nodes": service.control_node(verb, call.path_params["id"])
        },
        _NODES,
        error_statuses=(404, 409),
        action=f"node.{verb}",
    )


def _queue(verb: str, summary: str) -> Operation:
    return _post(
        f"/queue/{verb}",
        f"{verb}Queue",
        summary,
        lambda service, _: service.control_queue(verb),
        _QUEUE,
        error_statuses=(409,) if verb == "pause" else (),
        action=f"queue.{verb}",
    )


def _failure(verb: str, summary: str) -> Operation:
    return _post(
        f"/failures/{{record}}/{verb}",
        f"{verb}Failure",
        summary,
        lambda service, call: service.resolve_failure(verb, call.path_params["record"]),
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
        "Return all data of the dashboard",
        lambda service, call: service.overview(call.query["state"]),
        ref("Overview"),
        query={"state": {**schemas.STATE, "default": "queued"}},
    ),
    _post(
        "/jobs",
        "push",
        "Queue a job, or a batch of up to 500: invalid jobs are named, the others "
        "queued",
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
        "succeeded; next is the cursor of the next page, null at the end",
        lambda service, call: service.list_jobs(
            call.query.get("state"), call.query["limit"], call.query.get("after")
        ),
        _JOBS,
        query={"state": schemas.STATE, **_PAGE},
    ),
    _post(
        "/jobs/batch",
        "controlJobs",
        "Retry, cancel or remove (only finished ones) up to 500 jobs; results are in "
        "the same order",
        lambda service, call: service.control_many(call.body["verb"], call.body["ids"]),
        _RESULTS,
        body=ref("Control"),
        action="job.control",
    ),
    _get(
        "/jobs/{id}",
        "showJob",
        "Return a job",
        lambda service, call: service.show_job(call.path_params["id"]),
        ref("View"),
        error_statuses=(404,),
    ),
    _control(
        "cancel",
        "Cancel a job, with a failure record; a running one stops within two seconds",
    ),
    _control("pause", "Pause a job; it keeps its downloaded bytes"),
    _control("resume", "Resume a paused job"),
    _control(
        "retry",
        "Restart a failed or cancelled job, or run a delayed one now",
    ),
    _control("promote", "Run a waiting job before all others"),
    _priority("PUT"),
    _priority("POST"),
    _get(
        "/history",
        "history",
        "Return at most 720 samples of the last day: [ms since 1970, waiting, running, "
        "bytes per second], oldest first",
        lambda service, call: service.history(call.query["since"]),
        ref("History"),
        query={"since": schemas.SINCE},
    ),
    _get(
        "/stats",
        "stats",
        "Return statistics of the queue, with the counters of seven days",
        lambda service, _: service.stats(),
        ref("Stats"),
    ),
    _get(
        "/nodes",
        "listNodes",
        "List the nodes of the queue",
        lambda service, _: {"nodes": service.list_nodes()},
        _NODES,
    ),
    _node("drain", "Drain a node: it finishes its jobs and starts no others"),
    _node("resume", "Resume a drained node"),
    _node("forget", "Remove a node that is lost, or drained and stopped"),
    _get(
        "/queue",
        "showQueue",
        "Return whether the queue is paused",
        lambda service, _: service.control_queue(),
        _QUEUE,
    ),
    _queue("pause", "Pause the queue: no job starts, running ones continue"),
    _queue("resume", "Resume the queue"),
    _get(
        "/limits",
        "limits",
        "Return the limits for origin hosts, and the hosts that jobs wait for",
        lambda service, _: service.limits(),
        ref("Limits"),
    ),
    _get(
        "/failures",
        "listFailures",
        "List the failure records for clients, newest first; beyond 100,000 the list "
        "is incomplete",
        lambda service, call: service.list_failures(
            call.query["limit"], call.query.get("after")
        ),
        _FAILURES,
        query=_PAGE,
    ),
    _failure("retry", "Retry the job of a failure record"),
    _failure("remove", "Remove a failure record"),
)
