"""The Lua scripts of a queue, loaded from ``lua/`` and run in Redis.

The text of ``shared.lua`` is prepended to each script. A script is loaded when Redis
does not know it, and is then called by its digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis

from dlpool.errors import QueueAway, QueueError, QueueRefused, QueueUnusable
from dlpool.jobs.connection import cluster_of, translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.outbox import Outbox
from dlpool.jobs.redis_values import to_text
from dlpool.kinds import DAY_S

SCRIPTS = (
    "push",
    "claim",
    "heartbeat",
    "finish",
    "recover",
    "requeue_jobs",
    "admin",
    "requeue_failure",
    "hold_host",
    "host_slot",
    "oldest_waiting",
    "waiting_hosts",
    "take_turn",
    "add_sample",
)


@cache
def _source(name: str) -> str:
    folder = resources.files("dlpool.jobs") / "lua"
    return (folder / "shared.lua").read_text("utf-8") + (
        folder / f"{name}.lua"
    ).read_text("utf-8")


class LuaScripts:
    """The scripts of one queue. Thread-safe if the client is. Methods raise QueueError.

    ``outbox``: the place where ``finish`` puts the records for clients in a Cluster.
    Without a Cluster it is None, and ``finish`` writes the records where clients read
    them.
    """

    def __init__(
        self,
        client: redis.Redis,
        keys: QueueKeys,
        timed: Callable[[str, float], None] = lambda _name, _seconds: None,
    ) -> None:
        """Prepare the scripts without loading them.

        ``timed`` is called after each successful round trip of a script, with the
        script's name and the duration in seconds.
        """
        self.client = client
        self.keys = keys
        self._timed = timed
        cluster = cluster_of(client)
        self.outbox = Outbox(client, keys, cluster) if cluster else None
        self._scripts = {
            name: client.register_script(_source(name)) for name in SCRIPTS
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.keys.intake}>"

    def check_keys(self, cause: QueueError | None = None) -> None:
        """Raise QueueUnusable if a key of the queue has a wrong type: another program
        has written the key. ``cause``: the cause of the exception."""
        types = self.keys.key_types(int(time.time() // DAY_S))
        with translated(self.client):
            pipeline = self.client.pipeline(transaction=False)
            for key in types:
                pipeline.type(key)
            found = [to_text(kind) for kind in pipeline.execute()]
        for (key, wanted), kind in zip(types.items(), found, strict=True):
            if kind not in (wanted, "none"):
                raise unusable_error(
                    f"its key {key} is a {kind}, not a {wanted}"
                ) from cause

    def run_script(
        self,
        name: str,
        calls: Sequence[tuple[list[str], Sequence[Any]]],
        client: Any = None,
    ) -> list[Any]:
        """Run a script once for each of ``calls`` (keys and arguments) in one round
        trip. Load the script if necessary.

        ``client``: client of the Cluster node that has these keys; None for the queue's
        own client.
        """
        script, client = self._scripts[name], client or self.client
        began = time.monotonic()
        try:
            with translated(client):
                try:
                    replies = _evaluate(client, script.sha, calls)
                except redis.exceptions.NoScriptError:
                    client.script_load(script.script)
                    replies = _evaluate(client, script.sha, calls)
        except (QueueAway, QueueRefused):
            raise
        except QueueError as error:
            self.check_keys(error)
            raise
        self._timed(name, time.monotonic() - began)
        return replies

    def _run(self, name: str, arguments: Sequence[Any]) -> Any:
        return self.run_script(name, [([self.keys.intake], arguments)])[0]


def unusable_error(reason: str) -> QueueUnusable:
    """Return the error for a key that another program has written."""
    return QueueUnusable(
        f"Redis cannot be used: {reason}: another program wrote it; rename or delete it"
    )


def _evaluate(
    client: Any, sha: str, calls: Sequence[tuple[list[str], Sequence[Any]]]
) -> list[Any]:
    if len(calls) == 1:
        keys, arguments = calls[0]
        return [client.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)]
    pipeline = client.pipeline(transaction=False)
    for keys, arguments in calls:
        pipeline.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)
    return list(pipeline.execute())
