"""What operators do with a whole queue, or with its nodes. Thread-safe, as the client
is; all raises QueueError."""

from __future__ import annotations

from typing import Any

import redis

from dlpool.jobs.connection import translated
from dlpool.jobs.job_admin import JobAdmin
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_clock import queue_time
from dlpool.jobs.queue_views import SupervisorView
from dlpool.jobs.redis_values import to_text

AT_ONCE = 1000
LOOK_TTL_MS = 60_000


class QueueAdmin:
    """The switches of one queue. They stay until they are turned back, whoever
    restarts."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self._controls = JobAdmin(client, keys)

    def pause(self) -> bool:
        """Let nobody begin another job; running ones go on. Returns False if that was
        so already."""
        with translated(self._client):
            return bool(
                self._client.set(
                    self._keys.halted,
                    queue_time(self._client, self._keys).now_ms,
                    nx=True,
                )
            )

    def resume(self) -> None:
        """Let jobs begin again."""
        with translated(self._client):
            self._client.delete(self._keys.halted)
        self._wake()

    def drained_nodes(self) -> set[str]:
        """The nodes that get no new jobs."""
        with translated(self._client):
            return {to_text(node) for node in self._client.smembers(self._keys.drained)}

    def drain(self, node: str) -> None:
        """Let a node end its jobs, and begin no others."""
        with translated(self._client):
            self._client.sadd(self._keys.drained, node)

    def undrain(self, node: str) -> bool:
        """Let it begin jobs again; whether it was drained."""
        with translated(self._client):
            was_drained = bool(self._client.srem(self._keys.drained, node))
        self._wake()
        return was_drained

    def forget_ended(self, key: str) -> int:
        """Remove the remembered jobs of ``keys.done``, ``keys.dead`` or
        ``keys.cancelled``; returns how many."""
        count = 0
        with translated(self._client):
            while ids := self._client.zrange(key, 0, AT_ONCE - 1):
                replies = [
                    self._controls.execute("remove", to_text(job_id)) for job_id in ids
                ]
                self._client.zrem(
                    key, *ids
                )  # of what runs again, or is not known any more
                count += replies.count("OK")
        return count

    def request_status(self, supervisors: tuple[SupervisorView, ...]) -> None:
        """Ask supervisors to say now how far they are."""
        with translated(self._client):
            pipeline = self._client.pipeline(transaction=False)
            for one in supervisors:
                mail = self._keys.mail(one.sid)
                pipeline.rpush(mail, "look").ltrim(mail, -100, -1).pexpire(
                    mail, LOOK_TTL_MS
                )
            pipeline.execute()

    def _wake(self) -> None:
        """Those that wait look again at once."""
        with translated(self._client):
            self._client.pipeline(transaction=False).lpush(self._keys.wake, 1).ltrim(
                self._keys.wake, 0, 0
            ).execute()
