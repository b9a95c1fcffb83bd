"""Admin commands on one job or one failure record, and errors for replies of Redis.

Thread-safe, because ``redis.Redis`` is. Methods raise QueueError.
"""

from __future__ import annotations

from typing import Any

import redis

from dlpool.errors import DlpoolError, NoSuchJob
from dlpool.jobs.client_records import ClientRecord, failure_record
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.outbox import encode_entry
from dlpool.jobs.pushed_job import BadJob, Malformed, PushedJob
from dlpool.jobs.redis_values import to_text
from dlpool.jobs.transitions import Transitions

COMMANDS = ("cancel", "pause", "resume", "retry", "promote", "priority")
ACCEPTED = ("OK", "ASKED")  # ASKED: the job's supervisor does it within two seconds
REASONS = {
    "following": "it ends with the job that does the same",
    "GONE": "the record has changed or was deleted",
    "EMPTY": "the record holds no job that could be run",
}


class NotPossible(DlpoolError, label="not_possible"):
    """The state of the job, record or node does not allow the command."""


class NoSuchNode(DlpoolError, label="no_such_node"):
    """No node with that id is known."""


def unknown_job_error(job_id: str) -> NoSuchJob:
    """Return the error for a job that Redis does not know."""
    return NoSuchJob(
        f"no job {job_id[:80]!r} is known: it ended long ago, or is still in the "
        f"intake list"
    )


def error_of_reply(command: str, name: str, reply: str) -> DlpoolError | None:
    """Return the error for the reply to ``command`` on the job or record ``name``; None
    if Redis accepted the command."""
    if reply in ACCEPTED:
        return None
    if reply == "NONE":
        return unknown_job_error(name)
    return NotPossible(
        f"cannot {command} {name}: {REASONS.get(reply) or f'it is {reply}'}"
    )


class JobAdmin:
    """Admin commands on the jobs of one queue. In a Cluster, the records that clients
    read are changed in a second step."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self._transitions = Transitions(client, keys)

    def execute(
        self,
        command: str,
        job_id: str,
        *,
        priority: str = "",
        message: str = "",
        at: float = 0.0,
    ) -> str:
        """Execute cancel, pause, resume, retry, promote, priority, or remove (delete an
        ended job).

        ``priority``: the new priority, for the command ``priority``. ``message`` and
        ``at`` (seconds since 1970) are for the failure record of a cancelled job.
        Return OK, ASKED (the job's supervisor will execute the command), NONE (unknown
        job), or the state that does not allow the command.
        """
        raw = self._raw(job_id) if command in ("cancel", "retry") else None
        record = None if raw is None else _cancel_record(self._keys, raw, message, at)
        outbox = self._transitions.outbox
        lease = f"{job_id}.cancel"
        visible: list[Any] = ["", "", ""]
        if record is not None and outbox is None:
            visible = ["hash", record.field, record.value]
        elif record is not None and command == "cancel":
            visible = ["outbox", lease, encode_entry(record)]
        key = self._keys.failed if outbox is None else self._keys.outbox
        arguments = [self._keys.prefix, job_id, command, priority, *visible]
        reply = to_text(
            self._transitions.run_script(
                "admin", [([self._keys.intake, key], arguments)]
            )[0]
        )
        if outbox is not None and record is not None and reply == "OK":
            if command == "cancel":
                outbox.deliver([lease])
            else:
                self._delete_record(record, raw or b"")
        return reply

    def requeue(self, url: bytes, record: bytes, raw: bytes) -> str:
        """Push the job ``raw`` of a failure record again and delete the record. Return
        OK, or GONE if the record has changed or was deleted.

        In a Cluster these are two steps. If this process is killed between them and the
        call is repeated, the job is pushed twice.
        """
        if cluster_of(self._client) is None:
            keys = [self._keys.intake, self._keys.failed]
            reply = self._transitions.run_script(
                "requeue_failure", [(keys, [self._keys.prefix, url, record, raw])]
            )
            return to_text(reply[0])
        records = records_client(self._client, self._keys)
        with translated(records):
            if records.hget(self._keys.failed, url) != record:
                return "GONE"
        with translated(self._client):
            self._client.lpush(self._keys.intake, raw)
        with translated(records):
            records.hdel(self._keys.failed, url)
        return "OK"

    def _raw(self, job_id: str) -> bytes | None:
        with translated(self._client):
            raw: bytes | None = self._client.hget(self._keys.job(job_id), "raw")
        return raw

    def _delete_record(self, record: ClientRecord, raw: bytes) -> None:
        """Delete the failure record that clients see for the job ``raw``. A record of
        another job with the same URL is kept."""
        records = records_client(self._client, self._keys)
        with translated(records):
            seen = records.hget(record.key, record.field)
            if seen is not None and raw in seen:
                records.hdel(record.key, record.field)


def records_client(client: redis.Redis, keys: QueueKeys) -> Any:
    """Return a client for the failure records. In a Cluster they may be on another node
    than the queue."""
    cluster = cluster_of(client)
    if cluster is None:
        return client
    with translated(client):
        return cluster.client_for(keys.failed)


def _cancel_record(
    keys: QueueKeys, raw: bytes, message: str, at: float
) -> ClientRecord | None:
    """Return the failure record of a job; None if its URL is unknown."""
    try:
        url = PushedJob.parse(raw).url
    except BadJob as error:
        url = error.url
    except Malformed:
        return None
    return failure_record(keys, url, raw, message, at)
