"""What operators do with a job, or with a failure record. Thread-safe, as the client
is; all raises QueueError."""

from __future__ import annotations

from typing import Any

import redis

from dlpool.jobs.client_records import ClientRecord, failure_record
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.outbox import encode_entry
from dlpool.jobs.pushed_job import BadJob, Malformed, PushedJob
from dlpool.jobs.redis_values import to_text
from dlpool.jobs.transitions import Transitions

COMMANDS = ("cancel", "pause", "resume", "retry", "promote", "priority")


class JobAdmin:
    """The verbs, on one queue. In a Cluster the records that clients see are not
    changed in the same step."""

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
        """Do one of ``VERBS`` with a job, or ``remove`` it once it has ended: OK, ASKED
        (its supervisor will), NONE, or the state that does not allow it.

        ``message`` and ``at`` (seconds since 1970) are for the failure record of a
        cancelled job.
        """
        raw = self._raw(job_id) if command in ("cancel", "retry") else None
        record = None if raw is None else _failure(self._keys, raw, message, at)
        outbox = self._transitions.outbox
        ticket = f"{job_id}.cancel"
        visible: list[Any] = ["", "", ""]
        if record is not None and outbox is None:
            visible = ["hash", record.field, record.value]
        elif record is not None and command == "cancel":
            visible = ["outbox", ticket, encode_entry(record)]
        key = self._keys.failed if outbox is None else self._keys.outbox
        arguments = [self._keys.prefix, job_id, command, priority, *visible]
        reply = to_text(
            self._transitions.run_script(
                "control", [([self._keys.intake, key], arguments)]
            )[0]
        )
        if outbox is not None and record is not None and reply == "OK":
            if command == "cancel":
                outbox.deliver([ticket])
            else:
                self._forget(record, raw or b"")
        return reply

    def requeue(self, url: bytes, record: bytes, raw: bytes) -> str:
        """Make a failure record a job again: OK, or GONE where it is another one by
        now.

        In a Cluster it may become a job twice, if this process ends between the two
        steps.
        """
        if cluster_of(self._client) is None:
            keys = [self._keys.intake, self._keys.failed]
            reply = self._transitions.run_script(
                "requeue", [(keys, [self._keys.prefix, url, record, raw])]
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

    def _forget(self, record: ClientRecord, raw: bytes) -> None:
        """What clients see of the failure goes, unless it is of another job with that
        URL."""
        records = records_client(self._client, self._keys)
        with translated(records):
            seen = records.hget(record.key, record.field)
            if seen is not None and raw in seen:
                records.hdel(record.key, record.field)


def records_client(client: redis.Redis, keys: QueueKeys) -> Any:
    """A client that reaches the failure records: in a Cluster they are in a slot of
    their own."""
    cluster = cluster_of(client)
    if cluster is None:
        return client
    with translated(client):
        return cluster.client_for(keys.failed)


def _failure(
    keys: QueueKeys, raw: bytes, message: str, at: float
) -> ClientRecord | None:
    """The record that a job has failed; None for one whose URL cannot be told."""
    try:
        url = PushedJob.parse(raw).url
    except BadJob as error:
        url = error.url
    except Malformed:
        return None
    return failure_record(keys, url, raw, message, at)
