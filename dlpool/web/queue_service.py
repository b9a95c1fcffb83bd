"""Operations on the queue, with JSON values as arguments and results. Independent of
HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlpool.config import Settings
from dlpool.errors import DlpoolError, NoSuchJob, QueueAway
from dlpool.jobs.client_records import CANCELLED
from dlpool.jobs.confinement import Confinement
from dlpool.jobs.connection import connect
from dlpool.jobs.failure_records import FailureRecord, FailureRecords
from dlpool.jobs.history import QueueHistory
from dlpool.jobs.job_admin import JobAdmin, NoSuchNode, NotPossible, error_of_reply
from dlpool.jobs.job_view import JobView, time_text, time_text_ms
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.nodes import NodeAdmin, node_rows
from dlpool.jobs.pushed_job import PushedJob, parse_valid_job
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.transitions import Transitions, new_id
from dlpool.observe.tracing import TRACEPARENT
from dlpool.transfer.http.urls import display_url
from dlpool.web.errors import HttpError
from dlpool.web.schemas import JOB
from dlpool.web.validation import validate

LISTED = 50  # jobs of each list of an overview
# Minimum interval of progress requests to supervisors, shared by all clients.
NEWS_S = 0.9
RETRY_S = 2  # value of Retry-After while Redis does not respond


class QueueService:
    """The job API of one queue. Thread-safe, and usable after a fork. All methods raise
    QueueError."""

    def __init__(self, settings: Settings) -> None:
        """Connect to Redis. Raises ConfigurationError, LocalFault."""
        client = connect(
            settings.redis, Path(settings.paths.state_dir), name="dlpool-web"
        )
        keys = QueueKeys(settings.redis.group)
        self._settings = settings
        self._client: Any = client
        self._keys = keys
        self._views = QueueViews(client, keys)
        self._job_admin = JobAdmin(client, keys)
        self._queue_admin = QueueAdmin(client, keys)
        self._nodes = NodeAdmin(client, keys)
        self._history = QueueHistory(client, keys)
        self._transitions = Transitions(client, keys)
        self._confinement = Confinement.of(settings)

    def push(self, job: dict[str, Any], trace_id: str | None = None) -> dict[str, Any]:
        """Queue a job, with ``trace_id`` if the job has no trace id.

        Raises UsageError, PolicyRefused, LocalFault.
        """
        found = self._checked(_traced(job, trace_id))
        job_id = found.id or new_id()
        try:
            return {
                "id": job_id,
                "result": self._transitions.push([(found, job_id)])[0],
            }
        except QueueAway as error:
            raise QueueAway(
                f"{error} (if the push was executed nevertheless, it is job {job_id})"
            ) from error

    def push_many(
        self, jobs: Sequence[dict[str, Any]], trace_id: str | None = None
    ) -> dict[str, Any]:
        """Queue the valid jobs; return a result for each job, in the order of
        ``jobs``."""
        answers: list[dict[str, Any]] = []
        good: list[tuple[PushedJob, str]] = []
        for job in jobs:
            try:
                validate(JOB, job, "the job")
                found = self._checked(_traced(job, trace_id))
            except DlpoolError as error:
                answers.append({"error": str(error), "code": error.label})
                continue
            good.append((found, found.id or new_id()))
            answers.append({"id": good[-1][1]})
        try:
            results = iter(self._transitions.push(good) if good else [])
        except QueueAway as error:
            raise QueueAway(
                f"{error} (some of the jobs may be queued: push those with an id again)"
            ) from error
        return {
            "results": [
                one | {"result": next(results)} if "id" in one else one
                for one in answers
            ]
        }

    def list_jobs(
        self, state: str | None, limit: int, after: str | None = None
    ) -> dict[str, Any]:
        """Return a page of jobs in the order of ``dlpool jobs``; ``next`` is the cursor
        of the next page. Raises UsageError."""
        page = self._views.listing.page(state, limit, after)
        return {"jobs": [_shown(view) for view in page.jobs], "next": page.after}

    def show_job(self, job_id: str) -> dict[str, Any]:
        """Return one job. Raises NoSuchJob."""
        return _shown(self._views.job(job_id))

    def control(self, verb: str, job_id: str, priority: str = "") -> dict[str, Any]:
        """Cancel, pause, resume, retry or promote a job, or change its priority. Raises
        NoSuchJob, NotPossible."""
        reply = self._job_admin.execute(
            verb, job_id, priority=priority, message=CANCELLED, at=time.time()
        )
        if problem := error_of_reply(verb, job_id, reply):
            raise problem
        return {"id": job_id, "result": reply}

    def control_many(self, verb: str, job_ids: Sequence[str]) -> dict[str, Any]:
        """Retry, cancel or remove jobs; return a result for each job, in the order of
        ``job_ids``."""
        answers: list[dict[str, Any]] = []
        for job_id in job_ids:
            try:
                answers.append(self.control(verb, job_id))
            except (NoSuchJob, NotPossible) as error:
                answers.append({"id": job_id, "error": str(error), "code": error.label})
        return {"results": answers}

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the queue."""
        return self._views.stats().as_json()

    def overview(self, state: str) -> dict[str, Any]:
        """Return all data of the dashboard.

        ``state``: the state of the jobs that the dashboard lists. At most once every
        ``NEWS_S`` seconds, a call asks the supervisors to report the progress of
        running jobs. Later calls return this progress.
        """
        stats = self._views.stats()
        if self._is_time():
            self._queue_admin.request_status(stats.supervisors)
        return {
            "now": time_text_ms(stats.now),
            "figures": stats.counts(),
            "is_halted": stats.is_halted,
            "halted_at": time_text(stats.halted_at),
            "waiting_hosts": dict(stats.waiting_hosts),
            "held_hosts": dict(stats.held_hosts),
            "today": dict(stats.days[0].counters),
            "nodes": node_rows(stats, self._queue_admin.drained_nodes()),
            "list_limits": LISTED,
            "running": self._first("running"),
            "failed": self._first("failed"),
            "listed": self._first(state),
        }

    def _first(self, state: str) -> list[dict[str, Any]]:
        return [_shown(view) for view in self._views.jobs(state, LISTED)]

    def history(self, since_ms: int) -> dict[str, Any]:
        """Return samples ``[ms, waiting, running, bytes per second]`` since
        ``since_ms``, oldest first."""
        return {"samples": self._history.since(since_ms)}

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes, and whether they are drained."""
        return self._nodes.list_nodes()

    def control_node(self, verb: str, node: str) -> list[dict[str, Any]]:
        """Drain, resume or forget a node. Raises NoSuchNode, NotPossible."""
        {
            "drain": self._nodes.drain,
            "resume": self._nodes.resume,
            "forget": self._nodes.forget,
        }[verb](node)
        return self.list_nodes()

    def control_queue(self, verb: str | None = None) -> dict[str, Any]:
        """Pause or resume the queue; return whether it is paused. ``verb``: ``pause``,
        ``resume``, or None to change nothing. Raises NotPossible for ``pause`` if the
        queue is already paused."""
        if verb == "pause" and not self._queue_admin.pause():
            raise NotPossible("the queue is already paused")
        if verb == "resume":
            self._queue_admin.resume()
        return {
            "is_halted": self._views.stats().is_halted
            if verb is None
            else verb == "pause"
        }

    def limits(self) -> dict[str, Any]:
        """Return the limits for origin hosts, and the hosts that jobs wait for."""
        stats, settings = self._views.stats(), self._settings
        return {
            "all": asdict(settings.limits),
            "hosts": {name: asdict(one) for name, one in settings.hosts.items()},
            "throttled": stats.throttled,
            "waiting_hosts": dict(stats.waiting_hosts),
            "held_hosts": dict(stats.held_hosts),
        }

    def list_failures(self, limit: int, after: str | None = None) -> dict[str, Any]:
        """Return a page of the failure records, newest first; ``next`` is the cursor
        of the next page. Raises UsageError."""
        found, behind = self._failures().page(limit, after)
        return {"failures": [_record(one) for one in found], "next": behind}

    def resolve_failure(self, verb: str, record_id: str) -> dict[str, Any]:
        """Retry the job of a failure record, or remove the record. Raises NoSuchJob
        (also if the record does not exist), NotPossible."""
        failures = self._failures()
        found = failures.by_id(record_id)
        if found is None:
            raise NoSuchJob(f"no such failure record: {record_id[:80]!r}")
        reply = failures.retry(found) if verb == "retry" else failures.remove(found)
        if problem := error_of_reply(verb, record_id, reply):
            raise problem
        return {"id": record_id, "result": reply}

    def _failures(self) -> FailureRecords:
        return FailureRecords(self._client, self._keys)

    def _checked(self, job: dict[str, Any]) -> PushedJob:
        """Validate a job. Raises UsageError, PolicyRefused, LocalFault."""
        found = parse_valid_job(
            json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")
        )
        self._confinement.target(found.save_path)
        return found

    def _is_time(self) -> bool:
        """Return whether this call may ask the supervisors to report progress. In all
        processes together, one call may do this every ``NEWS_S`` seconds."""
        return self._transitions.take_turn(self._keys.status_turn, NEWS_S)


def _traced(job: dict[str, Any], trace_id: str | None) -> dict[str, Any]:
    """Return the job, with the trace id of the request if the job has none."""
    own = job.get("dlpool", {})
    has_header = any(name.lower() == TRACEPARENT for name in own.get("headers", {}))
    if trace_id is None or "trace_id" in own or has_header:
        return job
    return {**job, "dlpool": {**own, "trace_id": trace_id}}


def http_error_of(error: DlpoolError) -> HttpError:
    """Return the HTTP error for an error of the queue."""
    if isinstance(error, NoSuchJob | NoSuchNode):
        return HttpError(404, error.label, str(error))
    if isinstance(error, NotPossible):
        return HttpError(409, error.label, str(error))
    if error.label == "redis":
        return HttpError(
            503, error.label, str(error), headers={"Retry-After": str(RETRY_S)}
        )
    return HttpError(400, error.label, str(error))


def _shown(view: JobView) -> dict[str, Any]:
    """Return a job as JSON; its URL is shown without user info and query."""
    return {
        **view.as_json(),
        "url": None if view.url is None else display_url(view.url),
    }


def _record(one: FailureRecord) -> dict[str, Any]:
    return {
        "id": one.id,
        "url": display_url(one.url.decode("utf-8", "replace")),
        "message": one.message,
        "failed_at": one.failed_at,
        "job_id": one.job_id,
    }
