"""Admin commands on a queue and its nodes.

Thread-safe, because ``redis.Redis`` is. Methods raise QueueError.
"""

from __future__ import annotations

from typing import Any

import redis

from dlpool.jobs.connection import translated
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_clock import queue_time
from dlpool.jobs.queue_views import SupervisorView
from dlpool.jobs.redis_values import to_text

BATCH = 1000  # jobs of one round trip
MAIL_TTL_MS = 60_000  # as in shared.lua


class QueueAdmin:
    """Admin commands on one queue. Pauses and drained nodes are stored in Redis and
    survive restarts."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self._jobs = JobAdmin(client, keys)

    def pause(self) -> bool:
        """Pause the queue: no more jobs start, and running jobs continue. Return False
        if the queue was paused already."""
        with translated(self._client):
            return bool(
                self._client.set(
                    self._keys.halted,
                    queue_time(self._client, self._keys).now_ms,
                    nx=True,
                )
            )

    def resume(self) -> None:
        """End the pause of the queue, so that jobs start again."""
        with translated(self._client):
            self._client.delete(self._keys.halted)
        self._wake()

    def drained_nodes(self) -> set[str]:
        """Return the nodes that get no new jobs."""
        with translated(self._client):
            return {to_text(node) for node in self._client.smembers(self._keys.drained)}

    def drain(self, node: str) -> None:
        """Give a node no new jobs; its running jobs continue."""
        with translated(self._client):
            self._client.sadd(self._keys.drained, node)

    def undrain(self, node: str) -> bool:
        """Give a node jobs again. Return whether it was drained."""
        with translated(self._client):
            was_drained = bool(self._client.srem(self._keys.drained, node))
        self._wake()
        return was_drained

    def forget_ended(self, key: str) -> int:
        """Delete the ended jobs in ``key``, which is ``keys.done``, ``keys.dead`` or
        ``keys.cancelled``. Return the number of deleted jobs."""
        count = 0
        with translated(self._client):
            while ids := self._client.zrange(key, 0, BATCH - 1):
                replies = [
                    self._jobs.execute("remove", to_text(job_id)) for job_id in ids
                ]
                # also ids of jobs that run again or are deleted
                self._client.zrem(key, *ids)
                count += replies.count("OK")
        return count

    def request_status(self, supervisors: tuple[SupervisorView, ...]) -> None:
        """Ask supervisors for a heartbeat with the present progress of their jobs."""
        with translated(self._client):
            pipeline = self._client.pipeline(transaction=False)
            for one in supervisors:
                mail = self._keys.mail(one.sid)
                pipeline.rpush(mail, "status").ltrim(mail, -100, -1).pexpire(
                    mail, MAIL_TTL_MS
                )
            pipeline.execute()

    def _wake(self) -> None:
        """Wake a supervisor that waits for jobs, so that it claims at once."""
        with translated(self._client):
            self._client.pipeline(transaction=False).lpush(self._keys.wake, 1).ltrim(
                self._keys.wake, 0, 0
            ).execute()
