"""JSON Schemas of the job API's requests and responses, for validation and the OpenAPI
document. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlpool.jobs.job_listing import STATES
from dlpool.jobs.keys import PRIORITIES, READY
from dlpool.jobs.nodes import NODE_STATES as NODE_STATES
from dlpool.jobs.pushed_job import IF_EXISTS, MAX_PATH, MAX_URL

Schema = Mapping[str, Any]

MAX_BATCH = 500
MAX_LIMIT = 1000


def object_schema(
    required: Mapping[str, Schema],
    optional: Mapping[str, Schema] | None = None,
    *,
    closed: bool = True,
) -> Schema:
    """Return the schema of an object with these properties; ``closed``: the object must
    not have other properties."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": not closed,
    }


def array_of(schema: Schema, most: int | None = None) -> Schema:
    """Return the schema of a list: of 1 to ``most`` items, or of any length if ``most``
    is None."""
    return {"type": "array", "items": schema} | (
        {"minItems": 1, "maxItems": most} if most else {}
    )


def ref(name: str) -> Schema:
    """Return a reference to a schema in ``NAMED``."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    """Return the schema of a value or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _values(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
DATE_TIME: Schema = {"type": "string", "format": "date-time"}
# ``x-says``: the end of the error "FIELD is ..." for an invalid value.
ID: Schema = {
    "type": "string",
    "pattern": "^[A-Za-z0-9_.-]{1,64}$",
    "x-says": "not 1 to 64 of A-Z a-z 0-9 _ . -",
}
RECORD_ID: Schema = {
    "type": "string",
    "pattern": "^[0-9a-f]{32}$",
    "x-says": "not an id of a failure record",
}
NODE: Schema = {"type": "string", "minLength": 1, "maxLength": 200}
STATE: Schema = {"type": "string", "enum": list(STATES)}
CURSOR: Schema = {
    "type": "string",
    "pattern": "^[A-Za-z0-9_.-]{1,100}$",
    "x-says": "not a cursor of a list",
    "description": "next of the previous page",
}
NEXT: Schema = {
    "type": ["string", "null"],
    "description": "the value of after for the next page; null at the end",
}
SINCE: Schema = {
    "type": "integer",
    "minimum": 0,
    "maximum": 10**14,
    "default": 0,
    "description": "ms since 1970",
}
LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 50}
EMPTY: Schema = object_schema({})
PRIORITY: Schema = {"type": "string", "enum": list(PRIORITIES)}

_MOMENT_FORM = (
    "^([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt "
    "][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
    "|[0-9]{1,12}([.][0-9]{1,9})?)$"
)
OWN = object_schema(
    {},
    {
        "id": {**ID, "description": "a second push with the same id has no effect"},
        "priority": {
            "anyOf": [PRIORITY, {"type": "integer"}],
            "x-says": "neither high, normal, low nor an integer",
            "description": "integers below 0 are high",
        },
        "not_before": {
            "anyOf": [
                {"type": "string", "pattern": _MOMENT_FORM},
                {"type": "number", "minimum": 0, "exclusiveMaximum": 2**40},
            ],
            "description": "RFC 3339, or seconds since 1970",
            "x-says": "neither RFC 3339 nor seconds since 1970",
        },
        "max_attempts": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "checksum": {
            "type": "string",
            "pattern": "^[A-Za-z0-9]+:[0-9a-fA-F]+$",
            "x-says": "not of the form ALGO:HEX",
            "description": "md5, sha1, sha256, sha512 or blake2b",
        },
        "headers": {
            **_values(TEXT),
            "maxProperties": 500,
            "description": "sent to the URL's origin only",
        },
        "if_exists": {"type": "string", "enum": list(IF_EXISTS)},
        "limit_rate": {
            "anyOf": [
                {"type": "integer", "minimum": 1024},
                {"type": "string", "pattern": "^[0-9.]+[A-Za-z]*$"},
            ],
            "description": 'bytes per second, or a text such as "1.5M"',
            "x-says": "not a rate of at least 1024 bytes per second, as a number or a "
            'text such as "1.5M"',
        },
        "user_id": {"type": "string", "minLength": 1, "maxLength": 200},
        "trace_id": {"type": "string", "minLength": 1, "maxLength": 200},
        "dedupe": {
            **BOOLEAN,
            "description": "join a waiting or running job with the same url and "
            "save_path",
        },
        "scan": {
            **BOOLEAN,
            "description": "scan the file for malware before it is published, "
            "regardless of the settings",
        },
    },
)
JOB = object_schema(
    {
        "url": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_URL,
            "pattern": "^[hH][tT][tT][pP][sS]?://",
            "x-says": "not an http or https URL",
        },
        "save_path": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_PATH,
            "description": "relative to download_dir; with a final / the server or the "
            "URL names the file",
        },
    },
    {"dlpool": OWN},
)
BATCH = object_schema(
    {
        "jobs": {
            **array_of({"type": "object"}, MAX_BATCH),
            "description": "each a Job; invalid ones are named",
        },
    }
)
CONTROL = object_schema(
    {
        "verb": {"type": "string", "enum": ["retry", "cancel", "remove"]},
        "ids": array_of(ID, MAX_BATCH),
    }
)
PUSHED = object_schema(
    {"id": ID, "result": {"type": "string", "enum": ["OK", "DUP", "FOLLOWS"]}}
)
DONE = object_schema(
    {"id": TEXT, "result": {"type": "string", "enum": ["OK", "ASKED"]}}
)
ERROR = object_schema({"error": TEXT, "code": TEXT}, closed=False)
_NUMBERS = ("fence", "attempts", "crashes", "takeovers")
_TEXTS = (
    "id",
    "url",
    "save_path",
    "owner",
    "node",
    "problem",
    "flag",
    "leader",
    "checksum",
    "if_exists",
    "user_id",
    "trace_id",
)
_MOMENTS = ("created_at", "started_at", "ended_at", "due_at", "not_before")
VIEW = object_schema(
    {
        "state": TEXT,
        "priority": TEXT,
        "is_lease_expired": BOOLEAN,
        "dedupe": BOOLEAN,
        "scan": BOOLEAN,
        "headers": array_of(TEXT),
        "progress": nullable({"type": "object"}),
        "note": nullable({"type": "object"}),
        **dict.fromkeys(_NUMBERS, COUNT),
        **dict.fromkeys(_TEXTS, nullable(TEXT)),
        **dict.fromkeys(_MOMENTS, nullable(DATE_TIME)),
        "size": nullable(COUNT),
        "max_attempts": nullable(COUNT),
        "limit_rate": nullable(COUNT),
    },
)
FIGURES = dict.fromkeys(
    (
        "waiting",
        "backlog",
        "reserved",
        *(f"ready_{name}" for name in READY),
        "delayed",
        "throttled",
        "paused",
        "running",
        "succeeded",
        "failed",
        "cancelled",
        "failure_records",
    ),
    COUNT,
)
_HOSTS = {"waiting_hosts": _values(COUNT), "held_hosts": _values({"type": "number"})}
_SWITCHED = {"is_halted": BOOLEAN, "halted_at": nullable(DATE_TIME)}
STATS = object_schema(
    {
        **FIGURES,
        **_SWITCHED,
        **_HOSTS,
        "supervisors": array_of({"type": "object"}),
        "days": array_of(
            {
                "type": "object",
                "properties": {"day": {"type": "string", "format": "date"}},
            }
        ),
    }
)
WORKER = object_schema(
    {"pid": COUNT, "busy": COUNT, "slots": COUNT, "memory": COUNT, "state": TEXT},
    closed=False,
)
NODE_ROW = object_schema(
    {
        "node": nullable(TEXT),
        "is_drained": BOOLEAN,
        "state": {"type": "string", "enum": list(NODE_STATES)},
    },
    {
        "seen_at": {**DATE_TIME, "description": "of a lost node"},
        "workers_info": array_of(WORKER),
    },
    closed=False,
)
HISTORY = object_schema(
    {
        "samples": array_of(
            {"type": "array", "items": COUNT, "minItems": 4, "maxItems": 4}
        )
    }
)
HOST_LIMIT = object_schema(
    {"max_per_host": nullable(COUNT), "rate_per_host": nullable({"type": "number"})}
)
LIMITS = object_schema(
    {"all": HOST_LIMIT, "hosts": _values(HOST_LIMIT), "throttled": COUNT, **_HOSTS}
)
FAILURE = object_schema(
    {
        "id": RECORD_ID,
        "url": TEXT,
        "message": TEXT,
        "failed_at": TEXT,
        "job_id": nullable(TEXT),
    }
)
OVERVIEW = object_schema(
    {
        "now": DATE_TIME,
        "list_limits": COUNT,
        "figures": object_schema(FIGURES),
        **_SWITCHED,
        **_HOSTS,
        "today": _values(COUNT),
        "nodes": array_of(ref("Node")),
        "running": array_of(ref("View")),
        "failed": array_of(ref("View")),
        "listed": array_of(ref("View")),
    }
)
CLIENT_SETTINGS = object_schema(
    {
        **dict.fromkeys(
            (
                "max_file_size",
                "max_chunk_size",
                "concurrent_uploads",
                "retry_max_attempts",
            ),
            COUNT,
        ),
        "retry_initial_delay": {"type": "number", "minimum": 0},
        "enable_integrity_check": BOOLEAN,
        "digests": array_of(TEXT),
    }
)
NAMED: Mapping[str, Schema] = {
    "Job": JOB,
    "Batch": BATCH,
    "Pushed": PUSHED,
    "Done": DONE,
    "Error": ERROR,
    "View": VIEW,
    "Stats": STATS,
    "Node": NODE_ROW,
    "Limits": LIMITS,
    "Failure": FAILURE,
    "Overview": OVERVIEW,
    "ClientSettings": CLIENT_SETTINGS,
    "Control": CONTROL,
    "History": HISTORY,
}
